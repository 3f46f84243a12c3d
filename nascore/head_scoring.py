"""Scores of candidates whose last layer is tuned anew on frozen features (NASRec §4.3).

Rows are read and embedded once for all candidates of a call. A candidate's features are computed once a row, never once
a tuning step.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nascore import metrics
from nascore.click_net import Inputs
from nascore.fitness import Fitness
from nascore.nasrec_net import NasRecNet, Shared
from nascore.ops import Elastic
from nascore.plugins import bounded
from nascore.rows import Data
from nascore.space import Choice, Genotype
from nascore.training import Plan


@dataclass(frozen=True)
class HeadTuning:
    """How the last layer of a candidate is tuned before it is scored, by Adagrad.

    Args:
        batch: Rows of a step; the rows of `Fitness.calibration` are gone through once.
        learning_rate: Adagrad's.
        warmup: Share of the steps over which it rises, before half a cosine.
        clip: Largest norm of the gradient; 0 for none.
        epsilon: Adagrad's.
    """

    batch: int = 256
    learning_rate: float = 0.04
    warmup: float = 0.1
    clip: float = 5.0
    epsilon: float = 1e-2

    def __post_init__(self) -> None:
        bounded(self, batch=1)
        self.plan(1)

    def steps(self, calibration: int, rows: int) -> int:
        """The steps that so many of the training rows make; raises if they are wanted and make none."""
        steps = min(calibration, rows) // self.batch
        if calibration and not steps:
            raise ValueError(
                f"a last layer is tuned on batches of {self.batch} rows (--method.head.batch), of which "
                f"--method.fitness.calibration {calibration:,} and {rows:,} training rows make none; a calibration of "
                "0 leaves it as it is"
            )
        return steps

    def plan(self, steps: int) -> Plan:
        known = (self.batch, steps, 0, 0, self.learning_rate, 0.0, self.clip)
        return Plan(*known, "cosine", "adagrad", self.warmup, self.epsilon)


@dataclass
class _Head:
    """A candidate's path and its own copy of the last layer, one weight a feature and the bias last."""

    opened: Mapping[str, Choice]
    weight: Tensor
    total: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.total = torch.zeros_like(self.weight)

    def logits(self, feature_BF: Tensor) -> Tensor:
        return torch.addmv(self.weight[-1:], feature_BF, self.weight[:-1])

    def step(self, feature_BF: Tensor, label_B: Tensor, rate: float, plan: Plan) -> None:
        """One step of Adagrad on the log loss of a batch."""
        error_B = (self.logits(feature_BF).sigmoid() - label_B) / len(label_B)
        gradient = torch.cat([error_B @ feature_BF, error_B.sum()[None]])
        if plan.clip:
            gradient *= (plan.clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
        self.total += gradient.square()
        self.weight -= rate * gradient / (self.total.sqrt() + plan.epsilon)


class HeadScorer:
    """Scores genotypes of a net with a last layer, by log loss or AUC on validation rows; higher is better.

    What the genotypes of a call have in common is computed once, as long as it fits into `room` bytes.
    """

    def __init__(
        self, net: NasRecNet, train: Data, valid: Data, fitness: Fitness, tuning: HeadTuning, room: int
    ) -> None:
        self.net, self.train, self.valid, self.fitness, self.room = net.eval(), train, valid, fitness, room
        self.steps = tuning.steps(fitness.calibration, train.rows)
        self.plan = tuning.plan(max(1, self.steps))

    @torch.inference_mode()
    def __call__(self, genotypes: Sequence[Genotype]) -> list[float]:
        heads = [self._head(genotype) for genotype in genotypes]
        step, whole = 0, max(1, self.fitness.batch // self.plan.batch) * self.plan.batch
        for x, label_B in self._chunks(self.train, self.steps * self.plan.batch, whole):
            shared = Shared(self.room)
            for head in heads:
                feature_BF = self.net.features(x, head.opened, shared)
                for place in range(0, len(label_B), self.plan.batch):
                    part = slice(place, place + self.plan.batch)
                    rate = self.plan.rate(step + place // self.plan.batch)
                    head.step(feature_BF[part], label_B[part], rate, self.plan)
            step += len(label_B) // self.plan.batch
        rows = self.valid.rows if self.fitness.ranks else min(self.fitness.rows, self.valid.rows)
        ranked: list[list[Tensor]] = [[] for _ in heads]
        losses = torch.zeros(len(heads), dtype=torch.float64, device=self.valid.device)
        labels: list[Tensor] = []
        for x, label_B in self._chunks(self.valid, rows, self.fitness.batch):
            labels.append(label_B)
            shared = Shared(self.room)
            for place, head in enumerate(heads):
                logit_B = head.logits(self.net.features(x, head.opened, shared))
                if self.fitness.kind == "auc":
                    ranked[place].append(logit_B)
                else:
                    losses[place] += metrics.log_loss(logit_B, label_B).sum()
        if self.fitness.kind == "auc":
            return [float(metrics.auc(torch.cat(own), torch.cat(labels))) for own in ranked]
        return [-loss / rows for loss in losses.tolist()]

    def _head(self, genotype: Genotype) -> _Head:
        opened = self.net.opened(self.net.space.mix(genotype))
        live = {"D": self.net.head_live(opened)}
        last = self.net.head
        assert isinstance(last, Elastic)
        weight, bias = last.kept("weight", live), last.kept("bias", live)
        return _Head(opened, torch.cat([weight[0], bias]))

    def _chunks(self, data: Data, rows: int, size: int) -> Iterator[tuple[Inputs, Tensor]]:
        """The first rows of a split, embedded, with their labels."""
        for row_B in torch.arange(rows, device=data.home).split(size):
            batch = data.batch(row_B)
            assert batch.label is not None
            yield self.net.embed(batch), batch.label.to(torch.get_default_dtype())
