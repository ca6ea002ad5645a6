"""The command line: `python -m fastrnn info`, `demo`, `convert IN OUT`, `inspect MODEL`, `bench MODEL` and `bench`."""

from __future__ import annotations

import importlib
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any, NoReturn

from fastrnn import demo, show_config
from fastrnn.version import version

#: Errors from bad files, missing packages or too large sizes, which are reported in one line.
EXPECTED = (ValueError, TypeError, OSError, ImportError, MemoryError)

#: Options of the readers, with their arguments for argparse.
READING: dict[str, dict[str, Any]] = {
    "--layer": {"metavar": "NAME", "help": "only this layer of a Keras model, or this node of an ONNX model"},
    "--cell": {"metavar": "CELL", "help": "for a state_dict: its cell, such as lstm, gru_after or rnn_relu"},
    "--prefix": {"metavar": "NAME.", "help": "for a state_dict: prefix of the recurrent module's names"},
    "--batch-first": {"action": "store_true", "help": "for a state_dict: the layer takes (B, T, I)"},
    "--weight-dtype": {"metavar": "DTYPE", "help": "round the recurrent layers' matrices to int8 or bfloat16"},
    "--inference": {"action": "store_true", "help": "for Keras: ignore layers and options that act only in training"},
    "--lengths": {"action": "store_true", "help": "for Keras: ignore masks; for ONNX: make lengths an input"},
    "--state": {"action": "store_true", "help": "for Keras: ignore stateful; for ONNX: make states inputs and outputs"},
}


class Parser(ArgumentParser):
    """An argument parser with one-line errors."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def compare(arguments: list[str]) -> int:
    """Compare with other libraries; runs in a checkout of the repository."""
    if not Path("benchmarks/compare").is_dir():
        print(
            "bench: the comparison is in benchmarks/ of fastrnn's repository; in a checkout, "
            "run `pip install '.[bench]'` and `python -m benchmarks.compare`; `bench MODEL` times a model anywhere"
        )
        return 2
    return int(importlib.import_module("benchmarks.compare.__main__").main(arguments))


def has_model(arguments: list[str]) -> bool:
    """Return whether an argument is the name of a model file."""
    readers = importlib.import_module("fastrnn.convert.formats").READERS
    return any(Path(one).suffix.lower() in readers for one in arguments)


def parser() -> Parser:
    made = Parser(prog="python -m fastrnn", description="Recurrent networks, fast on a CPU.", allow_abbrev=False)
    made.add_argument("--version", action="version", version=f"fastrnn {version()}")
    commands = made.add_subparsers(dest="command", required=True, metavar="command")
    reading = Parser(add_help=False)
    for option, about in READING.items():
        reading.add_argument(option, **about)

    def add(name: str, about: str, *more: str, reads: bool = True) -> Parser:
        text = "".join(f"{sentence[0].upper()}{sentence[1:]}. " for sentence in (about, *more))
        return commands.add_parser(name, help=about, description=text, parents=[reading] * reads, allow_abbrev=False)

    add("info", "print version, backend, instruction set, threads and compiler", reads=False)
    add("demo", "train an LSTM on the 2-back echo task, test it, and compare backends", reads=False)
    files = "files: .safetensors (fastrnn's own, or a state_dict), .keras, .h5, .onnx, .pt (a state_dict), "
    files += ".json (RTNeural)"
    convert = add("convert", "convert a model from one format to another", files, "OUT: .safetensors, .onnx, .c")
    convert.add_argument("source", metavar="IN", help="file to read")
    convert.add_argument("target", metavar="OUT", help="file to write")
    convert.add_argument("--opset", type=int, metavar="N", help="ONNX opset")
    convert.add_argument("--name", metavar="NAME", help="prefix of the names in C (default: the file's name)")
    inspect = add("inspect", "print a model's layers, with their shapes, parameters, memory and backend", files)
    inspect.add_argument("source", metavar="MODEL", help="file to read")
    bench = add("bench", "time a model; without MODEL, compare fastrnn with other libraries (in a checkout)", files)
    bench.add_argument("source", metavar="MODEL", help="file to read")
    bench.add_argument("--batch", type=int, default=32, metavar="N", help="sequences in a batch (default: 32)")
    bench.add_argument("--steps", type=int, default=100, metavar="N", help="length of each sequence (default: 100)")
    bench.add_argument("--seconds", type=float, default=3.0, metavar="S", help="total measuring time (default: 3)")
    bench.add_argument("--threads", type=int, metavar="N", help="maximum number of threads")
    return made


def main() -> int:
    arguments = sys.argv[1:]
    if arguments[:1] == ["bench"] and all(one.startswith("-") for one in arguments[1:2]) and not has_model(arguments):
        return compare(arguments[1:])
    parsed, others = parser().parse_known_args(arguments)
    command = vars(parsed).pop("command")
    if others:
        Parser(prog=f"python -m fastrnn {command}").error(f"unrecognized arguments: {' '.join(others)}")
    if command == "info":
        show_config()
        return 0
    if command == "demo":
        return demo.main()
    commands = importlib.import_module("fastrnn.commands")
    given = {name: value for name, value in vars(parsed).items() if value is not None and value is not False}
    try:
        getattr(commands, command)(**given)
    except EXPECTED as error:
        print(f"python -m fastrnn {command}: {commands.in_options(error, given)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
