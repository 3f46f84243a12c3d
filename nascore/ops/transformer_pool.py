"""A history through one transformer encoder layer, then pooled (BST, Chen et al., 2019, §2.2; Vaswani et al., 2017)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.ops import Op, build


class TransformerPool(Op):
    """Self-attention of `heads` heads among the valid positions, a feed-forward net of `hidden` units, a pooling.

    Both have dropout on their output, a residual and layer normalisation behind it, the feed-forward net a leaky ReLU
    inside. A learned position table is added to the history. pool: the operator that makes one vector of the encoded
    history; 0 for an empty one, as every pooling gives.
    """

    signature: ClassVar[str] = "BTD,BT -> BD"
    examples: ClassVar[tuple[str, ...]] = (
        "transformer_pool:heads=1,hidden=24",
        "transformer_pool:heads=1,hidden=8,pool=self_attention_pool:output=true",
    )

    def __init__(
        self, heads: int = 8, hidden: int = 2048, dropout: float = 0.2, pool: str = "pool:mean", *, T: int, D: int
    ) -> None:
        super().__init__()
        if heads < 1 or D % heads:
            shared = ", ".join(str(number) for number in range(1, D + 1) if D % number == 0)
            raise ValueError(f"{heads} heads cannot share a history of width {D}; it can be shared by: {shared}")
        self.heads, self.length = heads, T
        self.positions = nn.Parameter(0.02 * torch.randn(T, D))
        self.query_key_value = nn.Linear(D, 3 * D)
        self.mix = nn.Linear(D, D)
        self.widen, self.narrow = nn.Linear(D, hidden), nn.Linear(hidden, D)
        self.first_norm, self.second_norm = nn.LayerNorm(D), nn.LayerNorm(D)
        self.dropout = nn.Dropout(dropout)
        self.pool = build(pool, T=T, D=D)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        x_BTD = x_BTD + self.positions
        x_BTD = self.first_norm(x_BTD + self.dropout(self._attended(x_BTD, mask_BT)))
        hidden_BTH = functional.leaky_relu(self.widen(x_BTD), inplace=True)
        x_BTD = self.second_norm(x_BTD + self.dropout(self.narrow(hidden_BTH)))
        return self.pool(x_BTD, mask_BT)

    def _attended(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        heads_BTHW = self.query_key_value(x_BTD).unflatten(2, (3 * self.heads, -1))
        q_BHTW, k_BHTW, v_BHTW = heads_BTHW.transpose(1, 2).chunk(3, dim=1)
        score_BHTT = q_BHTW @ k_BHTW.transpose(2, 3) * q_BHTW.shape[3] ** -0.5
        closed_B11T = ~mask_BT[:, None, None]
        weight_BHTT = score_BHTT.masked_fill(closed_B11T, torch.finfo(score_BHTT.dtype).min).softmax(3)
        attended_BTD: Tensor = self.mix((weight_BHTT @ v_BHTW).transpose(1, 2).flatten(2))
        return attended_BTD

    def macs(self) -> int:
        width = self.mix.in_features
        maps = (self.query_key_value, self.mix, self.widen, self.narrow)
        core = 2 * self.length * self.length * width
        return self.length * sum(one.weight.numel() for one in maps) + core + self.pool.macs()
