"""Export the recurrence to ONNX through PyTorch's exporters, as the operators LSTM, GRU and RNN."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn.frameworks import ONNX, onnx_attributes
from fastrnn.torch.stack import TORCH_FUNCTIONS, Given, Setting, Tensors, reordered


def to_onnx(setting: Setting, given: Given) -> Tensors:
    """Return y and each final state, in an export."""
    lengths, resets = given.lengths is not None, given.resets is not None
    expect_none(lengths=lengths, resets=resets, dropout=bool(given.masks), e=bool(given.e))
    return by_function(setting, given) if torch._C._get_tracing_state() else by_nodes(setting, given)


def expect_none(**of: bool) -> None:
    for name, there in of.items():
        if there:
            raise ValueError(f"{name}: expected none in an export to ONNX, whose operators do not support it")


def by_function(setting: Setting, given: Given) -> Tensors:
    """Export by tracing (``dynamo=False``), which supports PyTorch's own functions."""
    if setting.cell not in TORCH_FUNCTIONS or setting.projected:
        got = f"{setting.cell}{', with proj_size' * setting.projected}"
        known = ", ".join(TORCH_FUNCTIONS)
        raise ValueError(f"cell: expected one of {known} in an export to ONNX with dynamo=False, got {got}")
    states = _initial(setting, given)
    layers = len(given.weights) // len(setting.keys) // setting.directions
    options = setting.bias, layers, 0.0, False, setting.bidirectional, setting.batch_first
    found: Tensors = TORCH_FUNCTIONS[setting.cell](
        given.x, states if len(states) > 1 else states[0], list(given.weights), *options
    )
    return found


def by_nodes(setting: Setting, given: Given) -> Tensors:
    """Export by the default exporter, which takes ONNX nodes: more cells, variable numbers of steps and sequences."""
    cell, D = setting.recurrence, setting.directions
    if cell.family not in ONNX.classes or setting.projected:
        got = f"{setting.cell}{', with proj_size' * setting.projected}"
        raise ValueError(f"cell: expected an RNN, a GRU or an LSTM in an export to ONNX, got {got}")
    x, weights = given.x.transpose(0, 1) if setting.batch_first else given.x, given.weights
    T, B, H = x.shape[0], x.shape[1], weights[0].shape[0] // cell.G
    parts = setting.parts(weights)
    states, final = _initial(setting, given), []
    shapes = [(T, D, B, H), *[(D, B, H)] * len(cell.states)]
    for first in range(0, len(parts), D):
        own = parts[first : first + D]
        inputs = [x, *_weights(setting, own), None, *[s[first : first + D] for s in states]]
        if cell.parameters:
            inputs.append(torch.stack([reordered(part["p"], cell.parameters, ONNX.peepholes) for part in own]))
        y, *ends = torch.onnx.ops.symbolic_multi_out(
            ONNX.classes[cell.family],
            inputs,
            onnx_attributes(cell, H, D),
            dtypes=[x.dtype] * len(shapes),
            shapes=shapes,
        )
        x = y.squeeze(1) if D == 1 else y.transpose(1, 2).flatten(2)
        final.append(ends)
    ends = [torch.cat(each) for each in zip(*final, strict=True)]
    return [x.transpose(0, 1) if setting.batch_first else x, *ends]


def _initial(setting: Setting, given: Given) -> Tensors:
    """The initial states, zeros by default."""
    return list(given.init) or [given.x.new_zeros(shape) for shape in setting.shapes(given)[1:]]


def _weights(setting: Setting, parts: list[dict[str, Tensor]]) -> list[Tensor | None]:
    """Return W, R and B of a node."""
    gates = setting.recurrence.gates, ONNX.gates[setting.recurrence.family]
    found: list[Tensor | None] = [torch.stack([reordered(part[key], *gates) for part in parts]) for key in ("W", "U")]
    if not setting.bias:
        return [*found, None]
    both = [torch.cat([reordered(part[key], *gates) for key in ("b", "b_rec")]) for part in parts]
    return [*found, torch.stack(both)]
