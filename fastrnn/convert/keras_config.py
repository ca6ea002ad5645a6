"""The configurations of Keras models: which layers there are, in which order, and what they wrap.

Names are the same for every version of Keras. Models inside models are handled like layers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from fastrnn.frameworks import CUDNN, KERAS, KERAS_2, KERAS_CELLS, KERAS_RNN
from fastrnn.types import Array

Config = dict[str, Any]

MODELS = ("Sequential", "Functional", "Model")

#: packages whose layers are Keras' own, or have the same options
PACKAGES = ("keras", "tf_keras", "tensorflow", "fastrnn")

#: Number of weights of a layer besides its bias. Other layers with weights are not supported.
COUNTS = dict.fromkeys((*KERAS.families, *KERAS_CELLS, *CUDNN), 2) | {"Dense": 1, "Embedding": 1}


class Piece(NamedTuple):
    """A Keras layer."""

    kind: str  #: its class
    config: Config
    weights: list[Array]

    @property
    def title(self) -> str:
        return f"layer {self.config.get('name')!r} ({self.kind})"


def plain(layer: Any) -> Any:
    """Return the configuration as a file stores it: tuples become lists."""
    return json.loads(json.dumps(layer.get_config(), default=str))


def version(layer: Any) -> Any:
    """Return the version of the Keras package that this layer or model belongs to."""
    packages = [base.__module__.partition(".")[0] for base in type(layer).__mro__]
    own = next((name for name in packages if name in ("keras", "tf_keras", "tensorflow")), "keras")
    return getattr(sys.modules.get(own), "__version__", "3")


def as_meant(config: Any, version: Any) -> Any:
    """Translate a configuration to names that are the same for every Keras version."""
    version = version.decode() if isinstance(version, bytes) else str(version)
    functions = KERAS_2 if version.partition(".")[0] in ("1", "2") else {}
    #: option -> name -> our name; an .h5 has layers of `fastrnn.keras` under their registered names
    words = dict.fromkeys(("activation", "recurrent_activation"), functions)
    words["class_name"] = {f"fastrnn>{kind}": kind for kind in KERAS.families}
    return renamed(config, words)


def renamed(config: Any, words: dict[str, dict[str, str]]) -> Any:
    if isinstance(config, list):
        return [renamed(one, words) for one in config]
    if not isinstance(config, dict):
        return config
    return {
        key: words.get(key, {}).get(value, value) if isinstance(value, str) else renamed(value, words)
        for key, value in config.items()
    }


def layers_of(model: Config) -> list[Config]:
    """Return the layers in the model's order, which may differ from the order of application."""
    kind, config = model["class_name"], model["config"]
    if kind not in MODELS:
        raise ValueError(f"model: expected a Sequential or functional model, got {kind!r:.80}")
    layers: list[Config] = config if isinstance(config, list) else config["layers"]  # a list in Keras before 2.2
    for one in layers:
        kinds = dict | list if is_model(one) else dict
        if not isinstance(one["class_name"], str) or not isinstance(one["config"], kinds):
            raise TypeError(f"expected a class and a configuration of each layer, got {one!r:.80}")
        package = str(one.get("module") or "keras").partition(".")[0]
        if package not in PACKAGES:
            raise ValueError(f"layer {name(one)!r} ({one['class_name']} of {package}): not supported")
    return layers


def is_model(layer: Config) -> bool:
    return layer["class_name"] in MODELS


def name(layer: Config) -> str:
    config = layer["config"]
    return str((config if isinstance(config, dict) else {}).get("name", layer.get("name")))


def leaves(layer: Config) -> Iterator[Config]:
    if not is_model(layer):
        yield layer
        return
    for one in layers_of(layer):
        yield from leaves(one)


def count(layer: Config) -> int:
    """Return the number of weights of a layer or a cell."""
    kind, config = layer["class_name"], layer["config"]
    if kind in ("Bidirectional", "TimeDistributed"):
        return (2 if kind == "Bidirectional" else 1) * count(config["layer"])
    if kind == KERAS_RNN:
        return count(config["cell"])
    if kind == "StackedRNNCells":
        return sum(count(cell) for cell in config["cells"])
    if kind == "LayerNormalization":
        return sum(config.get(name, True) is not False for name in ("scale", "center"))
    biased = kind in COUNTS and kind != "Embedding" and config.get("use_bias", True) is not False
    return COUNTS.get(kind, 0) + biased


def inner(piece: Piece, key: str, weights: list[Array]) -> Piece:
    """Return the layer or cell that a layer wraps."""
    return wrapped(piece, key, piece.config.get(key), weights)


def wrapped(piece: Piece, key: str, own: Any, weights: list[Array]) -> Piece:
    if not isinstance(own, dict) or not isinstance(own.get("config"), dict):
        raise ValueError(f"{piece.title}: {key}: expected a layer, got {own!r:.80}")
    return Piece(str(own.get("class_name")), own["config"], weights)


def chain(config: Config) -> list[Config]:
    """Return the layers of a functional model in order; raise ValueError if they are not a single chain."""
    after: dict[str, Config] = {}
    implied = masks(config["layers"])
    layers = [one for one in config["layers"] if name(one) not in implied]
    start = [one for one in layers if not one["inbound_nodes"]]
    for one in layers:
        if not one["inbound_nodes"]:
            continue
        calls = [call for call in histories(one["inbound_nodes"]) if call[0] not in implied]
        title = f"layer {name(one)!r} ({one['class_name']})"
        if len(one["inbound_nodes"]) != 1 or len(calls) != 1 or calls[0][2] != 0:
            raise ValueError(f"{title}: expected a chain, with one call on one output, got {calls!r:.200}")
        if calls[0][0] in after:
            other = name(after[calls[0][0]])
            raise ValueError(f"{title}: expected a chain; {other!r} reads the same layer's output, {calls[0][0]!r}")
        after[calls[0][0]] = one
    if len(start) != 1:
        raise ValueError(f"model: expected one input, got {[name(one) for one in start]}")
    ordered = start
    while name(ordered[-1]) in after:
        ordered.append(after.pop(name(ordered[-1])))
    outputs = config["output_layers"]
    outputs = outputs if outputs and isinstance(outputs[0], list) else [outputs]
    if after or len(outputs) != 1 or outputs[0][0] != name(ordered[-1]) or outputs[0][2] != 0:
        raise ValueError(f"model: expected one output, that of the last layer in a chain, got {outputs!r:.200}")
    return ordered


def masks(layers: list[Config]) -> set[str]:
    """Return the operations that Masking and ``mask_zero`` imply, which Keras 3 stores along with their readers."""
    makers: list[Any] = []
    for one in layers:
        if one["class_name"] in ("Masking", "Embedding"):
            value = one["config"].get("mask_value") if one["class_name"] == "Masking" else 0
            makers += [([call[0]], [value]) for call in histories(one["inbound_nodes"])]
    found: set[str] = set()
    for one in layers:
        calls = [call[0] for call in histories(one["inbound_nodes"])]
        compares = one["class_name"] == "NotEqual" and (calls, one["inbound_nodes"][0]["args"][1:]) in makers
        if compares or (one["class_name"] == "Any" and found.issuperset(calls)):
            found.add(name(one))
    return found


def histories(node: Any) -> Iterator[list[Any]]:
    """Yield every [layer, call, output] that a node refers to, in the format of Keras 3 or 2."""
    if isinstance(node, dict) and "keras_history" in node:
        yield node["keras_history"]
    elif isinstance(node, dict):
        for one in node.values():
            yield from histories(one)
    elif isinstance(node, list):
        if len(node) >= 3 and isinstance(node[0], str) and all(type(i) is int for i in node[1:3]):
            yield node[:3]
            node = node[3:]
        for one in node:
            yield from histories(one)
