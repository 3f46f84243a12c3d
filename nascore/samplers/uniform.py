"""One path a step, every option equally likely (AutoTower, Algorithm 1; after SPOS, Guo et al., 2020)."""

from random import Random
from typing import Any

from nascore.samplers import Sampler
from nascore.space import Mix


class Uniform(Sampler):
    """A member drawn uniformly from the space at each step."""

    def forward(self, x: Any, step: int) -> Mix:
        return self.space.mix(self.space.sample(Random(f"uniform/{self.seed}/{step}")))
