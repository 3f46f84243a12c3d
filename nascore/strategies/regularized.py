"""Regularized evolution whose mutations become fewer as it goes on (Real et al., 2019; NASRec §4.4 and 5.1)."""

from collections.abc import Sequence

from nascore.plugins import bounded
from nascore.space import Genotype, Space
from nascore.strategies import Strategy


class Regularized(Strategy):
    """The last `population` of all told are alive, however good they are.

    The best of `sample` of them is the parent of the next `children`, which are told together. A child differs from its
    parent in `mutations` decisions, one fewer after every `decay` batches of children, but always in one; never in more
    than a quarter of all decisions, where the space has fewer than the paper's.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        first: Sequence[Genotype] = (),
        population: int = 64,
        sample: int = 32,
        children: int = 16,
        mutations: int = 5,
        decay: int = 20,
    ) -> None:
        super().__init__(space, seed, first)
        self.population, self.sample, self.children = population, sample, children
        self.mutations, self.decay = mutations, decay
        bounded(self, population=1, sample=1, children=1, mutations=1, decay=1)
        self.changeable = sum(decision.size() > 1 for decision in space.decisions.values())

    def ask(self) -> list[Genotype]:
        rng = self.rng()
        if not self.told:
            return self.opening(self.population, rng)
        living = [trial for trial in self.told[-self.population :] if trial.score is not None]
        children: list[Genotype] = []
        if living and self.changeable:
            met = rng.sample(living, min(self.sample, len(living)))
            parent = max(met, key=lambda trial: trial.score or 0.0).genotype
            times = max(1, min(self.changeable // 4, self.mutations - (self.tellings - 1) // self.decay))
            children = self.fresh(lambda: self.note(self.space.mutate(parent, rng, times=times), parent), self.children)
        return children + self.uniform(self.children - len(children), rng, children)
