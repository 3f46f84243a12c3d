"""OptEmbed: rows of too small a norm are left out, and evolution finds a width for each field (Lyu et al., 2022).

While the supernet is trained a row stays whose L1 norm is above its field's threshold, a step whose slope is replaced
by a long-tailed one, small thresholds are penalised by the sum of exp(-t), and each step draws a width for each field,
its first dimensions. Then evolution over the widths (30 generations of 10 mutations, of each decision with probability
0.1, and 10 crossings) scores by validation rows, and the best is trained from scratch with the rows that are left.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nascore import fitness
from nascore.click_net import Inputs
from nascore.gated_net import decision
from nascore.methods._gated import PrunedMethod
from nascore.net import Net, Supernet
from nascore.plugins import bounded
from nascore.pruned_net import SearchedNet
from nascore.rows import Data
from nascore.schema import Schema
from nascore.space import Genotype, Space
from nascore.strategies import Trial
from nascore.strategies.evolution import Evolution
from nascore.tasks import Task


class _Step(torch.autograd.Function):
    """1 above 0, else 0; its slope is 2 - 4|x| up to 0.4, then 0.4 up to 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        far = x.abs()
        slope = torch.where(far <= 0.4, 2 - 4 * far, torch.where(far <= 1, 0.4, 0.0))
        return gradient * slope


class _Searched(SearchedNet):
    def __init__(self, method: "OptEmbed", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding, method.layers)
        self.weight = method.weight
        self.thresholds = nn.Parameter(torch.zeros(len(self.names)))

    def searched(self, x: Inputs) -> Tensor:
        x_BND = x["kept"].view(-1, len(self.names), self.width)
        stays_BN: Tensor = _Step.apply(x_BND.abs().sum(2) - self.thresholds)  # type: ignore[no-untyped-call]
        return (x_BND * stays_BN[:, :, None]).flatten(1)

    def penalty(self) -> Tensor:
        return self.weight * (-self.thresholds).exp().sum()

    def found(self) -> Tensor:
        rows = torch.tensor([*self.sizes.values()], device=self.thresholds.device)
        least_R = self.thresholds.detach().repeat_interleave(rows)
        return (self.matrix.detach().abs().sum(1) > least_R).to(least_R.dtype)[:, None]


@dataclass(frozen=True, kw_only=True)
class OptEmbed(PrunedMethod):
    """A perceptron over rows that stay, at widths that were found.

    Args:
        weight: Of the penalty of small thresholds.
        generations: Of the evolution.
    """

    weight: float = 1e-4
    generations: int = 30

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, weight=0, generations=1)

    @property
    def label(self) -> str:
        return "OptEmbed"

    def space(self, schema: Schema) -> Space:
        fields = [decision(column.name, self.embedding, "prefix") for column in schema.columns]
        return Space(fields)

    def searching(self, schema: Schema, space: Space) -> Net:
        return _Searched(self, schema, space)

    def decide(self, supernet: Supernet, task: Task, train: Data, valid: Data) -> Genotype:
        strategy = Evolution(supernet.net.space, supernet.sampler.seed, population=20, mutation=0.1)
        score = fitness.scorer(supernet.net, task, train, valid, self.fitness)
        for _ in range(self.generations):
            asked = strategy.ask()
            strategy.tell([Trial(one, value) for one, value in zip(asked, score(asked), strict=True)])
        return strategy.best(1)[0].genotype
