"""The command line: `python -m fastrnn info`, `demo`, `convert IN OUT`, `inspect MODEL`, `bench MODEL` and `bench`."""

from __future__ import annotations

import importlib
import re
import sys
from argparse import ArgumentParser
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from fastrnn import demo, show_config
from fastrnn.version import version

#: What a file may be wrong in, or a machine be without: told in one line.
EXPECTED = (ValueError, TypeError, OSError, ImportError)

#: Of the readers: name of the option, and how argparse takes it.
READING: dict[str, dict[str, Any]] = {
    "layer": {"metavar": "NAME", "help": "one layer of a Keras model, or one node of an ONNX model, alone"},
    "cell": {"metavar": "CELL", "help": "of a state_dict that does not say it: rnn_tanh, rnn_relu, gru_before, ..."},
    "prefix": {"metavar": "NAME.", "help": "of a state_dict: what the names of the recurrent module begin with"},
    "batch_first": {"action": "store_true", "help": "of a state_dict: the layer takes (B, T, I)"},
    "inference": {"action": "store_true", "help": "of Keras: leave out what acts in training alone"},
    "lengths": {"action": "store_true", "help": "of Keras: leave out masks; in ONNX: lengths are an input"},
    "state": {"action": "store_true", "help": "of Keras: leave out stateful; in ONNX: states are inputs and outputs"},
}


class Parser(ArgumentParser):
    """Whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def compare(arguments: list[str]) -> int:
    """Compare with other libraries; runs in a checkout of the repository."""
    if not Path("benchmarks/compare").is_dir():
        print(
            "bench: the comparison is in the folder benchmarks/ of fastrnn's repository; in a checkout of it, "
            "run `pip install '.[bench]'` and `python -m benchmarks.compare`; `bench MODEL` times a model anywhere"
        )
        return 2
    return int(importlib.import_module("benchmarks.compare.__main__").main(arguments))


def spelled(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def in_options(message: str, names: Collection[str]) -> str:
    """With options where a message has the arguments of a function."""
    known = "|".join(names)
    found = rf"^({known})(?=: )|\b({known})=(?:True\b|(?=\s))"
    return re.sub(found, lambda match: spelled(match[1] or match[2]), message)


def parser() -> Parser:
    made = Parser(prog="python -m fastrnn", description="Recurrent networks, fast on a CPU.")
    made.add_argument("--version", action="version", version=f"fastrnn {version()}")
    commands = made.add_subparsers(dest="command", required=True, metavar="command")
    reading = Parser(add_help=False)
    for name, options in READING.items():
        reading.add_argument(spelled(name), **options)

    def add(name: str, about: str, *more: str, reads: bool = True) -> Parser:
        description = "".join(f"{sentence[0].upper()}{sentence[1:]}. " for sentence in (about, *more))
        return commands.add_parser(name, help=about, description=description, parents=[reading] * reads)

    add("info", "print version, backend, instruction set, threads and compiler", reads=False)
    add("demo", "train an LSTM on the 2-back echo task, test it, and compare backends", reads=False)
    files = "files: .safetensors (fastrnn's own, or a state_dict), .keras, .h5, .onnx, .pt (a state_dict), "
    files += ".json (RTNeural)"
    convert = add("convert", "read a model of one kind and write it as another", files, "OUT: .safetensors, .onnx, .c")
    convert.add_argument("source", metavar="IN")
    convert.add_argument("target", metavar="OUT")
    convert.add_argument("--opset", type=int, metavar="N", help="of ONNX")
    convert.add_argument("--name", metavar="NAME", help="of C: what its names begin with")
    inspect = add("inspect", "print a model's layers, shapes, parameters, memory, and what runs each of them", files)
    inspect.add_argument("source", metavar="MODEL")
    bench = add("bench", "time a model; without MODEL, compare fastrnn with other libraries, in a checkout", files)
    bench.add_argument("source", metavar="MODEL")
    bench.add_argument("--batch", type=int, default=32, metavar="N", help="sequences side by side (default: 32)")
    bench.add_argument("--steps", type=int, default=100, metavar="N", help="of each sequence (default: 100)")
    bench.add_argument("--seconds", type=float, default=3.0, metavar="S", help="to take for it all (default: 3)")
    bench.add_argument("--threads", type=int, metavar="N", help="at most so many")
    return made


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == ["bench"] and all(one.startswith("-") for one in arguments[1:2]):
        return compare(arguments[1:])
    given = vars(parser().parse_args(arguments))
    command = given.pop("command")
    if command == "info":
        show_config()
        return 0
    if command == "demo":
        return demo.main()
    run = getattr(importlib.import_module("fastrnn.commands"), command)
    try:
        run(**{name: value for name, value in given.items() if value is not None and value is not False})
    except EXPECTED as error:
        message = in_options(" ".join(str(error).split()), given.keys() - {"source", "target"})
        print(f"python -m fastrnn {command}: {message}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
