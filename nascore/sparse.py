"""Embedding tables of which a training step touches only the rows of its batch: no gradient as large as a table.

Adagrad over the touched rows equals Adagrad over whole tables: an entry without gradient does not move (Duchi et al.,
2011; NASRec's public code takes the dense way). Adam's moments of untouched rows stand still here, where the dense one
lets them fade and goes on moving rows by them.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore import group
from nascore.cost import Cost


class Tables(nn.Module):
    """The tables of all categorical columns, one after the other in one matrix (rows, width).

    Row 0 of a table stands for missing and unknown values, and is trained. cap: the most rows of a table, further ids
    sharing those from 1 on; 0 for no limit. In training, look-ups are kept until `gradient` takes what reached them.
    """

    first: Tensor
    rows: Tensor

    def __init__(self, sizes: Mapping[str, int], width: int, cap: int = 0) -> None:
        super().__init__()
        self.sizes = {name: min(size, cap) if cap else size for name, size in sizes.items()}
        rows_N = torch.tensor(list(self.sizes.values()), dtype=torch.int64)
        self.register_buffer("first", rows_N.cumsum(0) - rows_N)
        self.register_buffer("rows", rows_N)
        self.capped = any(self.sizes[name] < size for name, size in sizes.items())
        self.weight = nn.Parameter(torch.empty(sum(self.sizes.values()), width))
        start = 0
        for size in self.sizes.values():
            nn.init.normal_(self.weight[start : start + size], std=(2 / (size + width)) ** 0.5)
            start += size
        self.kept: list[tuple[Tensor, Tensor]] = []

    def forward(self, id_BN: Tensor) -> Tensor:
        """The vectors of each row's ids, one a column. Shape (B, N, width)."""
        place_BN = id_BN.long()
        if self.capped:
            place_BN = torch.where(place_BN > 0, (place_BN - 1) % (self.rows - 1).clamp(min=1) + 1, 0)
        place_BN = place_BN + self.first
        if not (self.training and torch.is_grad_enabled()):
            return functional.embedding(place_BN, self.weight)
        x_BND = functional.embedding(place_BN, self.weight.detach()).requires_grad_()
        self.kept.append((place_BN, x_BND))
        return x_BND

    def cost(self) -> Cost:
        """The weights of all tables."""
        return Cost(table_params=self.weight.numel())

    def gradient(self) -> tuple[Tensor, Tensor] | None:
        """The touched rows and their gradients, summed over ranks: (R,), (R, width); None if nothing was looked up."""
        reached = [(place, x.grad) for place, x in self.kept if x.grad is not None]
        self.kept.clear()
        if not reached:
            return None
        place_M = group.joined(torch.cat([place.flatten() for place, _ in reached]))
        grad_MD = group.joined(torch.cat([grad.flatten(0, 1) for _, grad in reached]))
        place_R, at_M = torch.unique(place_M, return_inverse=True)
        return place_R, grad_MD.new_zeros(len(place_R), grad_MD.shape[1]).index_add_(0, at_M, grad_MD)


class RowOptimizer(ABC):
    """Trains the touched rows of some tables.

    decay: L2 penalty on the touched rows, as weight decay of a step. moments: what it keeps of each row, by name and
    table; all 0 at first.
    """

    kinds: ClassVar[tuple[str, ...]]

    def __init__(self, tables: Mapping[str, Tables], epsilon: float, decay: float) -> None:
        self.tables, self.epsilon, self.decay = tables, epsilon, decay
        self.moments = {
            (kind, name): torch.zeros_like(table.weight, requires_grad=False)
            for kind in self.kinds
            for name, table in tables.items()
        }

    def gradients(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What a backward pass brought to each table."""
        found = {name: table.gradient() for name, table in self.tables.items()}
        return {name: reached for name, reached in found.items() if reached is not None}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, tuple[Tensor, Tensor]], rate: float, step: int) -> None:
        """Move the touched rows at a learning rate; `step` counts from 1."""
        for name, (place_R, grad_RD) in gradients.items():
            weight = self.tables[name].weight
            if self.decay:
                grad_RD = grad_RD + self.decay * weight[place_R]
            weight[place_R] -= rate * self.move(name, place_R, grad_RD, step)

    @abstractmethod
    def move(self, name: str, place_R: Tensor, grad_RD: Tensor, step: int) -> Tensor:
        """By how much rows of a table fall at a learning rate of 1; the moments take note. Shape (R, width)."""


class RowAdagrad(RowOptimizer):
    """Adagrad (Duchi et al., 2011)."""

    kinds: ClassVar[tuple[str, ...]] = ("sum",)

    def move(self, name: str, place_R: Tensor, grad_RD: Tensor, step: int) -> Tensor:
        total = self.moments["sum", name]
        sum_RD = total[place_R] + grad_RD.square()
        total[place_R] = sum_RD
        return grad_RD / (sum_RD.sqrt() + self.epsilon)


class RowAdam(RowOptimizer):
    """Adam (Kingma & Ba, 2015) on the touched rows alone; its corrections count the steps of the whole training."""

    kinds: ClassVar[tuple[str, ...]] = ("mean", "square")
    fading: ClassVar[tuple[float, float]] = (0.9, 0.999)

    def move(self, name: str, place_R: Tensor, grad_RD: Tensor, step: int) -> Tensor:
        mean, square = self.moments["mean", name], self.moments["square", name]
        first, second = self.fading
        mean_RD = mean[place_R].lerp_(grad_RD, 1 - first)
        square_RD = square[place_R].mul_(second).addcmul_(grad_RD, grad_RD, value=1 - second)
        mean[place_R], square[place_R] = mean_RD, square_RD
        bounded_RD = (square_RD / (1 - second**step)).sqrt_().add_(self.epsilon)
        return mean_RD / (1 - first**step) / bounded_RD
