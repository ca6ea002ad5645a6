"""Published models on fastrnn, as programs of docs/examples that check their own claims.

A program exits with an error if one of its claims fails (tests/test_docs_examples.py), so these tests check its exit
code and its printed claims. The models are parts of packages:

    pip install --no-deps g2p-en==2.1.0 g2pM==0.1.2.5 silero-vad==6.2.3

RecurrentPPO comes with sb3-contrib==2.9.2.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
from pathlib import Path

import pytest
from support.python import Python

import fastrnn
from fastrnn.backends import available_isas

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"

#: requirements of each program, and the beginnings of the claims that it prints
PROGRAMS = {
    "model_g2p_en": (["g2p_en"], ["a word at a time, the package's own", "all the words together, the same", "faster"]),
    "model_g2pm": (
        ["g2pM"],
        [
            *["the package's own pronunciations", "scores that differ by", "as a batch, the same"] * 2,
            "faster",
            "faster",
        ],
    ),
    "model_silero_vad": (
        ["silero_vad", "onnx", "onnxruntime"],
        ["the voice is found in", "and in", *["onnxruntime's probabilities"] * 4],
    ),
    "recurrent_ppo": (["torch", "sb3_contrib"], ["one rollout later", "fastrnn makes"]),
    "speech_torch": (["torch"], ["they agree", "they agree", "packed utterances take less time"]),
}


def test_every_model_program_is_tested() -> None:
    kinds = ("model_*.py", "recurrent_*.py", "speech_*.py")
    assert list(PROGRAMS) == sorted(path.stem for kind in kinds for path in EXAMPLES.glob(kind))


@pytest.mark.parametrize("name", PROGRAMS)
def test_model(name: str, python: Python, request: pytest.FixtureRequest) -> None:
    packages, claims = PROGRAMS[name]
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing and not request.config.getoption("--require-oracles"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    if not available_isas():
        pytest.skip("in pure Python it is not faster")
    done = python(str(EXAMPLES / f"{name}.py"), "--quick")
    assert done.returncode == 0, done.stdout + done.stderr
    made = [line for line in done.stdout.splitlines() if line.startswith("  ok: ")]
    assert len(made) == len(claims)
    assert [line for line, claim in zip(made, claims, strict=True) if not line.startswith(f"  ok: {claim}")] == []


def test_a_missing_package_is_named(python: Python) -> None:
    done = python("-c", "from published import file_of; file_of('no-such-package', 'x')", PYTHONPATH=str(EXAMPLES))
    assert done.returncode == 1
    assert "pip install --no-deps no-such-package" in done.stderr


def test_only_arrays_are_unpickled(python: Python, tmp_path: Path) -> None:
    """A pickle that would run a command is refused."""
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(print))
    root = Path(fastrnn.__file__).parents[1]
    code = "from model_g2pm import ArraysOnly; ArraysOnly(open('bad.pkl', 'rb')).load()"
    done = python("-W", "ignore", "-c", code, PYTHONPATH=os.pathsep.join(map(str, (EXAMPLES, root))))
    assert done.returncode == 1
    assert "UnpicklingError: refused: builtins.print" in done.stderr
