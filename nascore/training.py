"""Training: gradient steps that can stop anywhere and go on elsewhere, early stopping, training anew."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import cos, inf, pi
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import LayerNorm

from nascore import group
from nascore.fitness import momentum
from nascore.net import Supernet
from nascore.plugins import bounded
from nascore.rows import Data, seed_of
from nascore.samplers import Sampler
from nascore.schema import Batch
from nascore.space import Mix
from nascore.sparse import RowAdagrad, RowAdam, RowOptimizer, Tables
from nascore.tasks import Model, Task

State = dict[str, Tensor]
Penalty = Callable[[Mix, Sampler], Tensor]
Schedule = Literal["constant", "linear", "cosine"]
Optimizer = Literal["adam", "adagrad"]
ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class Plan:
    """How weights are trained: for `steps`, or for at most `epochs`.

    Args:
        batch: Rows of a batch of all workers together.
        steps: Steps of a weight-sharing training.
        epochs: The most epochs of a model's own training.
        patience: Epochs without a better validation value after which it ends; 0 for never. The best epoch is kept.
        learning_rate: The optimiser's.
        weight_decay: Acts on weights of two or more dimensions, norms and biases apart.
        clip: Largest norm of the joined gradient; 0 for none.
        schedule: Of the learning rate over all steps: constant, or falling to 0 on a line or half a cosine.
        optimizer: adam, or adagrad.
        warmup: Share of the steps over which the learning rate rises on a line, before its schedule begins.
        epsilon: Adagrad's.
        lazy: Whether weights that a step brings no gradient stand still, with their moments; if not, they go on by
            them, once they had one. Rows of `Tables` always stand still.
    """

    batch: int
    steps: int = 0
    epochs: int = 0
    patience: int = 0
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    clip: float = 0.0
    schedule: Schedule = "constant"
    optimizer: Optimizer = "adam"
    warmup: float = 0.0
    epsilon: float = 1e-2
    lazy: bool = True

    def __post_init__(self) -> None:
        bounded(self, batch=1, steps=0, epochs=0, patience=0, learning_rate=0, weight_decay=0, clip=0, warmup=0)
        if self.warmup >= 1:
            raise ValueError(f"Plan: warmup is a share of the steps below 1, not {self.warmup}")
        if not self.epsilon > 0:
            raise ValueError(f"Plan: epsilon is above 0, not {self.epsilon}")

    def rate(self, step: int, steps: int = 0) -> float:
        """The learning rate of a step, from 0 on, of a training of so many steps, or of the plan's."""
        rising = int(self.warmup * (steps or self.steps))
        if step < rising:
            return self.learning_rate * (step + 1) / rising
        left = 1 - (step - rising) / ((steps or self.steps) - rising) if self.schedule != "constant" else 1.0
        return self.learning_rate * (left if self.schedule != "cosine" else (1 - cos(pi * left)) / 2)


@dataclass(frozen=True)
class Learning:
    """How a sampler learns, by Adam and to first order: on a validation batch, the net's weights held fast.

    Args:
        every: Steps of the weights before each of the sampler.
        learning_rate: Adam's.
        weight_decay: Adam's.
        batch: Rows of a validation batch of all workers together; 0 for as many as a step of the weights takes.
        after: Steps of the weights before the first of the sampler is due.
    """

    every: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 1e-6
    batch: int = 0
    after: int = 0

    def __post_init__(self) -> None:
        bounded(self, every=1, learning_rate=0, weight_decay=0, batch=0, after=0)

    def lessons(self, steps: int) -> int:
        """How many steps of the sampler so many steps of the weights bring."""
        return max(0, steps - self.after) // self.every


class Fit:
    """One training: a supernet, its task, its optimisers and how far they are; `state` can be saved at any step.

    learning, held, penalty: how a sampler that learns does so, from which rows, and what is added to its loss.
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
        penalty: Penalty | None = None,
    ) -> None:
        self.supernet, self.task, self.data, self.plan, self.seed = supernet, task, data, plan, seed
        self.step = 0
        self.batches: Iterator[Batch] | None = None
        self.lessons: Iterator[Batch] | None = None
        modules = supernet.net.named_modules()
        tables = {name: one for name, one in modules if isinstance(one, Tables) and one.weight.requires_grad}
        self.rows: RowOptimizer
        if plan.optimizer == "adam":
            self.rows = RowAdam(tables, ADAM_EPSILON, plan.weight_decay)
        else:
            self.rows = RowAdagrad(tables, plan.epsilon, plan.weight_decay)
        own = {f"{name}.weight" for name in tables}
        named = {name: value for name, value in supernet.net.named_parameters() if name not in own}
        self.names: dict[Tensor, str] = {parameter: name for name, parameter in named.items()}
        norms = [module for module in supernet.net.modules() if isinstance(module, LayerNorm)]
        free = {id(own) for norm in norms for own in norm.parameters()}
        kept = [name for name, p in named.items() if p.dim() < 2 or name.endswith("bias") or id(p) in free]
        decayed: dict[str, Any] = {
            "params": [p for name, p in named.items() if name not in kept],
            "weight_decay": plan.weight_decay,
        }
        others: dict[str, Any] = {"params": [named[name] for name in kept]}
        self.optimizer: torch.optim.Optimizer
        if plan.optimizer == "adam":
            self.optimizer = torch.optim.Adam([decayed, others], lr=plan.learning_rate, fused=True)
        else:
            on_cpu = data.device == "cpu"
            self.optimizer = torch.optim.Adagrad(
                [decayed, others], lr=plan.learning_rate, eps=plan.epsilon, fused=on_cpu, foreach=not on_cpu
            )
        self.optimizers: dict[str, tuple[torch.optim.Optimizer, dict[Tensor, str]]] = {
            "optimizer": (self.optimizer, self.names)
        }
        self.learning, self.held, self.penalty = learning, held, penalty
        if supernet.sampler.learns:
            if learning is None or held is None:
                raise ValueError(f"{type(supernet.sampler).__name__} learns: it needs settings and rows to learn from")
            held.steps_per_epoch(learning.batch or plan.batch)  # raises now where there are too few rows for every rank
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
        on_cpu = self.data.device == "cpu"
        reseed = torch.default_generator.manual_seed if on_cpu else torch.manual_seed  # the latter asks every device
        for _ in range(steps):
            reseed(seed_of(self.seed, "dropout", self.step, group.rank()))
            total += self._step(next(self.batches))
            self.step += 1
            if self.supernet.sampler.learns:
                self._learn()
        return float(group.total(total)) / max(1, steps)

    def _step(self, batch: Batch) -> Tensor:
        net = self.supernet.net
        net.at(self.step)
        output, _ = self.supernet(batch, self.step)
        loss = self.task.loss(output, batch)
        if (added := net.penalty()) is not None:
            loss = loss + added / group.size()
        for parameter in self.names:
            parameter.grad = None
        loss.backward()
        group.exchange_gradients(self.names)
        if not self.plan.lazy:
            for parameter in self.optimizer.state:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        rate, rows = self.plan.rate(self.step, self.steps), self.rows.gradients()
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = rate
        if self.plan.clip:
            gradients = [parameter.grad for parameter in self.names if parameter.grad is not None]
            gradients += [gradient for _, gradient in rows.values()]
            norm = torch.nn.utils.get_total_norm(gradients)
            torch._foreach_mul_(gradients, (self.plan.clip / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        self.rows.step(rows, rate, self.step + 1)
        return loss.detach()

    @cached_property
    def steps(self) -> int:
        """Steps of the whole plan, early stopping apart."""
        return self.plan.steps or self.plan.epochs * self.data.steps_per_epoch(self.plan.batch)

    def _learn(self) -> None:
        """A step of the sampler, where one is due."""
        assert self.learning is not None and self.held is not None
        taken = self.learning.lessons(self.step)
        if taken == self.learning.lessons(self.step - 1):
            return
        if self.lessons is None:
            size = self.learning.batch or self.plan.batch
            self.lessons = self.held.batches(size, seed_of(self.seed, "held rows"), taken - 1)
        batch, net, sampler = next(self.lessons), self.supernet.net, self.supernet.sampler
        learner, learned = self.optimizers["learner"]
        x, task = net.embed(batch), self.task.eval()
        with momentum(net, 0.0):
            mix = sampler.relaxed(x, self.step - 1)
            loss = task.loss(net(x, mix), batch)
            if self.penalty is not None:
                loss = loss + self.penalty(mix, sampler) / group.size()
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
        rows = {f"rows.{kind}.{name}": value for (kind, name), value in self.rows.moments.items()}
        return {**self.weights(), **moments, **rows, "step": torch.tensor(self.step)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue where `state` was taken."""
        load(self.supernet, self.task, state)
        self.step, self.batches, self.lessons = int(state["step"]), None, None
        for (kind, name), moment in self.rows.moments.items():
            moment.copy_(state[f"rows.{kind}.{name}"])
        for optimizer, (adam, names) in self.optimizers.items():
            by_name = {name: parameter for parameter, name in names.items()}
            adam.state.clear()
            for key, value in state.items():
                if key.startswith(f"{optimizer}."):
                    _, kind, name = key.split(".", 2)
                    on_host = kind == "step" and self.plan.optimizer == "adagrad" and optimizer == "optimizer"
                    adam.state[by_name[name]][kind] = value.clone().to("cpu" if on_host else by_name[name].device)


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


@dataclass
class Stopping:
    """Early stopping, one telling an epoch: keeps the best value and its weights, says when patience has run out.

    before: epochs at the beginning that do not count, as a part of the model does not act yet.
    """

    patience: int
    before: int = 0
    best: float = -inf
    best_epoch: int = 0
    epochs: int = 0

    def better(self, value: float) -> bool:
        """Take note of an epoch's value; whether it is the best so far. NaN never is."""
        self.epochs += 1
        if self.epochs > self.before and value > self.best:
            self.best, self.best_epoch = value, self.epochs
            return True
        return False

    @property
    def over(self) -> bool:
        return bool(self.patience) and self.epochs - max(self.best_epoch, self.before) >= self.patience


@dataclass(frozen=True)
class Outcome:
    """A finished training: the best weights, their validation value, and (loss, value) of each epoch.

    Without weights, and with a value of -inf, it diverged: no epoch gave a finite value.
    """

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
        return Outcome(fit.weights(), judge(fit.supernet.steadily), 0, 0, ())
    steps = fit.data.steps_per_epoch(plan.batch)
    before = fit.learning.after // steps if fit.learning else 0
    stopping, best, curve = Stopping(plan.patience, before), dict[str, Tensor](), list[tuple[float, float]]()
    if saved is not None:
        fit.restore({name: value for name, value in saved.items() if not name.startswith(("best.", "curve"))})
        best = {name.removeprefix("best."): value for name, value in saved.items() if name.startswith("best.")}
        for loss, value in saved["curve"].tolist():
            curve.append((loss, value))
            stopping.better(value)
    while stopping.epochs < plan.epochs and not stopping.over:
        loss = fit.advance(steps)
        fit.supernet.eval()
        curve.append((loss, judge(fit.supernet.steadily)))
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
    return Outcome(best, stopping.best, stopping.best_epoch, fit.step, tuple(curve))
