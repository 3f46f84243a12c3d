"""DLRM: numbers made one vector by layers, dot products of all vectors, further layers (Naumov et al., 2019, §2.2).

Layers are those of the authors' public settings for Criteo's Kaggle data, which NASRec takes too, at width 512:
512-256-64 and the embedding's width at the bottom, with ReLU after each, and 512-256-1 at the top. Of no numbers the
bottom would make a constant, so there is one trained vector in its place.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from nascore.click_net import ClickNet, ClickTraining, Inputs
from nascore.cost import Cost
from nascore.methods import ClickBaseline
from nascore.net import Net, Row
from nascore.ops import build
from nascore.plugins import bounded
from nascore.schema import Schema
from nascore.space import Mix, Space


class _DLRM(ClickNet):
    pairs: Tensor

    def __init__(self, method: "DLRM", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding)
        whole, half, eighth = method.width, method.width // 2, method.width // 8
        vectors = 1 + len(self.names)
        row_P, column_P = torch.tril_indices(vectors, vectors, -1)
        self.register_buffer("pairs", row_P * vectors + column_P, persistent=False)
        bottom = (len(self.numbers), whole, half, eighth, self.width)
        top = (self.width + vectors * (vectors - 1) // 2, whole, half)
        if self.numbers:
            self.bottom = Row(*(module for sizes in pairwise(bottom) for module in _layer(*sizes)))
        else:
            self.constant = nn.Parameter(torch.empty(self.width).normal_(std=self.width**-0.5))
        self.top = Row(*(module for sizes in pairwise(top) for module in _layer(*sizes)), build("linear", D=half, O=1))
        self.products = Cost(macs=vectors**2 * self.width)

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        dense_BD = self.bottom(x["dense"]) if self.numbers else self.constant.expand(x["dense"].shape[0], -1)
        x_BND = torch.cat([dense_BD[:, None], x["sparse"]], 1)
        dot_BP = (x_BND @ x_BND.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        logit_B1: Tensor = self.top(torch.cat([dense_BD, dot_BP], 1))
        return logit_B1.squeeze(1)

    def costs(self, mix: Mix) -> dict[str, Cost]:
        bottom = self.bottom.cost() if self.numbers else Cost(params=self.width)
        parts = {"bottom": bottom, "products": self.products, "top": self.top.cost()}
        return self.table_costs() | parts


def _layer(inputs: int, output: int) -> tuple[nn.Module, nn.Module]:
    return build("linear", D=inputs, O=output), nn.ReLU()


@dataclass(frozen=True, kw_only=True)
class DLRM(ClickBaseline):
    """Dot products of vectors between two perceptrons.

    Args:
        embedding: Width of a category's vector and of that of all numbers.
        width: Of the first hidden layer of both perceptrons; others have a half and an eighth of it.
        training: See `ClickTraining`.
    """

    embedding: int = 16
    width: int = 512
    training: ClickTraining = ClickTraining()

    widths: ClassVar[tuple[str, ...]] = ("512", "128", "256", "1024")

    def __post_init__(self) -> None:
        bounded(self, embedding=1, width=8)

    @property
    def label(self) -> str:
        return "DLRM"

    def net(self, schema: Schema, space: Space) -> Net:
        return _DLRM(self, schema, space)
