"""FM: factorisation machines of degree 2 (Rendle, 2010, Eq. 1), summed in linear time (Lemma 3.1).

Features are real-valued there, so a number is a feature like an id: it is multiplied by a vector of its own and pairs
with all others. Vectors are drawn from a normal distribution, as in the author's libFM (2012); of standard deviation
0.01, as pairs go into the logit with no weight to tame them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nascore.click_net import ClickTraining, Inputs
from nascore.cost import Cost
from nascore.methods import ClickBaseline
from nascore.methods.logistic_regression import WideNet
from nascore.net import Net
from nascore.plugins import bounded
from nascore.schema import Schema
from nascore.space import Mix, Space

SMALL = 0.01


class Fields(nn.Module):
    """Numbers times a vector each, then the vectors of categories: (B, F + N, D). Without numbers only the latter."""

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Parameter(torch.empty(numbers, width).normal_(std=SMALL)) if numbers else None

    def forward(self, dense_BF: Tensor, sparse_BND: Tensor) -> Tensor:
        if self.vectors is None:
            return sparse_BND
        return torch.cat([dense_BF[:, :, None] * self.vectors, sparse_BND], 1)

    def cost(self) -> Cost:
        return Cost(params=0 if self.vectors is None else self.vectors.numel())


def pairs(x_BND: Tensor) -> Tensor:
    """The dot products of all pairs of fields, summed. Shape (B,)."""
    return (x_BND.sum(1).square() - x_BND.square().sum(1)).sum(1) / 2


class FieldNet(WideNet):
    """A net with first-order weights, where numbers have vectors too; `field_count` is how many vectors a row has."""

    def __init__(self, schema: Schema, space: Space, width: int) -> None:
        super().__init__(schema, space, width)
        self.fields = Fields(len(self.numbers), width)
        self.field_count = len(self.numbers) + len(self.names)

    def costs(self, mix: Mix) -> dict[str, Cost]:
        return super().costs(mix) | {"fields": self.fields.cost()}


class FMNet(FieldNet):
    """The first order and all pairs."""

    def __init__(self, schema: Schema, space: Space, width: int) -> None:
        super().__init__(schema, space, width)
        nn.init.normal_(self.tables.weight, std=SMALL)

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        return self.linear(x, mix) + pairs(self.fields(x["dense"], x["sparse"]))


@dataclass(frozen=True, kw_only=True)
class FM(ClickBaseline):
    """First-order weights and factorised pairs of all ids and numbers.

    Args:
        embedding: Width of a feature's vector.
        training: See `ClickTraining`.
    """

    embedding: int = 16
    training: ClickTraining = ClickTraining()

    def __post_init__(self) -> None:
        bounded(self, embedding=1)

    @property
    def label(self) -> str:
        return "FM"

    def net(self, schema: Schema, space: Space) -> Net:
        return FMNet(schema, space, self.embedding)
