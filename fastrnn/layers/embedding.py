"""The embedding layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.checks import as_array, boolean, describe, expect_room, floating, generator, in_table, integer, size
from fastrnn.initializers import Initializer, RandomNormal, RandomUniform, chosen, initial
from fastrnn.layers.base import Shape, Stateless, checked_shape
from fastrnn.layers.gradients import RowGradient
from fastrnn.one_step import Form, OneStep
from fastrnn.types import Array

#: up to this many rows, updating the whole table is fast enough
DENSE_ROWS = 1024


class Embedding(Stateless):
    """Look up row x of a learnt table, for integers x of any shape, such as letters or words.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows of the table, n, and the length of each, E.
    padding_idx : int, optional
        A row that starts as 0 and has no gradient; a negative index counts from the end. With `sparse` the optimizer
        leaves it alone; otherwise weight decay changes it if it was set to other values, as in PyTorch.
    sparse : bool, optional
        The gradient holds only the rows in the batch, a `fastrnn.layers.RowGradient`, so a training step costs time
        proportional to these and not to n. The optimizer skips all other rows: momentum, moments and weight decay of
        a row are applied only when it is in the batch, as in torch.optim.SparseAdam. If False, each step updates the
        whole table, as in PyTorch and Keras. Default: True above 1024 rows.
    dtype : float32 or float64
        Dtype of the table and the outputs.
    initializer : {"torch", "keras"} or dict
        "torch" is the standard normal distribution; "keras" is uniform within 0.05; a dict maps "weight" to
        one of `fastrnn.initializers`.
    rng : int or numpy.random.Generator, optional
        For the initial table.

    Attributes
    ----------
    weight : (n, E) array

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid, or x is not of integers in 0..n-1.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> embedding = fastrnn.Embedding(5, 3, rng=0)
    >>> y, _, cache = embedding.forward([[0, 4], [4, 2]], training=True)
    >>> y.shape, embedding.backward(np.ones_like(y), cache).grads["weight"][:, 0]
    ((2, 2, 3), array([1., 0., 1., 0., 2.], dtype=float32))
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        sparse: bool | None = None,
        dtype: Any = np.float32,
        initializer: Any = "torch",
        rng: Any = None,
    ) -> None:
        self.num_embeddings = n = size("num_embeddings", num_embeddings)
        self.embedding_dim = size("embedding_dim", embedding_dim)
        expect_room("num_embeddings", "num_embeddings, embedding_dim", (n, self.embedding_dim), n, self.embedding_dim)
        self.dtype = floating(dtype)
        if sparse is not None:
            boolean("sparse", sparse)
        self.sparse = n > DENSE_ROWS if sparse is None else bool(sparse)
        schemes: dict[str, dict[str, Initializer]] = {
            "torch": {"weight": RandomNormal(0, 1)},
            "keras": {"weight": RandomUniform(0.05)},
        }
        start = chosen(initializer, schemes)["weight"]
        self.weight = initial(start, "weight", (n, self.embedding_dim), generator(rng), self.dtype)
        self.padding_idx = None
        if padding_idx is not None:
            row = integer("padding_idx", padding_idx, "an integer or None")
            if not -n <= row < n:
                raise ValueError(f"padding_idx: expected an integer in {-n}..{n - 1}, got {row}")
            self.padding_idx = row % n
            self.weight[self.padding_idx] = 0

    def parameters(self) -> dict[str, Array]:
        return {"weight": self.weight}

    def output_shape(self, shape: Shape) -> Shape:
        return (*checked_shape(shape), self.embedding_dim)

    def _forward(self, x: Any, training: bool, rng: Any) -> tuple[Array, dict[str, Array]]:
        x = as_array("x", x, sequence=True)
        if x.dtype.kind not in "iu" and x.size:
            raise TypeError(f"x: expected integers, got {describe(x.dtype)}")
        x = in_table("x", x, self.num_embeddings).astype(np.intp, copy=False)
        return self.weight[x], {"x": x}

    def _backward(self, dy: Array, kept: dict[str, Array]) -> tuple[None, dict[str, Any]]:
        dW = RowGradient.summed(kept["x"].ravel(), dy.reshape(-1, self.embedding_dim), self.weight.shape)
        if self.padding_idx is not None:
            dW = dW.without(self.padding_idx)
        return None, {"weight": dW if self.sparse else np.asarray(dW)}

    def add_steps(self, step: OneStep) -> Form:
        step.read(self.weight)
        return None

    def __repr__(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        usual = self.sparse == (self.num_embeddings > DENSE_ROWS)
        sparse = "" if usual else f", sparse={self.sparse}"
        return f"Embedding({self.num_embeddings}, {self.embedding_dim}{padding}{sparse}, dtype={self.dtype})"
