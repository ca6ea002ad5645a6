"""The command line: `python -m fastrnn info`, `python -m fastrnn demo`, `python -m fastrnn bench`."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from typing import NamedTuple

from fastrnn import bench, demo, show_config
from fastrnn.version import version


def info() -> int:
    """Print version, backend, instruction set, threads and compiler."""
    show_config()
    return 0


class Command(NamedTuple):
    """Something to do; the first line of its docstring is its help."""

    run: Callable[..., int]  #: takes its options by name and returns the exit status
    options: Callable[[ArgumentParser], None] = lambda parser: None  #: adds them


COMMANDS = {"info": Command(info), "demo": Command(demo.main), "bench": Command(bench.main, bench.options)}


def main() -> int:
    parser = ArgumentParser(prog="python -m fastrnn", description="Recurrent networks, fast on a CPU.")
    parser.add_argument("--version", action="version", version=f"fastrnn {version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        about = (command.run.__doc__ or "").partition("\n")[0]
        command.options(commands.add_parser(name, help=about, description=about))
    chosen = vars(parser.parse_args())
    return COMMANDS[chosen.pop("command")].run(**chosen)


if __name__ == "__main__":
    sys.exit(main())
