"""Make PyTorch's compiler trace into fastrnn's modules."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

import torch

_COMPILER = "torch._dynamo"


def let_in(kind: type) -> None:
    """Let `torch.compile` trace modules of a class that inherits from `torch.nn.LSTM`, `GRU` or `RNN`.

    It rejects `torch.nn`'s modules and all subclasses, because it would unroll their code. The option that allows them,
    ``torch._dynamo.config.allow_rnn``, applies to every module of the process, so it is set only while the compiler
    wraps one of these. Importing the compiler takes seconds: if it is not imported yet, it is patched when it is.
    """

    def tell() -> None:
        builder: Any = torch._dynamo.variables.builder.VariableBuilder
        refusing = getattr(builder, "wrap_module", None)
        if refusing is None:  # a private name: without it the compiler refuses these modules as it does torch.nn's
            return

        def wrap_module(self: Any, module: Any) -> Any:
            if not isinstance(module, kind):
                return refusing(self, module)
            with torch._dynamo.config.patch(allow_rnn=True):
                return refusing(self, module)

        builder.wrap_module = wrap_module

    if _COMPILER in sys.modules:
        tell()
    else:
        sys.meta_path.insert(0, _Afterwards(tell))


class _Afterwards(MetaPathFinder):
    """An import hook that finds nothing itself, but calls a function once the compiler is imported."""

    def __init__(self, then: Callable[[], None]) -> None:
        self.then = then

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != _COMPILER:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        run = loader.exec_module

        def exec_module(module: Any) -> None:
            run(module)
            if self in sys.meta_path:  # finding a module is not importing it: only the first import calls `then`
                sys.meta_path.remove(self)
                self.then()

        loader.exec_module = exec_module
        return spec
