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
    """Probability that a positive outranks a negative, ties counting half. A scalar; NaN with one class or a NaN."""
    placed_B = _placement(score_B, label_B)
    return placed_B[label_B > 0].mean()


def auc_influence(score_B: Tensor, label_B: Tensor) -> Tensor:
    """What each row adds to AUC: AUC + (rows / rows of its label) x (its placement - AUC). Shape (B,).

    A row's placement is the share of rows of the other label on the right side of it. The mean is AUC; the variance of
    the mean is that of DeLong et al., 1988.
    """
    placed_B, positive_B = _placement(score_B, label_B), label_B > 0
    area = placed_B[positive_B].mean()
    positives = positive_B.sum().double()
    share_B = torch.where(positive_B, len(label_B) / positives, len(label_B) / (len(label_B) - positives))
    return area + share_B * (placed_B - area)


def _placement(score_B: Tensor, label_B: Tensor) -> Tensor:
    """The share of rows of the other label that score lower (of a positive) or higher (of a negative), ties half."""
    order_B = torch.argsort(score_B)
    _, tie_B, count_T = torch.unique_consecutive(score_B[order_B], return_inverse=True, return_counts=True)
    positive_B = (label_B[order_B] > 0).to(torch.float64)
    positive_T = torch.zeros(len(count_T), dtype=torch.float64, device=score_B.device).index_add_(0, tie_B, positive_B)
    negative_T = count_T - positive_T
    below_T = negative_T.cumsum(0) - negative_T / 2
    above_T = positive_T.sum() - positive_T.cumsum(0) + positive_T / 2
    placed_B = torch.where(positive_B > 0, (below_T / negative_T.sum())[tie_B], (above_T / positive_T.sum())[tie_B])
    placed_B = torch.empty_like(placed_B).scatter_(0, order_B, placed_B)
    return torch.where(score_B.isnan().any(), torch.nan, placed_B)


def log_loss(logit_B: Tensor, label_B: Tensor) -> Tensor:
    """Cross-entropy of each row in nats. Shape (B,)."""
    return torch.nn.functional.binary_cross_entropy_with_logits(
        logit_B.to(torch.float64), label_B.to(torch.float64), reduction="none"
    )


def of_rank(rank_B: Tensor, ks: tuple[int, ...]) -> dict[str, Tensor]:
    """Recall, reciprocal rank and NDCG at each k of units with one relevant item, at a rank from 1 on. Each (B,)."""
    place_B = rank_B.to(torch.float64)
    values = {}
    for k in ks:
        found_B = (rank_B <= k).to(torch.float64)
        values[f"recall@{k}"] = found_B
        values[f"mrr@{k}"] = found_B / place_B
        values[f"ndcg@{k}"] = found_B / torch.log2(place_B + 1)
    return values
