"""Lazy import of optional dependencies."""

from __future__ import annotations

import importlib
from typing import Any


def needed(module: str, extra: str) -> Any:
    """Import a module; if it is not installed, raise ImportError that names the extra. Its own errors propagate."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            raise
        raise ImportError(f"{package} is not installed; run pip install 'fastrnn[{extra}]'") from error
