"""`python -m fastrnn convert`, `inspect` and `bench MODEL`: every kind of file, and errors of one line."""

from __future__ import annotations

import errno
import gzip
import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.conversions import drawn_model, read_by
from support.tolerance import FLOAT32, assert_close, assert_same_bits

import fastrnn
from fastrnn import catalogue, commands
from fastrnn.training import weight_files

pytest.importorskip("safetensors")

DATA = Path(__file__).with_name("data")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command in an empty folder; return its exit code and its output."""
    main = importlib.import_module("fastrnn.__main__").main
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastrnn", *arguments])
        try:
            code = main()
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


def wrong(run: Run, *arguments: str) -> str:
    """Return the error message of a failing command."""
    code, out, err = run(*arguments)
    assert (code, out, err.count("\n"), "Traceback" in err) == (2, "", 1, False), err
    assert err.startswith("python -m fastrnn")
    return err


def small() -> fastrnn.Sequential:
    layers = [fastrnn.Embedding(7, 3, rng=0), fastrnn.LSTM(3, 4, return_sequences=False, rng=1)]
    return fastrnn.Sequential([*layers, fastrnn.Dense(4, 2, "softmax", rng=2)])


@pytest.mark.parametrize("seed", range(6))
def test_onnx(seed: int, run: Run, onnx: Any) -> None:
    model = drawn_model(seed)
    model.save("model.safetensors")
    code, out, _ = run("convert", "model.safetensors", "model.onnx", "--opset", "13")
    assert code == 0
    assert re.fullmatch(r"model\.onnx: [\w, ]+; float32, [\d,]+ parameters, [\d.]+ k?B\n", out)
    assert onnx.load("model.onnx") == fastrnn.to_onnx(model, opset=13)
    assert run("convert", "model.onnx", "back.safetensors")[0] == 0
    x = read_by(model, seed)
    assert_same_bits({"y": fastrnn.load("back.safetensors").predict(x)}, {"y": model.predict(x)})


def test_options_of_onnx(run: Run, onnx: Any) -> None:
    small().save("model.safetensors")
    assert run("convert", "model.safetensors", "model.onnx", "--lengths", "--state")[0] == 0
    assert onnx.load("model.onnx") == fastrnn.to_onnx(small(), lengths=True, state=True)
    assert run("convert", "model.onnx", "lstm.safetensors", "--layer", "1.layer0")[0] == 0
    assert repr(fastrnn.load("lstm.safetensors")).startswith("LSTM(3, 4, batch_first=True, return_sequences=False")


def test_keras(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    (tmp_path / "model.h5").write_bytes(gzip.decompress((DATA / "keras_sequential.h5.gz").read_bytes()))
    expected = fastrnn.from_keras("model.h5")
    assert run("convert", "model.h5", "model.safetensors")[0] == 0
    x = read_by(expected)
    assert_same_bits({"y": fastrnn.load("model.safetensors").predict(x)}, {"y": expected.predict(x)})
    assert "--layer: " in wrong(run, "convert", "model.h5", "m.safetensors", "--layer", "none")


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("prefix", ["", "encoder.rnn."])
def test_a_state_dict(prefix: str, nested: bool, kind: str, run: Run, torch: Any) -> None:
    """Information inside a PyTorch file need not be given as an option."""
    module = getattr(torch.nn, kind)(3, 4, 2, bidirectional=True)
    state = {prefix + name: value for name, value in module.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3} if nested else state, "model.pt")
    assert run("convert", "model.pt", "model.safetensors", "--batch-first")[0] == 0
    back, expected = fastrnn.load("model.safetensors"), fastrnn.from_torch(module, batch_first=True)
    assert repr(back) == repr(expected)
    assert_same_bits(back.parameters(), expected.parameters())


def test_selecting_module_and_cell(run: Run, torch: Any) -> None:
    modules = torch.nn.ModuleDict({"a": torch.nn.RNN(3, 4, nonlinearity="relu"), "b": torch.nn.LSTM(3, 8, proj_size=4)})
    torch.save(modules.state_dict(), "model.pth")
    assert "--prefix: expected one of 'a.', 'b.', because model.pth has several modules" in wrong(
        run, "inspect", "model.pth"
    )
    assert "--prefix: expected one of 'a.', 'b.', got 'c.'" in wrong(run, "inspect", "model.pth", "--prefix", "c.")
    cells = "--cell: expected one of rnn_tanh, rnn_relu, because a state_dict does not store it"
    assert cells in wrong(run, "inspect", "model.pth", "--prefix", "a.")
    code, out, _ = run("inspect", "model.pth", "--prefix", "a.", "--cell", "rnn_relu")
    assert (code, "0 RNN" in out, "rnn_relu" in out) == (0, True, True)
    code, out, _ = run("inspect", "model.pth", "--prefix", "b.")
    assert (code, "0 LSTM" in out) == (0, True)


def test_safetensors_of_another_package(run: Run, tmp_path: Path) -> None:
    """A safetensors file that fastrnn did not write has PyTorch's names."""
    layer = fastrnn.GRU(3, 4, reset_after=False, rng=0)
    arrays = {f"rnn.{name}": a for name, a in layer.state_dict().items()}
    importlib.import_module("safetensors.numpy").save_file(arrays, tmp_path / "arrays.safetensors")
    assert run("convert", "arrays.safetensors", "gru.safetensors", "--cell", "gru_before")[0] == 0
    assert_same_bits(fastrnn.load("gru.safetensors").parameters(), layer.parameters())
    assert "--cell: expected no options, because gru.safetensors" in wrong(
        run, "inspect", "gru.safetensors", "--cell", "gru_before"
    )


def test_weight_dtype(run: Run) -> None:
    small().save("model.safetensors")
    assert run("convert", "model.safetensors", "int8.safetensors", "--weight-dtype", "int8")[0] == 0
    found = fastrnn.load("int8.safetensors")
    assert_same_bits(found.parameters(), fastrnn.quantize(fastrnn.load("model.safetensors")).parameters())
    assert "--weight-dtype: expected None, 'bfloat16' or 'int8', got 'int4'" in wrong(
        run, "inspect", "model.safetensors", "--weight-dtype", "int4"
    ).replace('"', "'")


def test_a_file_is_read_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small().save("model.safetensors")
    files, opened = list[str](), weight_files.opened

    def seen(argument: str, path: str) -> Any:
        files.append(path)
        return opened(argument, path)

    monkeypatch.setattr(weight_files, "opened", seen)
    assert run("convert", "model.safetensors", "again.safetensors")[0] == 0
    assert files == ["model.safetensors"]
    # Not their bytes: safetensors writes its metadata in random order.
    first, second = (opened("path", f"{stem}.safetensors") for stem in ("model", "again"))
    assert second[1] == first[1]
    assert_same_bits(second[0], first[0])


def test_rtneural(run: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.random(shape).tolist() for shape in ((1, 16), (4, 16), 16)]
    lstm = {"type": "lstm", "activation": "", "shape": [None, None, 4], "weights": arrays}
    (tmp_path / "amp.json").write_text(json.dumps({"in_shape": [None, None, 1], "layers": [lstm]}))
    assert run("convert", "amp.json", "amp.safetensors")[0] == 0
    back, expected = fastrnn.load("amp.safetensors"), fastrnn.from_rtneural("amp.json")
    assert repr(back) == repr(expected)
    assert_same_bits(back.parameters(), expected.parameters())


def test_inspect(run: Run) -> None:
    layers = [fastrnn.Recurrent(catalogue.li_gru, 3, 20, rng=0), fastrnn.Dropout(0.5), fastrnn.Dense(20, 2, rng=1)]
    fastrnn.Sequential([fastrnn.Sequential(layers[:2]), layers[2]]).save("model.safetensors")
    code, out, _ = run("inspect", "model.safetensors")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "model.safetensors: Recurrent, Dropout, Dense; float32, 1,042 parameters, 4.2 kB"
    assert f"backend: {fastrnn.config()['backend']}" in lines[1]
    assert re.split(r"  +", lines[3]) == ["Layer", "Output shape", "Parameters", "Memory", "Cell", "Runs in"]
    found = {line.split()[0]: re.split(r"  +", line)[1:4] for line in lines[5:8]}
    assert found == {
        "0.0": ["(None, None, 20)", "1,000", "4.0 kB"],
        "0.1": ["(None, None, 20)", "0", "0 B"],
        "1": ["(None, None, 2)", "42", "168 B"],
    }
    assert "li_gru" in lines[5]
    assert lines[-1].split() == ["Total", "1,042", "4.2", "kB"]


def test_a_layer_with_a_pair_of_outputs(run: Run, onnx: Any) -> None:
    layer = fastrnn.LSTM(3, 4, bidirectional=True, merge=None, rng=0)
    fastrnn.save("pair.safetensors", layer)
    line = "LSTM; float32, 288 parameters, 1.2 kB"
    assert run("convert", "pair.safetensors", "pair.onnx") == (0, f"pair.onnx: {line}\n", "")
    assert onnx.load("pair.onnx") == fastrnn.to_onnx(layer)
    code, out, err = run("inspect", "pair.safetensors")
    lines = out.splitlines()
    assert (code, lines[0], err) == (0, f"pair.safetensors: {line}", "")
    assert re.split(r"  +", lines[5])[:5] == ["0 LSTM", "a pair", "288", "1.2 kB", "lstm"]
    assert "merge: None gives a pair" in wrong(run, "bench", "pair.safetensors")


def test_inspect_a_graph_that_is_not_a_chain(run: Run, onnx: Any) -> None:
    model = fastrnn.to_onnx(small())
    model.graph.node.append(onnx.helper.make_node("Sqrt", ["y"], ["z"]))
    model.graph.output[0].name = "z"
    onnx.save(model, "model.onnx")
    code, out, _ = run("inspect", "model.onnx")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("model.onnx: Sqrt node 'z': not a layer of a Sequential")
    assert lines[-1].split()[:2] == ["1.layer0", "LSTM"]
    message = wrong(run, "convert", "model.onnx", "other.onnx")
    assert "convert: model.onnx: Sqrt node 'z'" in message
    assert all("; --layer reads only recurrent nodes" in shown for shown in (lines[0], message))
    one = "convert: --layer: expected one of LSTM node '1.layer0', got '1', which matches 0"
    assert one in wrong(run, "convert", "model.onnx", "other.onnx", "--layer", "1")


def times(line: str) -> list[float]:
    """Return the seconds in both columns."""
    return [
        float(n.replace(",", "")) * {"us": 1e-6, "ms": 1e-3}[unit] for n, unit in re.findall(r"([\d,.]+) ([um]s)", line)
    ]


def test_bench(run: Run) -> None:
    small().save("model.safetensors")
    code, out, _ = run(
        "bench", "model.safetensors", "--seconds", "0.03", "--batch", "4", "--steps", "7", "--threads", "1"
    )
    assert code == 0
    lines = out.splitlines()
    assert "threads: at most 1" in lines[1]
    names = ["one step of one sequence", "7 steps of one sequence", "7 steps of 4 sequences"]
    assert [line.partition("  ")[0] for line in lines[5:8]] == names
    for line, n in zip(lines[5:8], (1, 7, 28), strict=True):
        median, late = times(line)
        assert 0 < median <= late
        assert float(line.split()[-1].replace(",", "")) == pytest.approx(n / median, rel=0.1)
    assert re.fullmatch(r"memory: 700 B of parameters, and [\d.]+ [kM]?B more during the last run", lines[-1])


def test_bench_of_a_layer(run: Run) -> None:
    """A bidirectional layer cannot run step by step."""
    fastrnn.save("one.safetensors", fastrnn.GRU(3, 4, reset_after=True, rng=0))
    fastrnn.save("two.safetensors", fastrnn.GRU(3, 4, reset_after=True, bidirectional=True, dtype=np.float64, rng=0))
    small = ("--seconds", "0.02", "--batch", "1", "--steps", "3")
    for path, lines in (("one.safetensors", 2), ("two.safetensors", 1)):
        code, out, _ = run("bench", path, *small)
        assert (code, out.count(" of one sequence"), out.count("no single steps: ")) == (0, lines, 2 - lines)


def test_bench_with_the_model_last(run: Run) -> None:
    small().save("model.safetensors")
    code, out, _ = run("bench", "--seconds", "0.02", "--batch", "2", "--steps", "3", "model.safetensors")
    assert (code, out.count("3 steps of")) == (0, 2)


def test_bench_of_an_encoder_and_a_decoder(run: Run) -> None:
    """The decoder's number of steps is its own; alone it reads vectors."""
    decoder = [fastrnn.RepeatVector(5), fastrnn.LSTM(4, 2, rng=1)]
    encoder = fastrnn.LSTM(3, 4, return_sequences=False, rng=0)
    fastrnn.Sequential([encoder, *decoder]).save("both.safetensors")
    fastrnn.Sequential(decoder).save("decoder.safetensors")
    code, out, _ = run("bench", "both.safetensors", "--seconds", "0.02", "--batch", "2", "--steps", "3")
    assert (code, out.count("no single steps"), out.count("3 steps of")) == (0, 1, 2)
    assert "x of this model has no time axis" in wrong(run, "bench", "decoder.safetensors")
    assert run("inspect", "decoder.safetensors")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "the following arguments are required: IN, OUT; see python -m fastrnn convert --help"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["convert", "m.safetensors", "b.onnx", "--node", "n"], "convert: unrecognized arguments: --node n; see"),
        (["convert", "nothing.onnx", "b.onnx"], "convert: nothing.onnx: file not found"),
        (["inspect", "folder.onnx"], "inspect: folder.onnx: a directory, not a file"),
        (["inspect", "m.safetensors", "--batch"], "inspect: unrecognized arguments: --batch; see"),
        (["inspect", "m.txt"], "inspect: MODEL: expected a file name ending in .safetensors, .keras, .h5,"),
        (["convert", "m.safetensors", "m.d"], "OUT: expected a file name ending in .safetensors, .onnx, .c, got 'm.d'"),
        (["convert", "m.txt", "m.onnx"], "IN: expected a file name ending in .safetensors, .keras, .h5,"),
        (["convert", "m.safetensors", "no/m.safetensors"], "convert: OUT: the directory no does not exist; create"),
        (["convert", "m.safetensors", "b.safetensors", "--opset", "13"], "--opset: not an option of m.safetensors"),
        (["convert", "m.safetensors", "b.onnx", "--name", "b"], "--name: not an option of m.safetensors or b.onnx;"),
        (["convert", "m.safetensors", "b.safetensors", "--inference"], "--inference: not an option of m.safetensors"),
        (["convert", "m.safetensors", "b.onnx", "--opset", "x"], "argument --opset: invalid int value: 'x'"),
        (["convert", "m.safetensors", "1.c"], "OUT: its file name is the prefix of names in C; expected"),
        (["convert", "m.safetensors", "b.c", "--name", "1"], "--name: expected letters, digits and _, got '1'; pass"),
        (["inspect", "bad.safetensors"], "inspect: bad.safetensors is not a safetensors file"),
        (["inspect", "weights.safetensors"], "inspect: weights.safetensors holds only weights"),
        (
            ["inspect", "m.safetensors", "--lengths"],
            "--lengths: not an option of m.safetensors; expected --cell, --prefix, --batch-first, --weight-dtype",
        ),
        (["bench", "m.safetensors", "--batch", "0"], "--batch: expected a positive integer, got 0"),
        (["bench", "m.safetensors", "--batch", "1" + 13 * "0"], "bench: Unable to allocate"),
        (["bench", "m.safetensors", "--seconds", "0"], "--seconds: expected a positive number, got 0.0"),
        (["bench", "m.safetensors", "--seconds", "inf"], "--seconds: expected a positive number, got inf"),
        (["bench", "m.safetensors", "--threads", "0"], "--threads: expected"),
    ],
)
def test_errors(arguments: list[str], message: str, run: Run, tmp_path: Path) -> None:
    small().save("m.safetensors")
    small().save_weights("weights.safetensors")
    (tmp_path / "bad.safetensors").write_text("weights")
    (tmp_path / "folder.onnx").mkdir()
    assert message in wrong(run, *arguments)


def test_errors_of_files(run: Run, torch: Any, onnx: Any, tmp_path: Path) -> None:
    for name in ("bad.onnx", "bad.pt"):
        (tmp_path / name).write_text("a model")
    torch.save(torch.nn.LSTM(3, 4), "module.pt")
    Path("empty.pt").touch()
    torch.save([1, 2], "list.pt")
    torch.save(torch.nn.Linear(3, 4).state_dict(), "linear.pt")
    fastrnn.save("cell.safetensors", fastrnn.Recurrent(catalogue.li_gru, 3, 4))
    assert "inspect: bad.onnx is not an ONNX model" in wrong(run, "inspect", "bad.onnx")
    for name in ("bad.pt", "module.pt"):
        assert f"{name}: expected a file of torch.save(module.state_dict(), path)" in wrong(run, "inspect", name)
    assert "save(module.state_dict(), path) (EOFError)" in wrong(run, "inspect", "empty.pt")
    assert "list.pt: expected a state_dict, got list" in wrong(run, "inspect", "list.pt")
    assert "expected weight_ih_l0 of a recurrent module, got weight, bias" in wrong(run, "inspect", "linear.pt")
    assert "convert: cell: ONNX has no li_gru" in wrong(run, "convert", "cell.safetensors", "cell.onnx")
    assert not (tmp_path / "cell.onnx").exists()


def test_a_file_that_must_not_be_read(run: Run, onnx: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    Path("secret.onnx").touch()
    monkeypatch.setattr(onnx, "load", load)
    assert "inspect: secret.onnx: Permission denied\n" in wrong(run, "inspect", "secret.onnx")


def test_arguments_that_are_no_options() -> None:
    """Calls of a layer take arguments with names of options."""
    error = ValueError("layer 'a': state=True drops it; pass state= in calls instead, or use layer= to convert one")
    shown = "layer 'a': --state drops it; pass state= in calls instead, or use --layer to convert one"
    assert commands.in_options(error, {"source": "m.keras"}) == shown


@pytest.mark.parametrize("command", [[], ["convert"], ["inspect"], ["bench", "model.onnx"]])
def test_help(command: list[str], run: Run) -> None:
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "")
    assert all(one in out for one in (("convert", "inspect", "bench") if not command else ("--prefix", "--layer")))


def test_as_a_module(python: Callable[..., Any], tmp_path: Path) -> None:
    small().save(tmp_path / "model.safetensors")
    done = python("-m", "fastrnn", "inspect", "model.safetensors")
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 LSTM" in done.stdout


def test_written_models_compute_the_same(run: Run, oracle: Callable[[str], Any], onnx: Any) -> None:
    model = drawn_model(3)
    model.save("model.safetensors")
    assert run("convert", "model.safetensors", "model.onnx")[0] == 0
    session = oracle("onnxruntime").InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    x = read_by(model)
    assert_close({"y": session.run(None, {"x": x})[0]}, {"y": model.predict(x)}, FLOAT32)
