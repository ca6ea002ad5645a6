"""Random layers and models for the tests of converters."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastrnn
from fastrnn.cells import CELLS
from fastrnn.convert.files import restored
from fastrnn.training.weight_files import described
from support.stacks import layer
from support.tolerance import FLOAT32, FLOAT64, assert_rounded

MANY = range(24)


def by_runtime(runtime: Any, model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return ONNX Runtime's outputs of a model by name."""
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def drawn(seed: int, cells: Any = tuple(CELLS), input_size: int | None = None, **fixed: Any) -> Any:
    """Return a layer with a random cell and options, except those in `fixed`."""
    rng = np.random.default_rng([27, seed])
    L, two = int(fixed.pop("num_layers", rng.integers(1, 4))), bool(fixed.get("bidirectional", rng.integers(2)))
    options: dict[str, Any] = {
        "bias": [True, False, "input"][rng.integers(3)],
        "batch_first": bool(rng.integers(2)),
        "dropout": float(rng.random()) if L > 1 else 0.0,
        "bidirectional": two,
        "merge": ["concat", "sum", "mul", "average", None][rng.integers(4 if L > 1 else 5)] if two else "concat",
        "return_sequences": bool(rng.integers(2)),
        "dtype": [np.float32, np.float64][rng.integers(2)],
    }
    cell = str(rng.choice(cells))
    I, H = (int(n) for n in rng.integers(1, 6, 2))
    return layer(cell, input_size or I, H, L, rng=rng, **options | fixed)


def drawn_model(seed: int, cells: Any = tuple(CELLS), dtype: Any = np.float32, **fixed: Any) -> fastrnn.Sequential:
    """Return a random model with at least one recurrent layer and any layer that a `Sequential` may contain."""
    rng = np.random.default_rng([30, seed])
    width = int(rng.integers(1, 6))
    layers: list[Any] = [fastrnn.Embedding(7, width, dtype=dtype, rng=rng)] if rng.integers(2) else []
    kinds = rng.permutation(["recurrent", *rng.choice(["recurrent", "dense", "dropout", "activation"], 4)])
    last = max(i for i, kind in enumerate(kinds) if kind == "recurrent")
    for i, kind in enumerate(kinds):
        if kind == "recurrent":
            merge = str(rng.choice(["concat", "sum", "average"]))  # products of small numbers reveal nothing
            told = {"merge": merge, "return_sequences": i < last or bool(rng.integers(2))} | fixed
            two = bool(told.pop("bidirectional", rng.integers(2)))
            told |= {"bidirectional": two} | ({} if two else {"merge": "concat"})
            layers.append(drawn(100 * seed + i, cells, width, dtype=dtype, **told))
            width = layers[-1].output_shape((1, 1, width))[-1]
        elif kind == "dense":
            activation, bias = rng.choice(["identity", "sigmoid", "tanh", "relu", "softmax"]), bool(rng.integers(2))
            layers.append(fastrnn.Dense(width, 4, str(activation), bias=bias, dtype=dtype, rng=rng))
            width = 4
        elif kind == "dropout":
            layers.append(fastrnn.Dropout(fixed.get("dropout", 0.25)))
        else:
            layers.append(fastrnn.Activation(str(rng.choice(["identity", "sigmoid", "tanh", "softmax"]))))
    if rng.integers(2):
        layers[-2:] = [fastrnn.Sequential(layers[-2:])]
    return fastrnn.Sequential(layers)


def assert_predicts(got: np.ndarray, model: fastrnn.Sequential, x: np.ndarray, lengths: Any = None) -> None:
    """Check that another library's outputs, and the model's own, are correct up to rounding."""
    spec, state = described(model), model.state_dict()
    wide = restored("model", in_double(spec), {name: a.astype(np.float64) for name, a in state.items()}, cells(model))
    exact_x = x if x.dtype.kind == "i" else x.astype(np.float64)

    def evaluate() -> dict[str, np.ndarray]:
        with fastrnn.use_backend("numpy"):
            return {"y": wide.predict(exact_x, lengths=lengths)}

    exact, measured = evaluate(), dict[Any, dict[str, float]]()
    assert_rounded({"y": model.predict(x, lengths=lengths)}, exact, evaluate, measured)
    assert_rounded({"y": got}, exact, evaluate, measured)


def in_double(spec: Any) -> Any:
    """Return a function that makes the model in float64."""
    if isinstance(spec, list):
        return [in_double(one) for one in spec]
    if not isinstance(spec, dict):
        return spec
    return {key: "float64" if key == "dtype" else in_double(one) for key, one in spec.items()}


def cells(model: Any) -> dict[str, Any]:
    """Return the cells of a model's layers by name."""
    own = model.layers if isinstance(model, fastrnn.Sequential) else ()
    found = {model.stack.cell.name: model.stack.cell} if hasattr(model, "stack") else {}
    return found | {name: cell for layer in own for name, cell in cells(layer).items()}


def read_by(model: fastrnn.Sequential, seed: int = 0) -> np.ndarray:
    """An input of a model: 4 samples of 6 steps."""
    rng, shape = np.random.default_rng([31, seed]), model.input_shape
    if len(shape) == 2:
        return rng.integers(0, 7, (4, 6))
    dtype = next(iter(model.parameters().values())).dtype
    return rng.standard_normal((4, 6, shape[-1] or 3)).astype(dtype)


def given(net: Any, seed: int = 0, T: int = 6, B: int = 3) -> np.ndarray:
    """Return an input of the layer."""
    x = np.random.default_rng([28, seed]).standard_normal((T, B, net.input_size)).astype(net.dtype)
    return x.swapaxes(0, 1) if net.batch_first else x


def settings(net: Any) -> dict[str, Any]:
    """Return every setting of a recurrent layer except its parameters."""
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional", "merge")
    return {name: getattr(net, name) for name in (*names, "return_sequences", "weight_dtype", "dtype")} | {
        "class": type(net),
        "cell": repr(net)[repr(net).index("[") :],
    }


def bound(net: Any) -> float:
    """Return the bound of assert_close for an implementation of the same dtype."""
    return FLOAT64 if net.dtype == np.float64 else FLOAT32


def small() -> fastrnn.Sequential:
    return fastrnn.Sequential(
        [
            fastrnn.Embedding(5, 3, padding_idx=1, rng=0),
            fastrnn.Sequential([fastrnn.LSTM(3, 4, peephole=True, rng=1), fastrnn.Dropout(0.5)]),
            fastrnn.Dense(4, 2, "tanh", bias=False, rng=2),
            fastrnn.Activation("softmax"),
        ]
    )


def written(dtype: Any = np.float32) -> tuple[fastrnn.GRU, np.ndarray, np.ndarray]:
    """Return a GRU from gates whose z weights the candidate, an x (T, B, I), and y from a textbook loop."""
    rng = np.random.default_rng(4)
    W, U, b = (dict(zip("zrh", rng.uniform(-1, 1, (3, *shape)), strict=True)) for shape in ((4, 3), (4, 4), (4,)))
    x, h, y = rng.standard_normal((6, 2, 3)), np.zeros((2, 4)), []
    for x_t in x:
        a = {gate: x_t @ W[gate].T + b[gate] for gate in "zrh"}
        z, r = (1 / (1 + np.exp(-(a[gate] + h @ U[gate].T))) for gate in "zr")
        h = (1 - z) * h + z * np.tanh(a["h"] + (r * h) @ U["h"].T)
        y.append(h)
    named = {f"{kind}{gate}": own[gate] for kind, own in (("W", W), ("U", U), ("b", b)) for gate in "zrh"}
    gates = {name: a.astype(dtype) for name, a in named.items()}
    gru = fastrnn.from_gates(**gates, reset_after=False, update="write")
    return gru, x.astype(dtype), np.array(y)


def over_time(kind: str, decodes: bool, dtype: Any = np.float32) -> fastrnn.Sequential:
    """A model with what makes a vector of steps, and steps of a vector."""
    rng = np.random.default_rng(3)
    norm = fastrnn.LayerNormalization(4, dtype=dtype)
    norm.load_state_dict({name: rng.uniform(0.5, 1.5, 4).astype(dtype) for name in ("weight", "bias")})
    plain = fastrnn.LayerNormalization(4, 0.25, scale=False, center=False, dtype=dtype)
    encoder = fastrnn.GRU(3, 4, reset_after=True, bidirectional=True, merge="sum", dtype=dtype, rng=0)
    decoder = [fastrnn.RepeatVector(3), fastrnn.LSTM(4, 2, dtype=dtype, rng=1)] if decodes else []
    folded = fastrnn.Sequential([plain, getattr(fastrnn, kind)()])
    return fastrnn.Sequential([encoder, norm, folded, *decoder])
