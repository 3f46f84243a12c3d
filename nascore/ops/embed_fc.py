"""FC along the axis of the fields (NASRec §3.1, EmbedFC)."""

from typing import ClassVar

from nascore.ops import EVERY, Live
from nascore.ops.fc import Fc


class EmbedFc(Fc):
    """Every one of the E dimensions of N vectors through the same Linear(N -> M), norm over M, ReLU.

    Vectors are columns: fields are the last axis.
    """

    signature: ClassVar[str] = "BEN -> BEM"
    examples: ClassVar[tuple[str, ...]] = ("embed_fc", "embed_fc:norm=false")

    def __init__(self, norm: bool = True, *, E: int, N: int, M: int) -> None:
        super().__init__(norm, D=N, O=M)
        self.width = E
        self.axes = {name: letters.replace("O", "M").replace("D", "N") for name, letters in self.axes.items()}

    def macs(self, live: Live = EVERY) -> int:
        return len(live.get("E", range(self.width))) * super().macs(live)
