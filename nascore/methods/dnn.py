"""DNN: a plain multi-layer perceptron over embedded categories and numbers."""

from dataclasses import dataclass
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


def perceptron(inputs: int, width: int, depth: int) -> Row:
    """Layers of one width with ReLU between them, down to one number."""
    modules: list[nn.Module] = []
    for before in (inputs, *[width] * (depth - 1))[:depth]:
        modules += [build("linear", D=before, O=width), nn.ReLU()]
    return Row(*modules, build("linear", D=width if depth else inputs, O=1))


class DnnNet(ClickNet):
    """The perceptron over all inputs side by side."""

    def __init__(self, method: "Dnn", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding)
        self.deep = perceptron(self.dense_width + len(self.names) * self.width, method.width, method.depth)

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        logit_B1: Tensor = self.deep(torch.cat([x["dense"], x["sparse"].flatten(1)], 1))
        return logit_B1.squeeze(1)

    def costs(self, mix: Mix) -> dict[str, Cost]:
        return self.table_costs() | {"deep": self.deep.cost()}


@dataclass(frozen=True, kw_only=True)
class Dnn(ClickBaseline):
    """A plain perceptron.

    Args:
        embedding: Width of a category's vector.
        width: Of each hidden layer.
        depth: Number of hidden layers.
        training: See `ClickTraining`.
    """

    embedding: int = 16
    width: int = 400
    depth: int = 3
    training: ClickTraining = ClickTraining()

    widths: ClassVar[tuple[str, ...]] = ("400", "100", "200", "800")

    def __post_init__(self) -> None:
        bounded(self, embedding=1, width=1, depth=0)

    @property
    def label(self) -> str:
        return "DNN"

    def net(self, schema: Schema, space: Space) -> Net:
        return DnnNet(self, schema, space)
