"""Keras 3 layers on fastrnn, for Keras' torch backend: `SimpleRNN`, `GRU` and `LSTM`.

They are Keras' own layers, with the same weights, options, masks and states, but fastrnn's kernels run the loop over
time. Unsupported options raise an error when the layer is created: use_cudnn=True, and activations other than tanh,
relu, sigmoid, hard_sigmoid, linear, softsign, softplus, elu, selu, silu and exponential. Layers with non-default
activations use cells of `fastrnn.catalogue`, which are compiled at their first use (``pip install 'fastrnn[cells]'``),
and so does training with ``recurrent_dropout``; a SimpleRNN's tanh, relu, sigmoid and linear are built in.

Dropout masks are those that Keras' layer with the same seed draws. ``implementation=1``, which ``recurrent_dropout``
implies, uses one mask of the inputs per gate, so ``dropout`` multiplies one copy of the inputs per gate: for a cell of
G gates this takes G times the memory and time. ``implementation`` has no other effect, ``unroll`` has none.
Under a half-precision policy the kernels compute in float32. Gradients of gradients and forward-mode derivatives are
computed from the cell's equations, slowly. Inference packs the weights once, and again after any change that PyTorch
counts or that shows in weights of up to 8 KB or in sixteen elements of larger ones. After writing to a few elements
through NumPy, ``.value.data`` or from another process, call ``layer.set_weights(layer.get_weights())``.

Set ``KERAS_BACKEND=torch`` before importing Keras; these layers do not work on its other backends, where you can
convert the weights with `fastrnn.from_keras`. ``pip install 'fastrnn[keras]'`` installs Keras and PyTorch.

Examples
--------
>>> import numpy as np, keras, fastrnn.keras
>>> model = keras.Sequential([keras.layers.Masking(), keras.layers.Bidirectional(fastrnn.keras.LSTM(8))])
>>> model.predict(np.ones((2, 5, 3), np.float32), verbose=0).shape
(2, 16)
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from fastrnn.cells import Cell
from fastrnn.cells.regularised import masked
from fastrnn.convert.keras_options import OWN
from fastrnn.frameworks import KERAS, KERAS_FUNCTION_OPTIONS, KERAS_FUNCTIONS, keras_activation, keras_cell

try:
    keras: Any = importlib.import_module("keras")
    torch: Any = importlib.import_module("torch")
except ModuleNotFoundError as error:  # also raised by Keras if its backend is missing
    missing = f"fastrnn.keras needs Keras 3 on PyTorch: {str(error.name).partition('.')[0]} is not installed"
    raise ImportError(f"{missing}; pip install 'fastrnn[keras]', and set KERAS_BACKEND=torch") from error
if keras.backend.backend() != "torch":
    raise ImportError(f"fastrnn.keras needs KERAS_BACKEND=torch, got {keras.backend.backend()!r}")

from fastrnn.torch import ops  # PyTorch is installed
from fastrnn.torch.stack import TORCH_FUNCTIONS, Given, Setting, Stack, reordered

__all__ = ["GRU", "LSTM", "SimpleRNN"]

#: Keras' functions that our cells support, with Keras' names for them.
KNOWN: dict[Any, str] = {keras.activations.get(word): word for word in map(keras_activation, KERAS_FUNCTIONS)}

_registered: Any = keras.saving.register_keras_serializable(package="fastrnn")


def as_tensor(a: Any) -> Any:
    """Convert a NumPy array, which `stateless_call` passes on as it is."""
    return keras.ops.convert_to_tensor(a) if isinstance(a, np.ndarray) else a


class _Kernels:
    """Base of the three layers: Keras' `inner_loop` on fastrnn; subclasses define the family of cells."""

    _family: str
    _cell: Cell
    _dropping: Cell  #: the cell that trains with recurrent_dropout: `_cell` with a mask of h per gate
    _drops_all = False  #: whether a rate of 1 drops everything; Keras' GRU and LSTM cells ignore a rate of 1
    _made: ops.Made | None = None

    def __init__(self, units: int, activation: Any = "tanh", *args: Any, **kwargs: Any) -> None:
        super().__init__(units, keras_activation(activation), *args, **kwargs)  # type: ignore[call-arg]
        layer: Any = self
        if getattr(layer, "use_cudnn", "auto") is True:
            raise ValueError('use_cudnn: expected "auto" or False (fastrnn runs on the CPU), got True')
        layer.use_cudnn = False  # otherwise a Bidirectional may itself run both directions on a GPU
        functions = {name: known_as(name, getattr(layer, name)) for name in KERAS_FUNCTION_OPTIONS[self._family]}
        self._cell = keras_cell(self._family, reset_after=bool(getattr(layer, "reset_after", False)), **functions)
        self._dropping = masked(self._cell, tuple([f"mask_{gate}" for gate in self._cell.products]))

    def _reordered(self, a: Any) -> Any:
        """Convert from Keras' gate order to ours along the first axis, in torch so that it is differentiable."""
        theirs, ours = KERAS.gates[self._cell.family], self._cell.gates
        return a if ours == tuple(theirs) else reordered(a, theirs, ours)

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        """Return the last output, all outputs (B, T, H) and the final states, from sequences (B, T, I)."""
        layer: Any = self
        sequences, mask = as_tensor(sequences), as_tensor(mask[0] if isinstance(mask, list | tuple) else mask)
        # Keras only infers shapes, or exports its own loop
        if sequences.device.type == "meta" or self._unknown_to_onnx(mask):
            return super().inner_loop(sequences, initial_state, mask, training)  # type: ignore[misc]
        if sequences.device.type != "cpu":
            raise ValueError(f"sequences: expected a tensor on the CPU, got one on {sequences.device}")
        variables = [keras.ops.convert_to_tensor(v) for v in (layer.cell.kernel, layer.cell.recurrent_kernel)]
        variables += [keras.ops.convert_to_tensor(layer.cell.bias)] if layer.use_bias else []
        given = initial_state if isinstance(initial_state, list | tuple) else [initial_state]
        states = [as_tensor(s) for s in given[: len(self._cell.states)]]
        if len(states) < len(self._cell.states):
            raise ValueError(f"initial_state: expected {len(self._cell.states)} arrays, got {len(states)}")
        B, T, _ = sequences.shape
        of_shape("sequences", sequences, "(B, T, I)", (B, T, variables[0].shape[0]))
        states = [of_shape("initial_state", s, "(B, H)", (B, layer.units)) for s in states]
        mask = None if mask is None else of_shape("mask", mask, "(B, T)", (B, T))
        x, *states = [a.to(kind(variables)) for a in (sequences, *states)]
        if layer.stateful:
            states = [s.clone() for s in states]  # Keras updates its own in place
        e: list[Any] = []
        if training and self._drops(layer.dropout):
            masks = listed(layer.cell.get_dropout_mask(sequences[:, 0, :]))
            x, variables[0] = for_each_gate(x, masks, variables[0])
        if training and self._drops(layer.recurrent_dropout):
            masks = listed(layer.cell.get_recurrent_dropout_mask(states[0]))
            drawn = dict(zip(KERAS.gates[self._family], masks, strict=True))
            e = [drawn[gate].to(x.dtype).expand(x.shape[1], -1, -1) for gate in self._cell.products]
        if layer.go_backwards:
            x, mask = x.flip(1), None if mask is None else mask.flip(1)
        if mask is None:
            y, *states = self._run(x, states, variables, e)
            last = states[0]
        else:
            y, states = self._masked(x, mask.bool(), states, variables, e)
            last = y[:, -1]
        return last, y if layer.return_sequences else last[:, None], states

    def _unknown_to_onnx(self, mask: Any) -> bool:
        """Whether this is an ONNX export that PyTorch has no operator for, so that Keras exports its own loop."""
        if ops.plain() or not torch.onnx.is_in_onnx_export():
            return False
        return mask is not None or self._cell.key not in TORCH_FUNCTIONS

    def _drops(self, rate: float) -> bool:
        """Whether Keras' cell applies a dropout mask at this rate."""
        return 0 < rate < 1 or (rate == 1 and self._drops_all)

    def _masked(self, x: Any, mask: Any, states: list[Any], variables: list[Any], e: list[Any]) -> tuple[Any, Any]:
        """Move valid steps to the front, and their outputs back; masked steps repeat the last output (0 at first)."""
        layer: Any = self
        order = torch.argsort((~mask).int(), dim=1, stable=True)
        x = torch.take_along_dim(x, order[:, :, None], 1)
        y, *states = self._run(x, states, variables, e, mask.sum(1))
        so_far = mask.cumsum(1)[:, :, None]
        y = torch.take_along_dim(y, (so_far - 1).clamp(min=0), 1) * (so_far > 0)
        return y * mask[:, :, None] if layer.zero_output_for_mask else y, states

    def _run(self, x: Any, states: list[Any], variables: list[Any], e: list[Any], lengths: Any = None) -> list[Any]:
        """Return y (B, T, H) and the final states (B, H); e holds the masks of h, (T, B, H), if any."""
        setting = Setting((self._dropping if e else self._cell).key, len(variables) == 3, False, True)
        states, grad = [s[None] for s in states], torch.is_grad_enabled()
        given = Given(x, states, [], lengths, e=e)
        if ops.plain() and not (grad and any(a.requires_grad for a in (x, *states, *variables))):
            made = ops.made(self._made, setting, variables, packed=True, weights=self._weights)
            self.__dict__["_made"] = made  # bypasses Keras' attribute tracking
            y, *final = made.stack.infer(given)
        else:
            given = given._replace(weights=self._weights(variables))
            if ops.plain():
                y, *final = ops.differentiable(setting, Stack(setting, given.weights), given, *given.flat)
            else:
                y, *final = ops.watched(setting, given, grad)
        return [y, *(s[0] for s in final)]

    def _weights(self, variables: list[Any]) -> list[Any]:
        """Return W, U and, if any, both biases in fastrnn's layout."""
        kernel, recurrent_kernel, *bias = (v.to(kind(variables)) for v in variables)
        weights = [self._reordered(kernel.T), self._reordered(recurrent_kernel.T)]
        for b in bias:
            weights += map(self._reordered, b if b.dim() == 2 else (b, torch.zeros_like(b)))
        return weights


def of_shape(name: str, a: Any, meaning: str, shape: tuple[Any, ...]) -> Any:
    """Return an argument with this shape; its batch may be 1, as in Keras' layers."""
    if not hasattr(a, "shape"):
        raise TypeError(f"{name}: expected an array, got {type(a).__name__}")
    got = tuple(a.shape)
    if got not in (shape, (1, *shape[1:])):
        raise ValueError(f"{name}: expected shape {meaning} = {shape}, got {got}")
    return a.expand(shape)


def listed(masks: Any) -> list[Any]:
    """A list of one mask per gate, or one for all."""
    return masks if isinstance(masks, list) else [masks]


def for_each_gate(x: Any, masks: list[Any], kernel: Any) -> tuple[Any, Any]:
    """Return x (B, T, N*I) under each of N masks, and the block-diagonal kernel (N*I, G*H) for it."""
    parts = [x * mask.to(x.dtype)[:, None] for mask in masks]
    return torch.cat(parts, 2), torch.block_diag(*kernel.chunk(len(masks), 1))


def known_as(option: str, function: Any) -> str:
    """Keras' name for one of its own functions; a user's function may have the same name."""
    if function not in KNOWN:
        known = ", ".join(KNOWN.values())
        raise ValueError(f"{option}: expected one of Keras' {known}, got {function!r:.80}; {OWN}")
    return KNOWN[function]


def kind(variables: list[Any]) -> Any:
    """The dtype in which the kernels compute."""
    return torch.float64 if variables[0].dtype == torch.float64 else torch.float32


@_registered
class SimpleRNN(_Kernels, keras.layers.SimpleRNN):  # type: ignore[misc]
    """``keras.layers.SimpleRNN`` on fastrnn; "identity" is an alias of the activation "linear".

    Examples
    --------
    >>> import fastrnn.keras, numpy as np
    >>> fastrnn.keras.SimpleRNN(4, return_sequences=True)(np.ones((2, 5, 3), np.float32)).shape
    torch.Size([2, 5, 4])
    """

    _family = "rnn"
    _drops_all = True


@_registered
class GRU(_Kernels, keras.layers.GRU):  # type: ignore[misc]
    """``keras.layers.GRU`` on fastrnn, with `reset_after` True or False.

    Examples
    --------
    >>> import fastrnn.keras, numpy as np
    >>> gru = fastrnn.keras.GRU(4, reset_after=False)
    >>> gru(np.ones((2, 5, 3), np.float32)).shape, [w.shape for w in gru.get_weights()]
    (torch.Size([2, 4]), [(3, 12), (4, 12), (12,)])
    """

    _family = "gru"


@_registered
class LSTM(_Kernels, keras.layers.LSTM):  # type: ignore[misc]
    """``keras.layers.LSTM`` on fastrnn; `activation` applies to the candidate and the output.

    Examples
    --------
    >>> import fastrnn.keras, keras, numpy as np
    >>> x, theirs, ours = np.ones((2, 5, 3), np.float32), keras.layers.LSTM(4), fastrnn.keras.LSTM(4)
    >>> _ = theirs(x), ours(x)
    >>> ours.set_weights(theirs.get_weights())
    >>> np.allclose(ours(x).detach(), theirs(x).detach(), atol=1e-6)
    True
    """

    _family = "lstm"
