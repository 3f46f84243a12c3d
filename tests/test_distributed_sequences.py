"""Two workers train a supernet of next items, its learned decisions and their penalty too, to what one trains."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import spawn

from components.run import Run
from nascore.methods.dnsrec import DNSRec
from nascore.rows import Data
from nascore.sequence_net import Training
from nascore.training import Fit, Learning, State

STEPS = 12


def method(targets: str) -> DNSRec:
    return DNSRec(
        hidden=8,
        inner=6,
        heads=2,
        layers=2,
        ratios=(0.0, 0.5),
        mask="causal",
        dropout=0.0,
        constraint="cumulative",
        learner=Learning(every=2, learning_rate=0.05, weight_decay=0.0, batch=8),
        batch=48,
        training=Training(length=6, targets=targets, batch=48, clip=0.5),
    )


def trained(url: str, targets: str, rank: int = 0, world: int = 1) -> tuple[State, float]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        own = method(targets)
        data, held = (Data(url, split, rank=rank, world=world, shown=own.shown) for split in ("train", "valid"))
        supernet = own.supernet(data.schema, own.space(data.schema), 5)
        penalty = own.penalty(supernet.net, {})
        fit = Fit(supernet, own.task(data.schema), data, own.train, 5, own.learning, held, penalty)
        loss = fit.advance(STEPS)
        return {name: value.clone() for name, value in fit.weights().items()}, loss
    finally:
        torch.set_default_dtype(before)


def worker(rank: int, url: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.save({targets: trained(url, targets, rank, 2) for targets in ("last", "all")}, f"{folder}/rank-{rank}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(
    prepared: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, tuple[State, float]]]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(worker, (f"{prepared('leave_one_out').root}/prepare", str(folder)), nprocs=2)
    return [torch.load(Path(folder, f"rank-{rank}"), weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("targets", ["last", "all"])
def test_two_workers_train_to_the_weights_of_one(
    targets: str, prepared: Callable[..., Run], ranks: list[dict[str, tuple[State, float]]]
) -> None:
    weights, loss = trained(f"{prepared('leave_one_out').root}/prepare", targets)
    assert weights["supernet.sampler.logits"].abs().max() > 0.05, "the decisions must be learned"
    for rank in ranks:
        found, own = rank[targets]
        assert own == pytest.approx(loss, rel=1e-9)
        for name, value in found.items():
            torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-6, msg=name)
