"""`fastrnn.keras` and Keras' own layers on its torch backend: outputs and gradients for any arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from support.keras_layers import BOUND, LAYERS, B, H, I, T, outputs_and_gradients, pair, share_weights
from support.python import Python
from support.tolerance import assert_close, assert_same_bits

# Keras' variables do not know NumPy 2's __array__(copy=).
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
LEAST = 0.1  # the magnitude of the terms, about 1, that rounding errors in a sum are relative to

#: Keras' names of the functions that cells of ours support in place of tanh and sigmoid
ACTIVATIONS = (
    *("tanh", "relu", "sigmoid", "hard_sigmoid", "linear", "softsign"),
    *("softplus", "elu", "selu", "exponential", "silu"),
)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("k", range(len(ACTIVATIONS)))
@pytest.mark.parametrize("name", ["GRU before", "GRU after", "LSTM"])
def test_every_activation_in_every_place(name: str, k: int, dtype: str, keras: Any, ours: Any) -> None:
    """Each function in each place, with every implementation of Keras."""
    name, _, reset = name.partition(" ")
    options: dict[str, Any] = {"activation": ACTIVATIONS[k], "recurrent_activation": ACTIVATIONS[k - 8]}
    options |= {"implementation": 1 + k % 2, "return_sequences": k % 3 > 0}
    assert_same(keras, ours, name, dtype, options | ({"reset_after": reset == "after"} if reset else {}))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_a_simple_rnn(activation: str, dtype: str, keras: Any, ours: Any) -> None:
    assert_same(keras, ours, "SimpleRNN", dtype, {"activation": activation, "return_sequences": True})


def assert_same(keras: Any, ours: Any, name: str, dtype: str, options: dict[str, Any], training: bool = False) -> None:
    rng, steps = np.random.default_rng(9), T
    both = pair(keras, ours, name, dtype=dtype, **options)
    if {*options.values()} & {*ACTIVATIONS} - {"tanh", "sigmoid", "hard_sigmoid", "softsign"}:
        steps = 2  # unbounded gates multiply and soon overflow
        for layer in both:
            layer.set_weights([0.2 * w for w in layer.get_weights()])
    x, states = rng.standard_normal((B, steps, I)).astype(dtype), 2 if name == "LSTM" else 1
    given = x, None, [rng.standard_normal((B, H)).astype(dtype) for _ in range(states)]
    expected, got = (outputs_and_gradients(layer, *given, training) for layer in both)
    assert_close(got, expected, BOUND)


#: Keras' gated cells apply no mask at a rate of 1; its shortcut, use_cudnn="auto", does, and fails on a mask per gate.
RATES: list[dict[str, Any]] = [
    {"recurrent_dropout": 0.4},
    {"recurrent_dropout": 0.4, "dropout": 0.3},
    {"recurrent_dropout": 0.4, "dropout": 0.3, "activation": "softsign", "recurrent_activation": "hard_sigmoid"},
    {"recurrent_dropout": 0.6, "dropout": 1.0},
    {"recurrent_dropout": 1.0},
    {"dropout": 0.5, "implementation": 1, "use_cudnn": False},
    {"dropout": 0.5},
]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("k", range(len(RATES)))
@pytest.mark.parametrize("name", ["SimpleRNN", "GRU before", "GRU after", "LSTM"])
def test_dropout_has_the_masks_of_keras(name: str, k: int, dtype: str, keras: Any, ours: Any) -> None:
    """Equal seeds drop the same values, with new masks in every call, and per gate if Keras has a mask per gate."""
    name, _, reset = name.partition(" ")
    options = RATES[k] | {"seed": 1, "return_sequences": k > 0} | ({"reset_after": reset == "after"} if reset else {})
    if name == "SimpleRNN":
        others = ("implementation", "use_cudnn", "recurrent_activation")
        options = {option: value for option, value in options.items() if option not in others}
    for training in (True, False):
        assert_same(keras, ours, name, dtype, options, training)


def masks(lengths: Any, T: int, rng: np.random.Generator) -> dict[str, np.ndarray | None]:
    """Return masks (B, T), which cover the steps past the lengths, as many before, some anywhere, or none."""
    right = np.arange(T) < np.asarray(lengths)[:, None]
    return {"none": None, "right": right, "left": right[:, ::-1].copy(), "holes": rng.random(right.shape) < 0.6}


MASKS = masks([9, 4, 1, 0, 6], T, np.random.default_rng(2))


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("seed", range(3))
def test_outputs_and_gradients_are_those_of_keras(seed: int, name: str, mask: str, keras: Any, ours: Any) -> None:
    """Random options."""
    rng = np.random.default_rng([seed, len(mask)])
    names = ("return_sequences", "return_state", "go_backwards", "stateful", "use_bias", "zero_output_for_mask")
    options: dict[str, Any] = {option: bool(rng.integers(2)) for option in names}
    if name == "SimpleRNN":
        options["activation"] = ["tanh", "relu", "sigmoid", "linear"][rng.integers(4)]
    if name == "GRU":
        options["reset_after"] = bool(rng.integers(2))
    # Without masks, Keras' shortcut forgets to copy the states, and then overwrites them.
    options["stateful"] &= mask != "none" or name == "SimpleRNN"
    states = 0 if options["stateful"] or rng.integers(2) else 2 if name == "LSTM" else 1
    initial = [rng.standard_normal((B, H)) for _ in range(states)]
    x = rng.standard_normal((B, T, I))
    both = pair(keras, ours, name, **options)
    expected, got = (outputs_and_gradients(layer, x, MASKS[mask], initial) for layer in both)
    assert_close(got, expected, BOUND)


@st.composite
def cases(draw: Any) -> dict[str, Any]:
    """Draw arguments of a constructor and of a call."""
    name = draw(st.sampled_from(LAYERS))
    flags = ("return_sequences", "return_state", "go_backwards", "stateful", "use_bias", "zero_output_for_mask")
    options: dict[str, Any] = {flag: draw(st.booleans()) for flag in (*flags, "unroll")}
    options["activation"] = draw(st.sampled_from(["tanh", "relu", "sigmoid", "linear", "softsign"]))
    options["seed"] = 1
    options["dropout"] = draw(st.sampled_from([0.0, 0.3]))
    options["recurrent_dropout"] = draw(st.sampled_from([0.0, 0.3]))
    if name != "SimpleRNN":
        options["implementation"] = draw(st.sampled_from([1, 2]))
        options["use_cudnn"] = "auto" if options["dropout"] == 0 else False  # its shortcut fails with a mask per gate
        options["recurrent_activation"] = draw(st.sampled_from(["sigmoid", "hard_sigmoid"]))
    if name == "GRU":
        options["reset_after"] = draw(st.booleans())
    merge = draw(st.sampled_from(["one way", "concat", "sum", "mul", "ave", None]))
    mask = draw(st.sampled_from(["none", "right", "left", "holes"]))
    # Without masks, Keras' shortcut forgets to copy the states, and then overwrites them.
    options["stateful"] &= mask != "none" or name == "SimpleRNN" or options["recurrent_dropout"] > 0
    options["go_backwards"] &= merge == "one way"
    options["return_state"] &= merge == "one way" or not options["stateful"]  # Keras' Bidirectional fails with both
    sizes = [draw(st.integers(1, most)) for most in (6, 4, 4, 5)]
    states = not options["stateful"] and draw(st.booleans())
    return {"name": name, "options": options, "merge": merge, "mask": mask, "sizes": sizes, "states": states} | {
        "seed": draw(st.integers(0, 2**32 - 1)),
        "training": draw(st.booleans()),
    }


@hypothesis.settings(max_examples=100, deadline=None, database=None)
@hypothesis.given(case=cases())
def test_any_arguments(case: dict[str, Any], keras: Any, ours: Any) -> None:
    """Any constructor, sizes, mask and initial states: every output and every gradient."""
    (T, B, I, H), name, rng = case["sizes"], case["name"], np.random.default_rng(case["seed"])
    both = []
    for module in (keras.layers, ours):
        own = {"unroll": False} if module is keras.layers else {}  # Keras on torch fails to unroll with a mask
        layer = getattr(module, name)(H, dtype="float64", **case["options"] | own)
        if case["merge"] != "one way":
            layer = keras.layers.Bidirectional(layer, merge_mode=case["merge"], dtype="float64")
        layer.build((B, T, I))
        both.append(layer)
    share_weights(both, rng)
    mask = masks(rng.integers(0, T + 1, B), T, rng)[case["mask"]]
    count = (2 if name == "LSTM" else 1) * (1 if case["merge"] == "one way" else 2) * case["states"]
    given = rng.standard_normal((B, T, I)), mask, [rng.standard_normal((B, H)) for _ in range(count)]
    expected, got = (outputs_and_gradients(layer, *given, case["training"]) for layer in both)
    assert got.keys() == expected.keys()
    # All elements of a small tensor may be small by chance, but Keras' rounding error is not.
    for name, a in expected.items():
        assert got[name].shape == a.shape
        assert np.linalg.norm(got[name] - a) <= BOUND * max(np.linalg.norm(a), LEAST), name


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", LAYERS)
def test_half_precision_is_float32(name: str, policy: str, rate: float, keras: Any, ours: Any, torch: Any) -> None:
    """The kernels compute in float32, while Keras rounds every step; results have Keras' dtype."""
    keras.utils.set_random_seed(7)  # for the weights, which would otherwise depend on earlier tests
    x = np.random.default_rng(7).standard_normal((B, T, I)).astype(np.float32)
    options: dict[str, Any] = {"dropout": rate, "recurrent_dropout": rate, "seed": 1, "return_sequences": True}
    layers = [getattr(module, name)(H, dtype=policy, **options) for module in (keras.layers, ours)]
    gradients = []
    for layer in layers:
        layer.build((B, T, I))
        layer.set_weights(layers[0].get_weights())
        y = layer(x, training=True)
        assert y.dtype == (torch.float16 if policy == "mixed_float16" else torch.bfloat16)
        (dW,) = torch.autograd.grad(y.sum(), layer.trainable_variables[0].value)
        gradients.append([a.detach().float().numpy() for a in (y, dW)])
    for expected, got in zip(*gradients, strict=True):
        assert_close({"": got}, {"": expected}, 0.02)


def test_tensors_on_other_devices_raise_an_error(ours: Any, torch: Any) -> None:
    layer = ours.LSTM(4)
    assert layer.use_cudnn is False  # a Bidirectional passes it on
    elsewhere = SimpleNamespace(device=torch.device("cuda:0"))
    with pytest.raises(ValueError, match="sequences: expected a tensor on the CPU, got one on cuda:0"):
        layer.inner_loop(elsewhere, None, None)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_shapes_are_checked(name: str, grad: bool, ours: Any, torch: Any) -> None:
    """Keras' layers check the number of axes alone; a batch of 1 is one for all, as there."""
    layer, x, states = getattr(ours, name)(H), np.ones((B, T, I), np.float32), 2 if name == "LSTM" else 1
    h, mask = np.ones((B, H), np.float32), np.ones((B, T), bool)
    with torch.set_grad_enabled(grad):
        y = layer(x, initial_state=[h] * states, mask=mask)
        assert torch.equal(layer(x, initial_state=[h[:1]] * states, mask=mask[:1]), y)
        for wrong in (np.ones((B, T, I - 1), np.float32), np.ones((B, T, I + 1), np.float32)):
            with pytest.raises(ValueError, match=r"sequences: expected shape \(B, T, I\) = "):
                layer(wrong)
        for wrong in (h[:2], h[:, 1:], h[:, None], h[0]):
            with pytest.raises(ValueError, match=r"initial_state: expected shape \(B, H\) = "):
                layer(x, initial_state=[wrong] * states)
        for wrong in (mask[:, 1:], mask[:2], mask.T, mask[..., None], np.ones((B, T + 1), bool)):
            with pytest.raises(ValueError, match=r"mask: expected shape \(B, T\) = "):
                layer(x, mask=wrong)
    if states == 2:
        with pytest.raises(ValueError, match="initial_state: expected 2 arrays, got 1"):
            layer(x, initial_state=[h])


@pytest.mark.parametrize("name", LAYERS)
def test_layers_work_in_a_time_distributed(name: str, keras: Any, ours: Any) -> None:
    x = np.random.default_rng(8).standard_normal((2, 4, T, I)).astype(np.float32)
    layers = [keras.layers.TimeDistributed(getattr(module, name)(H)) for module in (keras.layers, ours)]
    for layer in layers:
        layer.build(x.shape)
        layer.set_weights(layers[0].get_weights())
    expected, got = (layer(x).detach().numpy() for layer in layers)
    assert_close({"y": got}, {"y": expected}, BOUND)


def test_round_trip_of_a_model_through_a_file(keras: Any, ours: Any, tmp_path: Path) -> None:
    words = {"activation": "relu", "recurrent_activation": "hard_sigmoid"}
    gru = ours.GRU(H, **words, return_sequences=True, recurrent_dropout=0.2)
    lstm = keras.layers.Bidirectional(ours.LSTM(H, "silu"))
    model = keras.Sequential([keras.Input((T, I)), gru, lstm])
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(6).standard_normal((B, T, I)).astype(np.float32)
    assert type(again.layers[0]) is ours.GRU
    assert again.layers[0]._cell is gru._cell
    assert again.layers[0]._dropping is gru._dropping
    assert again.layers[0].recurrent_dropout == 0.2
    assert np.array_equal(again.predict(x, verbose=0), model.predict(x, verbose=0))


def tanh(a: Any) -> Any:
    return 2 * a


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("GRU", {"activation": "gelu"}, r"^activation: expected one of .*, got <function gelu .*>; use fastrnn\.cell"),
        ("LSTM", {"recurrent_activation": "mish"}, "^recurrent_activation: expected one of .*, got <function mish"),
        ("SimpleRNN", {"activation": "softmax"}, "^activation: expected one of Keras' tanh, relu, .*, got <function"),
        ("LSTM", {"activation": tanh}, "activation: expected one of Keras' tanh, .*, got <function tanh at"),
        ("GRU", {"use_cudnn": True}, r'use_cudnn: expected "auto" or False \(fastrnn runs on the CPU\), got True'),
    ],
)
def test_unsupported_arguments_are_refused(name: str, options: dict[str, Any], message: str, ours: Any) -> None:
    """Among them functions of the same name as Keras', which is all that its configuration contains."""
    with pytest.raises(ValueError, match=message):
        getattr(ours, name)(H, **options)


def test_linear_may_be_called_identity(ours: Any) -> None:
    layer = ours.SimpleRNN(H, "identity")
    assert layer.get_config()["activation"] == "linear"
    assert type(layer).from_config(layer.get_config())._cell.name == "rnn_identity"


def test_other_backends_are_refused(oracle: Callable[[str], Any], python: Python) -> None:
    oracle("jax")
    oracle("keras")
    done = python("-c", "import fastrnn.keras", KERAS_BACKEND="jax")
    assert done.stderr.splitlines()[-1] == "ImportError: fastrnn.keras needs KERAS_BACKEND=torch, got 'jax'"


@pytest.mark.parametrize("given", ["x", "mask", "initial_state"])
@pytest.mark.parametrize("name", LAYERS)
def test_stateless_call_of_numpy_arrays(name: str, given: str, keras: Any, ours: Any) -> None:
    """It passes its arguments to the layer unchanged; variables may be arrays, and give the same as tensors."""
    layer, rng = getattr(ours, name)(H, return_sequences=True, return_state=True), np.random.default_rng(1)
    layer.build((B, T, I))
    x, state = rng.standard_normal((B, T, I)).astype(np.float32), rng.standard_normal((B, H)).astype(np.float32)
    mask = np.arange(T) < np.array([[T], [1], [0], [5], [3]])
    states = [state, -state][: 2 if name == "LSTM" else 1]
    options: dict[str, Any] = {"mask": mask} if given == "mask" else {}
    options |= {"initial_state": states} if given == "initial_state" else {}
    variables = [np.asarray(w) for w in layer.get_weights()]
    found, _ = layer.stateless_call(variables, [v.value for v in layer.non_trainable_variables], x, **options)
    tensors = keras.tree.map_structure(keras.ops.convert_to_tensor, options)
    expected = layer(keras.ops.convert_to_tensor(x), **tensors)
    for got, a in zip(found, expected, strict=True):
        assert_same_bits({"": keras.ops.convert_to_numpy(got)}, {"": keras.ops.convert_to_numpy(a)})


EXPORTED: dict[str, Any] = {
    "LSTM": lambda k, f: [f.LSTM(6)],
    "GRU": lambda k, f: [f.GRU(6, use_bias=False)],
    "RNN": lambda k, f: [f.SimpleRNN(6, activation="relu", return_sequences=True)],
    "LSTM, LSTM": lambda k, f: [k.Bidirectional(f.LSTM(6, return_sequences=True))],
    "GRU, LSTM": lambda k, f: [f.GRU(6, return_sequences=True), f.LSTM(5, go_backwards=True)],
    "": lambda k, f: [k.Masking(), f.LSTM(6)],
    " before": lambda k, f: [f.GRU(6, reset_after=False)],
}


@pytest.mark.filterwarnings("ignore")  # from the exporter itself
@pytest.mark.parametrize("nodes", EXPORTED)
def test_export_to_onnx(nodes: str, keras: Any, ours: Any, onnx: Any, runtime: Any, tmp_path: Path) -> None:
    """With ONNX's own nodes if PyTorch has them, otherwise with the loop that Keras' layers export; for any batch."""
    model = keras.Sequential([keras.Input((T, I)), *EXPORTED[nodes](keras.layers, ours)])
    x = np.random.default_rng(2).standard_normal((B, T, I)).astype(np.float32)
    x[1:, 4:] = 0
    expected = keras.ops.convert_to_numpy(model(x))
    model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert ", ".join(o for o in operators if o in ("LSTM", "GRU", "RNN")) == nodes.partition(" before")[0]
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
