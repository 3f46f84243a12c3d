"""Training and scoring: gradient steps that can stop anywhere, early stopping, recalibration, and the plain scorer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from math import cos, inf, nan, pi
from typing import Any, Literal

import torch
from torch import Tensor

from nascore import group
from nascore.net import Net, Supernet
from nascore.ops.batch_norm import BatchNorm
from nascore.plugins import bounded
from nascore.rows import Data, seed_of
from nascore.schema import Batch
from nascore.space import Genotype, Mix
from nascore.tasks import Model, Task

State = dict[str, Tensor]
Schedule = Literal["constant", "linear", "cosine"]
LOSSES = ("objective", "loss@1")


@dataclass(frozen=True)
class Plan:
    """How weights are trained by Adam: for `steps`, or for at most `epochs`.

    Args:
        batch: Rows of a batch of all workers together.
        steps: Steps of a weight-sharing training.
        epochs: The most epochs of a model's own training.
        patience: Epochs without a better validation value after which it ends; 0 for never. The best epoch is kept.
        learning_rate: Adam's.
        weight_decay: Acts on weights of two or more dimensions.
        clip: Largest norm of the joined gradient; 0 for none.
        schedule: Of the learning rate over `steps`: constant, or falling to 0 on a line or half a cosine.
    """

    batch: int
    steps: int = 0
    epochs: int = 0
    patience: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip: float = 0.0
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        bounded(self, batch=1, steps=0, epochs=0, patience=0, learning_rate=0, weight_decay=0, clip=0)

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0 on."""
        left = 1 - step / self.steps if self.schedule != "constant" else 1.0
        return self.learning_rate * (left if self.schedule != "cosine" else (1 - cos(pi * left)) / 2)


@dataclass(frozen=True)
class Learning:
    """How a sampler learns, by Adam and to first order: on a validation batch, the net's weights held fast.

    Args:
        every: Steps of the weights before each of the sampler.
        learning_rate: Adam's.
        weight_decay: Adam's.
    """

    every: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6

    def __post_init__(self) -> None:
        bounded(self, every=1, learning_rate=0, weight_decay=0)


class Fit:
    """One training: a supernet, its task, its optimisers and how far they are; `state` can be saved at any step.

    learning, held: how a sampler that learns does so, and from which rows.
    """

    def __init__(
        self,
        supernet: Supernet,
        task: Task,
        data: Data,
        plan: Plan,
        seed: int,
        learning: Learning | None = None,
        held: Data | None = None,
    ) -> None:
        self.supernet, self.task, self.data, self.plan, self.seed = supernet, task, data, plan, seed
        self.step = 0
        self.batches: Iterator[Batch] | None = None
        self.lessons: Iterator[Batch] | None = None
        named = dict(supernet.net.named_parameters())
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in named.items()}
        decayed: dict[str, Any] = {
            "params": [p for p in named.values() if p.dim() >= 2],
            "weight_decay": plan.weight_decay,
        }
        others: dict[str, Any] = {"params": [p for p in named.values() if p.dim() < 2]}
        self.optimizer = torch.optim.Adam([decayed, others], lr=plan.learning_rate, fused=True)
        self.optimizers: dict[str, tuple[torch.optim.Adam, dict[Tensor, str]]] = {
            "optimizer": (self.optimizer, self.names)
        }
        self.learning, self.held = learning, held
        if supernet.sampler.learns:
            if learning is None or held is None:
                raise ValueError(f"{type(supernet.sampler).__name__} learns: it needs settings and rows to learn from")
            held.steps_per_epoch(plan.batch)  # raises now where there are too few rows for every rank
            learned: dict[Tensor, str] = {one: name for name, one in supernet.sampler.named_parameters()}
            rate, decay = learning.learning_rate, learning.weight_decay
            learner = torch.optim.Adam(learned, rate, weight_decay=decay, fused=True)
            self.optimizers["learner"] = learner, learned

    def advance(self, steps: int) -> float:
        """Train `steps` more steps; the mean loss of the joined batches."""
        self.supernet.train()
        self.task.train()
        total = torch.zeros((), device=self.data.device)
        if self.batches is None:
            self.batches = self.data.batches(self.plan.batch, seed_of(self.seed, "rows"), self.step)
        for _ in range(steps):
            torch.manual_seed(seed_of(self.seed, "dropout", self.step, group.rank()))
            total += self._step(next(self.batches))
            self.step += 1
            if self.supernet.sampler.learns:
                self._learn()
        return float(group.total(total)) / max(1, steps)

    def _step(self, batch: Batch) -> Tensor:
        output, _ = self.supernet(batch, self.step)
        loss = self.task.loss(output, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        group.exchange_gradients(self.names)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = self.plan.rate(self.step)
        if self.plan.clip:
            torch.nn.utils.clip_grad_norm_(self.names, self.plan.clip)
        self.optimizer.step()
        return loss.detach()

    def _learn(self) -> None:
        """A step of the sampler, where one is due."""
        assert self.learning is not None and self.held is not None
        taken, due = divmod(self.step, self.learning.every)
        if due:
            return
        if self.lessons is None:
            self.lessons = self.held.batches(self.plan.batch, seed_of(self.seed, "held rows"), taken - 1)
        batch, net, sampler = next(self.lessons), self.supernet.net, self.supernet.sampler
        learner, learned = self.optimizers["learner"]
        x, task = net.embed(batch), self.task.eval()
        with momentum(net, 0.0):
            loss = task.loss(net(x, sampler.relaxed(x, self.step - 1)), batch)
        task.train()
        for parameter, gradient in zip(learned, torch.autograd.grad(loss, list(learned)), strict=True):
            parameter.grad = gradient
        group.exchange_gradients(learned)
        learner.step()
        learner.zero_grad()
        sampler.settle()

    def weights(self) -> State:
        """What a model is: the weights and buffers of the net, the sampler and the task."""
        return {
            f"{part}.{name}": value.detach()
            for part, module in (("supernet", self.supernet), ("task", self.task))
            for name, value in module.state_dict().items()
        }

    def state(self) -> State:
        """Everything a resumed training needs, as tensors by name."""
        moments = {
            f"{optimizer}.{kind}.{names[parameter]}": value
            for optimizer, (adam, names) in self.optimizers.items()
            for parameter, kinds in adam.state.items()
            for kind, value in kinds.items()
        }
        return {**self.weights(), **moments, "step": torch.tensor(self.step)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state` was taken."""
        load(self.supernet, self.task, state)
        self.step, self.batches, self.lessons = int(state["step"]), None, None
        for optimizer, (adam, names) in self.optimizers.items():
            by_name = {name: parameter for parameter, name in names.items()}
            adam.state.clear()
            for key, value in state.items():
                if key.startswith(f"{optimizer}."):
                    _, kind, name = key.split(".", 2)
                    adam.state[by_name[name]][kind] = value.clone().to(by_name[name].device)


def refit(
    fit: Fit,
    epochs: int,
    save: Callable[[State], None] = lambda state: None,
    saved: Mapping[str, Tensor] | None = None,
) -> State:
    """Train for a number of epochs, from `saved` on if there is one; the last weights. 0 solves in closed form."""
    if not epochs:
        fit.supernet.net.solve(fit.data)
    elif saved is not None:
        fit.restore(saved)
    steps = fit.data.steps_per_epoch(fit.plan.batch)
    while fit.step < epochs * steps:
        fit.advance(steps)
        save(fit.state())
    return fit.weights()


def load(supernet: Supernet, task: Task, weights: Mapping[str, Tensor]) -> None:
    """Set the weights of a model as `Fit.weights` or `Fit.state` gave them."""
    for part, module in (("supernet", supernet), ("task", task)):
        prefix = f"{part}."
        module.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})


@dataclass(frozen=True)
class Fitness:
    """How a model is judged on the validation split; higher is better.

    Args:
        kind: objective, the negated training objective; loss@1, the negated softmax loss at temperature 1 without
            correction, as in AutoTower's public code; or a metric of the task, such as recall@50.
        rows: Validation rows that a loss is measured on, the same for every model.
        batch: Rows of one in-batch softmax.
        calibration: Training rows on which batch-norm moments are measured anew for every candidate; 0 keeps the
            supernet's.
    """

    kind: str = "objective"
    rows: int = 40_960
    batch: int = 1024
    calibration: int = 4_096

    def __post_init__(self) -> None:
        bounded(self, rows=1, batch=1, calibration=0)

    @property
    def ranks(self) -> bool:
        """Whether it is a metric of the task, not a loss."""
        return self.kind not in LOSSES

    def check(self, task: Task) -> None:
        """Raise if the task has no such value."""
        if self.ranks and self.kind not in task.metrics:
            known = ", ".join((*LOSSES, *task.metrics))
            raise ValueError(f"fitness {self.kind!r} is none of those there are: {known}")

    def fixed_rows(self, data: Data) -> list[Tensor]:
        """The rows of each fixed validation batch: the first of the split, whose rows lie in random order."""
        parts = list(torch.arange(min(self.rows, data.rows), device=data.home).split(self.batch))
        return parts[:-1] if len(parts) > 1 and len(parts[-1]) < self.batch else parts

    def sample(self, data: Data) -> Tensor:
        """The training rows to calibrate on: the first."""
        return torch.arange(min(self.calibration, data.rows), device=data.home)

    def measure(self, model: Model, task: Task, data: Data) -> float:
        """Judge one model in evaluation mode."""
        task.eval()
        with torch.inference_mode():
            if self.ranks:
                return task.evaluate(model, data).means().get(self.kind, nan)
            batches = [data.batch(rows) for rows in self.fixed_rows(data)]
            losses = [
                float(task.validation_loss(model(batch), batch, plain=self.kind == "loss@1")) for batch in batches
            ]
        return -sum(losses) / len(losses)


@contextmanager
def momentum(net: Net, value: float) -> Iterator[list[BatchNorm]]:
    """The batch norms of a net, whose moments follow a batch by `value` for a while."""
    norms = [module for module in net.modules() if isinstance(module, BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = value
    try:
        yield norms
    finally:
        for norm, own in zip(norms, before, strict=True):
            norm.momentum = own


@torch.no_grad()
def recalibrate(net: Net, mix: Mix, batch: Batch) -> None:
    """Set the moments of every batch norm on the path to those of one batch, layer after layer."""
    net.eval()
    with momentum(net, 1.0) as norms:
        for norm in norms:
            norm.train()
        net(net.embed(batch), mix)
    net.eval()


def scorer(
    net: Net, task: Task, train: Data, valid: Data, fitness: Fitness
) -> Callable[[Sequence[Genotype]], list[float]]:
    """The plain scorer: one candidate after the other on a copy of the net, everything computed anew."""
    own = deepcopy(net).eval()
    sample = train.batch(fitness.sample(train)) if fitness.calibration else None

    def score(genotypes: Sequence[Genotype]) -> list[float]:
        scores = []
        for genotype in genotypes:
            mix = own.space.mix(genotype)
            if sample is not None:
                recalibrate(own, mix, sample)
            scores.append(fitness.measure(own.under(mix), task, valid))
        return scores

    return score


@dataclass
class Stopping:
    """Early stopping, one telling an epoch: keeps the best value and its weights, says when patience has run out."""

    patience: int
    best: float = -inf
    best_epoch: int = 0
    epochs: int = 0

    def better(self, value: float) -> bool:
        """Take note of an epoch's value; whether it is the best so far. NaN never is."""
        self.epochs += 1
        if value > self.best:
            self.best, self.best_epoch = value, self.epochs
            return True
        return False

    @property
    def over(self) -> bool:
        return bool(self.patience) and self.epochs - self.best_epoch >= self.patience


@dataclass(frozen=True)
class Outcome:
    """A finished training: the best weights, their validation value, and (loss, value) of each epoch."""

    weights: State
    value: float
    best_epoch: int
    steps: int
    curve: tuple[tuple[float, float], ...]


def train(
    fit: Fit,
    judge: Callable[[Model], float],
    save: Callable[[State], None] = lambda state: None,
    saved: Mapping[str, Tensor] | None = None,
    report: Callable[[int, float], None] = lambda epoch, value: None,
) -> Outcome:
    """Train a net with one member to the end of its plan, epoch by epoch, from `saved` on if there is one.

    judge: the validation value of a model, higher is better. save: takes the state after each epoch. A plan without
    steps and epochs has the net solved in closed form.
    """
    net, plan = fit.supernet.net, fit.plan
    if not plan.epochs:
        net.solve(fit.data)
        net.eval()
        return Outcome(fit.weights(), judge(net.only()), 0, 0, ())
    stopping, best, curve = Stopping(plan.patience), dict[str, Tensor](), list[tuple[float, float]]()
    if saved is not None:
        fit.restore({name: value for name, value in saved.items() if not name.startswith(("best.", "curve"))})
        best = {name.removeprefix("best."): value for name, value in saved.items() if name.startswith("best.")}
        for loss, value in saved["curve"].tolist():
            curve.append((loss, value))
            stopping.better(value)
    steps = fit.data.steps_per_epoch(plan.batch)
    while stopping.epochs < plan.epochs and not stopping.over:
        loss = fit.advance(steps)
        net.eval()
        curve.append((loss, judge(net.only())))
        if stopping.better(curve[-1][1]):
            best = {name: value.clone() for name, value in fit.weights().items()}
        report(stopping.epochs, stopping.best)
        save(
            {
                **fit.state(),
                **{f"best.{name}": value for name, value in best.items()},
                "curve": torch.tensor(curve, dtype=torch.float64),
            }
        )
    if not best:
        raise FloatingPointError(f"no epoch gave a finite validation value; (loss, value) by epoch: {curve}")
    return Outcome(best, stopping.best, stopping.best_epoch, fit.step, tuple(curve))
