"""Two workers train to the weights that one trains to on their joined batches, and exchange active weights only."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing import spawn

from components.run import Run
from nascore import group
from nascore.methods.autotower import AutoTower
from nascore.rows import Data
from nascore.training import Fit, Learning, State
from nascore.two_tower import Training

METHOD = AutoTower(
    blocks=2,
    embedding=4,
    width=8,
    output=6,
    positions=True,
    towers=2,
    training=Training(batch=48, learning_rate=3e-3, weight_decay=1e-3, clip=0.3, regularizer=1e-2),
)
LEARNED = replace(
    METHOD, paths="nasp", towers=1, nasp=Learning(every=2, learning_rate=0.05, weight_decay=0.0, batch=24)
)
STEPS = 50


def fit_of(url: str, rank: int = 0, world: int = 1, method: AutoTower = METHOD) -> Fit:
    data, held = (Data(url, split, rank=rank, world=world) for split in ("train", "valid"))
    supernet = method.supernet(data.schema, method.space(data.schema), 5)
    return Fit(supernet, method.task(data.schema), data, method.train, 5, method.learning, held)


def trained(
    url: str, dtype: torch.dtype, steps: int, rank: int = 0, world: int = 1, method: AutoTower = METHOD
) -> tuple[State, State, list[float]]:
    """Final weights, gradients of the first step, its loss, and the mean loss of the others."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        fit = fit_of(url, rank, world, method)
        losses = [fit.advance(1)]
        gradients = {name: p.grad.clone() for p, name in fit.names.items() if p.grad is not None}
        losses.append(fit.advance(steps - 1))
        return {name: value.clone() for name, value in fit.weights().items()}, gradients, losses
    finally:
        torch.set_default_dtype(before)


def worker(rank: int, url: str, folder: str) -> None:
    """One of two ranks; leaves what it trained to in `folder`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    sent, exchange, reduce = list[int](), group.exchange_gradients, dist.all_reduce

    def counted(parameters: Iterable[Tensor]) -> None:
        sent.append(0)
        dist.all_reduce = count
        exchange(parameters)
        dist.all_reduce = reduce

    def count(flat: Tensor, *given: Any) -> None:
        sent[-1] += flat.numel()
        reduce(flat, *given)

    group.exchange_gradients = counted
    precise = trained(url, torch.float64, STEPS, rank, 2)
    exchanged, sent[:] = list(sent), []
    usual = trained(url, torch.float32, 1, rank, 2)
    learned = trained(url, torch.float64, STEPS, rank, 2, LEARNED)
    found = {"precise": precise, "usual": usual, "learned": learned, "exchanged": exchanged}
    torch.save(found, f"{folder}/rank-{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(prepared: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(worker, (f"{prepared().root}/prepare", str(folder)), nprocs=2)
    return [torch.load(Path(folder, f"rank-{rank}"), weights_only=True) for rank in range(2)]


def test_two_workers_train_to_the_weights_of_one(prepared: Callable[..., Run], ranks: list[dict[str, Any]]) -> None:
    weights, _, losses = trained(f"{prepared().root}/prepare", torch.float64, STEPS)
    start, _, _ = trained(f"{prepared().root}/prepare", torch.float64, 1)
    moved = [name for name, value in weights.items() if not torch.allclose(value, start[name], atol=1e-3)]
    assert len(moved) > 0.8 * len(weights), "the training must go somewhere"
    for rank in ranks:
        found, _, own = rank["precise"]
        assert found.keys() == weights.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-5, msg=name)
        assert own == pytest.approx(losses, rel=1e-6)


def test_two_workers_learn_the_path_of_one(prepared: Callable[..., Run], ranks: list[dict[str, Any]]) -> None:
    url = f"{prepared().root}/prepare"
    weights, _, losses = trained(url, torch.float64, STEPS, method=LEARNED)
    start, _, _ = trained(url, torch.float64, 1, method=LEARNED)
    learned = weights["supernet.sampler.strength"] - start["supernet.sampler.strength"]
    assert learned.abs().max() > 0.05, "the path must be learned"
    for rank in ranks:
        found, _, own = rank["learned"]
        for name, value in found.items():
            torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-5, msg=name)
        assert own == pytest.approx(losses, rel=1e-6)


def test_their_first_gradient_is_that_of_one(prepared: Callable[..., Run], ranks: list[dict[str, Any]]) -> None:
    _, gradients, _ = trained(f"{prepared().root}/prepare", torch.float32, 1)
    for rank in ranks:
        _, found, _ = rank["usual"]
        assert found.keys() == gradients.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, gradients[name], rtol=0, atol=1e-5, msg=name)


def test_only_active_weights_are_exchanged(prepared: Callable[..., Run], ranks: list[dict[str, Any]]) -> None:
    fit = fit_of(f"{prepared().root}/prepare")
    space, total = fit.supernet.net.space, sum(parameter.numel() for parameter in fit.names)
    active = []
    for step in range(STEPS):
        open_now = dict[str, int]()
        for path in range(METHOD.towers):
            mix = fit.supernet.sampler(None, METHOD.towers * step + path)
            chosen = {n: (d.options[mix[n].index(1.0)],) for n, d in space.decisions.items()}
            net = METHOD.net(fit.data.schema, space.narrow(chosen))
            open_now |= {name: p.numel() for name, p in net.named_parameters()}
        active.append(sum(open_now.values()))
    assert ranks[0]["exchanged"] == ranks[1]["exchanged"] == active
    assert max(active) < 0.7 * total


def test_a_process_alone_is_a_group_of_one() -> None:
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    assert (group.size(), group.rank()) == (1, 0)
    assert group.total(x) is x and group.joined(x) is x
    x.grad = torch.tensor([3.0, 4.0])
    group.exchange_gradients([x])
    assert x.grad.tolist() == [3, 4]
