"""How good a model is: its value on validation rows, moments measured anew, and the plain scorer of candidates."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor

from nascore.net import Net
from nascore.ops.batch_norm import BatchNorm
from nascore.plugins import bounded
from nascore.rows import Data
from nascore.schema import Batch
from nascore.space import Genotype, Mix
from nascore.tasks import Model, Task

LOSSES = ("objective", "loss@1")


@dataclass(frozen=True)
class Fitness:
    """How a model is judged on the validation split; higher is better.

    Args:
        kind: objective, the negated training objective; loss@1, the negated softmax loss at temperature 1 without
            correction, as in AutoTower's public code; or a metric of the task, such as recall@50.
        rows: Validation rows that a loss is measured on, the same for every model.
        batch: Rows of one in-batch softmax.
        calibration: Training rows on which batch-norm moments are measured anew for every candidate; 0 keeps the
            supernet's.
    """

    kind: str = "objective"
    rows: int = 40_960
    batch: int = 1024
    calibration: int = 4_096

    def __post_init__(self) -> None:
        bounded(self, rows=1, batch=1, calibration=0)
        if self.calibration == 1:
            raise ValueError("Fitness: the moments of one row have no variance: calibration must be 0 or above 1")

    @property
    def ranks(self) -> bool:
        """Whether it is a metric of the task, not a loss."""
        return self.kind not in LOSSES

    def check(self, task: Task) -> None:
        """Raise if the task has no such value."""
        if self.ranks and self.kind not in task.metrics:
            known = ", ".join((*LOSSES, *task.metrics))
            raise ValueError(f"fitness {self.kind!r} is none of those there are: {known}")
        if self.kind == "loss@1" and not task.in_batch:
            raise ValueError("fitness 'loss@1' is for losses over the rows of a batch; here it would be the objective")
        if self.kind in task.lower | task.ratios:
            raise ValueError(f"fitness {self.kind!r}: higher must be better; objective is the negated loss")

    def fixed_rows(self, data: Data, in_batch: bool = True) -> list[Tensor]:
        """The rows of each fixed validation batch: the first of the split, whose rows lie in random order.

        in_batch: whether a smaller last batch is left out, as the loss of a row hangs on how many others there are.
        """
        parts = list(torch.arange(min(self.rows, data.rows), device=data.home).split(self.batch))
        return parts[:-1] if in_batch and len(parts) > 1 and len(parts[-1]) < self.batch else parts

    def sample(self, data: Data) -> Tensor:
        """The training rows to calibrate on: the first."""
        return torch.arange(min(self.calibration, data.rows), device=data.home)

    def measure(self, model: Model, task: Task, data: Data) -> float:
        """Judge one model in evaluation mode."""
        task.eval()
        with torch.inference_mode():
            if self.ranks:
                return task.evaluate(model, data).means().get(self.kind, nan)
            total, rows = 0.0, 0
            for row_B in self.fixed_rows(data, task.in_batch):
                batch = data.batch(row_B)
                loss = task.validation_loss(model(batch), batch, plain=self.kind == "loss@1")
                total, rows = total + float(loss) * len(row_B), rows + len(row_B)
        return -total / rows


@contextmanager
def momentum(net: Net, value: float) -> Iterator[list[BatchNorm]]:
    """The batch norms of a net, whose moments follow a batch by `value` for a while."""
    norms = [module for module in net.modules() if isinstance(module, BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = value
    try:
        yield norms
    finally:
        for norm, own in zip(norms, before, strict=True):
            norm.momentum = own


@torch.no_grad()
def recalibrate(net: Net, mix: Mix, batch: Batch) -> None:
    """Set the moments of every batch norm on the path to those of one batch, layer after layer."""
    net.eval()
    with momentum(net, 1.0) as norms:
        for norm in norms:
            norm.train()
        net(net.embed(batch), mix)
    net.eval()


def scorer(
    net: Net, task: Task, train: Data, valid: Data, fitness: Fitness
) -> Callable[[Sequence[Genotype]], list[float]]:
    """The plain scorer: one candidate after the other on a copy of the net, everything computed anew."""
    own = deepcopy(net).eval()
    sample = train.batch(fitness.sample(train)) if fitness.calibration else None

    def score(genotypes: Sequence[Genotype]) -> list[float]:
        scores = []
        for genotype in genotypes:
            mix = own.space.mix(genotype)
            if sample is not None:
                recalibrate(own, mix, sample)
            scores.append(fitness.measure(own.under(mix), task, valid))
        return scores

    return score
