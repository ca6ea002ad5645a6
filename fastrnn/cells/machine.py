"""Machine code of cells that are not compiled in: compiled by LLVM at first use and cached on disk.

llvmlite, a dependency of Numba, is LLVM's compiler as a library. The code is stored in the user's cache folder under a
hash of all its inputs. A damaged file, or one that cannot be written, only costs compile time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

from fastrnn.cells.llvm import Machine as Machine
from fastrnn.cells.llvm import module
from fastrnn.cells.program import Program

#: Compiler options. With jit, LLVM uses a code model that allows constants more than 2 GB from the code, as happens in
#: a process with much mapped memory.
OPTIONS = {"opt": 3, "jit": True}

_lock = threading.RLock()


@functools.cache
def available() -> bool:
    """Return whether llvmlite is installed, in a version with opaque pointers."""
    try:
        llvm: Any = importlib.import_module("llvmlite.binding")
    except ImportError:
        return False
    return bool(llvm.llvm_version_info >= (15,))


def folder() -> Path:
    """Return the cache folder: FASTRNN_CACHE_DIR, or fastrnn in the user's cache folder."""
    given = os.environ.get("FASTRNN_CACHE_DIR")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastrnn"


class Code:
    """A program as machine code, with the addresses of its functions, valid while this object lives."""

    def __init__(self, program: Program, machine: Machine, cpu: str) -> None:
        llvm: Any = importlib.import_module("llvmlite.binding")
        text = module(program, machine)
        with _lock:
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
            triple = llvm.get_process_triple()
            target = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, **OPTIONS)
            version = ".".join(map(str, llvm.llvm_version_info))
            digest = hashlib.sha256("\0".join((text, triple, cpu, repr(OPTIONS), version)).encode())
            self.key = int.from_bytes(digest.digest()[:8], "little") >> 1 | 1 << 62  #: bit 62 set: never a small number
            path = folder() / digest.hexdigest()
            compiled = read(path)
            if compiled is None:
                compiled = target.emit_object(llvm.parse_assembly(text))
                write(path, compiled)
            self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
            self._engine.add_object_file(llvm.ObjectFileRef.from_data(compiled))
            self._engine.finalize_object()
            phases = range(len(program.phases))
            self.forward = [self._engine.get_function_address(f"forward_{q}") for q in phases]
            self.backward = [self._engine.get_function_address(f"backward_{q}") for q in phases]


def read(path: Path) -> bytes | None:
    """Read a file of `write`; return None if it is missing, damaged or owned by another user."""
    try:
        if hasattr(os, "getuid") and path.stat().st_uid != os.getuid():
            return None
        whole = path.read_bytes()
    except OSError:
        return None
    digest, content = whole[:32], whole[32:]
    return content if hashlib.sha256(content).digest() == digest else None


def write(path: Path, content: bytes) -> None:
    """Write atomically: another process may read the file."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(file.name, path)
