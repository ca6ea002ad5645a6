"""Weights in Keras' older `.h5` files: each layer, or model inside a model, has a list of the names of its weights.

Those that are not trained come last. That holds for each half of a Bidirectional, each cell, each weight even, and a
configuration need not say which are trained; names say whose each is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fastrnn.cells import Array
from fastrnn.convert.keras_weights import Config, Store, count, item, leaves, name, values
from fastrnn.frameworks import KERAS_RNN

Weights = list[tuple[str, Array]]  #: and their names

#: What Keras 2 and 3 call a layer's weights, in their order.
ROLES = ("embeddings", "gamma", "beta", "kernel", "recurrent_kernel", "bias")

SURE = 'in Keras, model.save("model.keras") makes a file that says whose weights are whose'


class Named:
    """A `Store`: the file."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def parts(self, layers: list[Config]) -> list[Store]:
        return [Listed(one, listed(self._group, name(one))) for one in layers]

    def arrays(self, layer: Config) -> list[Array]:
        return []


def listed(model: Any, layer: str) -> Weights:
    """The weights that a layer's group lists, kernels before their recurrent kernels; none where it has no group."""
    if layer not in model:
        return []
    group = item(model, layer)
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in group.attrs["weight_names"]]
    owners = [owner_and_role(one)[0] for one in names]
    names.sort(key=lambda one: (owners.index(owner_and_role(one)[0]), owner_and_role(one)[1]))
    return [(one, values(item(group, one))) for one in names]


def owner_and_role(weight: str) -> tuple[str, int]:
    """What a weight's name shares with those of the same cell or layer, and its place among them."""
    match = re.fullmatch(rf"(|.*/)({'|'.join(ROLES)})((?:_[0-9]+)?(?::[0-9]+)?)", weight)
    return (weight, 0) if match is None else (match[1] + match[3], ROLES.index(match[2]))


class Listed:
    """A `Store`: weights of a layer, or of all layers inside a model."""

    def __init__(self, layer: Config, weights: Weights) -> None:
        self._layer, self._weights = layer, weights

    def parts(self, layers: list[Config]) -> list[Store]:
        owned = shared_out(self._layer, list(leaves(self._layer)), self._weights)
        return [Listed(one, [w for leaf in leaves(one) for w in owned[id(leaf)]]) for one in layers]

    def arrays(self, layer: Config) -> list[Array]:
        if layer["class_name"] == "Bidirectional":
            return [a for way in directions(name(layer), self._weights) for a in way]
        if layer["class_name"] == KERAS_RNN and layer["config"]["cell"]["class_name"] == "StackedRNNCells":
            cells = layer["config"]["cell"]["config"]["cells"]
            owned = shared_out(layer, cells, self._weights)
            return [a for cell in cells for _, a in owned[id(cell)]]
        return [a for _, a in self._weights]


def shared_out(whole: Config, parts: list[Config], weights: Weights) -> dict[int, Weights]:
    """The weights of each layer of a model, or of each cell of a layer: by name, or in order where all are trained."""
    owners = [[one for one in parts if name(one) in weight.split("/")] for weight, _ in weights]
    owned: dict[int, Weights] = {id(one): [] for one in parts}
    if all(len(some) == 1 for some in owners):
        for (own,), weight in zip(owners, weights, strict=True):
            owned[id(own)].append(weight)
        return owned
    title = f"layer {name(whole)!r} ({whole['class_name']})"
    if len({flag for one in parts if count(one) for flag in flags(one)}) > 1:
        names = ", ".join(weight for weight, _ in weights)
        unsure = f"as names do not say whose weights these are: {names:.200}"
        raise ValueError(f"{title}: trainable: expected all of it frozen or nothing, {unsure}; {SURE}")
    left = weights
    for one in parts:
        owned[id(one)], left = left[: count(one)], left[count(one) :]
    if left:
        raise ValueError(f"{title}: it is not known to which of its layers {len(left)} weights belong")
    return owned


def directions(layer: str, weights: Weights) -> tuple[list[Array], list[Array]]:
    """Those of a Bidirectional's forward layer, which is always called so, and those of the other one."""
    paths = [weight.split("/") for weight, _ in weights]
    level = next((own for own in zip(*paths, strict=False) if len(set(own)) > 1), [""] * len(paths))  # below the same
    forward = [a for own, (_, a) in zip(level, weights, strict=True) if own.startswith("forward_")]
    backward = [a for own, (_, a) in zip(level, weights, strict=True) if not own.startswith("forward_")]
    if len(forward) != len(backward):
        names = ", ".join(weight for weight, _ in weights)
        raise ValueError(f"layer {layer!r}: expected half of its weights in 'forward_...', got {names:.200}; {SURE}")
    return forward, backward


def flags(config: Any) -> Iterator[bool]:
    """Every `trainable` in a configuration."""
    if isinstance(config, dict) and "trainable" in config:
        yield config["trainable"] is not False
    for one in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from flags(one)
