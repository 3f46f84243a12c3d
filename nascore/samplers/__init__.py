"""Samplers: what runs at a training step, and for those that learn, what they would decide. One a file.

To add one: write `nascore/samplers/<name>.py` with one class that extends `Sampler`. Draws hang on (seed, step);
draws that differ by instance also on the row's global index. What a sampler learns are parameters of its own; steps on
validation batches train them (`nascore.training.Learning`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import log
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.space import Choice, Genotype, Infeasible, Mix, Space, key


class Sampler(nn.Module, ABC):
    """Gives every option of every decision of `space` a weight at each step.

    picks_one: whether it takes only spaces of which every decision picks one option. picks_any: only such of which
    every decision may open any number.
    """

    picks_one: ClassVar[bool] = False
    picks_any: ClassVar[bool] = False

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__()
        others = [name for name, one in space.decisions.items() if not one.least == one.most == 1]
        if self.picks_one and others:
            raise ValueError(f"{type(self).__name__} picks one option of a decision, no more or less as {others} may")
        fixed = [name for name, one in space.decisions.items() if one.least or one.most < len(one.options)]
        if self.picks_any and fixed:
            raise ValueError(f"{type(self).__name__} opens any number of options, not as many as {fixed} must")
        self.space, self.seed = space, seed

    @abstractmethod
    def forward(self, x: Any, step: int) -> Mix:
        """The mix for embedded inputs `x` at a step; the same on every rank."""

    @property
    def learns(self) -> bool:
        """Whether it has parameters to learn."""
        return any(True for _ in self.parameters())

    def relaxed(self, x: Any, step: int) -> Mix:
        """The mix under which a learning step's loss is computed: its gradient reaches the parameters."""
        return self(x, step)  # type: ignore[no-any-return]

    def steady(self, x: Any) -> Mix | None:
        """The mix of embedded inputs in a model that keeps its sampler; None where none does."""
        return None

    def cost(self) -> Cost:
        """What it adds to a model that keeps it."""
        return Cost()

    def settle(self) -> None:
        """Bring the parameters back to where they may be, after a learning step."""

    def decide(self, space: Space) -> Genotype | None:
        """The member of `space`, its own or a narrower one, that it has learned to prefer; None if it learns none."""
        return None

    def facts(self, step: int) -> dict[str, float]:
        """What to log about a step, by name."""
        return {}


CONTRACT = Sampler


class Logits(Sampler):
    """Learns one logit for each option, all 0 at first; what it prefers is the option of the largest."""

    picks_one = True

    def __init__(self, space: Space, seed: int) -> None:
        super().__init__(space, seed)
        self.options = {name: decision.options for name, decision in space.decisions.items()}
        self.logits = nn.Parameter(torch.zeros(sum(len(options) for options in self.options.values())))

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """The part of each decision in what holds one number for each option."""
        return dict(zip(self.options, flat.split([len(options) for options in self.options.values()]), strict=True))

    def softmax(self, flat: Tensor) -> dict[str, Tensor]:
        """The softmax of each decision's part."""
        return {name: part.softmax(0) for name, part in self.split(flat).items()}

    def shares(self) -> dict[str, dict[str, float]]:
        """The softmax of the logits, on the host; waits for the device."""
        soft = self.softmax(self.logits.detach().cpu().double())
        return {name: dict(zip(options, soft[name].tolist(), strict=True)) for name, options in self.options.items()}

    def decide(self, space: Space) -> Genotype:
        flat = iter(self.logits.tolist())
        logits = {name: {option: next(flat) for option in options} for name, options in self.options.items()}
        return likeliest(space, lambda name, choice: sum(logits[name][option] for option in choice))

    def facts(self, step: int) -> dict[str, float]:
        """For each decision share/<decision>/<option>, the softmax of its logits, and entropy/<decision>, in nats."""
        facts = {}
        for name, shares in self.shares().items():
            facts[f"entropy/{name}"] = -sum(share * log(share) for share in shares.values() if share)
            facts |= {f"share/{name}/{option}": share for option, share in shares.items()}
        return facts


def likeliest(space: Space, worth: Callable[[str, Choice], float]) -> Genotype:
    """The member made of each decision's worthiest choice, repaired where it breaks a constraint.

    A repair is a run of single changes, each the one that loses least worth for what it brings the genotype nearer.
    Raises `Infeasible` where no single change brings it nearer any more. Every choice of a decision is looked at, so it
    is for decisions of few choices.
    """
    choices = {name: list(decision.choices()) for name, decision in space.decisions.items()}
    genotype = {name: max(known, key=lambda choice: worth(name, choice)) for name, known in choices.items()}
    while not space.allows(genotype):
        excess = space.excess(genotype)
        nearest, least = None, float("inf")
        for name, known in choices.items():
            for choice in known:
                changed = {**genotype, name: choice}
                nearer = excess - space.excess(changed)
                lost = worth(name, genotype[name]) - worth(name, choice)
                if nearer > 0 and lost / nearer < least:
                    nearest, least = changed, lost / nearer
        if nearest is None:
            why = f"nearest {key(genotype)}: {space.explain(genotype)}"
            raise Infeasible(f"what was learned cannot be brought within the limits; {why}")
        genotype = nearest
    return genotype
