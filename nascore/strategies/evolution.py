"""Evolution of one-shot candidates (AutoTower, Algorithm 2): half crossovers, half mutations of the best so far."""

from collections.abc import Sequence

from nascore.space import Genotype, Space
from nascore.strategies import Strategy


class Evolution(Strategy):
    """A generation is `population` genotypes; parents are drawn uniformly from the best `population // 2` of all told.

    mutation: probability by which each decision of a mutant is redrawn. Nothing is scored twice: what crossover and
    mutation cannot find new in ten tries each is filled up with uniform draws.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        first: Sequence[Genotype] = (),
        population: int = 50,
        mutation: float = 0.1,
    ) -> None:
        super().__init__(space, seed, first)
        if population < 2 or not 0 < mutation <= 1:
            raise ValueError(f"evolution: population >= 2 and 0 < mutation <= 1 do not hold: {population}, {mutation}")
        self.population, self.mutation = population, mutation

    def ask(self) -> list[Genotype]:
        rng = self.rng()
        if not self.told:
            return self.opening(self.population, rng)
        top = [trial.genotype for trial in self.best(self.population // 2)]

        def crossed() -> Genotype:
            one, other = rng.choice(top), rng.choice(top)
            return self.note(self.space.cross(one, other, rng), one, other)

        def mutated() -> Genotype:
            parent = rng.choice(top)
            return self.note(self.space.mutate(parent, rng, chance=self.mutation), parent)

        children = self.fresh(crossed, self.population // 2) if top else []
        children += self.fresh(mutated, self.population - self.population // 2, children) if top else []
        return children + self.uniform(self.population - len(children), rng, children)
