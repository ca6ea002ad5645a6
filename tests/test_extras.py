"""Imports of optional packages, and the errors if one is missing."""

from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.python import Python


def test_extras_contain_the_packages_they_promise() -> None:
    """The extra in pyproject.toml contains the module's package, for every `needed(module, extra)`."""
    root = Path(__file__).parent.parent
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    packages = {"sklearn": "scikit-learn", "google": "onnx"}  # protobuf comes with onnx
    said = set()
    for file in (root / "fastrnn").rglob("*.py"):
        for module, extra in re.findall(r'needed\(f?"([^"]+)", "([^"]+)"\)', file.read_text()):
            package = module.partition(".")[0]
            said.add((packages.get(package, package), extra))
    assert {"h5py", "keras", "torch", "onnx", "jax", "safetensors"} <= {package for package, _ in said}
    assert said <= {(re.match(r"[\w-]+", one)[0], extra) for extra, wanted in extras.items() for one in wanted}
    assert {"keras", "torch"} <= {re.match(r"[\w-]+", one)[0] for one in extras["keras"]}  # fastrnn.keras says so


NO_KERAS = pytest.mark.skipif(find_spec("keras") is None, reason="keras is not installed, and is what would be missing")


@pytest.mark.parametrize("module", ["keras", pytest.param("torch", marks=[NO_KERAS, pytest.mark.oracle])])
def test_missing_packages(module: str, python: Python, tmp_path: Path) -> None:
    """The message names the extra to install; an error inside the package itself propagates."""
    code = f"import sys; sys.modules['{module}'] = None; import fastrnn; "
    done = python("-c", code + "import fastrnn.keras", KERAS_BACKEND="torch")
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: fastrnn.keras needs Keras 3 on PyTorch: {module} is not installed; "
        "pip install 'fastrnn[keras]', and set KERAS_BACKEND=torch"
    )
    done = python("-c", code + f"fastrnn.to_{module}(fastrnn.LSTM(3, 4))")
    expected = f"ImportError: {module} is not installed; run pip install 'fastrnn[{module}]'"
    assert done.stderr.splitlines()[-1] == expected
    package = tmp_path / module
    package.mkdir()
    (package / "__init__.py").write_text("import something_else")
    code = f"import sys; sys.path.insert(0, '{tmp_path}'); import fastrnn; "
    done = python("-c", code + f"fastrnn.to_{module}(fastrnn.LSTM(3, 4))")
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'something_else'"


def test_import_is_light(python: Python, tmp_path: Path) -> None:
    """It imports no optional package and takes less time than NumPy (bytecode, best of six, without threads)."""
    code = (
        "from time import thread_time as now; t0 = now(); import numpy; t1 = now(); import fastrnn; t2 = now(); "
        "print(t1 - t0, t2 - t1)"
    )
    cached = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    times = [[float(time) for time in python("-c", code, **cached).stdout.split()] for _ in range(6)]
    numpy, ours = map(min, zip(*times, strict=True))
    assert ours < numpy
    loaded = python("-c", "import sys, fastrnn, fastrnn.plot; print(*sys.modules)").stdout.split()
    assert "fastrnn.plot" in loaded
    assert not {"torch", "onnx", "onnxruntime", "jax", "keras", "tensorflow", "h5py"} & set(loaded)
    assert not {"safetensors", "tqdm", "matplotlib", "sklearn"} & set(loaded)
