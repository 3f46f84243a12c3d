"""NSGA-II (Deb et al., 2002), by Optuna: a front between high scores and few MACs."""

from collections.abc import Sequence

from optuna.samplers import NSGAIISampler
from optuna.study import Study, StudyDirection

from nascore.space import Genotype, Space
from nascore.strategies import Strategy, Trial
from nascore.strategies.tpe import Questions

DIRECTIONS = (StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE)
FIRST_GENERATION = {"NSGAIISampler:generation": 0}  # as Optuna marks a trial that may become a parent of the next
TRIES = 5


class Nsga2(Strategy):
    """A generation is `population` genotypes, bred by Optuna's sampler from the best `population` of all before.

    A parent wins a tournament of two; children cross two parents with probability `crossover`, decision by decision,
    and redraw each decision with a probability of one in their number.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        first: Sequence[Genotype] = (),
        population: int = 50,
        crossover: float = 0.9,
    ) -> None:
        super().__init__(space, seed, first)
        if population < 2 or not 0 <= crossover <= 1:
            raise ValueError(f"nsga2: population >= 2 and 0 <= crossover <= 1 do not hold: {population}, {crossover}")
        self.population, self.crossover = population, crossover
        self.questions = Questions(space)
        self.pool: list[Trial] = []

    def ask(self) -> list[Genotype]:
        rng = self.rng()
        if not self.told:
            return self.opening(self.population, rng)
        study = self.study(self.sampler(rng.getrandbits(32)))
        found = self.new(self.questions.members(study, TRIES * self.population, rng), self.population)
        return found + self.uniform(self.population - len(found), rng, found)

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        self.pool = self.survivors() + [trial for trial in trials if trial.score is not None]

    def survivors(self) -> list[Trial]:
        """The best of the last generation told and its parents, who became parents in turn."""
        sampler = self.sampler(0)
        return [self.pool[chosen.number] for chosen in sampler.select_parent(self.study(sampler), 1)]

    def sampler(self, seed: int) -> NSGAIISampler:
        """Fewer parents than the population where trials have failed: Optuna would draw at random until it is whole."""
        population = max(2, min(self.population, len(self.pool)))
        return NSGAIISampler(population_size=population, crossover_prob=self.crossover, seed=seed)

    def study(self, sampler: NSGAIISampler) -> Study:
        answers = [
            self.questions.answer(trial.genotype, [trial.score or 0.0, float(trial.cost.macs)], FIRST_GENERATION)
            for trial in self.pool
        ]
        return self.questions.study(sampler, DIRECTIONS, answers)
