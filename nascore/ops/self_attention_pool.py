"""Self-attention pooling: one head over a history, averaged over its positions (AutoTower, §3.2.2)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from nascore.ops import Op


class SelfAttentionPool(Op):
    """Mean over the valid positions of softmax(QK/sqrt(D))V, keys being the valid positions; 0 for an empty history.

    The mean is taken over the rows of the softmax instead of the outputs: the same, as all maps behind the softmax are
    linear. So values and `output` are computed once a history, not once a position, and only that is declared.

    positions: a learned table is added to the history. output: a further Linear(D -> D). dropout: on the attention
    weights. The paper has none of them, the public code has all, with dropout=0.2.
    """

    signature: ClassVar[str] = "BTD,BT -> BD"
    examples: ClassVar[tuple[str, ...]] = (
        "self_attention_pool",
        "self_attention_pool:positions=true,output=true,dropout=0.2",
    )

    def __init__(self, positions: bool = False, output: bool = False, dropout: float = 0.0, *, T: int, D: int) -> None:
        super().__init__()
        self.length = T
        self.positions = nn.Parameter(torch.randn(T, D)) if positions else None
        self.query_key = nn.Linear(D, 2 * D)
        self.value = nn.Linear(D, D)
        self.output = nn.Linear(D, D) if output else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        valid_BT = mask_BT.to(x_BTD.dtype)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions
        q_BTD, k_BTD = self.query_key(x_BTD).chunk(2, dim=2)
        closed_BT = torch.zeros_like(valid_BT).masked_fill(~mask_BT, torch.finfo(valid_BT.dtype).min)
        score_BTT = torch.add(closed_BT[:, None], q_BTD @ k_BTD.transpose(1, 2), alpha=x_BTD.shape[2] ** -0.5)
        share_BT = valid_BT / valid_BT.sum(1, keepdim=True).clamp(min=1)
        weight_B1T: Tensor = share_BT[:, None] @ self.dropout(score_BTT.softmax(2))
        pooled_BD = functional.linear((weight_B1T @ x_BTD).squeeze(1), self.value.weight)
        # the bias is weighted too: under dropout, or without history, the weights do not sum to 1
        pooled_BD = pooled_BD + weight_B1T.sum(2) * self.value.bias
        if self.output is None:
            return pooled_BD
        output_BD: Tensor = self.output(pooled_BD) * mask_BT.any(1, keepdim=True)
        return output_BD

    def macs(self) -> int:
        length, width = self.length, self.value.in_features
        core = length * length * width + length * length + length * width
        output = 0 if self.output is None else self.output.weight.numel()
        return length * self.query_key.weight.numel() + core + self.value.weight.numel() + output
