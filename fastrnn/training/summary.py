"""A model as a table."""

from __future__ import annotations

from fastrnn.training.chain import Chain


def summary(model: Chain) -> str:
    """Layer, output shape, parameters; `Sequential.summary` describes it."""
    rows = [("Layer", "Output shape", "Parameters")]
    total, trained, shape = 0, 0, model.input_shape
    for i, layer in enumerate(model.layers):
        shape = layer.output_shape(shape)
        samples_first = (shape[1], shape[0], *shape[2:]) if len(shape) == 3 else shape
        count = sum(p.size for p in layer.parameters().values())
        total += count
        trained += sum(p.size for p in layer.trainable_parameters().values())
        rows.append((f"{i} {type(layer).__name__}", str(samples_first), f"{count:,}"))
    rows.append(("Total" if trained == total else f"Total, {total - trained:,} frozen", "", f"{total:,}"))

    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{name:{wide[0]}}  {shape:{wide[1]}}  {count:>{wide[2]}}" for name, shape, count in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])
