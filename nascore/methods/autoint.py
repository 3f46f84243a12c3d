"""AutoInt+: multi-head self-attention among fields beside a perceptron (Song et al., 2019, §4).

A number is a field like a category, a vector times its value (Eq. 4). An interacting layer attends by the softmax of
plain dot products (Eq. 5-6), joins its heads (Eq. 7), adds a linear map of its input and ends in a ReLU (Eq. 8); none
of its maps has a bias. The logit is linear in all fields of the last layer (Eq. 9), and that of the perceptron is
added. Defaults are the authors': 3 layers, 2 heads, 32 numbers a head.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from nascore.click_net import ClickNet, Inputs
from nascore.cost import Cost
from nascore.methods.dnn import Dnn, perceptron
from nascore.methods.fm import Fields
from nascore.net import Net
from nascore.ops import build
from nascore.plugins import bounded
from nascore.schema import Schema
from nascore.space import Mix, Space


class Interacting(nn.Module):
    """One interacting layer: (B, N, D) to (B, N, heads x width). One map makes queries, keys, values and residual."""

    def __init__(self, inputs: int, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.project = nn.Linear(inputs, 4 * heads * width, bias=False)

    def forward(self, x_BND: Tensor) -> Tensor:
        q_BND, k_BND, v_BND, residual_BND = self.project(x_BND).chunk(4, 2)
        q_BHNW, k_BHNW, v_BHNW = (y.unflatten(2, (self.heads, -1)).transpose(1, 2) for y in (q_BND, k_BND, v_BND))
        weight_BHNN = (q_BHNW @ k_BHNW.transpose(2, 3)).softmax(3)
        return functional.relu((weight_BHNN @ v_BHNW).transpose(1, 2).flatten(2) + residual_BND)

    def cost(self, fields: int) -> Cost:
        """The cost for a number of fields: the maps and both products of the attention core."""
        weights = self.project.weight.numel()
        return Cost(params=weights, macs=fields * weights + 2 * self.heads * fields**2 * self.width)


class _AutoInt(ClickNet):
    def __init__(self, method: "AutoInt", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding)
        self.fields = Fields(len(self.numbers), self.width)
        self.count = len(self.numbers) + len(self.names)
        output = method.heads * method.attention
        inputs = (self.width, *[output] * (method.layers - 1))
        self.layers = nn.ModuleList([Interacting(width, method.heads, method.attention) for width in inputs])
        self.output = build("linear", D=self.count * output, O=1)
        self.deep = perceptron(self.count * self.width, method.width, method.depth)

    def forward(self, x: Inputs, mix: Mix) -> Tensor:
        x_BND = self.fields(x["dense"], x["sparse"])
        attended_BND = x_BND
        for layer in self.layers:
            attended_BND = layer(attended_BND)
        logit_B1: Tensor = self.output(attended_BND.flatten(1)) + self.deep(x_BND.flatten(1))
        return logit_B1.squeeze(1)

    def costs(self, mix: Mix) -> dict[str, Cost]:
        attention = sum((layer.cost(self.count) for layer in self.layers), self.output.cost())  # type: ignore[operator]
        parts = {"fields": self.fields.cost(), "attention": attention, "deep": self.deep.cost()}
        return self.table_costs() | parts


@dataclass(frozen=True, kw_only=True)
class AutoInt(Dnn):
    """Self-attention among fields beside a perceptron; further fields are those of `Dnn`.

    Args:
        layers: Number of interacting layers.
        heads: Of each layer.
        attention: Width of a head.
    """

    layers: int = 3
    heads: int = 2
    attention: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, layers=1, heads=1, attention=1)

    @property
    def label(self) -> str:
        return "AutoInt+"

    def net(self, schema: Schema, space: Space) -> Net:
        return _AutoInt(self, schema, space)
