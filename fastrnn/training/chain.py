"""Compose layers into one layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fastrnn.checks import as_array, checked_lengths, extras, generator, titled
from fastrnn.layers.base import Back, BackOfInputs, Layer, LayerCache, Output, Shape, add_steps, checked_shape
from fastrnn.one_step import Form, OneStep
from fastrnn.training.padding import has_steps, turned, zeros_after
from fastrnn.types import Array


class Chain(Layer):
    """Layers applied in sequence, each to the output of the one before; see `Sequential`.

    `forward` and `backward` are batch-first, `run_forward` and `run_backward` time-major; each layer gets the layout
    of its ``batch_first``.
    """

    batch_first = True

    def __init__(self, layers: Sequence[Layer]) -> None:
        if not isinstance(layers, list | tuple) or not all(isinstance(layer, Layer) for layer in layers):
            raise TypeError(f"layers: expected a list of layers, got {layers!r}")
        if not layers or len({id(layer) for layer in layers}) < len(layers):
            raise ValueError(f"layers: expected at least one, and each once, got {layers!r}")
        self.layers = tuple(layers)
        self.inputs = tuple(dict.fromkeys([name for layer in layers for name in layer.inputs]))
        self.output_shape(self.input_shape)

    @property
    def names(self) -> tuple[str, ...]:
        """The layers' names in messages."""
        return tuple([name_of(i, layer) for i, layer in enumerate(self.layers)])

    def forward(
        self,
        x: Any,
        *,
        state: Any = None,
        lengths: Any = None,
        training: bool = False,
        rng: Any = None,
        threads: int | None = None,
        e: Mapping[str, Any] | None = None,
    ) -> Output:
        """Run all layers.

        Parameters
        ----------
        x : (N, T, I) array, (N, T) integers for an `Embedding`, or (N, F) for a model without a time axis
        state : sequence, optional
            An initial state, or None, for each layer.
        lengths : (N,) integers, optional
            Valid steps of each sequence. x is ignored past them, and y is undefined there.
        training, rng, threads
            As for every layer.
        e : dict of arrays, optional
            Extra inputs by name, for all layers whose cells have any: (N, T, H) or (N, T, 1), or (N, H) or (N, 1).

        Returns
        -------
        Output
            ``y``; ``state``, a tuple with one entry per layer; and ``cache``.

        Raises
        ------
        TypeError, ValueError
            As the layers raise them; the message begins with the layer's name.
        """
        x = as_array("x", x)
        self._expect_one_each("state", state)
        if lengths is not None and has_steps(x):
            lengths = checked_lengths(lengths, x.shape[1], len(x))
            x = zeros_after(x, lengths)
        given = {name: turned(as_array(f"e {name!r}", a)) for name, a in extras("e", e, self.inputs).items()}
        out = self.run_forward(turned(x), state, lengths, training, rng, threads, given)
        return out._replace(y=turned(out.y), cache=LayerCache(self, (out.y, out.cache)) if training else None)

    def backward(self, dy: Any, cache: Any, *, dstate: Any = None) -> Back:
        """Backpropagate through all layers, after `forward` with ``training=True``.

        Parameters
        ----------
        dy : array shaped like y, optional
        cache : LayerCache
        dstate : sequence, optional
            A gradient, or None, for each layer's final state.

        Returns
        -------
        Back
            ``dx``, a tuple ``dstate``, and ``grads`` under the names of `parameters`. With extra inputs it has an
            attribute ``de``: their gradients by name, summed over the layers.
        """
        y, caches = self._own(cache)
        self._expect_one_each("dstate", dstate)
        dy = np.zeros_like(y) if dy is None else turned(as_array("dy", dy))
        found = self.run_backward(dy, caches, dstate)
        back = found._replace(dx=None if found.dx is None else turned(found.dx))
        if isinstance(back, BackOfInputs) and isinstance(found, BackOfInputs):
            back.de = {name: turned(a) for name, a in found.de.items()}
        return back

    def run_forward(
        self,
        x: Array,
        state: Sequence[Any] | None = None,
        lengths: Any = None,
        training: bool = False,
        rng: Any = None,
        threads: int | None = None,
        e: Mapping[str, Array] | None = None,
    ) -> Output:
        """Run `forward` time-major; the cache is a list with one entry per layer."""
        rng = None if rng is None else generator(rng)
        lengths = lengths if has_steps(x) else None
        states, caches = [], []
        given = e or {}
        for i, layer in enumerate(self.layers):
            own: dict[str, Any] = {}
            if layer.inputs:
                own["e"] = {k: turned(given[k]) if layer.batch_first else given[k] for k in layer.inputs}
            with titled(name_of(i, layer)):
                y, final, cache = layer.forward(
                    turned(x) if layer.batch_first else x,
                    state=None if state is None else state[i],
                    lengths=lengths,
                    training=training,
                    rng=rng,
                    threads=threads,
                    **own,
                )
            if lengths is not None and not keeps_steps(layer, x.shape):
                lengths = None
            x = turned(y) if layer.batch_first else y
            states.append(final)
            caches.append(cache)
        return Output(x, tuple(states), caches if training else None)

    def run_backward(
        self, dy: Array | None, caches: list[Any], dstate: Sequence[Any] | None = None, first: int = 0
    ) -> Back:
        """Run `backward` time-major, down to layer `first`; dx is the gradient of that layer's input."""
        grads: dict[str, Any] = {}
        de: dict[str, Array] = {}
        dstates = []
        for i in reversed(range(first, len(self.layers))):
            layer = self.layers[i]
            assert dy is not None  # dx is None for integer input only, which only the first layer reads
            dfinal = None if dstate is None else dstate[i]
            back = layer.backward(turned(dy) if layer.batch_first else dy, caches[i], dstate=dfinal)
            for name, g in back.grads.items():
                grads[f"{i}.{name}"] = g
            dy = turned(back.dx) if layer.batch_first and back.dx is not None else back.dx
            dstates.append(back.dstate)
            if isinstance(back, BackOfInputs):
                for name, a in back.de.items():
                    d = turned(a) if layer.batch_first else a
                    de[name] = de[name] + d if name in de else d
        kind = BackOfInputs if self.inputs else Back
        found = kind(dy, tuple(reversed(dstates)), grads)
        if isinstance(found, BackOfInputs):
            found.de = de
        return found

    def _expect_one_each(self, name: str, given: Any) -> None:
        """Raise unless `given` is None or has one entry per layer."""
        if given is None:
            return
        if not isinstance(given, list | tuple):
            raise TypeError(f"{name}: expected a tuple with one entry per layer, got {type(given).__name__}")
        if len(given) != len(self.layers):
            raise ValueError(f"{name}: expected {len(self.layers)} entries, one per layer, got {len(given)}")

    def add_steps(self, step: OneStep) -> Form:
        step.reads(self.input_shape[-1] if len(self.input_shape) == 3 else None)
        forms = []
        for i, layer in enumerate(self.layers):
            with titled(name_of(i, layer)):
                forms.append(add_steps(layer, step))
        return forms

    def parameters(self) -> dict[str, Array]:
        return {f"{i}.{name}": p for i, layer in enumerate(self.layers) for name, p in layer.parameters().items()}

    def trainable_parameters(self) -> dict[str, Array]:
        if not super().trainable_parameters():
            return {}
        own = [layer.trainable_parameters() for layer in self.layers]
        return {f"{i}.{name}": p for i, ps in enumerate(own) for name, p in ps.items()}

    def _load(self, new: Mapping[str, Array]) -> None:
        for i, layer in enumerate(self.layers):
            layer._load({name: new[f"{i}.{name}"] for name in layer.parameters()})

    def changed(self) -> None:
        for layer in self.layers:
            layer.changed()

    def output_shape(self, shape: Shape) -> Shape:
        return self._shapes(checked_shape(shape))[-1]

    def _shapes(self, shape: Shape) -> list[Shape]:
        """Return the time-major output shape of every layer."""
        shapes = []
        for i, layer in enumerate(self.layers):
            with titled(name_of(i, layer)):
                shape = layer.output_shape(shape)
            shapes.append(shape)
        return shapes

    @property
    def input_shape(self) -> Shape:
        """(T, B, I), integer (T, B), or (B, F), as far as the layers determine it."""
        shape = self._first_shape()
        vectors = None, shape[-1]
        return vectors if len(shape) == 3 and not self._takes(shape) and self._takes(vectors) else shape

    def _takes(self, shape: Shape) -> bool:
        try:
            self._shapes(shape)
        except ValueError:
            return False
        return True

    def _first_shape(self) -> Shape:
        """Return (T, B, I), or (T, B) for integer input."""
        for layer in self.layers:
            if isinstance(layer, Chain):
                return layer.input_shape
            if hasattr(layer, "num_embeddings"):
                return None, None
            if hasattr(layer, "input_size"):
                return None, None, layer.input_size
        return None, None, None

    @property
    def bidirectional(self) -> bool:
        """Whether any layer is bidirectional, and so needs the whole sequence."""
        return any(getattr(layer, "bidirectional", False) for layer in self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __repr__(self) -> str:
        return f"Sequential([{', '.join(map(repr, self.layers))}])"


def name_of(i: int, layer: Layer) -> str:
    return f"layer {i} ({type(layer).__name__})"


def keeps_steps(layer: Layer, shape: Shape) -> bool:
    """Return whether the layer's output for a time-major x of this shape has the same time axis as x."""
    found = layer.output_shape((None, *shape[1:]))
    return len(found) == 3 and found[0] is None
