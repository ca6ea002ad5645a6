"""Fuzz the readers of files: each raises an error that names the cause, or returns a model that works.

    python tests/fuzz_files.py [--seconds 60] [--seed N] [--only safetensors|keras|h5|onnx] [--findings DIRECTORY]
    python tests/fuzz_files.py FILE ...

Small valid files are changed at structured places (JSON, HDF5, protocol buffers, tensors), sometimes in plain bytes.
With atheris (pip install atheris), libFuzzer keeps files that reach new code of fastrnn and changes them again; without
it, changes are random. Each format has its own process for the given seconds. An unexpected exception, a crash, a long
run or a large allocation is a finding: its file is kept, and can be read again as FILE. The exit code is 0 if there was
no finding.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gzip
import hashlib
import importlib.util
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

atheris: Any = importlib.import_module("atheris") if importlib.util.find_spec("atheris") else None

with atheris.instrument_imports(include=["fastrnn"]) if atheris else contextlib.nullcontext():
    import fastrnn
    import fastrnn.onnx
    import fastrnn.training
    from fastrnn.onnx import graph  # noqa: F401  # those that are loaded when they are asked for

from support import damaged_files  # noqa: E402
from support.conversions import drawn, small  # noqa: E402
from support.file_changes import (  # noqa: E402  # noqa: E402
    MEMBERS,
    changed_bytes,
    changed_h5,
    changed_keras,
    changed_onnx,
    changed_safetensors,
    zipped,
)
from support.onnx_models import one_node  # noqa: E402

DATA = Path(__file__).with_name("data")
SECONDS, BYTES = 20, 64 << 20  #: seconds and bytes allowed for one file
ROOM = 4 << 30  #: memory limit of the process: a larger allocation is a MemoryError

counts: Counter[str] = Counter()


# ---- valid files ----


def safetensors_files() -> Iterator[bytes]:
    yield damaged_files.originals().checkpoint
    yield damaged_files.originals().weights
    for layer in (small(), *(drawn(seed) for seed in range(6))):
        fastrnn.save(damaged_files.originals().path, layer)
        yield damaged_files.originals().path.read_bytes()


def keras_files() -> Iterator[bytes]:
    for name in ("sequential", "functional"):
        with zipfile.ZipFile(DATA / f"keras_{name}.keras") as archive:
            yield zipped(*(archive.read(member) for member in MEMBERS))


def h5_files() -> Iterator[bytes]:
    for name in ("sequential", "functional"):
        yield gzip.decompress((DATA / f"keras_{name}.h5.gz").read_bytes())


def onnx_files() -> Iterator[bytes]:
    for seed in range(12):
        layer = drawn(seed, dtype=np.float32)
        yield fastrnn.to_onnx(layer, lengths=seed % 2 == 0, state=seed % 3 == 0).SerializeToString()
    yield fastrnn.to_onnx(small()).SerializeToString()
    for kind, attributes in (("LSTM", {"clip": 2.0}), ("GRU", {"layout": 1}), ("RNN", {"activations": ["Elu"]})):
        yield one_node(onnx, kind, **attributes).SerializeToString()


# ---- what must hold ----


def works(model: Any) -> None:
    """Check that the model returns numbers for numbers."""
    dtype = next((a.dtype for a in model.parameters().values()), np.dtype(np.float32))
    if getattr(model, "merge", "") is None:  # a pair of outputs, which no model can have
        y = model(np.ones((2, 3, model.input_size), dtype))[0][0]
    else:
        model = model if isinstance(model, fastrnn.Sequential) else fastrnn.Sequential([model])
        _, _, *I = model.input_shape
        y = model.predict(np.ones((2, 3, I[0] or 4), dtype) if I else np.zeros((2, 3), int))
    assert y.dtype == dtype, y.dtype


KNOWN = onnx.helper.get_all_tensor_dtypes() - {0}


def read_onnx(path: Path) -> None:
    works(fastrnn.from_onnx(path))


def read_whole(path: Path) -> None:
    works(fastrnn.from_onnx(path, whole=True))


def run_session(path: Path) -> None:
    session = fastrnn.onnx.Session(path.read_bytes(), rest="reference")
    kinds = {one.name: one.type.tensor_type for one in onnx.load_model(path).graph.input}
    given: dict[str, Any] = {}
    for name in session.input_names if all(k.elem_type in KNOWN for k in kinds.values()) else ():
        shape = [max(0, min(d.dim_value, 8)) or 2 for d in kinds[name].shape.dim]
        given[name] = np.ones(shape, onnx.helper.tensor_dtype_to_np_dtype(kinds[name].elem_type))
    session.run(None, given)


def prepare(path: Path) -> None:
    fastrnn.onnx.prepare(path)


def from_keras(path: Path) -> None:
    works(fastrnn.from_keras(path, inference=path.stat().st_size % 2 == 0))


#: format -> functions that make valid files, change them, and read them
FORMATS: dict[str, tuple[Callable[[], Iterator[bytes]], Callable[[random.Random, bytes], bytes], list[Any]]] = {
    "safetensors": (
        safetensors_files,
        changed_safetensors,
        [lambda path: works(fastrnn.load(path)), lambda path: damaged_files.check_bytes(path.read_bytes())],
    ),
    "keras": (keras_files, changed_keras, [from_keras]),
    "h5": (h5_files, changed_h5, [from_keras]),
    "onnx": (onnx_files, changed_onnx, [read_onnx, read_whole, run_session, prepare]),
}

#: beginnings of errors: an argument, an input or an attribute; a layer; a node
NAMED = re.compile(r"(\w+|layer .* \(.*\)|\w+ node .*): ", re.S)


def others(error: BaseException) -> bool:
    """Return whether an error comes from another package: ONNX's checker, or the evaluator of other nodes."""
    frames = "\n".join(frame.filename for frame in traceback.extract_tb(error.__traceback__))
    return isinstance(error, onnx.checker.ValidationError) or bool(re.search("/onnx/(reference/|checker.py)", frames))


def finding(path: Path, read: Callable[[Path], None], traced: bool = True) -> str | None:
    """Return the fault in reading a file, if any; if `traced`, include memory, which takes three times as long."""
    if traced:
        tracemalloc.start()
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        read(path)
    except (ValueError, TypeError, NotImplementedError) as error:
        counts["refused"] += 1
        refusal = type(error) in (ValueError, TypeError) and NAMED.match(str(error))
        if not (refusal or type(error) is NotImplementedError or others(error)):
            return traceback.format_exc()
    except Exception as error:
        if not others(error):
            return traceback.format_exc()
        counts["refused"] += 1
    else:
        counts["read"] += 1
    finally:
        faulthandler.cancel_dump_traceback_later()
        peak = tracemalloc.get_traced_memory()[1]  # 0 if not traced
        tracemalloc.stop()
    return f"{peak} bytes at once" if peak > BYTES else None


class Hunt:
    """Fuzz one format for some seconds."""

    def __init__(self, kind: str, directory: Path, seconds: float) -> None:
        self.kind, self.directory, self.seconds = kind, directory, seconds
        self.last = directory / f"last.{kind}"  #: remains if the process ends while it reads the file
        self.known: set[str] = set()
        self.start = time.monotonic()

    def changed(self, rng: random.Random, data: bytes) -> bytes:
        if rng.random() < 0.1:
            return changed_bytes(rng, data)
        with contextlib.suppress(Exception):  # plain bytes were changed before, and now find nothing new
            return FORMATS[self.kind][1](rng, data)
        return changed_bytes(rng, data)

    def check(self, data: bytes) -> None:
        self.last.write_bytes(data)
        counts["files"] += 1
        for read in FORMATS[self.kind][2]:
            wrong = finding(self.last, read, traced=counts["files"] % 4 == 0)
            if wrong is None:
                continue
            lines = wrong.splitlines()
            place = "".join(line for line in lines if "fastrnn/" in line)[-200:] + lines[-1][:30]
            if place not in self.known:
                self.known.add(place)
                kept = self.directory / f"{hashlib.sha256(data).hexdigest()[:12]}.{self.kind}"
                kept.write_bytes(data)
                print(f"\n# {kept}\n{wrong}", flush=True)
        if time.monotonic() - self.start > self.seconds:
            self.last.unlink()
            found = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
            print(f"{self.kind}: {found} in {self.seconds:.0f} s, {len(self.known)} findings", flush=True)
            sys.stdout.flush()
            os._exit(len(self.known) > 0)  # libFuzzer does not return

    def run(self, seed: int) -> None:
        resource.setrlimit(resource.RLIMIT_AS, (ROOM, resource.getrlimit(resource.RLIMIT_AS)[1]))
        files = list(FORMATS[self.kind][0]())
        if atheris is None:
            rng = random.Random(seed)
            while True:
                data = rng.choice(files)
                for _ in range(rng.choice((1, 2, 4))):
                    data = self.changed(rng, data)
                self.check(data)
        corpus = self.directory / f"corpus-{self.kind}"
        corpus.mkdir(exist_ok=True)
        for i, data in enumerate(files):
            (corpus / str(i)).write_bytes(data)

        def mutator(data: bytes, most: int, seed: int) -> bytes:
            rng = random.Random(seed)
            made = self.changed(rng, data if data and rng.random() < 0.5 else rng.choice(files))
            return made if len(made) <= most else data

        options = (f"-seed={seed % 2**32 or 1}", "-max_len=400000", "-rss_limit_mb=0", "-verbosity=0", "-len_control=0")
        atheris.Setup([sys.argv[0], *options, str(corpus)], self.check, custom_mutator=mutator)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description="Read hostile files.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="read this one")
    parser.add_argument("--seconds", type=float, default=60, help="for each format")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", choices=list(FORMATS), action="append")
    parser.add_argument("--findings", type=Path, default=None, help="where findings are kept")
    given = parser.parse_args()
    if given.files:
        found = [wrong for f in given.files for read in FORMATS[f.suffix[1:]][2] if (wrong := finding(f, read))]
        print("\n".join(found) or "nothing is wrong")
        return len(found) > 0
    seed = random.randrange(2**32) if given.seed is None else given.seed
    directory = Path(tempfile.mkdtemp()) if given.findings is None else given.findings
    directory.mkdir(parents=True, exist_ok=True)
    if given.only is not None and len(given.only) == 1:
        Hunt(given.only[0], directory, given.seconds).run(seed)
    print(f"seed {seed}, {'guided by coverage' if atheris else 'blind'}, findings in {directory}", flush=True)
    failed = 0
    for kind in given.only or FORMATS:
        options = ("--only", kind, "--seed", str(seed), "--seconds", str(given.seconds), "--findings", str(directory))
        code = subprocess.run([sys.executable, __file__, *options], check=False).returncode
        if code not in (0, 1):
            print(f"{kind}: the process ended with {code}; {directory}/last.{kind} was being read", flush=True)
        failed += code != 0
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
