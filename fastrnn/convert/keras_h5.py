"""Read weights from Keras' older `.h5` files, in which each layer or nested model lists the names of its weights.

Frozen weights come last: per half of a Bidirectional, per cell, or even per weight. A configuration need not say which
are frozen, so weights are assigned by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from fastrnn.cells import Array
from fastrnn.convert.keras_weights import Config, Store, count, item, leaves, name, values
from fastrnn.frameworks import KERAS_RNN

Weights = list[tuple[str, Array]]  #: (name, array)

#: Names of a layer's weights in Keras 2 and 3, in their order.
ROLES = ("embeddings", "gamma", "beta", "kernel", "recurrent_kernel", "bias")

SURE = 'in Keras, model.save("model.keras") writes a file without this ambiguity'


class Named:
    """A `Store` of the file."""

    def __init__(self, group: Any) -> None:
        self._group = group

    def parts(self, layers: list[Config]) -> list[Store]:
        return [Listed(one, listed(self._group, name(one))) for one in layers]

    def arrays(self, layer: Config) -> list[Array]:
        return []


def listed(model: Any, layer: str) -> Weights:
    """Return the weights that a layer's group lists, sorted by `ROLES` per owner; empty if it has no group."""
    if layer not in model:
        return []
    group = item(model, layer)
    names = [n.decode() if isinstance(n, bytes) else str(n) for n in group.attrs["weight_names"]]
    owners = [owner_and_role(one)[0] for one in names]
    names.sort(key=lambda one: (owners.index(owner_and_role(one)[0]), owner_and_role(one)[1]))
    return [(one, values(item(group, one))) for one in names]


def owner_and_role(weight: str) -> tuple[str, int]:
    """Return the part of a weight's name that its cell or layer determines, and its index in `ROLES`."""
    match = re.fullmatch(rf"(|.*/)({'|'.join(ROLES)})((?:_[0-9]+)?(?::[0-9]+)?)", weight)
    return (weight, 0) if match is None else (match[1] + match[3], ROLES.index(match[2]))


class Listed:
    """A `Store` of the weights of a layer, or of all layers of a nested model."""

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
    """Assign weights to the layers of a model, or the cells of a layer: by name, or in order if all are trained."""
    owners = [[one for one in parts if name(one) in weight.split("/")] for weight, _ in weights]
    owned: dict[int, Weights] = {id(one): [] for one in parts}
    if all(len(some) == 1 for some in owners):
        for (own,), weight in zip(owners, weights, strict=True):
            owned[id(own)].append(weight)
        return owned
    title = f"layer {name(whole)!r} ({whole['class_name']})"
    if len({flag for one in parts if count(one) for flag in flags(one)}) > 1:
        names = ", ".join(weight for weight, _ in weights)
        unsure = f"because names do not determine the owners of {names:.200}"
        raise ValueError(f"{title}: trainable: expected all of it frozen or nothing, {unsure}; {SURE}")
    left = weights
    for one in parts:
        owned[id(one)], left = left[: count(one)], left[count(one) :]
    if left:
        raise ValueError(f"{title}: found {len(left)} weights that cannot be assigned to its layers")
    return owned


def directions(layer: str, weights: Weights) -> tuple[list[Array], list[Array]]:
    """Split weights into those of a Bidirectional's forward layer, whose name is fixed, and those of the other."""
    paths = [weight.split("/") for weight, _ in weights]
    level = next((own for own in zip(*paths, strict=False) if len(set(own)) > 1), [""] * len(paths))  # where they vary
    forward = [a for own, (_, a) in zip(level, weights, strict=True) if own.startswith("forward_")]
    backward = [a for own, (_, a) in zip(level, weights, strict=True) if not own.startswith("forward_")]
    if len(forward) != len(backward):
        names = ", ".join(weight for weight, _ in weights)
        raise ValueError(f"layer {layer!r}: expected half of its weights in 'forward_...', got {names:.200}; {SURE}")
    return forward, backward


def flags(config: Any) -> Iterator[bool]:
    """Yield every `trainable` in a configuration."""
    if isinstance(config, dict) and "trainable" in config:
        yield config["trainable"] is not False
    for one in config.values() if isinstance(config, dict) else config if isinstance(config, list) else ():
        yield from flags(one)
