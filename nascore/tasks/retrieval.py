"""Two-tower retrieval: in-batch softmax with temperature and log-Q correction, judged by full ranking.

The loss is AutoTower's eq. 4-6; the sampling correction is the streaming frequency estimate of Yi et al., 2019, with
the constants of AutoTower's public code.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from nascore import group, metrics
from nascore.rows import Data
from nascore.schema import Batch, Column, Schema
from nascore.tasks import Model, Scores, Task

Output = Mapping[str, Tensor]
SIGNLESS = (1 << 31) - 1  # all bits of an int32 but the first
STEPS, SPREADS = 45, 4.5  # where a sample of columns and what it lets through cost about the same; see `_first`
CELLS = 1 << 20  # preferences ranked at a time: what a CPU's cache holds; an accelerator takes 16 times as many
EVENTS = 1 << 20  # past events shown at a time, where pasts are whole


class Retrieval(Task):
    """Outputs are {"user": (B, O), "item": (B, O)}; a pair's preference is the inner product of its two vectors.

    A model may give a user K vectors, (B, K, O): the preference is then the largest of the K inner products, and in
    training that of the vector nearest to the row's own item.

    items: ids of the item vocabulary, with 0. ks: ranks to report.
    regularizer: weight of the Frobenius norms of the joined batch's embedded inputs, which the net then gives as
    "user/input" and "item/input".
    whole: whether a ranking shows a user's whole past, instead of the last `history_length` events of it.

    The correction keeps for each item the step it was last seen at and its average gap in steps; an item that occurs k
    times in a batch is updated k times at once: gap <- (1 - rate)^k gap + rate (1 - rate)^(k-1) (step - last).
    """

    headline = "recall@50"
    in_batch = True
    unmet = True
    last_seen: Tensor
    gap: Tensor
    seen_steps: Tensor

    def __init__(
        self,
        items: int,
        batch: int,
        temperature: float = 0.05,
        correct: bool = True,
        rate: float = 0.01,
        ks: tuple[int, ...] = (1, 5, 10, 50, 100),
        regularizer: float = 0.0,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.temperature, self.correct, self.rate, self.ks = temperature, correct, rate, ks
        self.regularizer, self.whole = regularizer, whole
        self.register_buffer("last_seen", torch.zeros(items, dtype=torch.float64))
        self.register_buffer("gap", torch.full((items,), float(max(1, (items - 1) // batch)), dtype=torch.float64))
        self.register_buffer("seen_steps", torch.zeros((), dtype=torch.float64))

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(f"{metric}@{k}" for k in self.ks for metric in ("recall", "hit", "ndcg"))

    @staticmethod
    def reads(schema: Schema) -> tuple[Column, ...]:
        """Those of users and items: what holds for a row alone is not known of the items that are ranked."""
        return schema.of("user") + schema.of("item")

    def loss(self, output: Output | Sequence[Output], batch: Batch) -> Tensor:
        """This rank's rows against the items of the joined batch, over the joined batch's rows.

        Of several paths' outputs it is the mean over all pairs of one's users and another's items.
        """
        paths = [output] if isinstance(output, Mapping) else output
        item_J = group.joined(batch.keys["item"].long())
        if self.training and self.correct:
            self.observe(item_J)
        first = group.rank() * len(batch)
        user_NO = torch.cat([one["user"] for one in paths]) if len(paths) > 1 else paths[0]["user"]
        share = user_NO.new_zeros(())
        for one in paths:
            losses_N = self.losses(user_NO, group.joined(one["item"]), item_J, first, rows=len(batch))
            share = share + losses_N.sum() / (len(item_J) * len(paths) ** 2)
        if self.regularizer:
            sides = [one[f"{side}/input"].square().sum() for one in paths for side in ("user", "item")]
            norms = group.total(torch.stack(sides)).sqrt().sum()
            share = share + self.regularizer * norms / (group.size() * len(paths))
        return share

    def validation_loss(self, output: Mapping[str, Tensor], batch: Batch, plain: bool = False) -> Tensor:
        return self.losses(output["user"], output["item"], batch.keys["item"].long(), plain=plain).mean()

    def losses(
        self, user_BO: Tensor, item_JO: Tensor, item_J: Tensor, first: int = 0, plain: bool = False, rows: int = 0
    ) -> Tensor:
        """Cross-entropy of each user, whose own item stands at `first` + its place, against J items. Shape (B,).

        plain: at temperature 1 and without correction. rows: after how many users the places begin anew.
        """
        own_B = first + torch.arange(len(user_BO), device=user_BO.device) % (rows or len(user_BO))
        if user_BO.dim() == 3:
            user_BO = nearest(user_BO, item_JO[own_B])
        return functional.cross_entropy(self.logits(user_BO, item_JO, item_J, plain), own_B, reduction="none")

    def logits(self, user_BO: Tensor, item_JO: Tensor, item_J: Tensor, plain: bool = False) -> Tensor:
        """Corrected preferences of every user for J items: eq. 5, -log p being the log of the average gap. (B, J)."""
        if plain:
            return user_BO @ item_JO.T
        gap_J = self.gap[item_J].log().to(user_BO.dtype) if self.correct else user_BO.new_zeros(())
        return torch.addmm(gap_J, user_BO, item_JO.T, alpha=1 / self.temperature)

    @torch.no_grad()
    def observe(self, item_J: Tensor) -> None:
        """Update the frequency estimate by the items of one joined batch."""
        self.seen_steps += 1
        count_I = torch.zeros_like(self.gap).index_add_(0, item_J, torch.ones_like(item_J, dtype=self.gap.dtype))
        kept_I = (1 - self.rate) ** count_I
        since_I = self.seen_steps - self.last_seen
        updated_I = kept_I * self.gap + self.rate * kept_I / (1 - self.rate) * since_I
        hit_I = count_I > 0
        self.gap.copy_(torch.where(hit_I, updated_I, self.gap))
        self.last_seen.copy_(torch.where(hit_I, self.seen_steps, self.last_seen))

    def evaluate(self, model: Model, data: Data) -> Scores:
        """Rank all items but those seen before for every user with an item to find in the split."""
        with torch.inference_mode():
            users, before = data.ranked_users()
            preferred = self.preferred(model, data)

            def score(part: slice) -> Tensor:
                user_b, before_b = users[part], before[part]
                few = EVENTS // max(1, int(before_b.max())) if self.whole else len(user_b)
                some = zip(user_b.split(max(1, few)), before_b.split(max(1, few)), strict=True)
                each = [preferred(model(data.user_batch(*shown, self.whole))["user"]) for shown in some]
                return torch.cat(each) if len(each) > 1 else each[0]

            return self.rank(score, data)

    def preferred(self, model: Model, data: Data) -> Callable[[Tensor], Tensor]:
        """What turns users' vectors into their preferences for all items, which it encodes once."""
        item_IO = encode_items(model, data)
        return lambda user: preferences(user, item_IO)

    def rank(self, score: Callable[[slice], Tensor], data: Data) -> Scores:
        """The scores of given preferences, computed for some users at a time, so memory stays bounded.

        score: those for all items, (b, I), of a slice of `data.ranked_users()`; they are overwritten. A user's
        relevant items are its distinct items in the split that are candidates. Under the protocol `authors` they are
        all its events there, and NDCG is relative to what was retrieved, as in AutoTower's public code. Equal scores
        count as higher ones.
        """
        users, _ = data.ranked_users()
        authors = data.schema.protocol == "authors"
        depth = min(max(self.ks), data.schema.items - 1)
        cells = CELLS if users.device.type == "cpu" else 16 * CELLS
        block = max(1, min(4096, cells // data.schema.items))
        columns: dict[str, list[Tensor]] = {}
        kept: list[Tensor] = []
        for start in range(0, len(users), block):
            part = slice(start, min(start + block, len(users)))
            chosen = users[part]
            seen = data.seen.gather(chosen)
            score_BI = score(part)
            score_BI[:, 0] = -torch.inf
            score_BI[seen] = -torch.inf
            relevant_BI, place_N = torch.zeros_like(score_BI, dtype=torch.bool), data.relevant.gather(chosen)
            relevant_BI[place_N] = True
            relevant_BI[seen] = False
            relevant_B = data.relevant.counts(chosen) if authors else relevant_BI.sum(1, dtype=torch.int32)
            hits_BK = hits(score_BI, relevant_BI, depth)
            kept.append(relevant_B > 0)
            for name, value in self._metrics(hits_BK, relevant_B.clamp(min=1), authors).items():
                columns.setdefault(name, []).append(value)
        keep = torch.cat(kept)
        return Scores(
            protocol=f"{data.schema.protocol}/full-ranking",
            units=users[keep].cpu().numpy().astype(np.int64),
            values={name: torch.cat(parts)[keep].cpu().numpy() for name, parts in columns.items()},
            cold=~data.trained[users.long()][keep].cpu().numpy(),
        )

    def _metrics(self, hits_BK: Tensor, relevant_B: Tensor, authors: bool) -> dict[str, Tensor]:
        values = {}
        for k in self.ks:
            values[f"recall@{k}"] = metrics.recall(hits_BK, relevant_B, k)
            values[f"hit@{k}"] = metrics.hit(hits_BK, k)
            values[f"ndcg@{k}"] = (
                metrics.ndcg_of_retrieved(hits_BK, k) if authors else metrics.ndcg(hits_BK, relevant_B, k)
            )
        return values


def nearest(user_BKO: Tensor, item_BO: Tensor) -> Tensor:
    """Of each user's K vectors the one with the largest inner product with its item. Shape (B, O)."""
    best_B = (user_BKO @ item_BO[:, :, None]).squeeze(2).argmax(1)
    return user_BKO[torch.arange(len(best_B), device=best_B.device), best_B]


def preferences(user_BO: Tensor, item_IO: Tensor) -> Tensor:
    """Inner products of all pairs, of K vectors of a user the largest, with memory for two of them. Shape (B, I)."""
    if user_BO.dim() == 2:
        return user_BO @ item_IO.T
    first_BO, *others = user_BO.unbind(1)
    best_BI = first_BO @ item_IO.T
    for other_BO in others:
        torch.maximum(best_BI, other_BO @ item_IO.T, out=best_BI)
    return best_BI


def hits(score_BI: Tensor, relevant_BI: Tensor, depth: int) -> Tensor:
    """Whether the candidate at each of the first ranks is relevant, best scores first. Shape (B, depth).

    Of equal scores the relevant ones come last, and they do with scores that are not a number.

    A score in single precision and whether it is relevant make one whole number. On a CPU only those scores become one
    that a sample of the columns says may be among the best; a row for which it says too much of that is done in full.
    """
    score_BI = score_BI.float()
    if score_BI.device.type == "cpu":
        odd_b = score_BI.sum(1).isnan().nonzero().squeeze(1)  # few, and to ask so is cheap
        score_BI[odd_b] = _numbers(score_BI[odd_b], relevant_BI[odd_b])
        return torch.from_numpy(_first(score_BI.numpy(), relevant_BI.numpy(), depth))
    bits_BI = (0.0 - _numbers(score_BI, relevant_BI)).view(torch.int32)
    key_BI = (bits_BI ^ ((bits_BI >> 31) & SIGNLESS)).long() << 1 | relevant_BI
    return key_BI.topk(depth, dim=1, largest=False).values % 2 == 1


def _numbers(score_BI: Tensor, relevant_BI: Tensor) -> Tensor:
    """The scores, those that are not a number being the worst where relevant, else the best."""
    return torch.where(score_BI.isnan(), torch.where(relevant_BI, -torch.inf, torch.inf), score_BI)


def _first(score_BI: NDArray[np.float32], relevant_BI: NDArray[np.bool_], depth: int) -> NDArray[np.bool_]:
    """Whether each of the `depth` best of a row is relevant, best first. Shape (B, depth).

    Of a sample of every s-th column the n-th largest value has about n s of all columns above it, with a spread of
    s times the root of n; n is so large that `depth` lies SPREADS such spreads below.
    """
    rows, columns = score_BI.shape
    step = 1 + math.isqrt(columns // STEPS)
    place = math.ceil(((SPREADS + math.sqrt(SPREADS**2 + 4 * depth / step)) / 2) ** 2)
    if 2 * place * step < columns:
        bound_B = np.partition(score_BI[:, ::step], -1 - place, axis=1)[:, -1 - place]
        inside_BI = score_BI >= bound_B[:, None]
    else:
        inside_BI = np.ones(score_BI.shape, np.bool_)
    count_B = inside_BI.sum(1, dtype=np.int32)
    short_B = count_B < depth
    if short_B.any():
        inside_BI[short_B] = True
        count_B[short_B] = columns
    at_N = np.flatnonzero(inside_BI)
    bits_N = (0.0 - score_BI.ravel()[at_N]).view(np.int32)
    key_N = (bits_N ^ ((bits_N >> 31) & SIGNLESS)).astype(np.int64) << 1 | relevant_BI.ravel()[at_N]
    key_BW = np.full((rows, count_B.max()), np.iinfo(np.int64).max)
    key_BW[np.arange(key_BW.shape[1]) < count_B[:, None]] = key_N
    key_BW.partition(depth - 1, axis=1)
    best_BD: NDArray[np.bool_] = np.sort(key_BW[:, :depth], axis=1) % 2 == 1
    return best_BD


def encode_items(model: Model, data: Data, block: int = 8192) -> Tensor:
    """The vectors of all item ids, in order. Shape (items, O)."""
    ids = torch.arange(data.schema.items, dtype=torch.int32, device=data.home).split(block)
    return torch.cat([model(data.item_batch(part))["item"] for part in ids])
