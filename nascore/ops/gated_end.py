"""The last gated layer where only the last event's output is wanted."""

from typing import ClassVar

from torch import Tensor

from nascore.ops.gated_layer import GatedLayer


class GatedEnd(GatedLayer):
    """What the same layer gives for the last event of each past, for a fraction of the multiply-adds."""

    signature: ClassVar[str] = "BTD,BTD,BT -> BD"
    examples: ClassVar[tuple[str, ...]] = (
        "gated_end:inner=7,heads=1,gates=1",
        "gated_end:inner=6,heads=1,gates=3,attention=linear,mask=causal",
    )

    def forward(self, x_BTD: Tensor, first_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        return self.at(x_BTD, first_BTD, mask_BT)

    def macs(self, last: bool = True) -> int:
        return super().macs(last)

    def core_macs(self, last: bool = True) -> int:
        return super().core_macs(last)
