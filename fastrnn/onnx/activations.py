"""ONNX's activation functions, for cells of `fastrnn.catalogue`.

References
----------
.. [1] ONNX, "Operators": RNN, GRU, LSTM, https://onnx.ai/onnx/operators.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastrnn.catalogue import elu, softsign
from fastrnn.cells import clip, relu, sigmoid, softplus, tanh, where


class Kind(NamedTuple):
    """An ONNX activation; its function takes a, then alpha and beta, as many as there are defaults."""

    function: Callable[..., Any]
    defaults: tuple[float, ...] = ()


#: By lower-case name (ONNX Runtime ignores case, too). Affine with its defaults is the identity.
ACTIVATIONS = {
    "relu": Kind(relu),
    "tanh": Kind(tanh),
    "sigmoid": Kind(sigmoid),
    "affine": Kind(lambda a, alpha, beta: alpha * a + beta, (1.0, 0.0)),
    "leakyrelu": Kind(lambda a, alpha: where(a < 0, alpha * a, a), (0.01,)),
    "thresholdedrelu": Kind(lambda a, alpha: where(a < alpha, 0, a), (1.0,)),
    "scaledtanh": Kind(lambda a, alpha, beta: alpha * tanh(beta * a), (1.0, 1.0)),
    "hardsigmoid": Kind(lambda a, alpha, beta: clip(a * alpha + beta, 0, 1), (0.2, 0.5)),
    "elu": Kind(elu, (1.0,)),
    "softsign": Kind(softsign),
    "softplus": Kind(softplus),
}


@dataclass(frozen=True)
class Chosen:
    """One activation of a node, with the alpha and beta that it takes."""

    name: str
    arguments: tuple[float, ...] = ()

    def __call__(self, a: Any) -> Any:
        """f(a)."""
        return ACTIVATIONS[self.name].function(a, *self.arguments)


def chosen(names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]) -> list[Chosen]:
    """Return the activations of a node; each consumes the next alpha and beta that it takes, then defaults apply.

    Raises ValueError for a name unknown to ONNX, and for surplus alphas or betas.
    """
    left = list(alphas), list(betas)
    found = []
    for name in names:
        kind = ACTIVATIONS.get(name.lower())
        if kind is None:
            raise ValueError(f"activations: expected names of {', '.join(ACTIVATIONS)}, got {name!r}")
        arguments = [own.pop(0) if own else default for own, default in zip(left, kind.defaults, strict=False)]
        found.append(Chosen(name.lower(), tuple(arguments)))
    for attribute, over in zip(("activation_alpha", "activation_beta"), left, strict=True):
        if over:
            raise ValueError(f"{attribute}: {', '.join(names)} take {len(over)} fewer")
    return found
