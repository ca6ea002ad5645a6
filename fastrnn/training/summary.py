"""Summary of a model as a table."""

from __future__ import annotations

from collections.abc import Sequence

from fastrnn.layers.base import Shape
from fastrnn.training.chain import Chain


def summary(model: Chain) -> str:
    """Return a table of layers, output shapes and parameters; see `Sequential.summary`."""
    rows = [("Layer", "Output shape", "Parameters")]
    total, trained, shape = 0, 0, model.input_shape
    for i, layer in enumerate(model.layers):
        shape = layer.output_shape(shape)
        count = sum(p.size for p in layer.parameters().values())
        total += count
        trained += sum(p.size for p in layer.trainable_parameters().values())
        rows.append((f"{i} {type(layer).__name__}", str(samples_first(shape)), f"{count:,}"))
    rows.append(("Total" if trained == total else f"Total, {total - trained:,} frozen", "", f"{total:,}"))
    return table(rows, (2,))


def samples_first(shape: Shape) -> Shape:
    return (shape[1], shape[0], *shape[2:]) if len(shape) == 3 else shape


def table(rows: Sequence[Sequence[str]], numbers: Sequence[int], total: bool = True) -> str:
    """Format rows of equal length: first a header, last a total if `total`; columns in `numbers` align right."""
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([f"{text:{'>' if i in numbers else ''}{wide[i]}}" for i, text in enumerate(row)]).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    lines[1:1] = [rule]
    lines[-1:] = [rule, lines[-1]] if total else lines[-1:]
    return "\n".join(lines)
