"""Figures: their contents, read back from their lines and images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrnn
from fastrnn import inspect
from fastrnn.cells import sigmoid, tanh
from fastrnn.training import History

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("agg")

from matplotlib import pyplot  # noqa: E402

from fastrnn import plot  # noqa: E402

SEEING = Path(__file__).resolve().parents[1] / "docs" / "examples" / "seeing.py"

T, B, I, H = 12, 3, 2, 6


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    pyplot.close("all")


def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)


def drawn(figure: Any) -> Any:
    """Return the figure after a layout without warnings."""
    figure.canvas.draw()
    return figure


def test_history() -> None:
    curves = {"loss": [3.0, 2.0, 1.0], "accuracy": [0.1, 0.5, 0.6], "val_loss": [4.0, 3.0, 3.5]}
    figure = drawn(plot.history(History(curves)))
    loss, accuracy = figure.axes
    labels = [(a.get_ylabel(), a.get_xlabel(), a.get_title()) for a in figure.axes]
    assert labels == [("loss", "epoch", "Loss"), ("accuracy", "epoch", "Accuracy")]
    lines = {line.get_label(): line for line in loss.get_lines()}
    assert list(lines["training"].get_xdata()) == [1, 2, 3]
    assert list(lines["training"].get_ydata()) == curves["loss"]
    assert list(lines["validation"].get_ydata()) == curves["val_loss"]
    assert lines["training"].get_color() != lines["validation"].get_color()
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["training", "validation"]
    assert (len(accuracy.get_lines()), accuracy.get_legend()) == (1, None)


def test_history_of_fit() -> None:
    model = fastrnn.Sequential([fastrnn.RNN(I, H, return_sequences=False, rng=0), fastrnn.Dense(H, 1, rng=1)])
    model.compile("sgd", "mse")
    x = inputs()
    history = model.fit(x, x[:, :1, 0], epochs=2, validation_split=0.5, rng=0)
    [axes] = plot.history(history).axes
    lines = [list(line.get_ydata()) for line in axes.get_lines()]
    assert lines == [history.history["loss"], history.history["val_loss"]]


def test_given_axes() -> None:
    figure, (left, right) = pyplot.subplots(1, 2)
    assert plot.history({"loss": [1.0]}, ax=left) is figure
    assert left.get_lines()[0].get_marker() == "o"  # a line with a single point would be invisible
    assert plot.gradient_norms(fastrnn.RNN(I, H, rng=0), inputs(), ax=right) is figure
    assert (len(figure.axes), right.get_yscale()) == (2, "log")
    with pytest.raises(ValueError, match="ax: expected 2 axes, got 1"):
        plot.history({"loss": [1.0], "mae": [1.0]}, ax=left)


def test_history_mistakes() -> None:
    with pytest.raises(TypeError, match="history: expected a History or a mapping"):
        plot.history([1.0, 2.0])
    for nothing in (History(), {"loss": []}):
        with pytest.raises(ValueError, match="history: expected at least one epoch"):
            plot.history(nothing)
    for wrong in (True, 1, "axes", [None]):
        with pytest.raises(TypeError, match=r"^ax: expected matplotlib Axes, got "):
            plot.history({"loss": [1.0]}, ax=wrong)


def test_gradient_norms_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"^layers: expected at least one, got none"):
        plot.gradient_norms({}, inputs())


OF_LSTM = ["input gate i", "forget gate f", "output gate o", "candidate g", "cell state c", "hidden state h"]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("kind", "options", "titles"),
    [
        (fastrnn.LSTM, {}, OF_LSTM),
        (fastrnn.LSTM, {"proj_size": 2}, OF_LSTM),
        (fastrnn.GRU, {"reset_after": True}, ["reset gate r", "update gate z", "candidate n", "hidden state h"]),
        (fastrnn.RNN, {}, ["hidden state h"]),
    ],
)
def test_gates(kind: Any, options: dict[str, Any], titles: list[str], batch_first: bool) -> None:
    net = kind(I, H, bidirectional=True, batch_first=batch_first, rng=0, **options)
    x, lengths = inputs(), [T, 5, 9]
    found = inspect.gates(net, x.swapaxes(0, 1) if batch_first else x, lengths=lengths, reverse=True)
    figure = plot.gates(net, x.swapaxes(0, 1) if batch_first else x, lengths=lengths, reverse=True, sequence=1)
    panels = drawn(figure).axes[: len(titles)]
    assert [axes.get_title() for axes in panels] == titles
    for axes in panels:
        name = axes.get_title()[-1]
        [image] = axes.get_images()
        values = found[name][1] if batch_first else found[name][:, 1]
        assert np.array_equal(image.get_array(), values[:5].T), name
        assert image.get_clim() == ((0, 1) if "gate" in axes.get_title() else (-1, 1)), name
        assert (image.cmap.name == "Greys") == ("gate" in axes.get_title()), name


def test_gates_of_a_users_cell() -> None:
    """Gates are the sigmoids, whatever their names; names are shown as given."""

    @fastrnn.cell(gates="ifw", states=("rate",))
    def cell(x: Any, U: Any, s: Any) -> Any:
        i, f, w = tanh(x.i), sigmoid(x.f + U.f @ s.rate), sigmoid(x.w)
        return w * i + f * s.rate

    figure = plot.gates(fastrnn.Recurrent(cell, I, H, rng=0), inputs())
    drawn_as = {axes.get_title(): axes.get_images()[0].cmap.name for axes in drawn(figure).axes[:4]}
    assert drawn_as == {"f": "Greys", "w": "Greys", "i": "RdBu_r", "rate": "RdBu_r"}


def test_a_large_state_has_a_scale_of_its_own() -> None:
    net = fastrnn.RNN(I, H, activation="identity", rng=0)
    net.set_weights([3 * w for w in net.get_weights()])
    x = inputs()[:, 0]
    [image] = plot.gates(net, x).axes[0].get_images()
    limit = float(np.abs(net(x)[0]).max())
    assert limit > 1
    assert image.get_clim() == pytest.approx((-limit, limit), rel=1e-5)
    assert image.cmap(image.norm(0.0)) == pytest.approx((1, 1, 1, 1), abs=0.05)  # 0 is white


def test_gates_mistakes() -> None:
    net = fastrnn.LSTM(I, H, rng=0)
    with pytest.raises(ValueError, match=r"sequence: expected one of -3\.\.2, got 3"):
        plot.gates(net, inputs(), sequence=3)
    with pytest.raises(TypeError, match="lags"):
        plot.gates(net, inputs(), lags=3)


def test_gradient_norms() -> None:
    nets = {"RNN": fastrnn.RNN(I, H, rng=0), "LSTM": fastrnn.LSTM(I, H, rng=1, batch_first=False)}
    lengths = np.array([9, 4, 7])
    figure = drawn(plot.gradient_norms(nets, inputs(), lengths=lengths))
    [axes] = figure.axes
    for line, band, (label, net) in zip(axes.get_lines(), axes.collections, nets.items(), strict=True):
        norms = inspect.gradient_norms(net, inputs(), lengths=lengths)
        expected = [np.median(norms[t, t < lengths]) if t < 9 else np.nan for t in range(T)]
        assert np.array_equal(line.get_ydata(), expected, equal_nan=True)
        assert line.get_label() == label
        top = band.get_paths()[0].vertices[:, 1].max()
        assert top == pytest.approx(1.0)
    assert len({line.get_color() for line in axes.get_lines()}) == 2
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["RNN", "LSTM"]
    assert axes.get_yscale() == "log"


def test_gradients_over_hundreds_of_decades() -> None:
    net = fastrnn.RNN(1, 8, activation="identity", dtype=np.float64, rng=0)
    net.set_weights([30 * w for w in net.get_weights()])
    figure = drawn(plot.gradient_norms(net, np.ones((300, 1))))
    [axes] = figure.axes
    exponents = np.log10(axes.get_yticks())
    assert np.allclose(exponents % 10, 0)
    assert 3 <= len(exponents) <= 9
    assert axes.get_legend() is None  # a single line needs no legend
    shown = axes.get_lines()[0].get_ydata()
    assert (np.isnan(shown[0]), np.nanmax(shown) > 1e240, shown[-1]) == (True, True, pytest.approx(1))


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'fastrnn\[plot\]'"):
        plot.history({"loss": [1.0]})


def test_the_example(python: Any, tmp_path: Path) -> None:
    done = python("-W", "error", str(SEEING), "--quick", str(tmp_path / "new"), MPLBACKEND="agg")
    assert done.returncode == 0, done.stderr
    pictures = {path.name: pyplot.imread(path) for path in (tmp_path / "new").iterdir()}
    assert set(pictures) == {"history.png", "gates.png", "gradients.png"}
    assert all(np.ptp(picture) > 0.5 for picture in pictures.values())
