"""PyTorch as an independent oracle of training: losses and gradients, optimizers, schedules, clipping."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.batches import LOSSES, SIZES, batch, padding, ragged
from support.descents import KINDS, STEPS, descend, descent, parameters
from support.problems import Arrays
from support.tolerance import assert_close, assert_rounded, off

from fastrnn.training import SGD, CosineDecay, ExponentialDecay, PiecewiseConstant, clip_by_norm, clip_by_value

#: our option -> torch's
TORCHS = {"learning_rate": "lr", "epsilon": "eps", "rho": "alpha"}

#: rounding of an optimizer's constants, such as its learning rate, once; and of an update, at each step
CONSTANTS, UPDATE = 4, 8

#: bound for a loss curve, where both follow their own gradients and rounding errors grow
CURVE = 1e-10


def torch_loss(torch: Any, name: str, p: Any, t: Any) -> Any:
    """Over (N, K) rows; for categorical cross-entropy of probabilities, torch needs their logarithms."""
    functional = torch.nn.functional
    return {
        "mse": functional.mse_loss,
        "bce": functional.binary_cross_entropy,
        "bce_logits": functional.binary_cross_entropy_with_logits,
        "cce": lambda p, t: -(t * p.log()).sum(dim=-1).mean(),
        "cce_logits": functional.cross_entropy,
    }[name](p, t)


def loss_by_torch(torch: Any, name: str, p: np.ndarray, t: np.ndarray, valid: np.ndarray, dtype: Any) -> Arrays:
    """Return the loss over the valid steps; the gradient is autograd's, and 0 elsewhere."""
    rows = torch.tensor(p[valid].astype(dtype), requires_grad=True)
    target = torch.tensor(t[valid].astype(dtype) if t.dtype.kind == "f" else t[valid])
    loss = torch_loss(torch, name, rows, target)
    (d,) = torch.autograd.grad(loss, rows)
    gradient = np.zeros(p.shape, dtype)
    gradient[valid] = d.numpy()
    return {"loss": np.array(loss.item()), "gradient": gradient}


def ours(name: str, p: np.ndarray, t: np.ndarray, lengths: np.ndarray | None) -> Arrays:
    value, gradient = LOSSES[name].gradient(p, t, lengths)
    return {"loss": np.array(value), "gradient": gradient}


CASES = [
    (name, shape, classes, masked)
    for name in LOSSES
    for shape in SIZES
    for classes in ([False, True] if name == "cce_logits" else [False])
    for masked in ([False, True] if len(shape) == 3 else [False])
]


@pytest.mark.parametrize(("name", "shape", "classes", "masked"), CASES)
def test_losses(name: str, shape: tuple[int, ...], classes: bool, masked: bool, torch: Any) -> None:
    """Values and gradients, in both precisions, with NaN past the lengths."""
    p, t = (a.astype(np.float64) for a in batch(name, shape, np.float32))
    if classes:
        t = np.random.default_rng(1).integers(0, shape[-1], shape[:-1])
    lengths, valid = None, np.ones(shape[:-1], bool)
    if masked:
        lengths = ragged(*shape[:2])
        valid = ~padding(shape[0], lengths)
        p[~valid] = np.nan
        t[~valid] = -1 if classes else np.nan
    exact = loss_by_torch(torch, name, p, t, valid, np.float64)
    assert_close(ours(name, p, t, lengths), exact)

    single = ours(name, p.astype(np.float32), t if classes else t.astype(np.float32), lengths)
    single["loss"] = single["loss"].astype(np.float32)
    target = (lambda: t) if classes else (lambda: off(t))
    assert_rounded(single, exact, lambda: loss_by_torch(torch, name, off(p), target(), valid, np.float64))


@pytest.mark.parametrize("name", ["bce_logits", "cce_logits"])
def test_extreme_logits(name: str, torch: Any) -> None:
    rng = np.random.default_rng(0)
    p, t = 1e4 * rng.choice([-1.0, 1.0], (33, 17)), rng.random((33, 17))
    assert_close(ours(name, p, t, None), loss_by_torch(torch, name, p, t, np.ones(33, bool), np.float64))


class Twin:
    """Torch's optimizer of the same kind and options, on its own copy of the parameters."""

    def __init__(self, torch: Any, kind: str, p: Arrays, dtype: Any = np.float64) -> None:
        cls, options = KINDS[kind]
        given = {TORCHS.get(name, name): value for name, value in options.items()}
        if "beta_1" in given:
            given["betas"] = (given.pop("beta_1"), given.pop("beta_2"))
        if cls is SGD:
            given.setdefault("lr", 0.01)
        self.torch = torch
        self.tensors = {name: torch.tensor(a.astype(dtype), requires_grad=True) for name, a in p.items()}
        self.optimizer = getattr(torch.optim, cls.__name__)(list(self.tensors.values()), **given)

    def give(self, grads: Arrays) -> None:
        for name, tensor in self.tensors.items():
            tensor.grad = self.torch.tensor(grads[name], dtype=tensor.dtype)

    def step(self, grads: Arrays) -> None:
        self.give(grads)
        self.optimizer.step()

    def arrays(self) -> Arrays:
        return {name: tensor.detach().numpy().copy() for name, tensor in self.tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_optimizers(kind: str, torch: Any) -> None:
    """The same gradients for 50 steps: float64 parameters after each step, float32 parameters at the end."""
    start = parameters(np.float32)
    cls, options = KINDS[kind]
    double, single = cls(**options), cls(**options)
    p, q = {name: a.astype(np.float64) for name, a in start.items()}, copy.deepcopy(start)
    exact, given = Twin(torch, kind, start), []

    def rounded() -> Arrays:
        twin = Twin(torch, kind, start)
        rate = off(np.ones(()), CONSTANTS)
        for grads in given:
            before = twin.arrays()
            twin.step({name: off(g) for name, g in grads.items()})
            for name, tensor in twin.tensors.items():
                moved = off(rate * (tensor.detach().numpy() - before[name]), UPDATE)
                tensor.data.copy_(torch.tensor(off(before[name] + moved)))
        return twin.arrays()

    for step in range(STEPS):
        _, grads = descent({name: a.astype(np.float32) for name, a in p.items()}, seed=step)
        double.step(p, {name: g.astype(np.float64) for name, g in grads.items()})
        single.step(q, grads)
        exact.step(grads)
        given.append(grads)
        assert_close(p, exact.arrays())
    assert_rounded(q, exact.arrays(), rounded)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_curves(kind: str, torch: Any) -> None:
    """Each follows its own gradients for 50 steps."""
    p = parameters()
    twin, curve = Twin(torch, kind, p), []
    for step in range(STEPS):
        loss, grads = descent(twin.arrays(), seed=step)
        twin.step(grads)
        curve.append(loss)
    cls, options = KINDS[kind]
    assert_close({"curve": np.array(descend(cls(**options), p))}, {"curve": np.array(curve)}, CURVE)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (ExponentialDecay(0.3, 1, 0.9), ("ExponentialLR", {"gamma": 0.9})),
        (ExponentialDecay(0.3, 7, 0.5, staircase=True), ("StepLR", {"step_size": 7, "gamma": 0.5})),
        (CosineDecay(0.3, STEPS - 1, final_rate=0.01), ("CosineAnnealingLR", {"T_max": STEPS - 1, "eta_min": 0.01})),
        (CosineDecay(0.3, STEPS - 11, final_rate=0.01, warmup_steps=10), ("warm", {})),
        (PiecewiseConstant([7, 31], [0.3, 0.03, 0.003]), ("MultiStepLR", {"milestones": [7, 31], "gamma": 0.1})),
    ],
)
def test_schedules(ours: Callable[[int], float], theirs: tuple[str, dict[str, Any]], torch: Any) -> None:
    """The rates, and 50 steps with each schedule."""
    rates = torch.optim.lr_scheduler
    p = {"p": np.linspace(-1, 1, 7)}
    tensor = torch.tensor(p["p"], requires_grad=True)
    descending = torch.optim.SGD([tensor], lr=0.3)
    name, options = theirs
    if name == "warm":
        up = rates.LinearLR(descending, start_factor=1 / 11, total_iters=10)
        down = rates.CosineAnnealingLR(descending, STEPS - 11, 0.01)
        scheduler = rates.SequentialLR(descending, [up, down], [10])
    else:
        scheduler = getattr(rates, name)(descending, **options)
    optimizer, followed, expected = SGD(ours), [], []
    for _ in range(STEPS):
        followed.append(optimizer.rate)
        expected.append(descending.param_groups[0]["lr"])
        optimizer.step(p, {"p": np.sin(p["p"])})
        tensor.grad = tensor.detach().sin()
        descending.step()
        scheduler.step()
    got = {"rates": np.array(followed), "p": p["p"]}
    assert_close(got, {"rates": np.array(expected), "p": tensor.detach().numpy()})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("limit", [0.01, 1.0, 1e4])
def test_clip_by_norm(limit: float, dtype: Any, torch: Any) -> None:
    rng = np.random.default_rng(0)
    grads = {name: np.asarray(3 * rng.standard_normal(a.shape), dtype) for name, a in parameters().items()}
    tensors = {name: torch.zeros(a.shape, dtype=torch.float64) for name, a in grads.items()}
    for name, tensor in tensors.items():
        tensor.grad = torch.tensor(grads[name].astype(np.float64))
    norm = clip_by_norm(grads, limit)
    expected = torch.nn.utils.clip_grad_norm_(tensors.values(), limit)
    bound = {np.float32: 2e-7, np.float64: 1e-12}[dtype]
    exact = {name: tensor.grad.numpy() for name, tensor in tensors.items()}
    assert_close(grads | {"norm": np.array(norm)}, exact | {"norm": np.array(float(expected))}, bound)


@pytest.mark.parametrize("clip", [{"clip_norm": 0.01}, {"clip_value": 0.01}])
@pytest.mark.parametrize("kind", ["sgd_momentum_decay", "adam_decay", "adamw", "rmsprop_momentum"])
def test_clipping_in_a_step(kind: str, clip: dict[str, float], torch: Any) -> None:
    """Before weight decay, on the gradients, like torch's functions before a step."""
    cls, options = KINDS[kind]
    p = parameters()
    twin, optimizer, clipped = Twin(torch, kind, p), cls(**options, **clip), 0
    for step in range(STEPS):
        _, grads = descent(p, seed=step)
        twin.give(grads)
        if "clip_norm" in clip:
            norm = torch.nn.utils.clip_grad_norm_(twin.tensors.values(), clip["clip_norm"])
            clipped += bool(norm > clip["clip_norm"])
        else:
            torch.nn.utils.clip_grad_value_(twin.tensors.values(), clip["clip_value"])
            clipped += any((np.abs(g) > clip["clip_value"]).any() for g in grads.values())
        twin.optimizer.step()
        optimizer.step(p, grads)
        assert_close(grads, {name: tensor.grad.numpy() for name, tensor in twin.tensors.items()})
        assert_close(p, twin.arrays())
    assert clipped > STEPS / 2


def test_clip_by_value(torch: Any) -> None:
    grads = {"g": np.random.default_rng(0).standard_normal((7, 5))}
    tensor = torch.zeros(7, 5, dtype=torch.float64)
    tensor.grad = torch.tensor(grads["g"])
    clip_by_value(grads, 0.3)
    torch.nn.utils.clip_grad_value_(tensor, 0.3)
    assert_close(grads, {"g": tensor.grad.numpy()}, 0)
