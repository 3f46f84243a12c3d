"""The last layer of attention and feed-forward net where only the last event's output is wanted."""

from typing import ClassVar

from torch import Tensor

from nascore.ops.transformer_layer import TransformerLayer


class TransformerEnd(TransformerLayer):
    """What the same layer gives for the last event of each past, for a fraction of the multiply-adds."""

    signature: ClassVar[str] = "BTD,BT -> BD"
    examples: ClassVar[tuple[str, ...]] = (
        "transformer_end:inner=10,heads=1",
        "transformer_end:inner=7,heads=1,attention=linear",
        "transformer_end:inner=7,heads=1,attention=linear,mask=padding,keys=column",
        "transformer_end:inner=7,heads=1,attention=linear,mask=causal",
    )

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        return self.at(x_BTD, mask_BT)

    def macs(self, last: bool = True) -> int:
        return super().macs(last)

    def core_macs(self, last: bool = True) -> int:
        return super().core_macs(last)
