"""Many processes: DistributedDataParallel, FSDP, layers in the workers of joblib, Dask, Ray and PyTorch's loaders."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import own_cells
from support.tolerance import assert_close, assert_same_bits

torch = pytest.importorskip("torch")


import fastrnn.torch  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # warnings of other libraries

SIZES = 3, 17, 2
B = 6


def batch(dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((50, B, SIZES[0])).astype(dtype)


def layer() -> Any:
    return fastrnn.LSTM(*SIZES, bidirectional=True, rng=0)


def module() -> Any:
    torch.manual_seed(0)
    return fastrnn.torch.LSTM(*SIZES, bidirectional=True)


def scored(net: Any, x: np.ndarray) -> np.ndarray:
    """A worker's job: y and a gradient, from an array that may be read-only or memory-mapped."""
    if isinstance(net, torch.nn.Module):
        y, _ = net(torch.tensor(x))
        (grad,) = torch.autograd.grad(y.square().sum(), net.weight_hh_l0)
        return np.concatenate([y.detach().numpy().ravel(), grad.numpy().ravel()])
    y, _, cache = net.forward(x, training=True)
    return np.concatenate([net(x)[0].ravel(), net.backward(2 * y, cache).grads["weight_hh_l0"].ravel()])


Workers = Callable[[Any, list[np.ndarray]], list[Any]]


def in_joblib(net: Any, parts: list[np.ndarray], backend: str) -> list[Any]:
    joblib = pytest.importorskip("joblib")
    pool = joblib.Parallel(n_jobs=2, backend=backend, max_nbytes=1)  # larger arrays arrive as read-only memory maps
    return list(pool(joblib.delayed(scored)(net, part) for part in parts))


def in_dask(net: Any, parts: list[np.ndarray]) -> list[Any]:
    distributed = pytest.importorskip("distributed")
    options = {"host": "127.0.0.1", "dashboard_address": None}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        return list(client.gather(client.map(scored, [net] * len(parts), parts, pure=False)))


def in_dask_threads(net: Any, parts: list[np.ndarray]) -> list[Any]:
    dask = pytest.importorskip("dask")
    return list(dask.compute(*[dask.delayed(scored)(net, part) for part in parts], scheduler="threads"))


def in_ray(net: Any, parts: list[np.ndarray]) -> list[Any]:
    ray = pytest.importorskip("ray")
    path = os.pathsep.join(str(Path(file).parent) for file in (Path(fastrnn.__file__).parent, __file__))
    options = {"include_dashboard": False, "log_to_driver": False, "_node_ip_address": "127.0.0.1"}
    ray.init(num_cpus=2, runtime_env={"env_vars": {"PYTHONPATH": path}}, **options)
    work = ray.remote(scored)
    found = ray.get([work.remote(net, part) for part in parts])  # arrays are read-only there
    ray.shutdown()
    return list(found)


def in_fork(net: Any, parts: list[np.ndarray]) -> list[Any]:
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return pool.starmap(scored, [(net, part) for part in parts])


class Scored(torch.utils.data.Dataset):  # type: ignore[misc]
    def __init__(self, net: Any, parts: list[np.ndarray]) -> None:
        self.net, self.parts = net, parts

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, i: int) -> np.ndarray:
        return scored(self.net, self.parts[i])


def in_loader(net: Any, parts: list[np.ndarray]) -> list[Any]:
    options = {"batch_size": None, "num_workers": 2, "multiprocessing_context": "fork"}
    loader = torch.utils.data.DataLoader(Scored(net, parts), **options)
    return [one.numpy() for one in loader]


WORKERS: dict[str, Workers] = {
    "joblib, loky": lambda net, parts: in_joblib(net, parts, "loky"),
    "joblib, threading": lambda net, parts: in_joblib(net, parts, "threading"),
    "dask": in_dask,
    "dask, threads": in_dask_threads,
    "ray": in_ray,
    "fork": in_fork,
    "loader": in_loader,
}


@pytest.mark.parametrize("workers", WORKERS)
def test_workers(workers: str) -> None:
    """The same bits as in this process, from whole parts of the batch."""
    parts = np.split(batch(), 3, axis=1)
    for net in (layer(), module())[workers in ("dask", "ray") :]:  # the module is enough, because starting is slow
        expected = [scored(net, part) for part in parts]  # uses threads before anything forks
        found = WORKERS[workers](net, parts)
        assert_same_bits(dict(enumerate(found)), dict(enumerate(expected)))


@pytest.fixture
def mapped(tmp_path: Path) -> Iterator[np.ndarray]:
    np.save(tmp_path / "x.npy", batch())
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert not x.flags.writeable
    return x


def test_mapped_files(mapped: np.ndarray, tmp_path: Path) -> None:
    """Read-only arrays, memory-mapped files, and tied weights."""
    x = batch()
    assert_same_bits({"layer": scored(layer(), mapped)}, {"layer": scored(layer(), x)})
    x.tofile(tmp_path / "x.bin")
    tensor = torch.from_file(str(tmp_path / "x.bin"), size=x.size).reshape(x.shape)
    net = module()
    expected, _ = net(torch.tensor(x))
    torch.save(net.state_dict(), tmp_path / "net.pt")
    with torch.no_grad():
        net.reset_parameters()
    net.load_state_dict(torch.load(tmp_path / "net.pt", mmap=True), assign=True)
    with torch.no_grad():
        assert torch.equal(net(tensor)[0], expected)


def of_an_own_cell() -> Any:
    torch.manual_seed(0)
    return fastrnn.torch.Recurrent(own_cells.coupled_peephole_lstm, *SIZES, bidirectional=True)


MODULES = {"built-in": module, "own cell": of_an_own_cell}


def distributed_gradients(rank: int, directory: str, kind: str) -> None:
    """Run one of two processes, each with half of the batch; the first one writes its results."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.distributed.init_process_group("gloo", f"file://{directory}/store", rank=rank, world_size=2)
    net = MODULES[kind]().double()
    parallel = torch.nn.parallel.DistributedDataParallel(net)
    x = torch.tensor(batch(np.float64)).chunk(2, dim=1)[rank]
    for _ in range(2):  # the second time through what the first one built
        net.zero_grad()
        parallel(x)[0].square().mean().backward()
    if rank == 0:
        np.savez(f"{directory}/grads.npz", **{name: p.grad.numpy() for name, p in net.named_parameters()})
    del parallel
    torch.distributed.barrier()  # gloo's threads may abort a process whose peer has exited
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", MODULES)
def test_distributed_data_parallel(kind: str, tmp_path: Path) -> None:
    """Two processes get the gradients of one process with the whole batch."""
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=distributed_gradients, args=(rank, str(tmp_path), kind)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    net = MODULES[kind]().double()
    net(torch.tensor(batch(np.float64)))[0].square().mean().backward()
    got = dict(np.load(tmp_path / "grads.npz"))
    assert_close(got, {name: p.grad.numpy() for name, p in net.named_parameters()})


def test_fsdp_trains_as_with_torchs_layers(python: Any) -> None:
    """FSDP2 gathers parameters before a layer's forward and backward, and releases their memory in between."""
    done = python(
        "-c",
        "import tempfile, torch, fastrnn.torch, torch.distributed as dist\n"
        "from torch import nn\n"
        "from torch.distributed.device_mesh import init_device_mesh\n"
        "from torch.distributed.fsdp import fully_shard\n"
        "dist.init_process_group('gloo', init_method=f'file://{tempfile.mktemp()}', rank=0, world_size=1)\n"
        "mesh, found = init_device_mesh('cpu', (1,)), []\n"
        "x = torch.randn(7, 3, 4)\n"
        "for package in (nn, fastrnn.torch):\n"
        "    torch.manual_seed(0)\n"
        "    model = nn.ModuleList([package.LSTM(4, 5, 2, bidirectional=True), package.GRU(10, 6)])\n"
        "    def run(y):\n"
        "        for layer in model: y = layer(y)[0]\n"
        "        return y\n"
        "    for layer in model: fully_shard(layer, mesh=mesh)\n"
        "    optimizer, losses = torch.optim.Adam(model.parameters(), 0.01), []\n"
        "    for _ in range(5):\n"
        "        optimizer.zero_grad()\n"
        "        run(x).square().mean().backward()\n"
        "        optimizer.step()\n"
        "        with torch.no_grad(): losses.append(run(x).square().mean().item())\n"
        "    found.append(torch.tensor(losses))\n"
        "torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=0)\n"
        "assert found[0][0] > 1.01 * found[0][-1] > 0\n"
        "dist.destroy_process_group()\n",
    )
    assert done.returncode == 0, done.stderr
