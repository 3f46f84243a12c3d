"""One path a step, every option equally likely (AutoTower, Algorithm 1; after SPOS, Guo et al., 2020).

Options may also open one after the other, which is ours: what joins later learns to work with what is there. Where all
begin at once, options that meet only now and then take long to agree on what their outputs mean (docs/ranking.md).
"""

from random import Random
from typing import Any

from nascore.samplers import Sampler
from nascore.space import Decision, Mix, Space


class Uniform(Sampler):
    """A member drawn uniformly at each step; over the first `growth` steps only among the options that are open.

    Each decision opens its options in a random order of its own, evenly over those steps.
    """

    def __init__(self, space: Space, seed: int, growth: int = 0) -> None:
        super().__init__(space, seed)
        self.growth = growth
        self.order = {
            name: Random(f"growth/{seed}/{name}").sample(decision.options, len(decision.options))
            for name, decision in space.decisions.items()
        }

    def forward(self, x: Any, step: int) -> Mix:
        space = self.opened(step) if step < self.growth else self.space
        return self.space.mix(space.sample(Random(f"uniform/{self.seed}/{step}")))

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
