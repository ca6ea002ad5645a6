"""Padding before and after the steps, truncation, and conversion of masks to lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.models import N, T, classes, classifier, inputs, steps
from support.tolerance import assert_close, assert_same_bits

import fastrnn
from fastrnn.training import from_mask, pad_sequences


def sequences(seed: int, shape: tuple[int, ...] = (), dtype: Any = np.int64) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((n, *shape)) * 100).astype(dtype) for n in (3, 1, 0, 6, 4)]


@pytest.mark.parametrize(("shape", "dtype"), [((), np.int32), ((2,), np.float32), ((2, 3), np.float64)])
@pytest.mark.parametrize("maxlen", [None, 1, 3, 6, 9])
@pytest.mark.parametrize("truncating", ["pre", "post"])
@pytest.mark.parametrize("padding", ["pre", "post"])
def test_by_hand(padding: str, truncating: str, maxlen: int | None, shape: tuple[int, ...], dtype: Any) -> None:
    given = sequences(1, shape, dtype)
    x, lengths = pad_sequences(given, maxlen, padding=padding, truncating=truncating, value=-7)
    longest = maxlen or 6
    expected = []
    for a in given:
        kept = list(a)
        while len(kept) > longest:
            kept.pop(0 if truncating == "pre" else -1)
        while len(kept) < longest:
            kept.insert(0 if padding == "pre" else len(kept), np.full(shape, -7, dtype))
        expected.append(np.stack(kept))
    assert_same_bits({"x": x}, {"x": np.stack(expected)})
    assert lengths.tolist() == [min(len(a), longest) for a in given]


@pytest.mark.parametrize("options", [{}, {"maxlen": 4}, {"maxlen": 4, "truncating": "post", "value": 9}])
@pytest.mark.parametrize("padding", ["pre", "post"])
def test_equals_keras(padding: str, options: dict[str, Any], keras: Any) -> None:
    theirs = keras.utils.pad_sequences(sequences(2), padding=padding, dtype="int64", **options)
    ours = pad_sequences(sequences(2), padding=padding, **{"truncating": "pre"} | options)[0]
    assert_same_bits({"x": ours}, {"x": theirs})


def test_masked_padding_has_no_effect() -> None:
    """Before, after, or between: only the valid steps are read, in their order."""
    given = [a[:n] for a, n in zip(inputs(), steps(), strict=True)]
    model = classifier()
    expected = model.predict(given)
    x, lengths = pad_sequences(given, padding="pre", value=np.nan)
    front = np.arange(T) >= T - lengths[:, None]
    holes, rng = np.full((N, T + 4, 3), np.nan), np.random.default_rng(0)
    mask = np.zeros((N, T + 4), bool)
    for row, valid, a in zip(holes, mask, given, strict=True):
        where = np.sort(rng.permutation(T + 4)[: len(a)])
        row[where], valid[where] = a, True
    for padded, valid in ((x, front), (holes, mask)):
        before = padded.copy()
        found, n = from_mask(padded, valid)
        assert n.tolist() == steps().tolist()
        assert_same_bits({"x": padded}, {"x": before})
        assert not found[np.arange(found.shape[1]) >= n[:, None]].any()
        assert_same_bits({"y": model.predict(found, lengths=n)}, {"y": expected})
    model.fit(*from_mask(x, front)[:1], classes(N), lengths=lengths)


@pytest.mark.filterwarnings("ignore")  # for Keras
def test_masks_equal_keras(keras: Any) -> None:
    """A GRU of Keras with a mask that has gaps: the last state."""
    x, mask = inputs(np.float32), np.random.default_rng(3).random((N, T)) < 0.6
    mask[0] = False
    layer = keras.layers.GRU(5)
    expected = layer(x, mask=mask).detach().cpu().numpy()
    found, lengths = from_mask(x, mask)
    model = fastrnn.Sequential([fastrnn.from_keras(layer)])
    assert_close({"h": model.predict(found, lengths=lengths)}, {"h": expected}, 1e-5)


ERRORS: dict[str, Callable[[], Any]] = {
    'padding: expected "post" or "pre", got \'front\'': lambda: pad_sequences([[1]], padding="front"),
    'truncating: expected "post" or "pre", got None': lambda: pad_sequences([[1]], truncating=None),  # type: ignore[arg-type]
    "maxlen: expected a positive integer, got 0": lambda: pad_sequences([[1]], 0),
    "maxlen: expected a positive integer, got 1.5": lambda: pad_sequences([[1]], 1.5),  # type: ignore[arg-type]
    "value: expected a value that int64 can represent, got 0.5": lambda: pad_sequences([[1]], value=0.5),
    "value: expected a value that uint8 can represent, got -1": lambda: pad_sequences([np.ones(2, np.uint8)], value=-1),
    "value: expected a number, got '0'": lambda: pad_sequences([[1]], value="0"),  # type: ignore[arg-type]
    "sequences: expected at least one sequence, got none": lambda: pad_sequences([]),
    "mask: expected booleans, got int64; pass mask.astype\\(bool\\)": lambda: from_mask([[1]], [[1]]),
    "mask: expected shape \\(N, T\\) = \\(1, 2\\), got \\(2, 1\\)": lambda: from_mask([[1, 2]], [[True], [True]]),
    "x: expected shape \\(N, T, ...\\), got \\(2,\\)": lambda: from_mask([1, 2], [True, True]),
}


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        ERRORS[message]()
