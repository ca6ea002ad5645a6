"""The command line: `python -m fastrnn info`, `python -m fastrnn demo`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from fastrnn import demo, show_config


def info() -> int:
    """Print version, backend, instruction set, threads and compiler."""
    show_config()
    return 0


#: name -> what to do, which returns the exit status; the first line of its docstring is its help
COMMANDS: dict[str, Callable[[], int]] = {"info": info, "demo": demo.main}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fastrnn", description="Recurrent networks, fast on a CPU.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=(command.__doc__ or "").partition("\n")[0])
    return COMMANDS[parser.parse_args().command]()


if __name__ == "__main__":
    sys.exit(main())
