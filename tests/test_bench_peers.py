"""The peers of `python -m fastrnn bench` compute what fastrnn does, built-in cells and a user's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.problems import PUBLIC

import fastrnn
from benchmarks.compare import cells, grid
from benchmarks.compare.jax_peer import JAX
from benchmarks.compare.onnx_peers import ONNXRuntime, OpenVINO
from benchmarks.compare.peer import Peer, Work, worst_error
from benchmarks.compare.peers import PEERS, Fastrnn, Numba, NumPy, PyTorch
from benchmarks.compare.problem import Problem, draw
from benchmarks.compare.process import AVX2, environment


@pytest.mark.parametrize(("isa", "limited"), [("v3", True), ("x86-64-v3", True), ("x86-64-v4", False), ("", False)])
def test_peers_are_limited_like_fastrnn(isa: str, limited: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTRNN_ISA", isa)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")
    chosen = environment(1)
    assert (AVX2.items() <= chosen.items()) == limited
    assert ("max_isa" in chosen["XLA_FLAGS"]) == limited
    assert ("OPENBLAS_CORETYPE" in chosen) == limited


def outputs(peer: type[Peer], problem: Problem, mode: str) -> dict[str, np.ndarray]:
    with fastrnn.use_backend(fastrnn.config()["backend"]):  # comes back: a peer may switch it
        threads = fastrnn.get_num_threads()
        work = peer(1).prepare(problem, mode == "training")
        fastrnn.set_num_threads(threads)
        return work.collect(work.call())


class OneVariant(JAX):
    """Compiles one of the four variants, given by the cell and the mode: together they use all."""

    def prepare(self, problem: Problem, training: bool) -> Work:
        n = len(problem.cell.name) + training
        return self.compiled(problem, training, n % 2 == 1, n // 2 % 2 == 1)


#: Not Numba, which computes the same as NumPy and takes half a minute to compile.
EVERY = (NumPy, PyTorch, ONNXRuntime, OpenVINO, OneVariant)
AGREE = [
    (peer, sizes, lengths)
    for peer in EVERY
    for sizes, lengths in (
        (grid.POINTS["seed3"], None),
        (grid.Sizes(9, 5, 3, 17, layers=2, directions=2), None),
        (grid.Sizes(1, 2, 3, 17, layers=2), None),
        (grid.Sizes(9, 5, 3, 17), np.array([9, 1, 4, 8, 2])),
    )
    if lengths is None or peer is not OneVariant
]


@pytest.mark.parametrize(("peer", "sizes", "lengths"), AGREE)
def test_peers_agree(peer: type[Peer], sizes: grid.Sizes, lengths: np.ndarray | None) -> None:
    """Every case that a peer supports gives fastrnn's outputs and gradients, with the same gate order and peepholes."""
    if not peer.installed():
        pytest.skip(f"{peer.title} is not installed")
    offered = [
        (name, mode)
        for name in PUBLIC
        for mode in grid.MODES
        if peer.offers(cells.find(name), mode == "training", lengths is not None)
    ]
    assert len(offered) == {NumPy: 16, PyTorch: 8, ONNXRuntime: 8, OpenVINO: 6, OneVariant: 10}[peer]
    for name, mode in offered:
        problem = draw(name, sizes, lengths)
        expected = outputs(Fastrnn, problem, mode)
        assert len(expected) == (1 if mode == "forward" else 2 + len(problem.parameters))
        error = worst_error(outputs(peer, problem, mode), expected)
        assert error < 1e-5, f"{name}, {mode}"


@pytest.mark.parametrize("peer", [PyTorch, OneVariant])
@pytest.mark.parametrize("name", ["gru", "minimal_gated_unit", "min_gru", "slstm"])
def test_peers_run_a_users_cell(peer: type[Peer], name: str) -> None:
    """The peers' loops over a cell's equations give the results of the cell's own functions."""
    if not peer.installed():
        pytest.skip(f"{peer.title} is not installed")
    problem = draw(f"support.own_cells:{name}", grid.Sizes(9, 5, 3, 17))
    for mode in grid.MODES:
        expected = outputs(Fastrnn, problem, mode)
        assert len(expected) == (1 if mode == "forward" else 2 + len(problem.parameters))
        assert worst_error(outputs(peer, problem, mode), expected) < 1e-5, mode


def test_peers_run_a_cell_that_has_everything(oracle: Callable[[str], Any]) -> None:
    """The cell has every feature that a cell can have."""
    oracle("torch"), oracle("jax")
    problem = draw("support.own_cells:in_turns", grid.Sizes(9, 5, 3, 17))
    assert {name: a.shape for name, a in problem.weights[0].items()} == {
        "W": (4 * 17, 3),
        "U": (3 * 17, 17),
        "b": (4 * 17,),
        "b_rec": (3 * 17,),
        "p": (17,),
    }
    of_torch = outputs(PyTorch, problem, "training")
    assert {"de_keep", "de_drop", "dp_l0"} < of_torch.keys()
    assert worst_error(outputs(OneVariant, problem, "training"), of_torch) < 1e-5
    assert worst_error(outputs(Fastrnn, problem, "training"), of_torch) < 1e-5


def test_gates_share_products(oracle: Callable[[str], Any]) -> None:
    """Gates with the same operand share a product; if their rows of U are contiguous, it uses a slice."""
    jnp = oracle("jax").numpy
    groups, rows = {}, {}
    for name in ("minimal_gated_unit", "clipped_relu_lstm", "in_turns"):
        cell = cells.find(f"support.own_cells:{name}")
        steps = cells.Steps(cell, cell.own.equations, lambda: jnp.zeros((1, 1)))
        W, b_rec = np.ones((len(cell.gates), 1)), np.arange(len(cell.products))
        groups[name] = steps.groups
        rows[name] = [b.tolist() for _, b in steps.parts({"W": W, "U": b_rec, "b_rec": b_rec})]
    assert list(groups.values()) == [[["f"], ["n"]], [["i", "f", "g", "o"]], [["u", "w"], ["v"]]]
    assert list(rows.values()) == [[[0], [1]], [[0, 1, 2, 3]], [[0, 2], [1]]]


def test_peers_that_run_a_users_cell() -> None:
    cell = cells.find("support.own_cells:gru")
    assert [name for name in PEERS if PEERS[name].offers(cell, True, False)] == ["torch", "jax", "numba", "numpy"]
    assert [name for name in PEERS if PEERS[name].offers(cell, True, True)] == ["numba", "numpy"]


def test_every_peer_is_listed() -> None:
    assert list(PEERS.values()) == [PyTorch, ONNXRuntime, OpenVINO, JAX, Numba, NumPy]
