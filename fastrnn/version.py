"""The version of fastrnn."""

from __future__ import annotations


def version() -> str:
    """Return the version of the installed package."""
    from importlib import metadata  # not above: slow to import

    try:
        return metadata.version("fastrnn")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "0+unknown"
