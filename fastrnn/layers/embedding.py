"""A vector for each of a finite number of things."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.cells import Array
from fastrnn.checks import as_array, boolean, describe, expect_room, floating, generator, in_table, integer, size
from fastrnn.initializers import Initializer, RandomNormal, RandomUniform, chosen, initial
from fastrnn.layers.base import Shape, Stateless, checked_shape
from fastrnn.layers.gradients import RowGradient
from fastrnn.one_step import Form, OneStep

#: rows of a table up to which a step may as well move all of them
DENSE_ROWS = 1024


class Embedding(Stateless):
    """Row x of a table, for integers x of any shape: a letter or a word becomes a vector that is learnt.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        Rows of the table, n, and the length of each, E.
    padding_idx : int, optional
        A row that starts as 0 and has no gradient; negative counts from the end. Where `sparse`, an optimizer leaves it
        as it is; else weight decay moves it if it was given other values, as in PyTorch.
    sparse : bool, optional
        The gradient has the rows of the batch alone, a `fastrnn.layers.RowGradient`: a step of training then costs in
        proportion to these, whatever n. The optimizer leaves the other rows as they are, which makes a difference with
        momentum, moments and weight decay: they wait, as in torch.optim.SparseAdam, until the row is met again.
        Otherwise a step moves the whole table, as PyTorch and Keras do. By default True above 1024 rows.
    dtype : float32 or float64
        Of the table and the outputs.
    initializer : {"torch", "keras"} or dict
        "torch" is the standard normal distribution; "keras" is uniform within 0.05; a dict holds one of
        `fastrnn.initializers` for "weight".
    rng : int or numpy.random.Generator, optional
        For the initial table.

    Attributes
    ----------
    weight : (n, E) array

    Raises
    ------
    TypeError, ValueError
        For an argument that is not one of these, or an x that holds no integers or some outside 0..n-1.

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
        shape = checked_shape(shape)
        return (*shape, self.embedding_dim)

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
