"""The base class of fastrnn's modules for PyTorch: checks arguments, packs weights and calls the operators."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import PackedSequence

from fastrnn.cells import Cell
from fastrnn.checks import Layout, extras
from fastrnn.torch import exporting, ops, per_sample
from fastrnn.torch.compiler import let_in
from fastrnn.torch.per_sample import ExpandedWeight
from fastrnn.torch.stack import TORCH_FUNCTIONS, Given, Setting, Stack, conjugate, packed

Tensors = Sequence[Tensor]

DTYPES = (torch.float32, torch.float64)


class DtypeError(TypeError, ValueError, RuntimeError):
    """Raised for a wrong dtype or device, or a non-tensor, where `torch.nn` raises ValueError or RuntimeError."""


class ShapeError(ValueError, RuntimeError):
    """Raised for a wrong shape, where `torch.nn` raises RuntimeError."""


def refusal(what: str, tensor: Tensor) -> str:
    """Why fastrnn does not support a tensor, and what to do; "" if it does."""
    if not dense(tensor):
        if tensor.is_nested:
            return f"{what}: expected a dense tensor, got a nested one; for unequal lengths use pack_sequence"
        return f"{what}: expected a dense tensor, got layout {tensor.layout}; convert it with .to_dense()"
    if tensor.is_meta:
        return (
            f"{what}: expected a tensor on the CPU, got device meta, where there are no values; give a module memory "
            'with .to_empty(device="cpu"), then load its weights'
        )
    if not tensor.is_cpu:
        return f'{what}: expected a tensor on the CPU, got device {tensor.device}; move it with .to("cpu")'
    if tensor.dtype not in DTYPES:
        return (
            f"{what}: expected torch.float32 or torch.float64, got {tensor.dtype}; convert with .float(), "
            "also under torch.autocast"
        )
    return ""


def dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_nested


def untraced(function: Any) -> Any:
    """Disable compiling, which would specialise on each batch's sizes, without importing the compiler."""
    function._torchdynamo_disable = True
    return function


@untraced
def lengths_of(input: PackedSequence, I: int) -> Any:
    """Check a PackedSequence, which PyTorch does not, and return its descending lengths."""
    data, batch_sizes, into, back = input
    if not isinstance(data, Tensor):
        raise TypeError(f"data: expected a tensor, got {type(data).__name__}")
    if why := refusal("data", data):
        raise DtypeError(why)
    if data.dim() != 2 or data.shape[1] != I:
        raise ShapeError(f"input: expected data of shape (N, {I}), got {tuple(data.shape)}")
    sizes = integers("batch_sizes", batch_sizes)
    if not sizes or sizes[-1] < 1 or sum(sizes) != len(data) or sorted(sizes, reverse=True) != sizes:
        wanted = f"positive numbers that never increase, with the sum {len(data)}, the rows of data"
        raise ValueError(f"batch_sizes: expected {wanted}, got {sizes!s:.80}")
    every = list(range(sizes[0]))
    orders = {"sorted_indices": into, "unsorted_indices": back}
    given = {name: integers(name, order) for name, order in orders.items() if order is not None}
    for name, order in given.items():
        if sorted(order) != every:
            raise ValueError(f"{name}: expected each of 0 to {every[-1]} once, got {order!s:.80}")
    there, again = given.values() if len(given) == 2 else (every, every)
    if [there[i] for i in again] != every:
        raise ValueError(f"unsorted_indices: expected the inverse of sorted_indices, got {again!s:.80}")
    return conjugate(batch_sizes, sizes[0])


@untraced
def integers(name: str, tensor: Any) -> list[int]:
    """The values of an int64 vector."""
    if not isinstance(tensor, Tensor) or not tensor.is_cpu or tensor.dtype != torch.int64 or tensor.dim() != 1:
        described = isinstance(tensor, Tensor) and f"{tensor.dtype} of shape {tuple(tensor.shape)} on {tensor.device}"
        wanted = "a 1-D tensor of torch.int64 on the CPU"
        raise TypeError(f"{name}: expected {wanted}, got {described or type(tensor).__name__}")
    return tensor.tolist()


def enter(module: Any) -> None:
    """Prepare a module that has just become one of fastrnn's."""
    vars(module).pop("_flat_weight_refs", None)
    module.__module__ = nn.__name__  # read by torch.fx, which then records a call as one node
    module.flatten_parameters()


def leave(module: Any, plain: type[nn.RNNBase]) -> None:
    """Turn a module back into one of `torch.nn`'s."""
    for own in ("_made", "reset_after", "__module__"):
        vars(module).pop(own, None)
    module.__class__ = plain
    module._init_flat_weights()


class Base(nn.RNNBase):
    """The base class of all modules; a `torch.nn` module works once its class becomes one of these."""

    _made: ops.Made | None = None

    def __init__(self, mode: str, input_size: int, hidden_size: int, num_layers: int, **options: Any) -> None:
        nn.RNNBase.__init__(self, mode, input_size, hidden_size, num_layers, **options)  # skips that of nn.LSTM
        enter(self)
        weight: Any = self._parameters["weight_hh_l0"]
        if not weight.is_meta and (why := refusal("device and dtype", weight)):  # meta: memory is allocated later
            raise DtypeError(why)

    @property
    def _cell(self) -> Cell:
        raise NotImplementedError

    def forward(self, input: Any, hx: Any = None, *, resets: Any = None, e: Any = None) -> tuple[Any, Any]:
        """Run over time, like the module of `torch.nn`.

        Parameters
        ----------
        input : (T, B, I) tensor, (B, T, I) with ``batch_first``, (T, I) for one sequence, or a PackedSequence
            Inputs, of the weights' dtype.
        hx : (L*D, B, H) tensor, or for an LSTM a pair of them, optional
            Initial h, or (h, c), of L layers in D directions; (L*D, H) for one sequence; zeros by default. With
            ``proj_size`` P, h has P units, here and in the result.
        resets : (T, B) bool tensor, (B, T) with ``batch_first``, (T,) for one sequence, optional
            Reset the state to zeros before these steps, in the direction of travel; no gradient crosses a reset. With a
            PackedSequence, give them for the sequences as they were before packing, padded to the longest.
        e : dict of tensors, optional
            A cell's extra inputs by name: (T, B, H) or (T, B, 1), laid out like resets, or (B, H) or (B, 1) for all
            steps; without B for one sequence. All layers and directions get the same.

        Returns
        -------
        output : (T, B, D*H) tensor, laid out like input, or a PackedSequence
            The top layer's hidden states.
        hx : (L*D, B, H) tensor, or for an LSTM a pair of them
            The final states.

        Raises
        ------
        TypeError, ValueError
            For a wrong type, dtype, device or shape; the message names the argument. Errors about dtypes and shapes
            are also instances of what `torch.nn` raises: RuntimeError, and for dtypes ValueError.
        """
        states = self._given_states(hx)
        if isinstance(input, PackedSequence):
            if not ops.plain() and torch.onnx.is_in_onnx_export():
                return self._export_packed(input, hx, resets, e)
            return self._forward_packed(input, states, resets, e)
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a tensor or a PackedSequence, got {type(input).__name__}")
        if not dense(input):
            raise DtypeError(refusal("input", input))
        if input.dim() not in (2, 3) or input.shape[-1] != self.input_size:
            layout = "(B, T, I)" if self.batch_first else "(T, B, I)"
            I = self.input_size
            raise ShapeError(f"input: expected shape {layout} or (T, I) with I = {I}, got {tuple(input.shape)}")
        if input.dim() == 3:
            y, *final = self._run(input, states, self.batch_first, resets, e)
        else:
            y, *final = [a.squeeze(1) for a in self._run(input.unsqueeze(1), states, False, resets, e, unbatched=True)]
        return y, tuple(final) if len(final) > 1 else final[0]

    def _export_packed(self, input: PackedSequence, hx: Any, resets: Any, e: Any) -> tuple[Any, Any]:
        """Export through `torch.nn`'s own forward, because PyTorch's exporter supports packing only there."""
        if self._cell.key not in TORCH_FUNCTIONS or not isinstance(self, nn.LSTM | nn.GRU | nn.RNN):
            raise TypeError(f"input: expected a tensor in an export of {self._cell.key} to ONNX, got a PackedSequence")
        exporting.expect_none(resets=resets is not None, e=bool(e))
        module: Any = super()
        found: tuple[Any, Any] = module.forward(input, hx)
        return found

    def _forward_packed(
        self, input: PackedSequence, states: list[Tensor], resets: Any, e: Any
    ) -> tuple[PackedSequence, Any]:
        """Sequences are sorted by descending length; states are in the caller's order."""
        lengths = lengths_of(input, self.input_size)
        data, batch_sizes, into, back = input
        y, *final = self._run(data, states, False, resets, e, lengths, batch_sizes, into)
        if back is not None:
            final = [s.index_select(1, back) for s in final]
        return PackedSequence(y, batch_sizes, into, back), tuple(final) if len(final) > 1 else final[0]

    def _run(
        self,
        x: Tensor,
        states: list[Tensor],
        batch_first: bool,
        resets: Any,
        e: Any,
        lengths: Tensor | None = None,
        batch_sizes: Tensor | None = None,
        into: Tensor | None = None,
        unbatched: bool = False,
    ) -> Tensors:
        """Return y and each final state; with lengths, x is a PackedSequence's data and `into` its sorted_indices."""
        cell = self._cell
        setting = Setting(cell.key, self.bias, self.bidirectional, batch_first, self.proj_size > 0)
        weights = self._weights()
        expanded = None
        if ExpandedWeight in map(type, weights):
            expanded, weights = weights, per_sample.unpacked(weights)
        T = B = 0
        if lengths is not None and batch_sizes is not None:
            T, B = batch_sizes.shape[0], lengths.shape[0]
        elif states or resets is not None or cell.inputs:  # nothing else has those axes
            T, B = (x.shape[1], x.shape[0]) if batch_first else (x.shape[0], x.shape[1])
        on_cpu = self._check(x, states, weights, B, unbatched)
        if into is not None:
            states = [s.index_select(1, into) for s in states]
        inputs: list[Tensor] = []
        if resets is not None or e is not None or cell.inputs:
            if resets is not None:
                resets = self._checked_resets(resets, T, B, unbatched)
            inputs = self._checked_inputs(e, x.dtype, T, B, unbatched)
            if into is not None:
                resets = None if resets is None else resets.index_select(1, into)
                inputs = [a.index_select(1, into) for a in inputs]
            inputs = [a.expand(T, B, a.shape[2]) for a in inputs]
            if batch_sizes is not None:
                resets = None if resets is None else packed(resets, batch_sizes)
                inputs = [packed(a, batch_sizes) for a in inputs]
            inputs = [a.expand(*a.shape[:-1], self.hidden_size) for a in inputs]
        if unbatched:
            states = [s.unsqueeze(1) for s in states]
        masks = self._masks(x, batch_first) if self.training and self.dropout else []
        given = Given(x, states, weights, lengths, resets, masks, inputs)
        if expanded is not None:
            return per_sample.run(setting, given, expanded, into)
        grad = torch.is_grad_enabled()
        if type(x) is not Tensor or not on_cpu or not ops.plain():
            return ops.watched(setting, given, grad)
        if grad and any([a.requires_grad for a in (x, *weights, *states, *inputs)]):
            found: Tensors = ops.differentiable(setting, self._stack(setting, weights), given, *given.flat)
            return found
        if masks:
            return self._stack(setting, weights).train(given)[0]
        return self._stack(setting, weights, packed=True).infer(given)

    def _weights(self) -> list[Any]:
        """Every parameter in PyTorch's order, also where something else put a plain tensor in its place."""
        own, names = self._parameters, self._flat_weights_names
        if all([name in own for name in names]):
            return [own[name] for name in names]
        return [getattr(self, name) for name in names]

    def _check(self, x: Tensor, states: list[Tensor], weights: list[Tensor], B: int, unbatched: bool) -> bool:
        """Whether there is memory: tensors on "meta" have only shapes."""
        dtype, on_cpu = x.dtype, x.is_cpu
        if on_cpu and dtype in DTYPES:
            for weight in weights:
                if weight.dtype != dtype or not weight.is_cpu:
                    why = f"input: expected dtype {weight.dtype}, the weights', got {dtype}; convert it with .to()"
                    raise DtypeError(refusal("weights", weight) or why)
        elif not x.is_meta or any(not a.is_meta or a.dtype != dtype for a in (*weights, *states)):
            raise DtypeError(refusal("input", x))
        if not states:
            return on_cpu
        batch = () if unbatched else (B,)
        calls, width = self.num_layers * (1 + self.bidirectional), self.proj_size or self.hidden_size
        for s in states:
            if s.dtype != dtype or s.is_cpu != on_cpu or not dense(s):
                raise DtypeError(refusal("hx", s) or f"hx: expected dtype {dtype}, the input's, got {s.dtype}")
            if s.shape != (calls, *batch, width):
                raise ShapeError(f"hx: expected shape {(calls, *batch, width)}, got {tuple(s.shape)}")
            width = self.hidden_size  # of all but the first
        return on_cpu

    def _checked_resets(self, resets: Any, T: int, B: int, unbatched: bool) -> Tensor:
        """Return resets as (T, B), with the batch in the caller's order."""
        if isinstance(resets, Tensor) and not dense(resets):
            raise DtypeError(refusal("resets", resets))
        if not isinstance(resets, Tensor) or resets.dtype != torch.bool or not resets.is_cpu:
            got = f"{resets.dtype} on {resets.device}" if isinstance(resets, Tensor) else type(resets).__name__
            raise TypeError(f"resets: expected a tensor of torch.bool on the CPU, got {got}")
        meaning, shape = Layout(unbatched, self.batch_first).every_step(T, B)
        if resets.shape != shape:
            raise ValueError(f"resets: expected shape {meaning} = {shape}, got {tuple(resets.shape)}")
        return resets.unsqueeze(1) if unbatched else resets.t() if self.batch_first else resets

    def _checked_inputs(self, e: Any, dtype: torch.dtype, T: int, B: int, unbatched: bool) -> list[Tensor]:
        """Return the inputs as (T, B, H), with size 1 for constant axes and the batch in the caller's order."""
        e, found = extras("e", e, self._cell.inputs), []
        shapes = Layout(unbatched, self.batch_first).input_shapes(T, B, self.hidden_size)
        for name in self._cell.inputs:
            a = e[name]
            if not isinstance(a, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {type(a).__name__}")
            if a.dtype != dtype or not a.is_cpu or not dense(a):
                raise TypeError(refusal(name, a) or f"{name}: expected dtype {dtype}, the input's, got {a.dtype}")
            if a.shape not in shapes:
                expected = ", ".join(map(str, shapes))
                got = f"{tuple(a.shape)}, for cell {self._cell.name}"
                raise ValueError(f"{name}: expected one of the shapes {expected}, got {got}")
            whole = a.unsqueeze(-2) if unbatched else a.transpose(0, 1) if self.batch_first and a.dim() == 3 else a
            found.append(whole if whole.dim() == 3 else whole.unsqueeze(0))
        return found

    def _given_states(self, hx: Any) -> list[Tensor]:
        if hx is None:
            return []
        states = len(self._cell.states)
        given = [hx] if states == 1 else list(hx) if isinstance(hx, tuple | list) else []
        if len(given) != states or not all([isinstance(s, Tensor) for s in given]):
            expected = "a tensor" if states == 1 else f"a tuple of {states} tensors"
            number = f" of {len(hx)}" if isinstance(hx, tuple | list) else ""
            raise DtypeError(f"hx: expected {expected}, got {type(hx).__name__}{number}")
        return given

    def _masks(self, x: Tensor, batch_first: bool) -> list[Tensor]:
        """Dropout masks of the outputs of each layer but the last, time-major, drawn as torch.nn draws them."""
        steps = x.shape[1::-1] if batch_first else x.shape[:-1]
        ones = x.new_ones((*steps, (self.proj_size or self.hidden_size) * (1 + self.bidirectional)))
        return [dropout(ones, self.dropout) for _ in range(self.num_layers - 1)]

    def _stack(self, setting: Setting, weights: list[Tensor], packed: bool = False) -> Stack:
        made = self.__dict__["_made"] = ops.made(self._made, setting, weights, packed=packed)
        return made.stack

    @property
    def _flat_weight_refs(self) -> list[Any]:
        """Weak references to parameters; fastrnn has none, because tensors with weak references cannot be swapped."""
        return [None] * len(self._flat_weights_names)

    @_flat_weight_refs.setter
    def _flat_weight_refs(self, refs: Any) -> None:
        pass

    @property
    def qconfig(self) -> Any:
        """Set by PyTorch's quantizers on every module, including those that they do not quantize."""
        if "qconfig" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no qconfig")
        return vars(self)["qconfig"]

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        vars(self)["qconfig"] = value
        warnings.warn(
            f"fastrnn.torch.{type(self).__name__} stays in float: PyTorch's quantizers support only the exact classes "
            "of torch.nn; call fastrnn.torch.restore(model) first to quantize it",
            stacklevel=4,
        )

    @qconfig.deleter
    def qconfig(self) -> None:
        del vars(self)["qconfig"]

    def __prepare_scriptable__(self) -> Any:
        raise RuntimeError(
            f"torch.jit.script: it cannot compile fastrnn.torch.{type(self).__name__}; use torch.jit.trace or "
            "torch.export, or call fastrnn.torch.restore(model) first, for PyTorch's layers with the same parameters"
        )

    def flatten_parameters(self) -> None:
        """Discard the packed weights; the name is PyTorch's.

        Inference packs changed parameters again by itself: it detects changes that PyTorch counts, and compares
        parameters of up to 8 KB in full and sixteen elements of each larger one, which detects any update of all
        weights. Call this, ``train()`` or ``eval()`` after a write to a few elements of a large parameter that PyTorch
        does not count (``parameter.data``, NumPy, another process).
        """
        self.__dict__.pop("_made", None)

    def train(self, mode: bool = True) -> Any:
        """Like `torch.nn.Module.train`; also discards the packed weights."""
        self.flatten_parameters()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.pop("_made", None)
        return state


let_in(Base)


def cell_of(module: Base) -> str:
    """The registry's key of a module's cell."""
    return module._cell.key
