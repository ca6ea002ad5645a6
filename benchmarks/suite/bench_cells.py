"""Time and memory of every cell, forward and backward, for each backend."""

from __future__ import annotations

from typing import Any

import numpy as np
from grid import POINTS, QUICK
from support.problems import CELLS, Problem, call, make

import fastrnn

#: points for each backend: Numba compiles for ten seconds in each of asv's processes
BACKENDS = {"native": (), "numba": ("seed3",), "numpy": ("tiny", "seed3")}
CHOSEN = list(QUICK)


class Cells:
    """Common set-up; asv repeats it for every combination of parameters."""

    params: tuple[list[str], ...] = (CELLS, CHOSEN, list(BACKENDS))
    param_names = ("cell", "point", "backend")

    def setup(self, cell: str, point: str, backend: str) -> None:
        if backend not in fastrnn.config()["available_backends"]:
            raise NotImplementedError(f"{backend} is not installed")
        if point not in (BACKENDS[backend] or CHOSEN):
            raise NotImplementedError(f"{point} takes {backend} too long")
        fastrnn.use_backend(backend)
        fastrnn.set_num_threads(1)
        self.problem: Problem = make(cell, POINTS[point][:4], dtype=np.float32)
        self.run = self.prepare()
        self.run()  # numba compiles on the first call

    def prepare(self) -> Any:
        raise NotImplementedError


class Forward(Cells):
    """Inference, which saves nothing."""

    def prepare(self) -> Any:
        return lambda: call(self.problem)

    def time_forward(self, *_: str) -> None:
        self.run()


class Backward(Cells):
    """All gradients, from a cache made once."""

    def prepare(self) -> Any:
        cache = call(self.problem, training=True)[0].cache
        cotangents = dict(self.problem.cotangents)
        dy = cotangents.pop("dy")
        backward = getattr(fastrnn, f"{self.problem.family}_backward")
        return lambda: backward(dy, cache, **cotangents)

    def time_backward(self, *_: str) -> None:
        self.run()


class Memory(Cells):
    """Peak memory of training on a long sequence, with and without checkpoints; it includes imports and inputs."""

    params = (["lstm", "gru_after"], ["all", "checkpoint"])
    param_names = ("cell", "keep")

    def setup(self, cell: str, keep: str) -> None:  # type: ignore[override]
        options = {"checkpoint": 50} if keep == "checkpoint" else {}
        self.problem = make(cell, (2500, 16, 32, 128), dtype=np.float32, **options)

    def peakmem_train(self, *_: str) -> None:
        result, outputs = call(self.problem, training=True)
        getattr(fastrnn, f"{self.problem.family}_backward")(outputs["y"], result.cache)
