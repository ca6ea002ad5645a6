"""Inference never uses outdated weights, although it packs them once and PyTorch does not count every change."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastrnn.types import Array
from fastrnn.unchanged import SAMPLES, contents, spread

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

import fastrnn.torch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")  # in oneDNN

MODULES: dict[str, Callable[[Any], Any]] = {
    "small": lambda library: library.LSTM(3, 5),
    "one unit": lambda library: library.RNN(1, 1),
    "float64": lambda library: library.GRU(4, 6, 2, bidirectional=True, bias=False).double(),
    "projected": lambda library: library.LSTM(8, 16, proj_size=4),
    "large": lambda library: library.LSTM(64, 128, 2),
}


def inferred(module: Any, fresh: Any) -> tuple[Any, Any]:
    """Return y, and torch.nn's result with the same weights."""
    fresh.load_state_dict(module.state_dict())
    x = torch.linspace(-1, 1, 8 * module.input_size, dtype=module.weight_hh_l0.dtype).reshape(4, 2, -1)
    with torch.no_grad():
        return module(x)[0], fresh(x)[0]


def expect_seen(name: str, change: Callable[[Any], object], times: int = 2) -> None:
    """Check that inference is correct before and after a change, and differs."""
    torch.manual_seed(0)
    module, fresh = MODULES[name](fastrnn.torch), MODULES[name](nn)
    before, right = inferred(module, fresh)
    torch.testing.assert_close(before, right)
    for _ in range(times):
        change(module)
        after, right = inferred(module, fresh)
        torch.testing.assert_close(after, right)
        assert (after - before).abs().max() > 1e-4
        before = after


def gradients(module: Any) -> list[Any]:
    """Give every parameter a large gradient."""
    return [torch.ones_like(p) for p in module.parameters()]


def fused_sgd(module: Any, operator: bool) -> None:
    from torch.optim.sgd import sgd

    parameters, options = list(module.parameters()), {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.0, "dampening": 0.0}
    buffers, more = [None] * len(parameters), {"nesterov": False, "maximize": False}
    with torch.no_grad():
        if operator:
            torch._fused_sgd_(parameters, gradients(module), [], **options, **more, is_first_step=False)
        else:
            sgd(parameters, gradients(module), buffers, fused=True, foreach=False, **options, **more)


def fused_adam(module: Any) -> None:
    from torch.optim.adam import adam

    parameters, grads = list(module.parameters()), gradients(module)
    zeros = [[torch.zeros_like(p) for p in parameters] for _ in range(2)]
    steps = [torch.zeros(()) for _ in parameters]
    with torch.no_grad():
        adam(
            parameters, grads, *zeros, [], steps, fused=True, foreach=False, amsgrad=False, beta1=0.9, beta2=0.999,
            lr=0.1, weight_decay=0.0, eps=1e-8, maximize=False,
        )  # fmt: skip


def averaged(module: Any) -> None:
    """Update a target network from its online network."""
    for p in module.parameters():
        p.data.copy_(0.9 * p.data + 0.1 * torch.ones_like(p))


def evolved(module: Any) -> None:
    for p in module.parameters():
        p.data.add_(0.1 * torch.randn_like(p))


def by_vector(module: Any) -> None:
    vector = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(0.5 * vector, module.parameters())


def by_alias(module: Any, alias: Callable[[Any], Any]) -> None:
    for p in module.parameters():
        alias(p)[...] *= 0.5


def set_elsewhere(module: Any) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.set_(0.5 * p)


def shared(module: Any) -> None:
    """Move the tensors' memory, so that an old view refers to freed memory."""
    module.share_memory()
    by_alias(module, lambda p: p.detach().numpy())


CHANGES: dict[str, Callable[[Any], object]] = {
    "data.copy_": averaged,
    "data.add_": evolved,
    "data = ": lambda m: [setattr(p, "data", 0.5 * p.data) for p in m.parameters()],
    "vector_to_parameters": by_vector,
    "load_state_dict": lambda m: m.load_state_dict({name: 0.5 * a for name, a in m.state_dict().items()}),
    "state_dict's tensors": lambda m: [a.data.mul_(0.5) for a in m.state_dict().values()],
    "set_": set_elsewhere,
    "detach().numpy()": lambda m: by_alias(m, lambda p: p.detach().numpy()),
    "NumPy by DLPack": lambda m: by_alias(m, lambda p: np.from_dlpack(p.detach())),
    "torch by DLPack": lambda m: by_alias(m, lambda p: torch.from_dlpack(p.detach())),
    "storage": lambda m: by_alias(m, lambda p: torch.empty(0, dtype=p.dtype).set_(p.untyped_storage())),
    "share_memory": shared,
    "torch._fused_sgd_": lambda m: fused_sgd(m, True),
    "sgd, fused": lambda m: fused_sgd(m, False),
    "adam, fused": fused_adam,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MODULES)
def test_changes(name: str, change: str) -> None:
    expect_seen(name, CHANGES[change])


@pytest.mark.parametrize("parameter", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize(
    "part",
    [np.s_[...], np.s_[::2], np.s_[1::2], np.s_[..., ::2], np.s_[..., 1::2], np.s_[:128], np.s_[-128:]],
    ids=["all", "even rows", "odd rows", "even columns", "odd columns", "a gate", "the last gate"],
)
def test_parts_of_one_parameter(part: Any, parameter: str) -> None:
    def prune(module: Any) -> None:
        getattr(module, parameter).data[part] = 0

    expect_seen("large", prune, times=1)


def test_moving_average() -> None:
    """`swa_utils`, which writes the average with its own kind of update."""
    torch.manual_seed(0)
    module, fresh = fastrnn.torch.GRU(3, 17), nn.GRU(3, 17)
    model = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    for _ in range(3):
        torch.testing.assert_close(*inferred(model.module, fresh))
        evolved(module)
        model.update_parameters(module)


def test_one_buffer_of_all_weights() -> None:
    """As in flat-parameter optimizers; rows with gaps, a transposed one, and one number for a whole vector."""
    module, fresh = fastrnn.torch.GRU(5, 12), nn.GRU(5, 12)
    flat = torch.randn(36, 40)
    module.weight_ih_l0 = nn.Parameter(flat[:, 3:8])
    module.weight_hh_l0 = nn.Parameter(torch.randn(12, 36).t())
    module.bias_ih_l0 = nn.Parameter(flat[0, 20].expand(36))
    for _ in range(2):
        torch.testing.assert_close(*inferred(module, fresh))
        flat *= 0.5
        module.weight_hh_l0.data.mul_(0.5)
    torch.testing.assert_close(*inferred(module, fresh))


@pytest.mark.parametrize("name", [name for name in MODULES if name != "large"])
def test_one_element_of_a_small_parameter(name: str) -> None:
    """Whichever it is."""
    module, fresh = MODULES[name](fastrnn.torch), MODULES[name](nn)
    before, _ = inferred(module, fresh)
    for p in module.parameters():
        for place in range(p.numel()):
            p.data.view(-1)[place] += 0.5
            after = inferred(module, fresh)[0]
            assert not torch.equal(after, before)
            before = after
    torch.testing.assert_close(*inferred(module, fresh))


def test_one_element_of_a_large_parameter() -> None:
    """The sample may miss it; there is a way to report the change."""
    module, fresh = MODULES["large"](fastrnn.torch), MODULES["large"](nn)
    inferred(module, fresh)
    for forget in (module.flatten_parameters, module.eval, module.train):
        module.weight_hh_l0.data[1, 1] += 9
        forget()
        torch.testing.assert_close(*inferred(module, fresh))
    with torch.no_grad():
        module.weight_hh_l0[1, 1] += 9  # counted
    torch.testing.assert_close(*inferred(module, fresh))


def work(module: Any, change: str, asked: Any, done: Any) -> None:
    """A learner in another process."""
    torch.set_num_threads(1)
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    while asked.get():
        if change == "step":
            for p in module.parameters():
                p.grad = torch.full_like(p, 0.1)
            optimizer.step()
        else:
            CHANGES[change](module)
        done.put(True)


@pytest.mark.parametrize("change", ["step", "load_state_dict", "data.copy_"])
@pytest.mark.parametrize("way", ["fork", "spawn"])
@pytest.mark.filterwarnings("default")  # forks in a process with threads
def test_another_process(way: str, change: str) -> None:
    context = torch.multiprocessing.get_context(way)
    asked, done = context.SimpleQueue(), context.SimpleQueue()
    torch.manual_seed(0)
    module, fresh = fastrnn.torch.LSTM(8, 32), nn.LSTM(8, 32)
    module.share_memory()
    process = context.Process(target=work, args=(module, change, asked, done), daemon=True)
    process.start()
    before, _ = inferred(module, fresh)
    for _ in range(3):
        asked.put(True)
        done.get()
        after, right = inferred(module, fresh)
        torch.testing.assert_close(after, right)
        assert (after - before).abs().max() > 1e-4
        before = after
    asked.put(False)
    process.join(60)
    assert process.exitcode == 0


def test_unchanged_weights_stay_packed() -> None:
    module, fresh = MODULES["large"](fastrnn.torch), MODULES["large"](nn)
    inferred(module, fresh)
    made = module._made
    for other in (module, copy.deepcopy(module)):
        inferred(other, fresh)
    assert module._made is made


WITHOUT_THE_EXTENSION = """
import sys
sys.modules["_fastrnn"] = None
import torch, fastrnn.torch
module, x = fastrnn.torch.RNN(3, 3), torch.ones(4, 2, 3)
module.weight_hh_l0 = torch.nn.Parameter(torch.eye(3, 3).t()[:, [2, 0, 1]].t())  # read through a copy
with torch.no_grad():
    before, _ = module(x)
    made = module._made
    assert torch.equal(module(x)[0], before) and module._made is made and not made.stack.in_place
    module.weight_hh_l0.data.mul_(0.5)
    after, _ = module(x)
    module.flatten_parameters()
    print(torch.equal(after, before), torch.equal(after, module(x)[0]))
"""


def test_without_the_extension(python: Callable[..., Any]) -> None:
    done = python("-c", WITHOUT_THE_EXTENSION)
    assert done.stdout.split() == ["False", "True"], done.stderr


@pytest.mark.parametrize(
    "array",
    [
        *(
            np.arange(float(rows * columns)).reshape(rows, columns)
            for rows in (1, 3, 64, 512)
            for columns in (1, 8, 33)
        ),
        *(np.arange(float(n)) for n in (1, 15, 16, 17, 48, 512)),
        np.arange(96.0).reshape(8, 12).T,
        np.arange(960.0).reshape(24, 40)[:, 3:9],
        np.zeros((0, 3)),
    ],
    ids=lambda a: f"{a.shape} {a.strides}",
)
def test_sampled_elements(array: Array) -> None:
    """A view of enough elements, including the last."""
    seen = spread(array)
    assert min(array.size, SAMPLES // 4) <= seen.size <= SAMPLES
    if array.size:
        assert np.shares_memory(seen, array)
        assert array.max() in seen
    if array.ndim == 2 and array.flags.c_contiguous:
        assert len({place % array.shape[1] for place in seen.ravel()}) == min(seen.size, array.shape[1])
    before = contents((seen,))
    array += 1
    assert (contents((seen,)) == before) == (array.size == 0)
