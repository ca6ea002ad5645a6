"""fastrnn and its peers. Each framework is imported only by the process that runs it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

import fastrnn
from fastrnn.types import Array

from .cells import Cell, Steps
from .jax_peer import JAX
from .onnx_peers import ONNXRuntime, OpenVINO
from .peer import Peer, Work
from .problem import Problem, layers


def infer(problem: Problem) -> Work:
    """Return fastrnn's inference: a layer that packs its weights once, like ONNX Runtime and OpenVINO."""
    layer = layers(problem)
    return Work(lambda: layer(problem.x, lengths=problem.lengths)[0], lambda y: {"y": y})


def stream(problem: Problem) -> Work:
    """Return one step of a stream; only the first call starts from zeros, all calls of the peers do."""
    step, (x,), out = layers(problem).stream(problem.sizes.B).step, problem.x, np.empty_like(problem.dy[0])
    return Work(lambda: step(x, out), lambda y: {"y": y[None].copy()})


def train(problem: Problem) -> Work:
    """Return fastrnn's forward and backward."""
    layer = layers(problem)
    named = dict(zip(layer.parameters(), [f"d{name}" for name in problem.parameters], strict=True))

    def call() -> tuple[Array, Any]:
        y, _, cache = layer.forward(problem.x, lengths=problem.lengths, training=True)
        return y, layer.backward(problem.dy, cache)

    def collect(result: tuple[Array, Any]) -> dict[str, Array]:
        y, gradients = result
        return {"y": y, "dx": gradients.dx} | {named[name]: d for name, d in gradients.grads.items()}

    return Work(call, collect)


def own(problem: Problem, training: bool) -> Work:
    """Return a user's cell, run by its functions."""
    cell, w = problem.cell.own, problem.weights[0]
    biases = (w["b"], w.get("b_rec"))
    options = {"p": w.get("p"), "e": problem.e or None, "lengths": problem.lengths, "training": training}

    def call() -> tuple[Array, Any]:
        y, _, _, cache = cell.forward(problem.x, w["W"], w.get("U"), *biases, **options)
        return y, cell.backward(problem.dy, cache) if training else None

    def collect(result: tuple[Array, Any]) -> dict[str, Array]:
        y, g = result
        if not training:
            return {"y": y}
        gradients = {f"d{name}_l0": getattr(g, f"d{name}") for name in w}
        return {"y": y, "dx": g.dx} | gradients | {f"de_{name}": g.de[name] for name in problem.e}

    return Work(call, collect)


class Fastrnn(Peer):
    """fastrnn with its default backend."""

    title, package = "fastrnn", "fastrnn"

    def prepare(self, problem: Problem, training: bool) -> Work:
        fastrnn.set_num_threads(self.threads)
        if problem.cell.own:
            return own(problem, training)
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
    """`torch.nn`'s layers and, of a user's cell, a loop over its steps, under `inference_mode` or with autograd.

    Unequal lengths are packed in every call.
    """

    title, package = "PyTorch", "torch"
    cells: ClassVar = {"lstm", "gru_after", "rnn_tanh", "rnn_relu"}

    @classmethod
    def offers(cls, cell: Cell, training: bool, lengths: bool) -> bool:
        return cell.name in cls.cells or (cell.own is not None and not lengths)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_num_threads(threads)

    def describe(self) -> str:
        capability: str = self.torch.backends.cpu.get_cpu_capability()
        return capability

    @property
    def modules(self) -> Any:
        """Return the module classes for LSTM, GRU and RNN."""
        return self.torch.nn

    def prepare(self, problem: Problem, training: bool) -> Work:
        torch = self.torch
        inputs = {name: torch.from_numpy(a).requires_grad_(training) for name, a in problem.inputs.items()}
        forward = self.loop(problem, inputs) if problem.cell.own else self.layer(problem, inputs)
        dy = torch.from_numpy(problem.dy)

        def infer() -> list[Any]:
            with torch.inference_mode():
                return [forward()]

        def train() -> list[Any]:
            y = forward()
            return [y.detach(), *torch.autograd.grad(y, list(inputs.values()), dy)]

        def collect(tensors: list[Any]) -> dict[str, Array]:
            names = ["y", *(f"d{name}" for name in inputs)]
            return dict(zip(names, (t.numpy() for t in tensors), strict=False))  # inference returns only y

        return Work(train if training else infer, collect)

    def layer(self, problem: Problem, inputs: dict[str, Any]) -> Callable[[], Any]:
        """Return a layer of PyTorch; its parameters replace the problem's among the inputs."""
        cell, sizes, lengths = problem.cell, problem.sizes, problem.lengths
        options = {"nonlinearity": cell.options["activation"]} if cell.family == "rnn" else {}
        kind = getattr(self.modules, cell.family.upper())
        layer = kind(sizes.I, sizes.H, sizes.layers, bidirectional=sizes.directions == 2, **options)
        weights = [w for one in layer.all_weights for w in one]  # weight_ih, weight_hh, bias_ih, bias_hh of each layer
        with self.torch.no_grad():
            for name, own in zip(problem.parameters, weights, strict=True):
                own.copy_(inputs[name])
                inputs[name] = own
        x, rnn = inputs["x"], self.torch.nn.utils.rnn

        def padded() -> Any:
            packed = rnn.pack_padded_sequence(x, steps, enforce_sorted=False)
            return rnn.pad_packed_sequence(layer(packed)[0], total_length=len(x))[0]

        if lengths is None:
            return lambda: layer(x)[0]
        steps = self.torch.from_numpy(lengths)
        return padded

    def loop(self, problem: Problem, inputs: dict[str, Any]) -> Callable[[], Any]:
        """Return a loop; x W' and all views are computed before it, so a step contains only its own equations."""
        torch, cell = self.torch, problem.cell
        linear, G, P = torch.nn.functional.linear, len(cell.gates), len(cell.parameters)
        with torch.no_grad():
            steps = Steps(cell, cell.own.equations, lambda: torch.zeros(1, 1))
        w = {name: inputs[f"{name}_l0"] for name in problem.weights[0]}
        zeros = torch.zeros(problem.sizes.B, problem.sizes.H)

        def product(group: list[str], U: Any, b_rec: Any) -> Callable[[Any], Any]:
            return lambda v: linear(v, U, b_rec).chunk(len(group), 1)

        def forward() -> Any:
            by_U = [product(group, *part) for group, part in zip(steps.groups, steps.parts(w), strict=True)]
            gates = [gate.unbind() for gate in linear(inputs["x"], w["W"], w["b"]).chunk(G, 2)]
            extra = [inputs[f"e_{name}"].unbind() for name in cell.inputs]
            p = w["p"].chunk(P) if P else ()
            state: tuple[Any, ...] = (zeros,) * len(cell.states)
            y = []
            for now in zip(*gates, *extra, strict=True):
                state = steps.step(now[:G], state, by_U, p, now[G:])
                y.append(state[0])
            return torch.stack(y)

        return forward


#: name on the command line -> the class, besides fastrnn itself
PEERS: dict[str, type[Peer]] = {
    "torch": PyTorch,
    "onnxruntime": ONNXRuntime,
    "openvino": OpenVINO,
    "jax": JAX,
    "numba": Numba,
    "numpy": NumPy,
}
