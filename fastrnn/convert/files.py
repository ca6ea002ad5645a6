"""Save and load a layer or a model as one safetensors file: tensors under PyTorch's names, the rest as JSON metadata.

Nothing in the file is ever executed, and only arrays stored in it are allocated. `Sequential.save` writes the same
file as `save`, and `Sequential.load_weights` reads the file of a model too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fastrnn import layers
from fastrnn.cells import Cell, members
from fastrnn.checks import positive
from fastrnn.convert.quantization import quantize
from fastrnn.convert.stack import Arrays, built, expect_names, loaded
from fastrnn.layers import Layer
from fastrnn.layers.rnn import LAYERS
from fastrnn.training import Sequential, weight_files
from fastrnn.training.weight_files import OPTIONS, RECURRENT, Spec, save_model

#: User-defined cells by name.
Cells = dict[str, Cell]

#: Builds a layer from its description in the file, and tensors.
Builder = Callable[[str, Spec, Arrays, Cells], Layer]


def save(path: str | os.PathLike[str], layer: Layer) -> None:
    """Write the weights and options of a layer or a `Sequential` to a safetensors file, atomically.

    The metadata is JSON: the versions of the format and of fastrnn, and each layer's class, cell, gate order and
    options. The arguments of `Sequential.compile` are not stored.

    Parameters
    ----------
    path : path
    layer : Layer
        A layer of fastrnn.

    Raises
    ------
    TypeError
        For a layer of another class, or a path that is not a str or os.PathLike.
    OSError
        If the file cannot be written; FileNotFoundError if the directory does not exist.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> import os, tempfile, fastrnn
    >>> path = os.path.join(tempfile.mkdtemp(), "gru.safetensors")
    >>> fastrnn.save(path, fastrnn.GRU(3, 4, reset_after=True, batch_first=True))
    >>> fastrnn.load(path)
    GRU(3, 4, batch_first=True, dtype=float32) [gru_after]
    """
    save_model(path, layer)


def load(path: str | os.PathLike[str], *, cell: Cell | Iterable[Cell] = (), weight_dtype: str | None = None) -> Layer:
    """Load a layer or a `Sequential` that `save` or `Sequential.save` wrote, bit for bit.

    Parameters
    ----------
    path : path
    cell : Cell or iterable of Cell
        User-defined cells of the file's layers.
    weight_dtype : "int8" or "bfloat16", optional
        For the recurrent layers, as by `quantize`; as saved when absent.

    Returns
    -------
    Layer
        Of the class that was saved.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    TypeError, ValueError
        If `save` did not write the file, its version is newer, an entry is missing, unexpected or wrong, or a
        user-defined cell is not given, or is not a cell; the message names it.
    ImportError
        If safetensors is not installed.

    Examples
    --------
    >>> import os, tempfile, numpy as np, fastrnn
    >>> path, layer = os.path.join(tempfile.mkdtemp(), "lstm.safetensors"), fastrnn.LSTM(3, 4, peephole=True)
    >>> fastrnn.save(path, layer)
    >>> x = np.ones((5, 2, 3), np.float32)
    >>> np.array_equal(fastrnn.load(path)(x)[0], layer(x)[0])
    True
    """
    layer = layer_in(path, *weight_files.opened("path", path), cell)
    return layer if weight_dtype is None else quantize(layer, weight_dtype)


def layer_in(
    path: str | os.PathLike[str], tensors: Arrays, metadata: Mapping[str, str], cell: Cell | Iterable[Cell]
) -> Layer:
    """Return the layer that an opened file describes."""
    given = list(cell) if isinstance(cell, Iterable) else [cell]
    if not all(isinstance(own, Cell) for own in given):
        raise TypeError(f"cell: expected a cell made by fastrnn.cell, or a list of them, got {cell!r:.80}")
    cells = {own.name: own for own in given}
    tensors, description = weight_files.checked("path", path, tensors, metadata)
    whose = f"path: {os.fspath(path)}"
    if "model" not in description:
        raise ValueError(f"{whose} holds only weights; expected a file of fastrnn.save, or use load_weights of a model")
    try:
        layer = restored(whose, description["model"], tensors, cells)
    except RecursionError as error:
        raise ValueError(f"{whose}: layers are nested too deeply ({error})") from error
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{whose}: {error}") from error
    expect_names(whose, tensors, layer.parameters())
    return layer


def restored(whose: str, spec: Any, tensors: Arrays, cells: Cells) -> Layer:
    if not isinstance(spec, dict) or not isinstance(spec.get("class"), str) or spec["class"] not in BUILDERS:
        found = spec.get("class") if isinstance(spec, dict) else spec
        raise ValueError(f"{whose}: expected a class among {', '.join(BUILDERS)}, got {found!r:.80}")
    name = spec["class"]
    whose = f"{whose}: {name}"
    if not isinstance(spec.get("dtype", ""), str):
        raise ValueError(f"{whose}: dtype: expected a string, got {spec['dtype']!r:.80}")
    if not isinstance(trainable := spec.get("trainable", True), bool):
        raise ValueError(f"{whose}: trainable: expected True or False, got {trainable!r:.80}")
    options = {key: value for key, value in spec.items() if key not in ("class", "trainable")}
    expect_names(whose, options, OPTIONS[name])
    layer = BUILDERS[name](whose, options, tensors, cells)
    layer.trainable = trainable
    return layer


def build_recurrent(family: str) -> Builder:
    def build(whose: str, spec: Spec, tensors: Arrays, cells: Cells) -> Layer:
        name, gates = spec["cell"], spec.pop("gates")
        cell = next((own for own in members(family) if own.name == name), None)
        if cell is None:
            raise ValueError(f"{whose}: cell: expected one of {LAYERS[family].__name__}, got {name!r:.80}")
        if gates != "".join(cell.gates):
            raise ValueError(f"{whose}: gates: expected {''.join(cell.gates)!r}, got {gates!r:.80}")
        return of_cell(whose, cell, spec, tensors)

    return build


def build_of_own_cell(whose: str, spec: Spec, tensors: Arrays, cells: Cells) -> Layer:
    name = spec["cell"]
    if not isinstance(name, str) or name not in cells:
        given = f", not {', '.join(cells):.80}" if cells else ""
        raise ValueError(f"{whose}: cell: {name!r:.80} is user-defined; pass it: load(path, cell={name}){given}")
    cell = cells[name]
    for key in ("gates", "states", "parameters"):
        stored, own = spec.pop(key), getattr(cell, key)
        if stored != list(own):
            raise ValueError(f"{whose}: {key}: the file's cell {name} has {stored!r:.80}, but the given one has {own}")
    return of_cell(whose, cell, spec, tensors)


def of_cell(whose: str, cell: Cell, spec: Spec, tensors: Arrays) -> Layer:
    sizes = {key: positive(key, spec[key]) for key in ("input_size", "hidden_size", "num_layers")}
    return built(whose, cell, tensors, **{key: spec[key] for key in RECURRENT} | sizes)


def build_dense(whose: str, spec: Spec, tensors: Arrays, cells: Cells) -> Layer:
    bias = spec["bias"]
    if not isinstance(bias, bool):
        raise ValueError(f"{whose}: bias: expected True or False, got {bias!r:.80}")
    expect_names(whose, tensors, ("weight", "bias") if bias else ("weight",))
    expect_table(whose, tensors, spec, "output_size", "input_size")
    return loaded(layers.Dense(**spec), tensors)


def build_embedding(whose: str, spec: Spec, tensors: Arrays, cells: Cells) -> Layer:
    expect_names(whose, tensors, ("weight",))
    expect_table(whose, tensors, spec, "num_embeddings", "embedding_dim")
    return loaded(layers.Embedding(**spec), tensors)


def build_normalization(whose: str, spec: Spec, tensors: Arrays, cells: Cells) -> Layer:
    names = [name for name, key in (("weight", "scale"), ("bias", "center")) if spec[key]]
    expect_names(whose, tensors, names)
    for name in names:
        if tensors[name].shape != (positive("input_size", spec["input_size"]),):
            raise ValueError(f"{whose}: {name}: expected shape ({spec['input_size']},), got {tensors[name].shape}")
    return loaded(layers.LayerNormalization(**spec), tensors)


def expect_table(whose: str, tensors: Arrays, spec: Spec, *sizes: str) -> None:
    """Check the shape of the weight before a layer of these sizes is allocated."""
    shape = tuple([positive(key, spec[key]) for key in sizes])
    if tensors["weight"].shape != shape:
        raise ValueError(f"{whose}: weight: expected shape {shape}, got {tensors['weight'].shape}")


def build_plain(kind: type[Layer]) -> Builder:
    def build(whose: str, spec: Spec, tensors: Arrays, cells: Cells) -> Layer:
        expect_names(whose, tensors, ())
        return kind(**spec)

    return build


def build_sequential(whose: str, spec: Spec, tensors: Arrays, cells: Cells) -> Layer:
    if not isinstance(spec["layers"], list):
        raise ValueError(f"{whose}: layers: expected a list, got {spec['layers']!r:.80}")
    parts = [(f"{whose}: {i}", one, weight_files.under(f"{i}.", tensors)) for i, one in enumerate(spec["layers"])]
    return Sequential([restored(*part, cells) for part in parts])


#: layers without weights
PLAIN: tuple[type[Layer], ...] = (
    *(layers.RepeatVector, layers.LastStep, layers.GlobalAveragePooling1D, layers.GlobalMaxPooling1D),
    *(layers.Dropout, layers.Activation),
)

#: class -> its builder
BUILDERS: dict[str, Builder] = {
    **{layer.__name__: build_recurrent(family) for family, layer in LAYERS.items()},
    "Recurrent": build_of_own_cell,
    "Dense": build_dense,
    "Embedding": build_embedding,
    "LayerNormalization": build_normalization,
    **{kind.__name__: build_plain(kind) for kind in PLAIN},
    "Sequential": build_sequential,
}
