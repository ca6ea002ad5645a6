"""Keras 3 layers on fastrnn, for Keras' torch backend: `SimpleRNN`, `GRU` and `LSTM`.

They are Keras' own layers, weights, options, masks, states and all, whose loop over time is fastrnn's kernels. What the
kernels do not have is refused by name when the layer is made: recurrent_dropout, other activations than the default
ones (a SimpleRNN's may be tanh, relu, sigmoid or linear), and use_cudnn=True. ``unroll`` and ``implementation`` change
nothing. Under a policy of half precision the kernels compute in float32. There is no gradient of a gradient.

Set ``KERAS_BACKEND=torch`` before Keras is imported; on its other backends these layers do not exist, and
`fastrnn.from_keras` takes the weights instead. ``pip install 'fastrnn[keras]'`` brings both, Keras and PyTorch.

Examples
--------
>>> import numpy as np, keras, fastrnn.keras
>>> model = keras.Sequential([keras.layers.Masking(), keras.layers.Bidirectional(fastrnn.keras.LSTM(8))])
>>> model.predict(np.ones((2, 5, 3), np.float32), verbose=0).shape
(2, 16)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from fastrnn.convert.gates import GATES
from fastrnn.functional import gru_backward, gru_forward, lstm_backward, lstm_forward, rnn_backward, rnn_forward

try:
    keras: Any = importlib.import_module("keras")
    torch: Any = importlib.import_module("torch")
except ModuleNotFoundError as error:  # Keras without its backend is one as well
    missing = f"fastrnn.keras needs Keras 3 on PyTorch: there is no {str(error.name).partition('.')[0]}"
    raise ImportError(f"{missing}; pip install 'fastrnn[keras]', and set KERAS_BACKEND=torch") from error
if keras.backend.backend() != "torch":
    raise ImportError(f"fastrnn.keras needs KERAS_BACKEND=torch, got {keras.backend.backend()!r}")

__all__ = ["GRU", "LSTM", "SimpleRNN"]

#: Keras' activations that a SimpleRNN's cell of ours has.
ACTIVATIONS = {"tanh": "tanh", "relu": "relu", "sigmoid": "sigmoid", "linear": "identity"}

_Function: Any = torch.autograd.Function
_SimpleRNN: Any = keras.layers.SimpleRNN
_GRU: Any = keras.layers.GRU
_LSTM: Any = keras.layers.LSTM
_registered: Any = keras.saving.register_keras_serializable(package="fastrnn")


class Weights(NamedTuple):
    """In fastrnn's layout and order of gates, as torch tensors."""

    W: Any
    U: Any
    b: Any
    b_rec: Any = None


class Recurrence(_Function):  # type: ignore[misc]  # Any: torch need not be installed where types are checked
    """A forward and its backward between torch tensors, without a copy."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Any], back: Callable[..., Any], gradients: bool, *given: Any
    ) -> tuple[Any, ...]:
        """y (B, T, H) and the final states, from x (B, T, I), lengths, the weights and the initial states."""
        ctx.save_for_backward(*given)  # what the cache refers to: autograd sees to it that it was not changed
        x, lengths, W, U, b, b_rec, *init = (None if a is None else a.detach().numpy() for a in given)
        states = dict(zip(("h0", "c0"), init, strict=False))
        training = gradients and any(ctx.needs_input_grad)
        result = run(x, W, U, b, b_rec, **states, lengths=lengths, batch_first=True, training=training)
        ctx.back, ctx.cache = back, result.cache
        return tuple(torch.from_numpy(a) for a in result[: 1 + len(init)])

    @staticmethod
    def backward(ctx: Any, *dresults: Any) -> tuple[Any, ...]:
        return None, None, None, *Gradients.apply(ctx.back, ctx.cache, len(dresults), *dresults, *ctx.saved_tensors)


class Gradients(_Function):  # type: ignore[misc]
    """The backward, as a function that has none: autograd would else take its results for constants."""

    @staticmethod
    def forward(ctx: Any, back: Callable[..., Any], cache: Any, n: int, *tensors: Any) -> tuple[Any, ...]:
        """Gradients of what `Recurrence` was given, from those of its n results; the rest of the tensors is that."""
        dy, *dfinal = (d.detach().numpy() for d in tensors[:n])
        final = {name: np.ascontiguousarray(d) for name, d in zip(("dh_n", "dc_n"), dfinal, strict=False)}
        g = back(dy, cache, **final)
        init = [g.dh0, g.dc0] if len(dfinal) == 2 else [g.dh0]
        gradients = (g.dx, None, g.dW, g.dU, g.db, g.db_rec, *init)
        return tuple(None if d is None else torch.from_numpy(d) for d in gradients)

    @staticmethod
    def backward(ctx: Any, *ddresults: Any) -> Any:
        raise NotImplementedError(
            "double backward: fastrnn has no gradient of a gradient; use Keras' layer where create_graph=True is needed"
        )


class _Kernels:
    """What the three layers share: Keras' `inner_loop`, on fastrnn; they say what runs and with which weights."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        layer: Any = self
        if layer.recurrent_dropout:
            raise ValueError(f"recurrent_dropout: fastrnn has none; expected 0, got {layer.recurrent_dropout}")
        if getattr(layer, "use_cudnn", "auto") is True:
            raise ValueError('use_cudnn: fastrnn runs on the CPU; expected "auto" or False, got True')
        layer.use_cudnn = False  # else a Bidirectional may run both directions on a graphics card itself
        for option, expected in self._activations().items():
            name = keras.activations.serialize(getattr(layer, option))
            if name not in expected:
                raise ValueError(f"{option}: expected {' or '.join(expected)}, got {name!r}")

    def _activations(self) -> dict[str, tuple[str, ...]]:
        return {"activation": ("tanh",), "recurrent_activation": ("sigmoid",)}

    def _recurrence(self) -> tuple[Callable[..., Any], Callable[..., Any], Weights]:
        raise NotImplementedError

    def inner_loop(self, sequences: Any, initial_state: Any, mask: Any, training: bool = False) -> Any:
        """The last output, every output (B, T, H), and the final states, from sequences (B, T, I)."""
        layer: Any = self
        if sequences.device.type == "meta":  # Keras only asks for shapes
            return super().inner_loop(sequences, initial_state, mask, training)  # type: ignore[misc]
        if sequences.device.type != "cpu":
            raise ValueError(f"sequences: fastrnn runs on the CPU, got a tensor on {sequences.device}")
        run, back, weights = self._recurrence()
        mask = mask[0] if isinstance(mask, list | tuple) else mask
        states = list(initial_state) if isinstance(initial_state, list | tuple) else [initial_state]
        states = [s.clone() for s in states] if layer.stateful else states  # Keras writes into its own
        kind = weights.W.dtype if weights.W.dtype == torch.float64 else torch.float32
        weights = Weights(*(None if w is None else w.to(kind) for w in weights))
        x, states = sequences.to(kind), [s.to(kind) for s in states]
        if training and layer.dropout:
            x = x * layer.cell.get_dropout_mask(x[:, 0, :])[:, None]
        if layer.go_backwards:
            x, mask = x.flip(1), None if mask is None else mask.flip(1)
        if mask is None:
            y, *states = Recurrence.apply(run, back, torch.is_grad_enabled(), x, None, *weights, *states)
            last = states[0]
        else:
            y, states = self._masked(run, back, x, mask.bool(), weights, states)
            last = y[:, -1]
        return last, y if layer.return_sequences else last[:, None], states

    def _masked(self, run: Any, back: Any, x: Any, mask: Any, weights: Weights, states: list[Any]) -> tuple[Any, Any]:
        """Valid steps move to the front, and their outputs back; between them Keras repeats the last one, first 0."""
        layer: Any = self
        order = torch.argsort((~mask).int(), dim=1, stable=True)
        x = torch.take_along_dim(x, order[:, :, None], 1)
        y, *states = Recurrence.apply(run, back, torch.is_grad_enabled(), x, mask.sum(1), *weights, *states)
        so_far = mask.cumsum(1)[:, :, None]
        y = torch.take_along_dim(y, (so_far - 1).clamp(min=0), 1) * (so_far > 0)
        return y * mask[:, :, None] if layer.zero_output_for_mask else y, states


@_registered
class SimpleRNN(_Kernels, _SimpleRNN):  # type: ignore[misc]
    """``keras.layers.SimpleRNN`` on fastrnn; activation tanh, relu, sigmoid or linear.

    Examples
    --------
    >>> import fastrnn.keras, numpy as np
    >>> fastrnn.keras.SimpleRNN(4, return_sequences=True)(np.ones((2, 5, 3), np.float32)).shape
    torch.Size([2, 5, 4])
    """

    def _activations(self) -> dict[str, tuple[str, ...]]:
        return {"activation": tuple(ACTIVATIONS)}

    def _recurrence(self) -> tuple[Callable[..., Any], Callable[..., Any], Weights]:
        activation = ACTIVATIONS[keras.activations.serialize(self.activation)]

        def run(*arrays: Any, **options: Any) -> Any:
            return rnn_forward(*arrays, activation=activation, **options)

        kernel, recurrent_kernel, bias = variables(self.cell)
        return run, rnn_backward, Weights(kernel.T, recurrent_kernel.T, bias)


@_registered
class GRU(_Kernels, _GRU):  # type: ignore[misc]
    """``keras.layers.GRU`` on fastrnn, reset after or before; activation tanh, recurrent_activation sigmoid.

    Examples
    --------
    >>> import fastrnn.keras, numpy as np
    >>> gru = fastrnn.keras.GRU(4, reset_after=False)
    >>> gru(np.ones((2, 5, 3), np.float32)).shape, [w.shape for w in gru.get_weights()]
    (torch.Size([2, 4]), [(3, 12), (4, 12), (12,)])
    """

    def _recurrence(self) -> tuple[Callable[..., Any], Callable[..., Any], Weights]:
        reset_after = bool(self.reset_after)

        def run(*arrays: Any, **options: Any) -> Any:
            return gru_forward(*arrays, reset_after=reset_after, **options)

        def reordered(a: Any) -> Any:
            """Along the last axis; by torch, for the gradient."""
            parts = dict(zip(GATES["keras"]["gru"], a.chunk(3, -1), strict=True))
            return torch.cat([parts[gate] for gate in GATES["fastrnn"]["gru"]], -1)

        kernel, recurrent_kernel, bias = variables(self.cell)
        biases = () if bias is None else reordered(bias).unbind() if reset_after else (reordered(bias),)
        return run, gru_backward, Weights(reordered(kernel).T, reordered(recurrent_kernel).T, *(biases or (None,)))


@_registered
class LSTM(_Kernels, _LSTM):  # type: ignore[misc]
    """``keras.layers.LSTM`` on fastrnn; activation tanh, recurrent_activation sigmoid.

    Examples
    --------
    >>> import fastrnn.keras, keras, numpy as np
    >>> x, theirs, ours = np.ones((2, 5, 3), np.float32), keras.layers.LSTM(4), fastrnn.keras.LSTM(4)
    >>> _ = theirs(x), ours(x)
    >>> ours.set_weights(theirs.get_weights())
    >>> np.allclose(ours(x).detach(), theirs(x).detach(), atol=1e-6)
    True
    """

    def _recurrence(self) -> tuple[Callable[..., Any], Callable[..., Any], Weights]:
        kernel, recurrent_kernel, bias = variables(self.cell)
        return lstm_forward, lstm_backward, Weights(kernel.T, recurrent_kernel.T, bias)


def variables(cell: Any) -> tuple[Any, Any, Any]:
    """kernel (I, G*H), recurrent_kernel (H, G*H) and bias, or None, as torch tensors."""
    tensor = keras.ops.convert_to_tensor
    bias = None if cell.bias is None else tensor(cell.bias)
    return tensor(cell.kernel), tensor(cell.recurrent_kernel), bias
