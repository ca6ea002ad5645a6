"""fastrnn and its peers. A framework is imported by the process that runs it, and by no other."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

import fastrnn
from fastrnn.cells import Array
from fastrnn.layers.options import NAMES

from .jax_peer import JAX
from .onnx_peers import ONNXRuntime, OpenVINO
from .peer import ALL, FAMILIES, Peer, Work
from .problem import Problem


def layers(problem: Problem) -> Any:
    """fastrnn's own, with the problem's weights."""
    family, options = FAMILIES[problem.cell]
    options = options | {"num_layers": problem.sizes.layers, "bidirectional": problem.sizes.directions == 2}
    layer = getattr(fastrnn, family.upper())(problem.sizes.I, problem.sizes.H, **options, **peephole(problem))
    layer.load_state_dict(
        {
            NAMES[key] + suffix: value
            for suffix, weights in zip(problem.suffixes, problem.weights, strict=True)
            for key, value in weights.items()
        }
    )
    return layer


def peephole(problem: Problem) -> dict[str, bool]:
    return {"peephole": True} if problem.cell == "lstm_peephole" else {}


def infer(problem: Problem) -> Work:
    """fastrnn's inference: a layer, whose weights are packed once, as ONNX Runtime and OpenVINO pack theirs."""
    layer = layers(problem)
    return Work(lambda: layer(problem.x, lengths=problem.lengths)[0], lambda y: {"y": y})


def stream(problem: Problem) -> Work:
    """Of one step, a stream's. Only the first call starts from zeros, as all of the peers' do."""
    step, (x,), out = layers(problem).stream(problem.sizes.B).step, problem.x, np.empty_like(problem.dy[0])
    return Work(lambda: step(x, out), lambda y: {"y": y[None].copy()})


def train(problem: Problem) -> Work:
    """fastrnn's forward and backward."""
    layer = layers(problem)
    named = {f"{NAMES[key]}{suffix}": f"d{key}{suffix}" for suffix in problem.suffixes for key in problem.weights[0]}

    def call() -> tuple[Array, Any]:
        y, _, cache = layer.forward(problem.x, lengths=problem.lengths, training=True)
        return y, layer.backward(problem.dy, cache)

    def collect(result: tuple[Array, Any]) -> dict[str, Array]:
        y, gradients = result
        return {"y": y, "dx": gradients.dx} | {named[name]: d for name, d in gradients.grads.items()}

    return Work(call, collect)


class Fastrnn(Peer):
    """fastrnn as it is used: what is installed decides on the backend."""

    title, package = "fastrnn", "fastrnn"
    cells: ClassVar = {"forward": ALL, "training": ALL}

    def prepare(self, problem: Problem, training: bool) -> Work:
        fastrnn.set_num_threads(self.threads)
        if training:
            return train(problem)
        one_step = problem.sizes.T == 1 and problem.sizes.directions == 1
        return stream(problem) if one_step else infer(problem)

    def describe(self) -> str:
        return fastrnn.config()["isa"] or ""


class NumPy(Fastrnn):
    """fastrnn's NumPy backend: the textbook."""

    title, package, slow = "NumPy", "numpy", True

    def describe(self) -> str:
        return ""

    def prepare(self, problem: Problem, training: bool) -> Work:
        fastrnn.use_backend(self.package)
        return super().prepare(problem, training)


class Numba(NumPy):
    """fastrnn's Numba backend: the textbook's loop, compiled."""

    title, package = "Numba", "numba"


class PyTorch(Peer):
    """`torch.nn`'s layers, under `inference_mode` or with autograd; unequal lengths are packed in every call."""

    title, package = "PyTorch", "torch"
    cells: ClassVar = dict.fromkeys(("forward", "training"), frozenset({"lstm", "gru_after", "rnn_tanh"}))

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_num_threads(threads)

    def describe(self) -> str:
        capability: str = self.torch.backends.cpu.get_cpu_capability()
        return capability

    @property
    def modules(self) -> Any:
        """What has LSTM, GRU and RNN."""
        return self.torch.nn

    def prepare(self, problem: Problem, training: bool) -> Work:
        torch = self.torch
        sizes = problem.sizes
        kind = getattr(self.modules, FAMILIES[problem.cell][0].upper())
        layer = kind(sizes.I, sizes.H, sizes.layers, bidirectional=sizes.directions == 2)
        weights = [w for one in layer.all_weights for w in one]  # weight_ih, weight_hh, bias_ih, bias_hh of each
        with torch.no_grad():
            for own, given in zip(weights, problem.parameters.values(), strict=True):
                own.copy_(torch.from_numpy(given))
        x, dy = torch.from_numpy(problem.x).requires_grad_(training), torch.from_numpy(problem.dy)
        forward = self.padded(layer, problem.lengths) if problem.lengths is not None else lambda x: layer(x)[0]

        def infer() -> list[Any]:
            with torch.inference_mode():
                return [forward(x)]

        def train() -> list[Any]:
            y = forward(x)
            return [y.detach(), *torch.autograd.grad(y, [x, *weights], dy)]

        def collect(tensors: list[Any]) -> dict[str, Array]:
            names = ["y", "dx", *(f"d{name}" for name in problem.parameters)]
            return dict(zip(names, (t.numpy() for t in tensors), strict=False))  # inference has y alone

        return Work(train if training else infer, collect)

    def padded(self, layer: Any, lengths: Array) -> Callable[[Any], Any]:
        """From padded sequences to padded sequences, through a PackedSequence."""
        rnn, steps = self.torch.nn.utils.rnn, self.torch.from_numpy(lengths)

        def forward(x: Any) -> Any:
            packed = rnn.pack_padded_sequence(x, steps, enforce_sorted=False)
            return rnn.pad_packed_sequence(layer(packed)[0], total_length=len(x))[0]

        return forward


#: The name on the command line -> the class; fastrnn itself stands beside them.
PEERS: dict[str, type[Peer]] = {
    "torch": PyTorch,
    "onnxruntime": ONNXRuntime,
    "openvino": OpenVINO,
    "jax": JAX,
    "numba": Numba,
    "numpy": NumPy,
}
