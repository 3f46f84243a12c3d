"""Metrics as pure functions of tensors; one value a unit, means are the caller's.

Ranking metrics take `hits_BK`, whether the candidate at each rank (best first) is relevant, and `relevant_B`, how many
relevant items each unit has.
"""

import torch
from torch import Tensor


def hit(hits_BK: Tensor, k: int) -> Tensor:
    """1 where any of the first k is relevant, else 0. Shape (B,)."""
    return hits_BK[:, :k].any(dim=1).to(torch.float64)


def recall(hits_BK: Tensor, relevant_B: Tensor, k: int) -> Tensor:
    """Share of the relevant items found among the first k. Shape (B,). AutoTower's tables call this HR@k."""
    return hits_BK[:, :k].sum(dim=1).to(torch.float64) / relevant_B


def ndcg(hits_BK: Tensor, relevant_B: Tensor, k: int) -> Tensor:
    """DCG with gain 1 and discount log2(rank + 1), over that of a ranking with all relevant items first. Shape (B,)."""
    discount_K = _discount(hits_BK)[:k]
    gained_B = (hits_BK[:, :k] * discount_K).sum(dim=1)
    ideal_K = torch.cat([discount_K.new_zeros(1), discount_K.cumsum(0)])
    return gained_B / ideal_K[relevant_B.clamp(max=len(discount_K)).long()]


def ndcg_of_retrieved(hits_BK: Tensor, k: int) -> Tensor:
    """DCG over that of the same hits moved to the front: only what was retrieved at any rank counts as relevant.

    This is what AutoTower's public code computes, with 100 ranks retrieved; it exceeds `ndcg` by up to half.
    Shape (B,); 0 where nothing was hit.
    """
    found_B = hits_BK.sum(dim=1)
    return torch.where(found_B > 0, ndcg(hits_BK, found_B.clamp(min=1), k), 0.0)


def _discount(hits_BK: Tensor) -> Tensor:
    ranks_K = torch.arange(hits_BK.shape[1], dtype=torch.float64, device=hits_BK.device)
    return 1 / torch.log2(ranks_K + 2)


def auc(score_B: Tensor, label_B: Tensor) -> Tensor:
    """Probability that a positive outranks a negative, ties counting half, exactly. A scalar; NaN with one class."""
    order_B = torch.argsort(score_B)
    _, tie_B, count_T = torch.unique_consecutive(score_B[order_B], return_inverse=True, return_counts=True)
    last_T = count_T.cumsum(0).to(torch.float64)
    rank_B = (last_T - (count_T - 1) / 2)[tie_B]
    positive_B = label_B[order_B] > 0
    positives = positive_B.sum().to(torch.float64)
    negatives = len(score_B) - positives
    wins: Tensor = rank_B[positive_B].sum() - positives * (positives + 1) / 2
    return wins / (positives * negatives)


def log_loss(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """Cross-entropy of each row in nats. Shape (B,)."""
    return torch.nn.functional.binary_cross_entropy_with_logits(
        logit_B.to(torch.float64), label_B.to(torch.float64), reduction="none"
    )


def mrr(hits_BK: Tensor, k: int) -> Tensor:
    """One over the rank of the first relevant candidate among the first k, 0 without one. Shape (B,)."""
    hits_BK = hits_BK[:, :k]
    first_B = hits_BK.to(torch.int8).argmax(dim=1)
    return torch.where(hits_BK.any(dim=1), 1 / (first_B + 1).to(torch.float64), 0.0)
