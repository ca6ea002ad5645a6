"""The command line: `python -m fastrnn info`, `python -m fastrnn demo`, `python -m fastrnn bench`."""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentParser
from pathlib import Path

from fastrnn import demo, show_config
from fastrnn.version import version


def info() -> int:
    """Print version, backend, instruction set, threads and compiler."""
    show_config()
    return 0


def bench(arguments: list[str]) -> int:
    """Compare with other libraries; runs in a checkout of the repository."""
    if not Path("benchmarks/compare").is_dir():
        print(
            "bench: the comparison is in the folder benchmarks/ of fastrnn's repository; in a checkout of it, "
            "run `pip install '.[bench]'` and `python -m benchmarks.compare`"
        )
        return 2
    return int(importlib.import_module("benchmarks.compare.__main__").main(arguments))


def main() -> int:
    parser = ArgumentParser(prog="python -m fastrnn", description="Recurrent networks, fast on a CPU.")
    parser.add_argument("--version", action="version", version=f"fastrnn {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, run in {"info": info, "demo": demo.main, "bench": bench}.items():
        about = (run.__doc__ or "").partition("\n")[0]
        commands.add_parser(name, help=about, description=about, add_help=name != "bench")
    chosen, others = parser.parse_known_args()
    if chosen.command == "bench":
        return bench(others)
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    return info() if chosen.command == "info" else demo.main()


if __name__ == "__main__":
    sys.exit(main())
