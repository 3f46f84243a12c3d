"""The next item of a sequence: softmax over the catalogue, judged by the rank of the one item that came (DNS-Rec §3).

Rankings, each with its own id beside every figure:

- full: among all items, as RecBole ranks sequences; those met before are candidates too.
- full_unseen: among the items that the user did not meet before.
- pop100_fixed, uniform100_fixed: among 100 other items that the user never met, drawn once by their past events, or
  uniformly; distinct, the same for every model, epoch and seed.
- recbole_pop100: as the public code behind DNS-Rec's tables draws them: by popularity as the next item of a row of any
  split read so far, with replacement, so that fewer may be distinct, and anew whenever a model was trained on.

Figures of different rankings do not compare: of one model on MovieLens 1M recall@10 is .24 under full and .68 under
recbole_pop100.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from nascore import group, metrics, negatives
from nascore.rows import Data, seed_of
from nascore.schema import Batch, Column, Schema
from nascore.tasks import Model, Scores, Task

Output = Mapping[str, Tensor]
Ranking = Literal["full", "full_unseen", "pop100_fixed", "uniform100_fixed", "recbole_pop100"]
Loss = Literal["softmax", "bce", "bpr"]
NEGATIVES = 100
CELLS = 1 << 22  # scores held at a time on a CPU; an accelerator takes 16 times as many


class NextItem(Task):
    """Outputs are {"user": (B, O) or (B, T, O), "item": (items, O)}; a score is the inner product of two vectors.

    With a vector for each position T, training learns the next item of every past event, else that of the row alone.

    loss_kind: softmax over all items; bce or bpr, against one item drawn uniformly that the user was not just shown.
    rankings: those to report; the first is the headline's. ks: ranks to report.
    """

    taught: Tensor

    def __init__(
        self,
        loss_kind: Loss = "softmax",
        rankings: tuple[Ranking, ...] = ("full",),
        ks: tuple[int, ...] = (5, 10, 20),
    ) -> None:
        super().__init__()
        for value, known in ((loss_kind, Loss), *((ranking, Ranking) for ranking in rankings)):
            if value not in get_args(known):
                raise ValueError(f"{value!r} is none of: {', '.join(get_args(known))}")
        if not rankings or len({*rankings}) < len(rankings):
            names = ", ".join(get_args(Ranking))
            raise ValueError(f"next items are judged by one ranking or more, each once, of: {names}; not {[*rankings]}")
        self.loss_kind, self.rankings, self.ks = loss_kind, rankings, ks
        self.headline = _named("ndcg@10" if 10 in ks else f"ndcg@{ks[0]}", rankings[0], rankings)
        self.drawn: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}
        self.register_buffer("taught", torch.zeros((), dtype=torch.int64))

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(
            _named(f"{metric}@{k}", ranking, self.rankings)
            for ranking in self.rankings
            for k in self.ks
            for metric in ("recall", "mrr", "ndcg")
        )

    @staticmethod
    def reads(schema: Schema) -> tuple[Column, ...]:
        """Those by which past events are shown."""
        return tuple(column for column in schema.columns if column.name in (schema.item, *schema.history))

    # Training

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """This rank's share of the mean over the joined batch's targets: its rows, or in training all past events."""
        if self.training:
            self.taught += 1
        hidden_NO, target_N, shown_N = self._targets(output, batch, every=self.training)
        total, count = self._summed(hidden_NO, output["item"], target_N, batch, shown_N)
        return total / group.total(count)

    def validation_loss(self, output: Output, batch: Batch, plain: bool = False) -> Tensor:
        hidden_BO, target_B, shown_B = self._targets(output, batch, every=False)
        total, count = self._summed(hidden_BO, output["item"], target_B, batch, shown_B)
        return total / count

    @staticmethod
    def _targets(output: Output, batch: Batch, every: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (N, O), the items that followed (N,), and the rows (N,) that they stand in."""
        hidden, target_B = output["user"], batch.keys["item"].long()
        row_B = torch.arange(len(target_B), device=target_B.device)
        if hidden.dim() == 2:
            return hidden, target_B, row_B
        event_BT, last_B = aligned(batch["history"])
        if not every:
            return hidden[row_B, last_B], target_B, row_B
        followed_BT = functional.pad(event_BT[:, 1:], (0, 1)).long()
        followed_BT[row_B, last_B] = target_B
        row_N, place_N = torch.nonzero(followed_BT, as_tuple=True)
        return hidden[row_N, place_N], followed_BT[row_N, place_N], row_N

    def _summed(
        self, hidden_NO: Tensor, item_IO: Tensor, target_N: Tensor, batch: Batch, row_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The summed loss and the number of targets."""
        count = torch.tensor(float(len(target_N)), device=hidden_NO.device)
        if self.loss_kind == "softmax":
            summed: Tensor = _SoftmaxLoss.apply(hidden_NO, item_IO, target_N)  # type: ignore[no-untyped-call]
            return summed, count
        rng = None if self.training else _fixed(batch)
        other_N = torch.randint(1, len(item_IO), (len(target_N),), device=hidden_NO.device, generator=rng)
        free_N = (other_N != target_N) & ~(batch["history"][row_N] == other_N[:, None]).any(1)
        own_N = (hidden_NO * item_IO[target_N]).sum(1)
        against_N = (hidden_NO * item_IO[other_N]).sum(1)
        if self.loss_kind == "bpr":
            return (functional.softplus(against_N - own_N) * free_N).sum(), count
        return functional.softplus(-own_N).sum() + (functional.softplus(against_N) * free_N).sum(), count

    # Evaluation

    def evaluate(self, model: Model, data: Data) -> Scores:
        """Rank the item of every row of a split; memory does not grow with users times items."""
        with torch.inference_mode():
            return self.rank(lambda row_B: self._encoded(model, data, row_B), data)

    def _encoded(self, model: Model, data: Data, row_B: Tensor) -> tuple[Tensor, Tensor]:
        batch = data.batch(row_B)
        output = model(batch)
        hidden_BO, _, _ = self._targets(output, batch, every=False)
        return hidden_BO, output["item"]

    def rank(self, encode: Callable[[Tensor], tuple[Tensor, Tensor]], data: Data) -> Scores:
        """The scores of given vectors: `encode` gives those of some rows (b, O), and those of all items (items, O).

        A unit is a user; the values of a user with several rows are their means. Equal scores count as higher ones, and
        so does what is not a number.
        """
        cells = CELLS if data.device == "cpu" else 16 * CELLS
        block = max(1, min(1024, cells // data.schema.items))
        ranks: dict[str, list[Tensor]] = {ranking: [] for ranking in self.rankings}
        users: list[Tensor] = []
        for row_B in torch.arange(data.rows, device=data.home).split(block):
            hidden_BO, item_IO = encode(row_B)
            user_B, target_B, _ = (key.to(hidden_BO.device).long() for key in data.keys(row_B))
            score_BI = hidden_BO @ item_IO.T
            own_B1 = score_BI.gather(1, target_B[:, None])
            higher_BI = ~(score_BI < own_B1)
            higher_BI[:, 0] = False
            for ranking in self.rankings:
                ranks[ranking].append(self._rank(ranking, higher_BI, user_B, target_B, row_B, data))
            users.append(user_B)
        unit_U, place_B = torch.unique(torch.cat(users), return_inverse=True)
        values = {}
        for name_of, parts in ranks.items():
            for name, value_B in metrics.of_rank(torch.cat(parts), self.ks).items():
                total_U = torch.zeros(len(unit_U), dtype=torch.float64, device=value_B.device)
                total_U.index_add_(0, place_B, value_B)
                mean_U = total_U / torch.bincount(place_B, minlength=len(unit_U))
                values[_named(name, name_of, self.rankings)] = mean_U.cpu().numpy()
        return Scores(
            protocol=f"{data.schema.protocol}/{'+'.join(self.rankings)}",
            units=unit_U.cpu().numpy().astype(np.int64),
            values=values,
            cold=~data.trained.to(unit_U.device)[unit_U].cpu().numpy(),
        )

    def _rank(
        self, ranking: Ranking, higher_BI: Tensor, user_B: Tensor, target_B: Tensor, row_B: Tensor, data: Data
    ) -> Tensor:
        """The rank, from 1 on, of each row's item, which itself counts as not lower. Shape (b,)."""
        if ranking == "full":
            return higher_BI.sum(1)
        if ranking == "full_unseen":
            place_N, item_N = data.seen.gather(user_B)
            known_BI = torch.zeros_like(higher_BI)
            known_BI[place_N, item_N] = True
            known_BI.scatter_(1, target_B[:, None], False)
            return (higher_BI & ~known_BI).sum(1)
        other_BN, valid_BN = (part[row_B.cpu()].to(higher_BI.device) for part in self._others(ranking, data))
        return (higher_BI.gather(1, other_BN.long()) & valid_BN).sum(1) + 1

    def _others(self, ranking: Ranking, data: Data) -> tuple[Tensor, Tensor]:
        """The items that each row's own is ranked against, and which of them count. Each (rows, 100)."""
        times = int(self.taught) if ranking == "recbole_pop100" else 0
        name = (ranking, times, data.folder, data.split)
        if name not in self.drawn:
            self.drawn = {known: kept for known, kept in self.drawn.items() if known[0] != ranking or known[1] == times}
            rows = torch.arange(data.rows, device=data.home).split(max(1, min(1024, CELLS // data.schema.items)))
            draw = negatives.with_replacement if ranking == "recbole_pop100" else negatives.distinct
            weight_I, parts = _weights(ranking, data), []
            for row_B in rows:
                rng = np.random.default_rng(seed_of("negatives", ranking, times, data.split, int(row_B[0])))
                parts.append(draw(rng, weight_I, _taken(ranking, data, row_B), NEGATIVES))
            others, valid = (torch.from_numpy(np.concatenate(part)) for part in zip(*parts, strict=True))
            self.drawn[name] = others.to(torch.int32), valid
        return self.drawn[name]


def _weights(ranking: Ranking, data: Data) -> negatives.Weights:
    """How likely each item is drawn, up to a factor: alike, or as often as it was met. Shape (items,)."""
    past, counted = data.history, data.history.item
    if ranking == "recbole_pop100":  # a user's first event is no next item
        later = torch.ones(len(past.item), dtype=torch.bool, device=past.item.device)
        later[past.at[:-1][past.at.diff() > 0]] = False
        counted = torch.cat([past.item[later], data.relevant.item])
    met_I = np.bincount(counted.cpu().numpy(), minlength=data.schema.items).astype(np.float64)
    return np.ones_like(met_I) if ranking == "uniform100_fixed" else met_I


def _taken(ranking: Ranking, data: Data, row_B: Tensor) -> negatives.Mask:
    """The items that the users of some rows have met, and 0. Shape (b, items)."""
    user_B, _, _ = data.keys(row_B)
    taken_BI = np.zeros((len(user_B), data.schema.items), bool)
    taken_BI[:, 0] = True
    for events in (data.history, data.seen, data.relevant):
        place_N, item_N = (part.cpu().numpy() for part in events.gather(user_B))
        if ranking == "recbole_pop100" and events is not data.relevant:
            later_N = np.diff(place_N, prepend=-1) == 0
            place_N, item_N = place_N[later_N], item_N[later_N]
        taken_BI[place_N, item_N] = True
    return taken_BI


def _fixed(batch: Batch) -> torch.Generator:
    """What validation draws from: the same for the same rows."""
    return torch.Generator(batch.rows.device).manual_seed(seed_of("validation", int(batch.rows[0])))


def _named(metric: str, ranking: str, rankings: tuple[str, ...]) -> str:
    """A metric's name: the ranking stands behind it, but for the first."""
    return metric if ranking == rankings[0] else f"{metric}/{ranking}"


def aligned(event_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Pasts padded left as pasts padded right (B, T), and the places of their last events (B,), 0 for empty ones."""
    length_B = (event_BT != 0).sum(1)
    return shifted(event_BT, length_B), (length_B - 1).clamp(min=0)


def shifted(event_BT: Tensor, length_B: Tensor) -> Tensor:
    """What belongs to the events of pasts of these lengths, (B, T) or (B, T, width), moved from right to left."""
    longest = event_BT.shape[1]
    from_BT = torch.arange(longest, device=event_BT.device) + longest - length_B[:, None]
    valid_BT, index_BT = from_BT < longest, from_BT.clamp(max=longest - 1)
    if event_BT.dim() == 2:
        return event_BT.gather(1, index_BT) * valid_BT
    return event_BT.gather(1, index_BT[:, :, None].expand_as(event_BT)) * valid_BT[:, :, None]


class _SoftmaxLoss(Function):
    """Summed cross-entropy over all items but 0, with its gradient computed block by block on the way forward.

    The logits of all targets are never held at once: at 25,000 targets and 3,706 items they would take 370 MB.
    """

    @staticmethod
    def forward(ctx: Any, hidden_NO: Tensor, item_IO: Tensor, target_N: Tensor) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        total = hidden_NO.new_zeros(())
        toward_NO, toward_IO = (torch.empty_like(hidden_NO), torch.zeros_like(item_IO)) if wanted else (None, None)
        for part in _blocks(len(target_N), len(item_IO), hidden_NO.device.type == "cpu"):
            own_BO = hidden_NO[part]
            logit_BI = own_BO @ item_IO.T
            logit_BI[:, 0] = -torch.inf
            own_B = logit_BI.gather(1, target_N[part, None]).squeeze(1)
            most_B1 = logit_BI.amax(1, keepdim=True)
            odds_BI = logit_BI.sub_(most_B1).exp_()
            total_B = odds_BI.sum(1)
            total += (total_B.log() + most_B1.squeeze(1) - own_B).sum()
            if toward_NO is not None and toward_IO is not None:
                torch.mm(odds_BI, item_IO, out=toward_NO[part]).div_(total_B[:, None])
                toward_IO.addmm_(odds_BI.T, own_BO / total_B[:, None])
        if toward_NO is not None and toward_IO is not None:
            toward_NO -= item_IO[target_N]
            toward_IO.index_add_(0, target_N, hidden_NO, alpha=-1)
        if wanted:
            ctx.save_for_backward(toward_NO, toward_IO)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        toward_NO, toward_IO = ctx.saved_tensors
        return gradient * toward_NO, gradient * toward_IO, None


def _blocks(rows: int, items: int, on_cpu: bool) -> Iterator[slice]:
    size = max(1, (CELLS if on_cpu else 16 * CELLS) // items)
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))
