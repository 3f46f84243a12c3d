"""xDeepFM: a compressed interaction network, first-order weights and a perceptron, added (Lian et al., 2018, Eq. 9).

A map of a layer is a weighted sum of the element-wise products of all maps of the layer before with all fields (Eq. 6),
without activation, which its authors found best. Maps are summed over the width of the vectors (Eq. 7) and weighed to
one number. All layers have equally many maps, as in §4.1; 100 is its value for two of three data sets, 200 that for
Criteo. A number is a field like a category, a vector times its value.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nascore.click_net import Inputs
from nascore.cost import Cost
from nascore.methods.dnn import Dnn, perceptron
from nascore.methods.fm import FieldNet
from nascore.net import Net
from nascore.ops import build
from nascore.plugins import bounded
from nascore.schema import Schema
from nascore.space import Mix, Space


class Interactions(nn.Module):
    """The compressed interaction network over N fields: (B, N, D) to the sums of its maps (B, outputs).

    split: a layer but the last gives the first half of its maps to the next layer alone, the others to the output
    alone, as in the authors' public code; otherwise all maps go to both, as in the paper.
    """

    def __init__(self, fields: int, layers: int, maps: int, split: bool) -> None:
        super().__init__()
        self.split = split
        self.passed = maps // 2 if split else maps
        before = [fields, *[self.passed] * (layers - 1)]
        self.layers = nn.ModuleList([nn.Linear(count * fields, maps, bias=False) for count in before])
        self.outputs = maps + (layers - 1) * (maps - self.passed if split else maps)

    def forward(self, x_BND: Tensor) -> Tensor:
        x_BDN = x_BND.transpose(1, 2)
        map_BDH, sums = x_BDN, []
        for place, layer in enumerate(self.layers, 1):
            new_BDH = layer((map_BDH[..., None] * x_BDN[:, :, None]).flatten(2))
            map_BDH, last = new_BDH[..., : self.passed], place == len(self.layers)
            sums.append(new_BDH[..., self.passed if self.split and not last else 0 :].sum(1))
        return torch.cat(sums, 1)

    def cost(self, width: int) -> Cost:
        """The cost for vectors of a width."""
        weights = sum(parameter.numel() for parameter in self.parameters())
        return Cost(params=weights, macs=width * weights)


class _XDeepFM(FieldNet):
    def __init__(self, method: "XDeepFM", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding)
        self.interactions = Interactions(self.field_count, method.layers, method.maps, method.split)
        self.output = build("linear", D=self.interactions.outputs, O=1)
        self.deep = perceptron(self.field_count * self.width, method.width, method.depth)

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        x_BND = self.fields(x["dense"], x["sparse"])
        logit_B1: Tensor = self.output(self.interactions(x_BND)) + self.deep(x_BND.flatten(1))
        return self.linear(x, mix) + logit_B1.squeeze(1)

    def costs(self, mix: Mix) -> dict[str, Cost]:
        interactions = self.interactions.cost(self.width) + self.output.cost()
        return super().costs(mix) | {"interactions": interactions, "deep": self.deep.cost()}


@dataclass(frozen=True, kw_only=True)
class XDeepFM(Dnn):
    """A compressed interaction network beside a perceptron; further fields are those of `Dnn`.

    Args:
        layers: Number of layers of the interaction network.
        maps: Of each of its layers.
        split: Whether a layer shares its maps between the next layer and the output, or gives all to both.
    """

    layers: int = 3
    maps: int = 100
    split: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, layers=1, maps=2 if self.split else 1)

    @property
    def label(self) -> str:
        return "xDeepFM"

    def net(self, schema: Schema, space: Space) -> Net:
        return _XDeepFM(self, schema, space)
