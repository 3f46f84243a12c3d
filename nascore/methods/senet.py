"""SENET: GoogleDNN whose towers first weigh their fields by squeeze and excitation (FiBiNET, Huang et al., 2019).

A field is one embedded feature; a column of the history, averaged over events, is one too (AutoTower, §4.1.3).
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from nascore.cost import Cost
from nascore.methods.googlednn import GoogleDNN, PlainTowers
from nascore.net import Net
from nascore.ops import build
from nascore.plugins import bounded
from nascore.schema import Schema
from nascore.space import Mix, Space
from nascore.two_tower import HIDDEN, Side


class _SENET(PlainTowers):
    def __init__(self, method: "SENET", schema: Schema, space: Space) -> None:
        super().__init__(schema, space, method.embedding, HIDDEN[method.size], method.output, "pool:mean")
        spec = f"squeeze_excitation:{method.reduction},gate={method.gate}"
        inputs = {"user": self.user_width + self.history_width, "item": self.item_width}
        self.fields = nn.ModuleDict(
            {side: build(spec, N=width // self.width, D=self.width) for side, width in inputs.items()}
        )

    def tower(self, side: Side, x_BD: Tensor, mix: Mix) -> Tensor:
        x_BND = self.fields[side](x_BD.unflatten(1, (-1, self.width)))
        return super().tower(side, x_BND.flatten(1), mix)

    def costs(self, mix: Mix) -> dict[str, Cost]:
        fields = {f"{side}/fields": op.cost() for side, op in self.fields.items()}  # type: ignore[operator]
        return super().costs(mix) | fields


@dataclass(frozen=True, kw_only=True)
class SENET(GoogleDNN):
    """GoogleDNN with weighed fields.

    Args:
        reduction: How many fields share one unit of the excitation.
        gate: How it ends, see `squeeze_excitation`.
    """

    reduction: int = 3
    gate: Literal["sigmoid", "relu"] = "sigmoid"

    def __post_init__(self) -> None:
        super().__post_init__()
        bounded(self, reduction=1)

    def net(self, schema: Schema, space: Space) -> Net:
        return _SENET(self, schema, space)
