"""fastrnn and its peers. A framework is imported by the process that runs it, and by no other."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import fastrnn
from fastrnn.bench.jax_peer import JAX
from fastrnn.bench.onnx_peers import ONNXRuntime, OpenVINO
from fastrnn.bench.peer import ALL, FAMILIES, Peer, Work
from fastrnn.bench.problem import Problem
from fastrnn.cells import Array
from fastrnn.layers.weights import NAMES


def infer(problem: Problem) -> Work:
    """fastrnn's inference: a layer, whose weights are packed once, as ONNX Runtime and OpenVINO pack theirs."""
    family, options = FAMILIES[problem.cell]
    layer = getattr(fastrnn, family.upper())(
        problem.x.shape[2], problem.dy.shape[2], **options, **{"peephole": True} if "p" in problem.parameters else {}
    )
    layer.load_state_dict({f"{NAMES[key]}_l0": value for key, value in problem.parameters.items()})
    return Work(lambda: layer(problem.x, lengths=problem.lengths)[0], lambda y: {"y": y})


def train(problem: Problem) -> Work:
    """fastrnn's forward and backward."""
    family, options = FAMILIES[problem.cell]
    forward, backward = (getattr(fastrnn, f"{family}_{way}") for way in ("forward", "backward"))
    arguments = {**problem.parameters, **options, "lengths": problem.lengths, "training": True}

    def call() -> tuple[Array, Any]:
        result = forward(problem.x, **arguments)
        return result.y, backward(problem.dy, result.cache)

    def collect(result: tuple[Array, Any]) -> dict[str, Array]:
        y, gradients = result
        return {"y": y} | {f"d{name}": getattr(gradients, f"d{name}") for name in ("x", *problem.parameters)}

    return Work(call, collect)


class Fastrnn(Peer):
    """fastrnn as it is used: what is installed decides on the backend."""

    title, package = "fastrnn", "fastrnn"
    cells: ClassVar = {"forward": ALL, "training": ALL}

    def prepare(self, problem: Problem, training: bool) -> Work:
        fastrnn.set_num_threads(self.threads)
        return train(problem) if training else infer(problem)


class NumPy(Fastrnn):
    """fastrnn's NumPy backend: the textbook."""

    title, package, slow = "NumPy", "numpy", True

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

    def prepare(self, problem: Problem, training: bool) -> Work:
        torch = self.torch
        layer = getattr(torch.nn, FAMILIES[problem.cell][0].upper())(problem.x.shape[2], problem.dy.shape[2])
        weights = layer.all_weights[0]  # weight_ih, weight_hh, bias_ih, bias_hh
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
            return dict(zip(("y", "dx", "dW", "dU", "db", "db_rec"), (t.numpy() for t in tensors), strict=False))

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
