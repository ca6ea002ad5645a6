"""Which implementations the tests run over, and what may be missing.

An implementation is a backend and, for the native one, an instruction set: numpy, numba, native-x86-64-v3, ...
A test asks for one of four fixtures and is repeated over its implementations, which are in use while it runs:

    implementation   every one
    fast             all but numpy, the reference that they are compared with
    native           the native backend's instruction sets
    backend          native with its best instruction set, and numpy: what no kernel decides is tried once in each

Where there are many problems each runs on one implementation only (`deal`): `-m ""` runs them on all.

What a user has not installed skips the tests that need it. CI asks for everything: `--require-native` and
`--require-oracles` fail instead of skipping.

A run of all tests is shared among processes if pytest-xdist is installed; `-n 0` is a single one.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# The reference's products are small: threads of NumPy's own would double its time, and stand in the way of ours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before the first import of NumPy

# Numba compiles in half the time, and small problems do not miss the rest. CI has its tests at users' level, 3, too.
os.environ.setdefault("NUMBA_OPT", "1")  # before the first import of Numba

# Machine code of the tests' many cells stays out of the user's cache folder, and is there for the next run.
os.environ.setdefault("FASTRNN_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "machine_code"))

import numpy as np
from support import crowded  # noqa: F401
from support.jax_problems import in_float64
from support.problems import CELLS
from support.python import Python

import fastrnn
from fastrnn.backends import available_backends, available_isas, usable_cpus

try:
    import fcntl
except ImportError:  # on Windows, where nobody waits
    fcntl = None  # type: ignore[assignment]

MOST_WORKERS = 4  # each of them needs about a gigabyte
#: files whose child processes compile, or that have cells of their own: Numba is thorough there
COMPILE_MORE = ("test_threads.py", "test_regularisers.py", "test_model_streams.py")
MANY = 8  # problems of a test, from which each implementation gets some

# Other random problems than those that everybody has, everywhere at once: the seeds of all generators are shifted.
if SEED := int(os.environ.get("FASTRNN_TEST_SEED", "0")):
    default_rng = np.random.default_rng
    np.random.default_rng = lambda seed=None: default_rng(
        [*np.ravel(seed), SEED] if isinstance(seed, int | np.integer | list) else seed
    )

#: files of tests that need a framework even where they do not ask for `oracle`
FRAMEWORKS = (
    *("test_torch", "test_onnx", "test_keras", "test_jax", "test_convert_audio", "test_convert_jax"),
    *("test_models", "test_docs", "test_bench"),
)

ORACLES = (
    *("torch", "expecttest", "onnx", "onnxruntime", "onnxscript", "jax", "flax", "equinox", "haiku", "keras", "h5py"),
    *("joblib", "distributed", "ziglang"),
)


def implementations() -> list[str]:
    backends = [name for name in reversed(available_backends()) if name != "native"]
    return backends + [f"native-{isa}" for isa in available_isas()]


@contextlib.contextmanager
def using(name: str) -> Iterator[str]:
    backend, _, isa = name.partition("-")
    with fastrnn.use_backend(backend), fastrnn.use_isa(isa) if isa else contextlib.nullcontext():
        yield name


@pytest.fixture
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the implementation in use; a parameter of every test that asks for it."""
    with using(request.param) as name:
        yield name


@pytest.fixture
def fast(implementation: str) -> str:
    return implementation


@pytest.fixture
def native(implementation: str) -> str:
    return implementation


@pytest.fixture(params=[name for name in ("native", "numpy") if name in available_backends()])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    with using(request.param) as name:
        yield name


@pytest.hookimpl(trylast=True)  # the innermost loop, so that a problem's solution serves all implementations
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = {
        "native": lambda name: name.startswith("native"),
        "fast": lambda name: name != "numpy",
        "implementation": lambda name: True,
    }
    asked = next((fixture for fixture in wanted if fixture in metafunc.fixturenames), None)
    if asked:
        names: list[Any] = [name for name in implementations() if wanted[asked](name)]
        names = names or [pytest.param("none", marks=pytest.mark.skip(f"no {asked} implementation is installed"))]
        metafunc.parametrize("implementation", names, indirect=True)


def parameters(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what needs a framework, what runs on Numba, and what of that is thorough.

    Numba compiles a cell in a dtype for seconds: each cell in one dtype in test_backends.py, two cells everywhere else.
    """
    if "oracle" in getattr(item, "fixturenames", ()) or item.path.stem.startswith(FRAMEWORKS):
        item.add_marker(pytest.mark.oracle)
    if "numba" in item.nodeid:
        item.add_marker(pytest.mark.numba)
    params = parameters(item)
    if params.get("implementation") != "numba":
        return
    cell, dtype = params.get("cell"), params.get("dtype")
    if item.path.name == "test_backends.py" and dtype:
        ours = (CELLS.index(cell) % 2 == 0) == (dtype is np.float32)
    else:
        ours = item.path.name not in COMPILE_MORE and cell in (None, "lstm_peephole", "gru_before")
    if not ours:
        item.add_marker(pytest.mark.thorough)


def deal(items: list[pytest.Item]) -> None:
    """Each problem of a test that has many, or is marked `by_turns`, is for one implementation; others are thorough.

    Numba is not dealt to, and NumPy only if there are many. The lot is drawn by the test's name and by the seed of all
    problems.
    """
    dealt_to = {*implementations(), *available_isas()} - {"numba"}
    tests: dict[str, dict[str, list[pytest.Item]]] = {}
    for item in items:
        params = parameters(item)
        name = params.get("implementation", params.get("isa"))
        if name in dealt_to:
            test, _, problem = item.nodeid.partition("[")
            tests.setdefault(test, {}).setdefault(problem.replace(name, ""), []).append(item)
    for test, problems in tests.items():
        many, rng, dealt = len(problems) >= MANY, random.Random(f"{test} {SEED}"), sorted(problems)
        rng.shuffle(dealt)
        first = rng.randrange(len(dealt_to))
        for turn, problem in enumerate(dealt, first):
            some = [item for item in problems[problem] if many or parameters(item).get("implementation") != "numpy"]
            if many or (some and some[0].get_closest_marker("by_turns")):
                for item in some[: turn % len(some)] + some[turn % len(some) + 1 :]:
                    item.add_marker(pytest.mark.thorough)


@pytest.hookimpl(tryfirst=True)  # before xdist acts on its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Share out a run of all tests: of some, starting the workers would take longer than the tests."""
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or "PYTEST_XDIST_WORKER" in os.environ:
        return
    everything = config.args_source == config.ArgsSource.TESTPATHS and not option.keyword
    watched = option.usepdb or option.capture == "no" or option.collectonly
    if option.numprocesses is None and everything and not watched and (workers := min(usable_cpus(), MOST_WORKERS)) > 1:
        option.numprocesses, option.dist = workers, "worksteal"  # neighbours, which share a solution, stay together


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test marked `alone` waits until the other workers' tests are over, and they wait at the door until it is."""
    if "PYTEST_XDIST_WORKER" not in os.environ or fcntl is None:
        return (yield)
    shared = item.config._tmp_path_factory.getbasetemp().parent  # type: ignore[attr-defined]
    door, room = shared / "door", shared / "room"
    alone = item.get_closest_marker("alone") is not None
    with open(door, "w") as at_the_door, open(room, "w") as inside:
        fcntl.flock(at_the_door, fcntl.LOCK_EX)
        fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        if not alone:
            fcntl.flock(at_the_door, fcntl.LOCK_UN)
        return (yield)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastrnn")
    group.addoption("--require-native", action="store_true", help="fail if the compiled extension is missing")
    group.addoption("--require-oracles", action="store_true", help="fail if one of the oracles or numba is missing")
    group.addoption("--sample", type=int, metavar="N", help="run at most N of each test's parametrisations, by lot")


def pytest_configure(config: pytest.Config) -> None:
    missing = []
    if config.getoption("--require-native") and not available_isas():
        missing.append("fastrnn's native backend")
    if config.getoption("--require-oracles"):
        missing += [name for name in (*ORACLES, "numba") if importlib.util.find_spec(name) is None]
    if missing:
        raise pytest.UsageError(f"required and not installed: {', '.join(missing)}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Items stay: the garbage collector need not go through them again and again."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


@pytest.hookimpl(wrapper=True)  # before and after other options choose
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Numba's tests come first, so that one worker has them all and compiles each cell once.

    With --sample, the lot is drawn by each test's name: the same one in every run.
    """
    deal(items)
    yield
    items.sort(key=lambda item: "numba" not in item.nodeid)
    if not (most := config.getoption("--sample")):
        return
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    kept = {item for name, some in tests.items() for item in random.Random(name).sample(some, min(most, len(some)))}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_report_header() -> list[str]:
    return [f"fastrnn {fastrnn.__version__} from {Path(fastrnn.__file__).parent}: {', '.join(implementations())}"]


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], Any]:
    """Imports an independent implementation, or skips; with --require-oracles it is known to be there."""
    return pytest.importorskip


@pytest.fixture(scope="session")
def onnx(oracle: Callable[[str], Any]) -> Any:
    return oracle("onnx")


@pytest.fixture(scope="session")
def runtime(onnx: Any, oracle: Callable[[str], Any]) -> Any:
    return oracle("onnxruntime")


@pytest.fixture(scope="module")
def ours(request: pytest.FixtureRequest) -> Any:
    """The adapter that a file is about: fastrnn.onnx in test_onnx_nodes.py, fastrnn.jax in test_jax.py, and so on."""
    name = request.path.stem.split("_")[1]
    request.getfixturevalue(name)
    return importlib.import_module(f"fastrnn.{name}")


@pytest.fixture(scope="session")
def torch(oracle: Callable[[str], Any]) -> Any:
    return oracle("torch")


@pytest.fixture(scope="session")
def h5py(oracle: Callable[[str], Any]) -> Any:
    return oracle("h5py")


@pytest.fixture(scope="session")
def keras(torch: Any, oracle: Callable[[str], Any]) -> Any:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    return oracle("keras")


@pytest.fixture(scope="module")
def jax(oracle: Callable[[str], Any]) -> Iterator[Any]:
    with in_float64(oracle("jax")) as jax:
        yield jax


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """Runs a fresh interpreter in an empty directory, on the same fastrnn and tests/support: python("-c", code)."""
    # The same extension as here, a sanitizer's too; but not a traced one, of which coverage.py finds the lines from the
    # checkout alone.
    same = "_fastrnn" in sys.modules and "COVERAGE_PROCESS_CONFIG" not in os.environ
    extension = [sys.modules["_fastrnn"].__file__] if same else []
    files = (*extension, Path(fastrnn.__file__).parent, __file__)
    path = os.pathsep.join(str(Path(file).parent) for file in files)

    def run(*arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"PYTHONPATH": path} | environment
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=timeout
        )

    return run
