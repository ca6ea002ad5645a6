"""What adapters say when kernels cannot compute something, and a cell's own equations do."""

from __future__ import annotations

import warnings

#: What a warning has told in this process.
_told: set[tuple[str, str]] = set()


def tell(adapter: str, what: str) -> None:
    """Warn that this is slow, once in a process for each reason."""
    if (adapter, what) not in _told:
        _told.add((adapter, what))
        warnings.warn(
            f"{adapter}: {what} are computed by the cell's equations, step by step, which is slow",
            RuntimeWarning,
            stacklevel=2,
        )
