"""Wide&Deep: a logistic regression and a perceptron, whose logits are added (Cheng et al., 2016, Eq. 3).

The wide part has the raw features only: products of features, which the authors pick by hand, are none of our data's.
One optimiser trains both parts; the authors use FTRL for the wide and Adagrad for the deep one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nascore.click_net import Inputs
from nascore.cost import Cost
from nascore.methods.dnn import Dnn, perceptron
from nascore.methods.logistic_regression import WideNet
from nascore.net import Net
from nascore.schema import Schema
from nascore.space import Mix, Space


class _WideDeep(WideNet):
    def __init__(self, method: "WideDeep", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding)
        self.deep = perceptron(self.dense_width + len(self.names) * self.width, method.width, method.depth)

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        deep_B1: Tensor = self.deep(torch.cat([x["dense"], x["sparse"].flatten(1)], 1))
        return self.linear(x, mix) + deep_B1.squeeze(1)

    def costs(self, mix: Mix) -> dict[str, Cost]:
        return super().costs(mix) | {"deep": self.deep.cost()}


@dataclass(frozen=True, kw_only=True)
class WideDeep(Dnn):
    """A plain perceptron beside first-order weights; its fields are those of `Dnn`."""

    @property
    def label(self) -> str:
        return "Wide&Deep"

    def net(self, schema: Schema, space: Space) -> Net:
        return _WideDeep(self, schema, space)
