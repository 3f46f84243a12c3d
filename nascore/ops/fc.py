"""A linear map, layer normalisation and ReLU over an axis that can be searched (NASRec §3.1, FC)."""

from typing import ClassVar

from torch import Tensor

from nascore.ops import EVERY, Elastic, Live


class Fc(Elastic):
    """Linear(D -> O), norm over the live outputs, ReLU. A norm takes the place of the bias."""

    signature: ClassVar[str] = "BD -> BO"
    examples: ClassVar[tuple[str, ...]] = ("fc", "fc:norm=false")

    def __init__(self, norm: bool = True, *, D: int, O: int) -> None:
        super().__init__()
        self.give_map("map", "OD", O, D, bias=not norm)
        if norm:
            self.give_norm("norm", "O", O)

    def forward(self, x_BD: Tensor, live: Live = EVERY) -> Tensor:
        return self.normed("norm", self.linear("map", x_BD, live), live).relu()

    def macs(self, live: Live = EVERY) -> int:
        outputs, inputs = self.shape("map.weight", live)
        return outputs * inputs
