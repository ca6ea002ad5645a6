"""The warning of adapters that fall back from the kernels to a cell's equations."""

from __future__ import annotations

import warnings

#: Warnings already issued in this process.
_told: set[tuple[str, str]] = set()


def tell(adapter: str, what: str) -> None:
    """Warn that this is slow, once per process and reason."""
    if (adapter, what) not in _told:
        _told.add((adapter, what))
        warnings.warn(
            f"{adapter}: {what} are computed by the cell's equations, step by step, which is slow",
            RuntimeWarning,
            stacklevel=2,
        )
