"""What all layers have in common: a forward, its backward, and weights under names."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from fastrnn.cells import Array
from fastrnn.checks import as_array, boolean, expect_dtype, expect_mapping, expect_names, expect_shape, floats, size
from fastrnn.layers.pool import Pool
from fastrnn.layers.stream import Stream
from fastrnn.one_step import Form, OneStep, flattened
from fastrnn.unchanged import expect_unchanged, glance

Shape = tuple[int | None, ...]


def checked_shape(shape: Any) -> Shape:
    if not isinstance(shape, tuple | list):
        raise TypeError(f"shape: expected a tuple of int or None, got {shape!r:.80}")
    return tuple(shape)


class Output(NamedTuple):
    """What a layer's forward returns."""

    y: Any  #: what the next layer reads; a pair from two directions with ``merge=None``
    state: Any  #: the final recurrent state, as the layer's call gives it; None for a layer without one
    cache: Any  #: what backward needs; None unless training


class Back(NamedTuple):
    """What a layer's backward returns: gradients of a scalar, shaped and typed like what they belong to."""

    dx: Array | None  #: None where the input has no gradient, as the integers of an `Embedding`
    dstate: Any  #: of the initial state; None where none was given
    #: of the parameters, under the names of `Layer.parameters`; of a table that is `sparse` a `RowGradient`
    grads: dict[str, Any]


class BackOfInputs(Back):
    """What the backward of a layer returns whose cell has extra inputs: three fields likewise, and an attribute."""

    de: dict[str, Array]  #: of the extra inputs, by their names


@dataclass(frozen=True, slots=True, repr=False)
class Cache:
    """What a layer's training forward keeps for its backward: opaque, and of use to that layer alone.

    It refers to x, to the parameters and, of a function, to y without a copy: leave them unchanged until the backward
    is done. It looks at some of their elements, and refuses (ValueError) if those are others.
    """

    layer: Layer
    kept: Any

    def __repr__(self) -> str:
        return f"<Cache of {self.layer!r}>"


class Layer:
    """A piece of a network: x in, y out, and the gradients back. Subclasses say what they compute.

    Nothing is kept in the layer from a forward to its backward, so that one layer serves several threads.
    """

    #: whether the layer takes and returns (B, T, ...) in place of (T, B, ...)
    batch_first: bool = False

    #: the extra inputs that its forward has to be given as ``e``, a dict; without any it has no such argument
    inputs: tuple[str, ...] = ()

    #: whether `Sequential.fit` changes the parameters; False freezes the layer, and may be set and unset at any time
    trainable: bool = True

    def forward(
        self,
        x: Any,
        *,
        state: Any = None,
        lengths: Any = None,
        training: bool = False,
        rng: Any = None,
        threads: int | None = None,
    ) -> Output:
        """Compute y, and with ``training=True`` keep what `backward` needs; every layer takes the same keywords.

        Parameters
        ----------
        x : array
            The input.
        state, lengths, threads
            The initial state, each sequence's valid steps and the number of threads, for recurrent layers; what works
            on every step alone has no state (ValueError) and no use for lengths; of those, `Dense` runs on threads.
        training : bool
            Keep a cache, and drop out what is to be dropped out.
        rng : int or numpy.random.Generator, optional
            For dropout.

        Returns
        -------
        Output
            ``y``, ``state`` and ``cache``.
        """
        raise NotImplementedError

    def backward(self, dy: Any, cache: Any, *, dstate: Any = None) -> Back:
        """Backpropagate what `forward` did with ``training=True``, as often as you like.

        Parameters
        ----------
        dy : array shaped like y
            Gradient of a scalar with respect to y.
        cache : Cache
            Of this layer's own forward. What it refers to, x and the parameters, must be as it was then.
        dstate : shaped like the final state, optional
            Gradient with respect to the final state, for recurrent layers.

        Returns
        -------
        Back
            ``dx``, ``dstate`` and ``grads``.
        """
        raise NotImplementedError

    def __call__(self, x: Any) -> Any:
        """y alone, for inference; a recurrent layer returns its final state too."""
        return self.forward(x).y

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of y for an x of this shape, time-major both, None standing for any size.

        Parameters
        ----------
        shape : tuple of int or None

        Returns
        -------
        tuple of int or None

        Raises
        ------
        TypeError, ValueError
            For what is no shape, and if the layer cannot take such an x.
        """
        return checked_shape(shape)

    def stream(self, batch_size: int = 1, *, threads: int | None = None) -> Stream:
        """One step at a time, the state kept inside; see `Stream`.

        Parameters
        ----------
        batch_size : int
            B, sequences side by side.
        threads : int, optional
            At most this many; `get_num_threads()` when absent.

        Returns
        -------
        Stream

        Raises
        ------
        TypeError
            For what is no integer.
        ValueError
            For less than 1, and for a layer without steps: a bidirectional one must see a sequence's end first.
        """
        B, (step, form) = size("batch_size", batch_size), self._step()
        flat = functools.partial(flattened, form) if isinstance(form, list) else lambda state: state
        return Stream(*step.stepper(B, threads, flat), B, form)

    def pool(self, capacity: int, *, threads: int | None = None) -> Pool:
        """Many sequences, of which any take a step together; see `Pool`.

        Parameters
        ----------
        capacity : int
            Sessions that can be open at a time.
        threads : int, optional
            As for `stream`.

        Returns
        -------
        Pool

        Raises
        ------
        TypeError, ValueError
            As `stream`.
        """
        n, (step, form) = size("capacity", capacity), self._step()
        return Pool(*step.sessions(n, threads), n, form)

    def _step(self) -> tuple[OneStep, Form]:
        step = OneStep()
        return step, add_steps(self, step)

    def add_steps(self, step: OneStep) -> Form:
        """Add what one step of this layer runs: for `stream` and `pool`.

        Parameters
        ----------
        step : OneStep

        Returns
        -------
        tuple of str, list or None
            The names of a recurrent layer's states, None of one without; of layers, a list with that of each.

        Raises
        ------
        ValueError
            For a layer that has no steps.
        """
        raise ValueError(
            f"stream: {type(self).__name__} has no steps, nor for a pool; expected recurrent layers of one direction, "
            "Dense, Embedding, Dropout and Activation; call the layer on whole sequences"
        )

    def parameters(self) -> dict[str, Array]:
        """The parameters themselves by name, PyTorch's where it has any; after changing one in place call `changed`."""
        return {}

    def trainable_parameters(self) -> dict[str, Array]:
        """The parameters that `Sequential.fit` changes: all, or none of a layer whose ``trainable`` is False."""
        boolean("trainable", self.trainable)
        return self.parameters() if self.trainable else {}

    def changed(self) -> None:
        """Forget what was derived from the parameters: they were changed in place."""

    def state_dict(self) -> dict[str, Array]:
        """Copies of all parameters by name."""
        return {name: value.copy() for name, value in self.parameters().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take all parameters from a mapping like that of `state_dict`, PyTorch's own included.

        Parameters
        ----------
        state : mapping of names to arrays
            Of the parameters' shapes and dtypes.

        Raises
        ------
        KeyError
            For a name that is missing or that the layer does not have.
        TypeError, ValueError
            For a parameter of another dtype or shape. After an error the layer is as it was.
        """
        own = self.parameters()
        expect_mapping("state", state)
        expect_names("state", state, own)
        new = {
            name: floats(name, state[name], "that of the layer", value.shape, value.dtype, "the layer's")
            for name, value in own.items()
        }
        for name, value in own.items():
            value[...] = new[name]
        self.changed()

    def get_weights(self) -> list[Array]:
        """Copies of all parameters, in the order of `parameters`."""
        return list(self.state_dict().values())

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Take all parameters in the order of `parameters`.

        Parameters
        ----------
        weights : list of arrays
            Of the parameters' shapes and dtypes.

        Raises
        ------
        TypeError, ValueError
            For another number of them, or a parameter of another dtype or shape.
        """
        own = self.parameters()
        if not isinstance(weights, list | tuple):
            raise TypeError(f"weights: expected a list of arrays, got {type(weights).__name__}")
        if len(weights) != len(own):
            raise ValueError(f"weights: expected {len(own)} arrays ({', '.join(own)}), got {len(weights)}")
        self.load_state_dict(dict(zip(own, weights, strict=True)))

    def __copy__(self) -> Self:
        """With weights of its own, as a deep copy."""
        return copy.deepcopy(self)

    def _own(self, cache: Any) -> Any:
        """What this layer's forward kept."""
        if not isinstance(cache, Cache):
            raise TypeError(f"cache: expected that of forward(..., training=True), got {cache!r}")
        if cache.layer is not self:
            raise ValueError(f"cache: expected that of this layer's own forward, got {cache!r}")
        return cache.kept


#: Ways to compute y.
FORWARDS = {"__call__", "forward", "_run", "_forward"}


def add_steps(layer: Layer, step: OneStep) -> Form:
    """`layer.add_steps`; a subclass of a user's that computes something else by its own forward has no steps."""
    lowest = next(kind for kind in type(layer).__mro__ if vars(kind).keys() & (FORWARDS | {"add_steps"}))
    return layer.add_steps(step) if "add_steps" in vars(lowest) else Layer.add_steps(layer, step)


class Stateless(Layer):
    """A layer without a recurrent state: subclasses compute y and the way back.

    What is kept for that goes from the one to the other by name, and must be the same when it gets there.
    """

    def _forward(self, x: Any, training: bool, rng: Any) -> tuple[Array, dict[str, Array]]:
        raise NotImplementedError

    def _run(self, x: Any, training: bool, rng: Any, threads: int | None) -> tuple[Array, dict[str, Array]]:
        """`_forward`; what runs on threads has this instead."""
        return self._forward(x, training, rng)

    def _backward(self, dy: Array, kept: dict[str, Array]) -> tuple[Array | None, dict[str, Any]]:
        raise NotImplementedError

    def forward(
        self,
        x: Any,
        *,
        state: Any = None,
        lengths: Any = None,
        training: bool = False,
        rng: Any = None,
        threads: int | None = None,
    ) -> Output:
        boolean("training", training)
        if state is not None:
            raise ValueError(f"state: {type(self).__name__} has no state, so expected None, got {type(state).__name__}")
        y, kept = self._run(x, training, rng, threads)
        return Output(y, None, Cache(self, (y.shape, y.dtype, kept, glance(kept))) if training else None)

    def backward(self, dy: Any, cache: Any, *, dstate: Any = None) -> Back:
        if dstate is not None:
            raise ValueError(f"dstate: {type(self).__name__} has no state, so expected None")
        shape, dtype, kept, seen = self._own(cache)
        expect_unchanged(seen, kept)
        dy = expect_dtype("dy", as_array("dy", dy), dtype, "that of y")
        dx, grads = self._backward(expect_shape("dy", dy, "that of y", shape), kept)
        return Back(dx, None, grads)

    forward.__doc__, backward.__doc__ = Layer.forward.__doc__, Layer.backward.__doc__
