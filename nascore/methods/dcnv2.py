"""DCNv2: cross layers with a full matrix each (Wang et al., 2021, Eq. 1), beside or before a perceptron (§3.3).

Which of the two structures is better hangs on the data, as the authors say. Beside each other, the logit is linear in
both outputs, so it is the sum of a linear map of each.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from nascore.click_net import ClickNet, Inputs
from nascore.cost import Cost
from nascore.methods.dnn import Dnn, perceptron
from nascore.net import Net, Row
from nascore.ops import build
from nascore.plugins import bounded
from nascore.schema import Schema
from nascore.space import Mix, Space


class _DCNv2(ClickNet):
    def __init__(self, method: "DCNv2", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding)
        inputs = self.dense_width + len(self.names) * self.width
        self.cross = nn.ModuleList([build("linear", D=inputs, O=inputs) for _ in range(method.layers)])
        self.deep = perceptron(inputs, method.width, method.depth)
        self.output = Row(build("linear", D=inputs, O=1)) if method.structure == "parallel" else None

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        x_BI = torch.cat([x["dense"], x["sparse"].flatten(1)], 1)
        crossed_BI = x_BI
        for layer in self.cross:
            crossed_BI = torch.addcmul(crossed_BI, x_BI, layer(crossed_BI))
        logit_B1: Tensor = self.deep(crossed_BI) if self.output is None else self.output(crossed_BI) + self.deep(x_BI)
        return logit_B1.squeeze(1)

    def costs(self, mix: Mix) -> dict[str, Cost]:
        cross = [layer.cost() for layer in (*self.cross, *([] if self.output is None else [self.output]))]
        return self.table_costs() | {"cross": sum(cross, Cost()), "deep": self.deep.cost()}


@dataclass(frozen=True, kw_only=True)
class DCNv2(Dnn):
    """Cross layers and a perceptron; further fields are those of `Dnn`.

    Args:
        layers: Number of cross layers.
        structure: Whether the perceptron sees the input beside the cross layers or their output.
    """

    layers: int = 3
    structure: Literal["parallel", "stacked"] = "parallel"

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, layers=1)

    @property
    def label(self) -> str:
        return "DCNv2"

    def net(self, schema: Schema, space: Space) -> Net:
        return _DCNv2(self, schema, space)
