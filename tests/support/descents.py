"""A small nonlinear model, mean((tanh(x W' + b) V - y)^2), and the equations of the optimizers that descend on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrnn.training import SGD, Adam, AdamW, Optimizer, RMSprop
from support.problems import Arrays

STEPS = 50

#: name -> (our class, our options); each option has a value other than its default at least once
KINDS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd": (SGD, {}),
    "sgd_fast": (SGD, {"learning_rate": 0.05}),
    "sgd_decay": (SGD, {"weight_decay": 0.1}),
    "sgd_momentum": (SGD, {"momentum": 0.9}),
    "sgd_momentum_decay": (SGD, {"momentum": 0.7, "weight_decay": 0.1}),
    "sgd_nesterov": (SGD, {"momentum": 0.9, "nesterov": True}),
    "sgd_nesterov_decay": (SGD, {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
    "adam": (Adam, {}),
    "adam_betas": (Adam, {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95}),
    "adam_no_betas": (Adam, {"beta_1": 0.0, "beta_2": 0.0}),
    "adam_epsilon": (Adam, {"epsilon": 1e-2}),
    "adam_decay": (Adam, {"weight_decay": 0.1}),
    "adamw": (AdamW, {}),
    "adamw_decay": (
        AdamW,
        {"learning_rate": 0.02, "beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3, "weight_decay": 0.3},
    ),
    "adamw_no_decay": (AdamW, {"weight_decay": 0.0}),
    "rmsprop": (RMSprop, {}),
    "rmsprop_options": (RMSprop, {"learning_rate": 0.003, "rho": 0.9, "epsilon": 1e-3}),
    "rmsprop_decay": (RMSprop, {"weight_decay": 0.1}),
    "rmsprop_momentum": (RMSprop, {"momentum": 0.9, "weight_decay": 0.1}),
}


def parameters(dtype: Any = np.float64, hidden: int = 7) -> Arrays:
    """Return parameters of awkward sizes, including a scalar and "idle", whose gradient is 0."""
    rng = np.random.default_rng(0)
    shapes = {"0.W": (hidden, 3), "0.b": (hidden,), "1.V": (hidden, 5), "scale": (), "idle": (2, 3)}
    return {name: np.asarray(rng.standard_normal(shape) + 0.1, dtype) for name, shape in shapes.items()}


def descent(p: Arrays, seed: int = 0) -> tuple[float, Arrays]:
    """Return the loss and its gradients for the data of this seed."""
    rng = np.random.default_rng(seed)
    dtype = p["0.W"].dtype
    x, y = rng.standard_normal((17, 3)).astype(dtype), rng.standard_normal((17, 5)).astype(dtype)
    h = np.tanh(x @ p["0.W"].T + p["0.b"])
    error = p["scale"] * (h @ p["1.V"]) - y
    d = 2 / dtype.type(error.size) * error
    da = p["scale"] * (d @ p["1.V"].T) * (1 - h * h)
    grads = {"0.W": da.T @ x, "0.b": da.sum(axis=0), "1.V": p["scale"] * (h.T @ d)}
    grads |= {"scale": np.asarray((d * (h @ p["1.V"])).sum()), "idle": np.zeros_like(p["idle"])}
    return float(np.mean(error * error, dtype=np.float64)), grads


def descend(optimizer: Optimizer, p: Arrays, steps: range = range(STEPS)) -> list[float]:
    """Return the losses before each step; every step has its own data."""
    losses = []
    for step in steps:
        loss, grads = descent(p, seed=step)
        optimizer.step(p, grads)
        losses.append(loss)
    return losses


def make(kind: str, **options: Any) -> Optimizer:
    cls, given = KINDS[kind]
    return cls(**given, **options)


def by_the_book(kind: str, p: Any, grads: list[Any], steps: list[int] | None = None) -> Any:
    """Apply the equations of the docstrings one by one, in all steps (counted from 1) or in those given."""
    cls, given = KINDS[kind]
    defaults = {"lr": 0.001 if cls in (Adam, AdamW) else 0.01, "wd": 0.01 if cls is AdamW else 0.0}
    a, d = given.get("learning_rate", defaults["lr"]), given.get("weight_decay", defaults["wd"])
    e, mu = given.get("epsilon", 1e-8), given.get("momentum", 0.0)
    b1, b2, r = given.get("beta_1", 0.9), given.get("beta_2", 0.999), given.get("rho", 0.99)
    m = v = b = np.zeros_like(p)
    for t, g in zip(steps or range(1, len(grads) + 1), grads, strict=True):
        if cls is not AdamW:
            g = g + d * p
        if cls is SGD:
            b = mu * b + g
            p = p - a * (g + mu * b if given.get("nesterov") else b)
        elif cls is RMSprop:
            v = r * v + (1 - r) * g**2
            b = mu * b + g / (np.sqrt(v) + e)
            p = p - a * b
        else:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            if cls is AdamW:
                p = p - a * d * p
            p = p - a * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + e)
    return p
