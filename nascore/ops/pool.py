"""Sum and average pooling of a history (AutoTower, §3.2.2)."""

from typing import ClassVar, Literal

from torch import Tensor

from nascore.ops import Op


class Pool(Op):
    """Sum or mean over the valid positions; 0 for an empty history."""

    signature: ClassVar[str] = "BTD,BT -> BD"
    examples: ClassVar[tuple[str, ...]] = ("pool:sum", "pool:mean")

    def __init__(self, how: Literal["sum", "mean"], *, T: int, D: int) -> None:
        super().__init__()
        self.mean = {"sum": False, "mean": True}[how]

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        sum_BD = (x_BTD * mask_BT[:, :, None]).sum(1)
        return sum_BD / mask_BT.sum(1, keepdim=True).clamp(min=1) if self.mean else sum_BD

    def macs(self) -> int:
        return 0
