"""Self-attentive pooling: one learned weight for each position of a history (AutoTower, §3.2.2)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.ops import Op


class SelfAttentivePool(Op):
    """Sum of the valid positions weighted by softmax(w2 tanh(W1 x)); 0 for an empty history.

    positions: a learned table is added to what the weights are computed from, though not to what is summed. The paper
    has none, the public code has.
    """

    signature: ClassVar[str] = "BTD,BT -> BD"
    examples: ClassVar[tuple[str, ...]] = ("self_attentive_pool", "self_attentive_pool:positions=true")

    def __init__(self, positions: bool = False, *, T: int, D: int) -> None:
        super().__init__()
        self.length = T
        self.positions = nn.Parameter(torch.randn(T, D)) if positions else None
        self.hidden = nn.Linear(D, D, bias=False)
        self.score = nn.Linear(D, 1, bias=False)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        placed_BTD = x_BTD if self.positions is None else x_BTD + self.positions
        score_BT: Tensor = self.score(torch.tanh(self.hidden(placed_BTD))).squeeze(2)
        open_BT = score_BT.masked_fill(~mask_BT, torch.finfo(score_BT.dtype).min)
        weight_BT = functional.softmax(open_BT, dim=1) * mask_BT
        return (weight_BT[:, None] @ x_BTD).squeeze(1)

    def macs(self) -> int:
        width = self.score.in_features
        return self.length * (self.hidden.weight.numel() + self.score.weight.numel() + width)
