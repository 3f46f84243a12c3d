"""Uniform random search without repetition."""

from collections.abc import Sequence

from nascore.plugins import bounded
from nascore.space import Genotype, Space
from nascore.strategies import Strategy


class RandomSearch(Strategy):
    """Members drawn uniformly, `batch` at a time."""

    def __init__(self, space: Space, seed: int, first: Sequence[Genotype] = (), batch: int = 50) -> None:
        super().__init__(space, seed, first)
        self.batch = batch
        bounded(self, batch=1)

    def ask(self) -> list[Genotype]:
        rng = self.rng()
        return self.uniform(self.batch, rng) if self.told else self.opening(self.batch, rng)
