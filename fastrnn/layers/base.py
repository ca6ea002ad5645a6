"""The base class of all layers: a forward, its backward, and named weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from fastrnn.checks import as_array, boolean, expect_dtype, expect_mapping, expect_names, expect_shape, floats, size
from fastrnn.layers.pool import Pool
from fastrnn.layers.stream import Stream
from fastrnn.one_step import Form, OneStep, flattened
from fastrnn.types import Array
from fastrnn.unchanged import expect_unchanged, fingerprint

Shape = tuple[int | None, ...]


def checked_shape(shape: Any) -> Shape:
    if not isinstance(shape, tuple | list):
        raise TypeError(f"shape: expected a tuple of int or None, got {shape!r:.80}")
    return tuple(shape)


def expect_features(shape: Shape, features: int) -> None:
    if not shape or shape[-1] != features:
        raise ValueError(f"x: expected shape (..., {features}), got {shape}")


class Output(NamedTuple):
    """Result of a layer's forward."""

    y: Any  #: what the next layer reads; a pair from two directions with ``merge=None``
    state: Any  #: the final recurrent state, as a call of the layer returns it; None for a stateless layer
    cache: Any  #: data for backward; None unless training


class Back(NamedTuple):
    """Result of a layer's backward: gradients of a scalar, with the shapes and dtypes of what they belong to."""

    dx: Array | None  #: None if the input has no gradient, like the integers of an `Embedding`
    dstate: Any  #: of the initial state; None if none was given
    #: of the parameters, by the names of `Layer.parameters`; a `RowGradient` for a `sparse` embedding
    grads: dict[str, Any]


class BackOfInputs(Back):
    """Result of backward for a layer whose cell has extra inputs: the fields of `Back` and the attribute `de`."""

    de: dict[str, Array]  #: of the extra inputs, by their names


@dataclass(frozen=True, slots=True, repr=False)
class LayerCache:
    """Opaque data that a layer's training forward saves for that layer's backward.

    It refers to x, the parameters and, for an activation, y without copying them: do not change them before the
    backward, which compares a sample of elements and raises ValueError if any has changed.
    """

    layer: Layer
    kept: Any

    def __repr__(self) -> str:
        return f"<LayerCache of {self.layer!r}>"


class Layer:
    """Base class of layers: y from x, and gradients by backward.

    A layer stores nothing between a forward and its backward, so several threads can use it at once.
    """

    #: whether the layer takes and returns (B, T, ...) in place of (T, B, ...)
    batch_first: bool = False

    #: names of the extra inputs that its forward takes as ``e``, a dict; if empty, there is no such argument
    inputs: tuple[str, ...] = ()

    #: whether `Sequential.fit` changes the parameters; False freezes the layer; can be changed at any time
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
        """Compute y; with ``training=True`` also save what `backward` needs. All layers take the same keywords.

        Parameters
        ----------
        x : array
            The input.
        state, lengths, threads
            Initial state, valid steps of each sequence and number of threads, for recurrent layers. Stateless
            layers reject `state` (ValueError) and ignore `lengths`; of them only `Dense` uses `threads`.
        training : bool
            Return a cache, and apply dropout.
        rng : int or numpy.random.Generator, optional
            For dropout.

        Returns
        -------
        Output
            ``y``, ``state`` and ``cache``.
        """
        raise NotImplementedError

    def backward(self, dy: Any, cache: Any, *, dstate: Any = None) -> Back:
        """Compute the gradients for a `forward` with ``training=True``, any number of times.

        Parameters
        ----------
        dy : array shaped like y
            Gradient of a scalar with respect to y.
        cache : LayerCache
            The cache from this layer's forward. Its x and the parameters must be unchanged since.
        dstate : shaped like the final state, optional
            Gradient with respect to the final state, for recurrent layers.

        Returns
        -------
        Back
            ``dx``, ``dstate`` and ``grads``.
        """
        raise NotImplementedError

    def __call__(self, x: Any) -> Any:
        """Return y, for inference; a recurrent layer also returns its final state."""
        return self.forward(x).y

    def output_shape(self, shape: Shape) -> Shape:
        """Return the shape of y for an x of this shape, both time-major; None is any size.

        Parameters
        ----------
        shape : tuple of int or None

        Returns
        -------
        tuple of int or None

        Raises
        ------
        TypeError, ValueError
            If `shape` is not a shape, or the layer cannot take such an x.
        """
        return checked_shape(shape)

    def stream(self, batch_size: int = 1, *, threads: int | None = None) -> Stream:
        """Return a `Stream`, which runs one step at a time and keeps the state.

        Parameters
        ----------
        batch_size : int
            B, the number of sequences.
        threads : int, optional
            At most this many; `get_num_threads()` when absent.

        Returns
        -------
        Stream

        Raises
        ------
        TypeError
            If an argument is not an integer.
        ValueError
            If an argument is below 1, or the layer cannot run step by step, as a bidirectional one.
        """
        B, (step, form) = size("batch_size", batch_size), self._step()
        flat = functools.partial(flattened, form) if isinstance(form, list) else lambda state: state
        return Stream(*step.stepper(B, threads, flat), B, form)

    def pool(self, capacity: int, *, threads: int | None = None) -> Pool:
        """Return a `Pool` of many sequences, any of which can take a step together.

        Parameters
        ----------
        capacity : int
            Maximum number of open sessions.
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
        """Add this layer's operations for one step, for `stream` and `pool`.

        Parameters
        ----------
        step : OneStep

        Returns
        -------
        tuple of str, list or None
            The names of a recurrent layer's states, None for a stateless layer; a list of these for a model.

        Raises
        ------
        ValueError
            If the layer cannot run step by step.
        """
        raise ValueError(
            f"stream: {type(self).__name__} cannot run step by step, nor in a pool; expected unidirectional recurrent "
            "layers, Dense, Embedding, LayerNormalization, LastStep, Dropout and Activation; call the layer or model "
            "on whole sequences"
        )

    def parameters(self) -> dict[str, Array]:
        """Return the parameters, not copies, by PyTorch's names if any; after changing one in place call `changed`."""
        return {}

    def trainable_parameters(self) -> dict[str, Array]:
        """Return the parameters that `Sequential.fit` changes: all, or none if ``trainable`` is False."""
        boolean("trainable", self.trainable)
        return self.parameters() if self.trainable else {}

    def changed(self) -> None:
        """Discard everything derived from the parameters; call it after changing them in place."""

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all parameters by name."""
        return {name: value.copy() for name, value in self.parameters().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load all parameters from a mapping like that of `state_dict`, or PyTorch's own.

        Parameters
        ----------
        state : mapping of names to arrays
            With the parameters' shapes and dtypes.

        Raises
        ------
        KeyError
            If a name is missing or unknown to the layer.
        TypeError, ValueError
            If a parameter has the wrong dtype or shape. After an error the layer is unchanged.
        """
        own = self.parameters()
        expect_mapping("state", state)
        expect_names("state", state, own)
        new = {
            name: floats(name, state[name], "that of the layer", value.shape, value.dtype, "the layer's")
            for name, value in own.items()
        }
        self._load(new)

    def _load(self, new: Mapping[str, Array]) -> None:
        """Copy these values, which have been checked, into all parameters."""
        for name, value in self.parameters().items():
            value[...] = new[name]
        self.changed()

    def get_weights(self) -> list[Array]:
        """Return copies of all parameters, in the order of `parameters`."""
        return list(self.state_dict().values())

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Set all parameters, in the order of `parameters`.

        Parameters
        ----------
        weights : list of arrays
            With the parameters' shapes and dtypes.

        Raises
        ------
        TypeError, ValueError
            If their number is wrong, or a parameter has the wrong dtype or shape.
        """
        own = self.parameters()
        if not isinstance(weights, list | tuple):
            raise TypeError(f"weights: expected a list of arrays, got {type(weights).__name__}")
        if len(weights) != len(own):
            raise ValueError(f"weights: expected {len(own)} arrays ({', '.join(own)}), got {len(weights)}")
        self.load_state_dict(dict(zip(own, weights, strict=True)))

    def __copy__(self) -> Self:
        """Return a deep copy, with its own weights."""
        return copy.deepcopy(self)

    def _own(self, cache: Any) -> Any:
        """Return the data of this layer's own cache."""
        if not isinstance(cache, LayerCache):
            raise TypeError(f"cache: expected one made by forward(..., training=True), got {cache!r}")
        if cache.layer is not self:
            raise ValueError(f"cache: expected one made by this layer's forward, got {cache!r}")
        return cache.kept


#: Methods that compute y.
FORWARDS = {"__call__", "forward", "_run", "_forward"}


def add_steps(layer: Layer, step: OneStep) -> Form:
    """Call `layer.add_steps`, unless a user's subclass overrides forward and so cannot run step by step."""
    lowest = next(kind for kind in type(layer).__mro__ if vars(kind).keys() & (FORWARDS | {"add_steps"}))
    return layer.add_steps(step) if "add_steps" in vars(lowest) else Layer.add_steps(layer, step)


class Stateless(Layer):
    """A layer without a recurrent state; subclasses implement `_forward` and `_backward`.

    Saved arrays are passed between them by name, and must not change in between.
    """

    def _forward(self, x: Any, training: bool, rng: Any) -> tuple[Array, dict[str, Array]]:
        raise NotImplementedError

    def _read(self, x: Any, lengths: Any) -> Any:
        """Return what `_forward` takes as x; layers that ignore the lengths take x itself."""
        return x

    def _run(self, x: Any, training: bool, rng: Any, threads: int | None) -> tuple[Array, dict[str, Array]]:
        """Call `_forward`; multithreaded layers override this instead."""
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
            raise ValueError(f"state: {type(self).__name__} has no state; expected None, got {type(state).__name__}")
        y, kept = self._run(self._read(x, lengths), training, rng, threads)
        return Output(y, None, LayerCache(self, (y.shape, y.dtype, kept, fingerprint(kept))) if training else None)

    def backward(self, dy: Any, cache: Any, *, dstate: Any = None) -> Back:
        if dstate is not None:
            raise ValueError(f"dstate: {type(self).__name__} has no state; expected None")
        shape, dtype, kept, seen = self._own(cache)
        expect_unchanged(seen, kept)
        dy = expect_dtype("dy", as_array("dy", dy), dtype, "that of y")
        dx, grads = self._backward(expect_shape("dy", dy, "that of y", shape), kept)
        return Back(dx, None, grads)

    forward.__doc__, backward.__doc__ = Layer.forward.__doc__, Layer.backward.__doc__
