"""The page of docs/examples/in_browser.py, in headless Chromium, computes the bits of the model."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tolerance import assert_same_bits

import fastrnn
from fastrnn.backends import available_isas

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "examples"


@pytest.fixture
def browse(oracle: Callable[[str], Any], request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], Any]:
    """Return the texts of a page's elements by id, after its script has started."""
    oracle("ziglang")
    if not shutil.which("chromium") and not request.config.getoption("--require-oracles"):
        pytest.skip("Chromium is not installed")
    # root has no sandbox, and a container little shared memory
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=390,844"]

    def texts(page: Path) -> dict[str, str]:
        command = ["chromium", *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
        done = subprocess.run(command, capture_output=True, check=True, text=True, timeout=120)
        return dict(re.findall(r'<(?:b|p) id="(\w+)">([^<]*)<', done.stdout))

    return texts


@pytest.mark.skipif("x86-64" not in available_isas(), reason="the bits are the x86 baseline's")
def test_bits(browse: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    in_browser: Any = importlib.import_module("in_browser")
    with fastrnn.use_backend("native"), fastrnn.use_isa("x86-64"):
        model, x = in_browser.trained(epochs=1), in_browser.waves(np.random.default_rng(1), 1, 0.3)[0]
        in_browser.write_page(model, tmp_path / "page.html", x[0])
        expected = model.predict(x)[0]
    found = browse(tmp_path / "page.html")
    assert_same_bits({"y": np.array(json.loads(found["outputs"]), np.float32)[:, None]}, {"y": expected})
    assert float(found["difference"]) == 0


def test_the_program(browse: Callable[[Path], Any], python: Callable[..., Any], tmp_path: Path) -> None:
    done = python("-W", "error", str(EXAMPLES / "in_browser.py"), "--quick", "page.html")  # in tmp_path
    assert done.returncode == 0, done.stdout + done.stderr
    found = browse(tmp_path / "page.html")
    assert float(found["difference"]) < 1e-5
    assert 0 < float(found["after"]) < float(found["before"])  # the state continues from step to step
    assert re.fullmatch(r"[\d.]+ µs", found["time"])
