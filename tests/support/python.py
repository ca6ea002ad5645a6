"""The type of the fixture `python`, which runs a fresh interpreter."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

Python = Callable[..., CompletedProcess[str]]
