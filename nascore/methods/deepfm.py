"""DeepFM: a factorisation machine and a perceptron on the same vectors, added (Guo et al., 2017, Eq. 1).

A number is a field like a category, a vector times its value, in both parts (§2.1).
"""

from dataclasses import dataclass

from torch import Tensor

from nascore.click_net import Inputs
from nascore.cost import Cost
from nascore.methods.dnn import Dnn, perceptron
from nascore.methods.fm import FMNet, pairs
from nascore.net import Net
from nascore.schema import Schema
from nascore.space import Mix, Space


class _DeepFM(FMNet):
    def __init__(self, method: "DeepFM", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding)
        self.deep = perceptron(self.field_count * self.width, method.width, method.depth)

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        x_BND = self.fields(x["dense"], x["sparse"])
        deep_B1: Tensor = self.deep(x_BND.flatten(1))
        return self.linear(x, mix) + pairs(x_BND) + deep_B1.squeeze(1)

    def costs(self, mix: Mix) -> dict[str, Cost]:
        return super().costs(mix) | {"deep": self.deep.cost()}


@dataclass(frozen=True, kw_only=True)
class DeepFM(Dnn):
    """A factorisation machine beside a perceptron; its fields are those of `Dnn`."""

    @property
    def label(self) -> str:
        return "DeepFM"

    def net(self, schema: Schema, space: Space) -> Net:
        return _DeepFM(self, schema, space)
