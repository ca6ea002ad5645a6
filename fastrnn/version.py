"""Which version this is."""

from __future__ import annotations


def version() -> str:
    """That of the installed package."""
    from importlib import metadata  # not above: it takes long to import

    try:
        return metadata.version("fastrnn")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "0+unknown"
