"""What is imported only when it is needed, and which extra of the package brings it."""

from __future__ import annotations

import importlib
from typing import Any


def needed(module: str, extra: str) -> Any:
    """The module, or an ImportError that says how to install it; if it is there, the error that it has itself."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != package:
            raise
        raise ImportError(f"{package} is not installed; pip install 'fastrnn[{extra}]' brings it") from error
