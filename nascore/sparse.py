"""Embedding tables of which a training step touches only the rows of its batch: no gradient as large as a table.

Adagrad over the touched rows equals Adagrad over whole tables: an entry without gradient does not move (Duchi et al.,
2011; NASRec's public code takes the dense way).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore import group


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


class RowAdagrad:
    """Adagrad on the touched rows of some tables.

    decay: L2 penalty on the touched rows, as weight decay of a step.
    """

    def __init__(self, tables: Mapping[str, Tables], epsilon: float, decay: float) -> None:
        self.tables, self.epsilon, self.decay = tables, epsilon, decay
        self.sums = {name: torch.zeros_like(table.weight, requires_grad=False) for name, table in tables.items()}

    def gradients(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What a backward pass brought to each table."""
        found = {name: table.gradient() for name, table in self.tables.items()}
        return {name: reached for name, reached in found.items() if reached is not None}

    @torch.no_grad()
    def step(self, gradients: Mapping[str, tuple[Tensor, Tensor]], rate: float) -> None:
        for name, (place_R, grad_RD) in gradients.items():
            weight, total = self.tables[name].weight, self.sums[name]
            if self.decay:
                grad_RD = grad_RD + self.decay * weight[place_R]
            sum_RD = total[place_R] + grad_RD.square()
            total[place_R] = sum_RD
            weight[place_R] -= rate * grad_RD / (sum_RD.sqrt() + self.epsilon)
