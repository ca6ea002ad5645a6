"""Weight and checkpoint files with some changed bytes, for the fuzzers: reading fails, or gives the whole file."""

from __future__ import annotations

import functools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import fastrnn
from fastrnn import training
from support.fuzzing import counts, same


@dataclass
class File:
    """A file of weights, or a checkpoint, with some bytes changed."""

    seed: int
    whole: bool = False  #: a checkpoint
    changes: list[tuple[int, int]] = field(default_factory=list)  #: (position, byte)
    cut: int = 0  #: number of bytes cut off at the end
    text: tuple[str, str] = ("", "")  #: replacements in the header


WORDS = (
    *('"version":1', '"epoch":1', '"layers"', '"rng"', '"history"', '"optimizer"', '"callbacks"'),
    *("PCG64", "F32", "U64"),
)
WORSE = (
    *('""', "null", "[]", "{}", "-1", "1e999", '"x"', "0", "F64", '"F16"'),
    *("99999999999999999999", "\\u0000", "NaN", "true"),
)


def model() -> Any:
    gru = fastrnn.GRU(2, 3, reset_after=True, return_sequences=False, rng=0)
    net = fastrnn.Sequential([gru, fastrnn.Dense(3, 1, rng=1)])
    net.compile("adam", "mse")
    return net


X, Y = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 2, 2), np.zeros((4, 1), np.float32)


class Originals:
    """The undamaged files, written once."""

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "file"
        net = model()
        callbacks = [training.Checkpoint(self.path), training.EarlyStopping("loss")]
        net.fit(X, Y, epochs=1, callbacks=callbacks, rng=0)
        self.checkpoint = self.path.read_bytes()
        net.save_weights(self.path)
        self.weights = self.path.read_bytes()
        self.model = model()
        self.before = self.model.state_dict()


@functools.cache
def originals() -> Originals:
    return Originals()


def random_file(rng: np.random.Generator) -> File:
    whole = bool(rng.integers(2))
    size = len(originals().checkpoint if whole else originals().weights)
    header = int.from_bytes((originals().checkpoint if whole else originals().weights)[:8], "little") + 8
    kind = rng.integers(4)
    most = header if kind < 2 else size
    places = rng.integers(0, most, rng.integers(1, 5)) if kind != 3 else []
    new = rng.choice([*b'0123456789{}[]",:-eE.\\', *range(256)], len(places))
    text = (str(rng.choice(WORDS)), str(rng.choice(WORSE))) if kind == 3 else ("", "")
    if text[0].startswith('"') and text[0].endswith(('"', "1")) and rng.integers(2):
        text = (text[0], text[0].split(":")[0] + ":" + text[1] + ("," if ":" not in text[0] else ""))
    cut = int(rng.integers(1, size)) if rng.random() < 0.05 else 0
    return File(
        int(rng.integers(2**31)), whole, [(int(a), int(b)) for a, b in zip(places, new, strict=True)], cut, text
    )


def check_file(case: File) -> None:
    data = bytearray(originals().checkpoint if case.whole else originals().weights)
    for place, byte in case.changes:
        data[place] = byte
    if case.text[0]:
        n = int.from_bytes(data[:8], "little")
        escaped = case.text[0].replace('"', '\\"').encode(), case.text[1].replace('"', '\\"').encode()
        head, plain = bytes(data[8 : 8 + n]), (case.text[0].encode(), case.text[1].encode())
        head = head.replace(*(escaped if escaped[0] in head else plain))
        data = bytearray(len(head).to_bytes(8, "little") + head + data[8 + n :])
    check_bytes(bytes(data[: len(data) - case.cut]))


def check_bytes(data: bytes) -> None:
    """Check that the file is rejected and the model unchanged, or that it is read with correct shapes and dtypes."""
    originals().path.write_bytes(data)
    net = originals().model
    for resume in (False, True):
        net.load_state_dict(originals().before)
        net.compile("adam", "mse")
        refused = None
        try:
            if resume:
                callbacks = [training.EarlyStopping("loss")]
                net.fit(X, Y, epochs=2, callbacks=callbacks, rng=0, resume=originals().path)
            else:
                net.load_weights(originals().path)
        except (ValueError, KeyError) as error:
            refused = error
        counts["file refused" if refused else "file read"] += 1
        now = net.state_dict()
        for name, before in originals().before.items():
            assert (now[name].shape, now[name].dtype) == (before.shape, before.dtype), name
        if refused:
            expected = ("resume: ",) if resume else ("path: ", "state: ", *originals().before)
            assert str(refused).strip("'").startswith(expected), repr(refused)
            same(now, originals().before, "file")
