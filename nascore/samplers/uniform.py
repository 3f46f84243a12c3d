"""One path a step, every option equally likely (AutoTower, Algorithm 1; after SPOS, Guo et al., 2020).

Options that meet only now and then take long to agree on what their outputs mean (docs/ranking.md). Two remedies are
ours: options that open one after the other, so that what joins later learns to work with what is there, and an anchor,
one path that runs again and again for the others to agree with.
"""

from functools import cached_property
from random import Random
from typing import Any

from nascore.samplers import Sampler
from nascore.space import Choice, Decision, Genotype, Mix, Space


class Uniform(Sampler):
    """A member drawn uniformly at each step; over the first `growth` steps only among the options that are open.

    Each decision opens its options in a random order of its own, evenly over those steps. anchor: unless 0, every so
    manyth step runs the first options of all.
    """

    def __init__(self, space: Space, seed: int, growth: int = 0, anchor: int = 0) -> None:
        super().__init__(space, seed)
        self.growth, self.anchor = growth, anchor
        self.order = {
            name: Random(f"growth/{seed}/{name}").sample(decision.options, len(decision.options))
            for name, decision in space.decisions.items()
        }

    def forward(self, x: Any, step: int) -> Mix:
        if self.anchor and step % self.anchor == 0:
            return self.space.mix(self.anchored)
        space = self.opened(step) if step < self.growth else self.space
        return self.space.mix(space.sample(Random(f"uniform/{self.seed}/{step}")))

    @cached_property
    def anchored(self) -> Genotype:
        """What the anchor runs: one option of each decision, or as many as must be open, the first in its order."""
        chosen: dict[str, Choice] = {}
        for name, decision in self.space.decisions.items():
            first = self.order[name][: max(decision.least, min(1, decision.most))]
            chosen[name] = tuple(option for option in decision.options if option in first)
        return chosen

    def opened(self, step: int) -> Space:
        """The members all of whose options are open at a step."""
        decisions = []
        for name, decision in self.space.decisions.items():
            total = len(decision.options)
            count = min(total, max(1 + total * step // self.growth, decision.least))
            open_now = set(self.order[name][:count])
            options = tuple(option for option in decision.options if option in open_now)
            decisions.append(Decision(name, options, decision.least, min(decision.most, count)))
        return Space(decisions, self.space.constraints)
