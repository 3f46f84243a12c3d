"""Scoring candidates whose towers are chains of blocks: equal to the plain scorer, sharing what candidates share.

Weights are frozen, so an output depends only on what was chosen up to it. Inputs are computed once for each distinct
(user, length of history) and each distinct item, a block once for each distinct prefix of choices, a tower once, and a
candidate is two towers and the loss or ranking of their vectors. Where the distinct users and items of the validation
batches are few, the in-batch softmax of all batches is one matrix of exponentials summed with each batch's item counts.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import nan

import torch
from torch import Tensor
from torch.nn import functional

from nascore.fitness import Fitness
from nascore.net import Choose, Row
from nascore.ops.batch_norm import BatchNorm
from nascore.rows import Data
from nascore.space import Genotype
from nascore.tasks.retrieval import Retrieval, preferences

Prefix = tuple[str, ...]
CHUNK = 8_192
CELLS = 1 << 19
EXPONENT = 80.0


class Chain:
    """One tower as the scorer sees it: the stem's output for some rows, then blocks over all outputs so far.

    decisions: the names of the blocks' decisions; `first`, if the stem depends on a decision, that one's.
    """

    def __init__(
        self,
        decisions: Sequence[str],
        blocks: Sequence[Choose],
        inputs: Callable[[list[Tensor]], Tensor],
        stem: Callable[[Data, Tensor, Tensor, str], Tensor],
        first: str = "",
    ) -> None:
        self.decisions, self.blocks, self.inputs, self.stem, self.first = decisions, blocks, inputs, stem, first

    def choices(self, genotype: Genotype) -> Prefix:
        """The genotype's path through this tower, what the stem depends on first."""
        start = genotype[self.first] if self.first else ("",)
        return (*start, *(genotype[name][0] for name in self.decisions))


class Cache:
    """Tensors by key, the least recently used dropped first, at most `limit` bytes in all."""

    def __init__(self, limit: int) -> None:
        self.limit, self.held = limit, 0
        self.hits = self.misses = 0
        self.entries: OrderedDict[Prefix, Tensor] = OrderedDict()

    def get(self, key: Prefix, make: Callable[[], Tensor]) -> Tensor:
        """The entry of a key, made now if it is not held."""
        if key in self.entries:
            self.hits += 1
            self.entries.move_to_end(key)
            return self.entries[key]
        self.misses += 1
        made = self.entries[key] = make()
        self.held += made.nbytes
        while self.held > self.limit and len(self.entries) > 1:
            self.held -= self.entries.popitem(last=False)[1].nbytes
        return made


class _Side:
    """The distinct inputs of one tower: those it is calibrated on, with multiplicities, then those it is judged on."""

    def __init__(
        self, chain: Chain, cache: Cache, calibrated: tuple[Data, Tensor, Tensor] | None, judged: Data
    ) -> None:
        self.chain, self.cache, self.judged = chain, cache, judged
        self.calibrated, self.count_C = None, torch.zeros(0)
        if calibrated is not None:
            data, first, second = calibrated
            first, second, _, count = distinct(first, second)
            self.calibrated, self.count_C = (data, first, second), count.float()

    def judge_on(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second

    def vectors(self, path: Prefix, side: str) -> Tensor:
        """The tower's unit vectors on the judged inputs."""
        return self.cache.get(
            (side, "tower", *path), lambda: functional.normalize(self._outputs(path, side)[-1], dim=1)
        )

    def _outputs(self, path: Prefix, side: str) -> list[Tensor]:
        if len(path) == 1:
            return [self.cache.get((side, "stem", *path), lambda: self._stem(path[0]))]
        last = len(path) == len(self.chain.blocks) + 1
        before = self._outputs(path[:-1], side)
        if last:
            return [*before, self._block(path, before)]
        return [*before, self.cache.get((side, *path), lambda: self._block(path, before))]

    def _stem(self, choice: str) -> Tensor:
        parts = []
        for data, first, second in (
            *((self.calibrated,) if self.calibrated else ()),
            (self.judged, self.first, self.second),
        ):
            pairs = zip(first.split(CHUNK), second.split(CHUNK), strict=True)
            parts += [self.chain.stem(data, some, more, choice) for some, more in pairs]
        return torch.cat(parts)

    def _block(self, path: Prefix, before: list[Tensor]) -> Tensor:
        row = self.chain.blocks[len(path) - 2].option(path[-1])
        assert isinstance(row, Row)
        calibrated = len(self.count_C)
        if calibrated and not any(isinstance(module, BatchNorm) for module in row):
            before, calibrated = [output[calibrated:] for output in before], 0
        x = self.chain.inputs(before)
        for module in row:
            x = self._normalized(module, x, calibrated) if isinstance(module, BatchNorm) and calibrated else module(x)
        return x

    def _normalized(self, norm: BatchNorm, x_RO: Tensor, calibrated: int) -> Tensor:
        """By the moments of the calibration rows: themselves as a batch in training, the others as in evaluation."""
        rows = self.count_C.sum()
        mean_O = self.count_C @ x_RO[:calibrated] / rows
        var_O = self.count_C @ (x_RO[:calibrated] - mean_O).square() / rows
        own = norm.standardize(x_RO[:calibrated], mean_O, var_O)
        return torch.cat([own, norm.standardize(x_RO[calibrated:], mean_O, var_O * rows / (rows - 1))])


class PrefixScorer:
    """Scores genotypes of a separable net, in evaluation mode, as `nascore.fitness.scorer` would."""

    def __init__(
        self, user: Chain, item: Chain, task: Retrieval, train: Data, valid: Data, fitness: Fitness, cache_bytes: int
    ) -> None:
        self.task, self.valid, self.fitness = task.eval(), valid, fitness
        self.cache = Cache(cache_bytes)
        users = items = None
        if fitness.calibration:
            who, what, before = train.keys(fitness.sample(train))
            users, items = (train, who, before), (train, what, torch.zeros_like(what))
        self.sides = {"user": _Side(user, self.cache, users, valid), "item": _Side(item, self.cache, items, valid)}
        if fitness.ranks:
            self.sides["user"].judge_on(*valid.ranked_users())
            every = torch.arange(valid.schema.items, dtype=torch.int32, device=valid.home)
            self.sides["item"].judge_on(every, torch.zeros_like(every))
        else:
            self._fix_batches()

    def _fix_batches(self) -> None:
        batches = self.fitness.fixed_rows(self.valid)
        who, what, before = self.valid.keys(torch.cat(batches))
        user, before, self.user_of, _ = distinct(who, before)
        item, zero, self.item_of, _ = distinct(what, torch.zeros_like(what))
        self.sides["user"].judge_on(user, before)
        self.sides["item"].judge_on(item, zero)
        self.items, self.sizes = item.long(), [len(batch) for batch in batches]
        batch_of = torch.repeat_interleave(torch.tensor(self.sizes, device=item.device))
        self.batch_of = batch_of
        few = len(user) * len(item) <= sum(size * size for size in self.sizes)
        self.compact = few and (self.fitness.kind == "loss@1" or self._widest_gap() < EXPONENT)
        if self.compact:
            counts = torch.zeros(len(item), len(batches), device=item.device)
            self.counts_JN = counts.index_put(
                (self.item_of, batch_of), torch.ones(len(batch_of), device=item.device), True
            )
            size = max(1, CELLS // len(item))
            self.parts = [self._rows_of(first, first + size) for first in range(0, len(user), size)]

    def _rows_of(self, first: int, end: int) -> tuple[slice, Tensor, Tensor, Tensor, Tensor]:
        """Some users, the rows that are theirs, and of each of those its user's place among them, item and batch."""
        rows_R = ((self.user_of >= first) & (self.user_of < end)).nonzero().squeeze(1)
        return slice(first, end), rows_R, self.user_of[rows_R] - first, self.item_of[rows_R], self.batch_of[rows_R]

    def _widest_gap(self) -> float:
        """How far apart two logits of a user can be: beyond `EXPONENT`, float32 cannot hold both exponentials."""
        gap_J = self.task.gap[self.items].log() if self.task.correct else torch.zeros(1)
        return 2 / self.task.temperature + float(gap_J.max() - gap_J.min())

    @torch.inference_mode()
    def __call__(self, genotypes: Sequence[Genotype]) -> list[float]:
        """Higher is better; in the order asked, computed in the order of shared prefixes."""
        paths = [tuple(side.chain.choices(genotype) for side in self.sides.values()) for genotype in genotypes]
        scores = {path: self._score(*path) for path in sorted(set(paths))}
        return [scores[path] for path in paths]

    def _score(self, user: Prefix, item: Prefix) -> float:
        user_UO, item_JO = self.sides["user"].vectors(user, "user"), self.sides["item"].vectors(item, "item")
        if self.fitness.ranks:
            ranked = self.task.rank(lambda part: preferences(user_UO[part], item_JO), self.valid)
            return ranked.means().get(self.fitness.kind, nan)
        plain = self.fitness.kind == "loss@1"
        loss_R = self._compact(user_UO, item_JO, plain) if self.compact else self._batched(user_UO, item_JO, plain)
        batches = torch.zeros(len(self.sizes), dtype=torch.float64, device=loss_R.device)
        batches.index_add_(0, self.batch_of, loss_R.double())
        return -float((batches / torch.tensor(self.sizes, device=loss_R.device)).mean())

    def _compact(self, user_UO: Tensor, item_JO: Tensor, plain: bool) -> Tensor:
        loss_R = user_UO.new_empty(len(self.user_of))
        for users, rows_R, place_R, item_R, batch_R in self.parts:
            logit_UJ = self.task.logits(user_UO[users], item_JO, self.items, plain)
            own_R, highest_U = logit_UJ[place_R, item_R], logit_UJ.amax(1)
            sums_UN = logit_UJ.sub_(highest_U[:, None]).exp_() @ self.counts_JN
            loss_R[rows_R] = sums_UN[place_R, batch_R].log() + highest_U[place_R] - own_R
        return loss_R

    def _batched(self, user_UO: Tensor, item_JO: Tensor, plain: bool) -> Tensor:
        parts = zip(self.user_of.split(self.sizes), self.item_of.split(self.sizes), strict=True)
        return torch.cat([self.task.losses(user_UO[u], item_JO[i], self.items[i], plain=plain) for u, i in parts])


def distinct(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The distinct pairs (first, second), for each pair given where it went, and how often each occurs."""
    pairs, where, count = torch.unique(torch.stack([first, second], 1), dim=0, return_inverse=True, return_counts=True)
    return pairs[:, 0].contiguous(), pairs[:, 1].contiguous(), where, count
