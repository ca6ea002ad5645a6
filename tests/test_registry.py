"""The lists of cells agree: Python's registry, the C core's table, the tests."""

from __future__ import annotations

import importlib

import pytest
from support.problems import PUBLIC

import fastrnn
from fastrnn import catalogue
from fastrnn.backends import in_kernels
from fastrnn.cells import CELLS, find, generate, machine


def test_tests_know_every_cell() -> None:
    """All cells with public functions."""
    assert set(PUBLIC) == {name for name, cell in CELLS.items() if f"{cell.family}_forward" in fastrnn.__all__}
    for name, (family, gates, _) in PUBLIC.items():
        cell = CELLS[name]
        assert (cell.name, cell.family, cell.G) == (name, family, gates)


def test_c_core_knows_every_cell(native: str) -> None:
    compiled = importlib.import_module("_fastrnn").cells()
    assert {digest: (gates, states) for digest, (_, gates, states) in compiled.items()} == {
        cell.digest: (cell.G, len(cell.states)) for cell in generate.compiled().values()
    }


def test_what_is_compiled_in_needs_no_compiler(native: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available", lambda: False)
    assert all(in_kernels(cell) for cell in generate.compiled().values())


def test_compiled_in_cells() -> None:
    """The built-in cells come first, and no cell occurs twice."""
    names = [*generate.compiled()]
    assert names[: len(CELLS)] == [*CELLS]
    assert len(names) == len(CELLS) + 20


@pytest.mark.parametrize("cell", PUBLIC)
def test_public_functions(cell: str) -> None:
    family = PUBLIC[cell][0]
    for name in (f"{family}_forward", f"{family}_backward", f"{family}_step"):
        assert name in fastrnn.__all__
        assert callable(getattr(fastrnn, name))


def test_exports() -> None:
    assert sorted(set(fastrnn.__all__)) == sorted(fastrnn.__all__)
    assert not [name for name in fastrnn.__all__ if not hasattr(fastrnn, name)]


def test_factories_return_the_compiled_in_cells() -> None:
    """Otherwise equal equations in another order would make different cells."""
    assert catalogue.lstm_with().digest == CELLS["lstm"].digest
    assert catalogue.lstm_with(input_forget=True).digest == catalogue.cifg_lstm_input.digest
    for after in (True, False):
        assert catalogue.gru_with(reset_after=after).digest == find("gru", reset_after=after).digest
