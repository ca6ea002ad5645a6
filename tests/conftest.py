"""Define the implementations that tests run on, and the handling of missing packages.

An implementation is a backend and, for the native one, an instruction set: numpy, numba, native-x86-64-v3, ...
A test requests one of four fixtures and is repeated with each of its implementations in use:

    implementation   all implementations
    fast             all except numpy, the reference that they are compared with
    native           the native backend's instruction sets
    backend          native with its best instruction set, and numpy: for tests that do not depend on the kernels

If a test has many problems, each runs on one implementation only (`divide`); `-m ""` runs them on all.

Tests that need a missing package are skipped. CI requires all packages: with `--require-native` and
`--require-oracles` such tests fail.

A run of all tests is distributed over processes if pytest-xdist is installed; `-n 0` uses a single one.
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

# The reference's products are small: NumPy's own threads would double its time and disturb the kernels' threads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before the first import of NumPy

# Numba then compiles in half the time, and small problems do not need more. CI also tests at the default level, 3.
os.environ.setdefault("NUMBA_OPT", "1")  # before the first import of Numba

# JAX also compiles in half the time. The documentation's examples run with all of its optimizations.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # before the first import of JAX

# The machine code of the tests' cells is stored outside the user's cache folder and reused by the next run.
os.environ.setdefault("FASTRNN_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "machine_code"))

import numpy as np
from support import crowded  # noqa: F401
from support.jax_problems import in_float64
from support.python import Python

import fastrnn
from fastrnn.backends import available_backends, available_isas, usable_cpus

try:
    import fcntl
except ImportError:  # on Windows, where no worker waits
    fcntl = None  # type: ignore[assignment]

MOST_WORKERS = 4  # each worker needs about a gigabyte
#: files whose child processes compile, or that define their own cells: Numba is thorough there
COMPILE_MORE = ("test_threads.py", "test_regularisers.py", "test_model_streams.py")
MANY = 8  # tests with this many problems divide them among the implementations

# Shift the seeds of all generators, for other random problems than the default ones.
if SEED := int(os.environ.get("FASTRNN_TEST_SEED", "0")):
    default_rng = np.random.default_rng
    np.random.default_rng = lambda seed=None: default_rng(
        [*np.ravel(seed), SEED] if isinstance(seed, int | np.integer | list) else seed
    )

#: files whose tests need a framework even without the fixture `oracle`
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
    """Return the name of the implementation in use; a parameter of every test that requests it."""
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


@pytest.hookimpl(trylast=True)  # the innermost loop, so that all implementations share a problem's solution
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
    """Mark tests that need a framework, start a process or run on Numba, and the thorough ones among the last.

    Numba takes seconds to compile a cell in one dtype, so unless thorough it runs two built-in cells in one dtype; the
    user-defined ones of test_cells.py have all features of cells.
    """
    if "oracle" in getattr(item, "fixturenames", ()) or item.path.stem.startswith(FRAMEWORKS):
        item.add_marker(pytest.mark.oracle)
    if "numba" in item.nodeid:
        item.add_marker(pytest.mark.numba)
    if "python" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.child)
    params = parameters(item)
    if params.get("implementation") != "numba":
        return
    usual = params.get("cell") in (None, "lstm_peephole", "gru_before") and params.get("dtype") in (None, np.float32)
    if not usual or item.path.name in COMPILE_MORE:
        item.add_marker(pytest.mark.thorough)


def repeats(item: pytest.Item) -> bool:
    """Return whether the test's kernels are those of another instruction set, except for bfloat16."""
    params = parameters(item)
    name = str(params.get("implementation", params.get("isa")))
    return name.endswith("-bf16") and "bfloat16" not in item.nodeid


def divide(items: list[pytest.Item]) -> None:
    """Assign each problem to one implementation if a test has many, or is marked `by_turns`; others are thorough.

    Numba gets no problems in this way, and NumPy only if there are many. The assignment is random; its seed is the
    test's name and the seed of all problems.
    """
    sharing = {*implementations(), *available_isas()} - {"numba"}
    tests: dict[str, dict[str, list[pytest.Item]]] = {}
    for item in items:
        params = parameters(item)
        name = params.get("implementation", params.get("isa"))
        if name in sharing:
            test, _, problem = item.nodeid.partition("[")
            tests.setdefault(test, {}).setdefault(problem.replace(name, ""), []).append(item)
    for test, problems in tests.items():
        many, rng, shuffled = len(problems) >= MANY, random.Random(f"{test} {SEED}"), sorted(problems)
        rng.shuffle(shuffled)
        first = rng.randrange(len(sharing))
        for turn, problem in enumerate(shuffled, first):
            some = [item for item in problems[problem] if many or parameters(item).get("implementation") != "numpy"]
            if many or (some and some[0].get_closest_marker("by_turns")):
                for item in some[: turn % len(some)] + some[turn % len(some) + 1 :]:
                    item.add_marker(pytest.mark.thorough)


@pytest.hookimpl(tryfirst=True)  # before xdist reads its options
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Distribute a run of all tests over processes; a run of some tests is faster than starting workers."""
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or "PYTEST_XDIST_WORKER" in os.environ:
        return
    everything = config.args_source == config.ArgsSource.TESTPATHS and not option.keyword
    watched = option.usepdb or option.capture == "no" or option.collectonly
    if option.numprocesses is None and everything and not watched and (workers := min(usable_cpus(), MOST_WORKERS)) > 1:
        option.numprocesses, option.dist = workers, "worksteal"  # neighbours share a solution and stay together


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Let a test marked `alone` wait until the other workers' tests have ended, and let those workers wait for it."""
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
    group.addoption(
        "--sample", type=int, metavar="N", help="run a random sample of at most N parametrisations per test"
    )


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
    """Exclude the items from garbage collection, which would otherwise scan them again and again."""
    gc.disable()
    result = yield
    gc.freeze()
    gc.enable()
    return result


@pytest.hookimpl(wrapper=True)  # before and after other options choose
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Iterator[None]:
    """Leave out tests that repeat others, and put Numba's first: one worker runs them all and compiles each cell once.

    With --sample, the lot is drawn by each test's name: the same one in every run.
    """
    keep(config, items, {item for item in items if not repeats(item)})
    divide(items)
    yield
    items.sort(key=lambda item: "numba" not in item.nodeid)
    if not (most := config.getoption("--sample")):
        return
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        tests.setdefault(item.nodeid.partition("[")[0], []).append(item)
    lots = {name: random.Random(name).sample(some, min(most, len(some))) for name, some in tests.items()}
    keep(config, items, {item for some in lots.values() for item in some})


def keep(config: pytest.Config, items: list[pytest.Item], kept: set[pytest.Item]) -> None:
    """Leave the other items out, and let pytest count them as deselected."""
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_report_header() -> list[str]:
    return [f"fastrnn {fastrnn.__version__} from {Path(fastrnn.__file__).parent}: {', '.join(implementations())}"]


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], Any]:
    """Import an independent implementation, or skip the test; fail with --require-oracles."""
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
    """Run a fresh interpreter in an empty directory, with the same fastrnn and tests/support: python("-c", code)."""
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
