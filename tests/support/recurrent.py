"""Any recurrent layer: the same in another precision, random arguments, and all that forward and backward return."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastrnn
from fastrnn.layers.options import options_of
from support.problems import Arrays
from support.stacks import as_given
from support.tolerance import assert_rounded, assert_same_bits


def in_dtype(net: Any, dtype: Any) -> Any:
    """The same layer in float32 or float64, with whole weights."""
    parts = [{key: np.array(a, dtype) for key, a in part.items()} for part in net.stack.parts]
    return type(net).from_parts(net.stack.cell, parts, **options_of(net) | {"dtype": dtype, "weight_dtype": None})


def randomized(net: Any, seed: int = 0, scale: float = 1.0) -> Any:
    """The layer with weights at random, of a size that lets no state explode."""
    rng, own = np.random.default_rng([1, seed]), net.parameters()
    net.load_state_dict(
        {n: (scale * rng.uniform(-1, 1, p.shape) / np.sqrt(p.shape[-1])).astype(p.dtype) for n, p in own.items()}
    )
    return net


def problem(net: Any, T: int, B: int, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Everything that a call can be given, and cotangents of everything that it gives; of the layer's dtype."""
    rng, cell, calls = np.random.default_rng(seed), net.stack.cell, net.num_layers * (1 + net.bidirectional)
    widths = dict(zip(cell.states, net.stack.widths, strict=True))
    given = {"x": rng.standard_normal((T, B, net.input_size))}
    given |= {f"{name}0": rng.uniform(0.5, 1, (calls, B, width)) for name, width in widths.items()}
    given |= {name: rng.uniform(0.2, 0.8, (T, B, net.hidden_size)) for name in cell.inputs}
    d = {"y": rng.standard_normal(net.output_shape(given["x"].shape))}
    d |= {f"{name}_n": rng.standard_normal((calls, B, width)) for name, width in widths.items()}
    given, d = ({name: a.astype(net.dtype) for name, a in arrays.items()} for arrays in (given, d))
    return given | {"lengths": rng.integers(0, T + 1, B), "resets": rng.random((T, B)) < 0.2}, d


def results(net: Any, given: Arrays, d: Arrays, seed: int = 0, **options: Any) -> Arrays:
    """What the layer makes of a `problem`, which may be of another precision; random masks by the seed."""
    cell = net.stack.cell
    given, d = ({n: a.astype(net.dtype) if a.dtype.kind == "f" else a for n, a in one.items()} for one in (given, d))
    e = {name: given[name] for name in cell.inputs} or None
    state = as_given(tuple([given[f"{name}0"] for name in cell.states]))
    options |= {"lengths": given.get("lengths"), "resets": given.get("resets"), "e": e}
    y, final, cache = net.forward(given["x"], state=state, training=True, rng=seed, **options)
    back = net.backward(d["y"], cache, dstate=as_given(tuple([d[f"{name}_n"] for name in cell.states])))
    finals, dstates = (s if isinstance(s, tuple) else (s,) for s in (final, back.dstate))
    found = {"y": y} | {f"{n}_n": s for n, s in zip(cell.states, finals, strict=True)} | {"dx": back.dx}
    found |= {f"d{name}0": s for name, s in zip(cell.states, dstates, strict=True)}
    found |= {f"d{name}": a for name, a in back.grads.items()}
    return found | {f"d{name}": a for name, a in getattr(back, "de", {}).items()}


def assert_roundings(net: Any, given: Arrays, d: Arrays) -> None:
    """A layer and a problem in float32 have in both dtypes the results of the reference, but for rounding."""
    wide = in_dtype(net, np.float64)

    def evaluate() -> Arrays:
        with fastrnn.use_backend("numpy"):
            return results(wide, given, d)

    exact, measured = evaluate(), dict[Any, dict[str, float]]()
    for own in (net, wide):
        for threads in (1, 2):
            assert_rounded(results(own, given, d, threads=threads), exact, evaluate, measured)


def assert_one_result(net: Any, given: Arrays, d: Arrays) -> Arrays:
    """The same bits on any number of threads and with checkpoints; returns them."""
    expected = results(net, given, d, threads=1)
    for options in ({"threads": 2}, {"threads": 3}, {"checkpoint": 2}, {"checkpoint": 1, "threads": 2}):
        assert_same_bits(results(net, given, d, **options), expected)
    return expected
