"""The tree-structured Parzen estimator (Bergstra et al., 2011), by Optuna; and what Optuna's strategies share."""

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from nascore.space import Genotype, Space
from nascore.strategies import Strategy, Trial

FEW = 32
GOOD = 25
TRIES = 20


class Tpe(Strategy):
    """Optuna's sampler, built anew for each batch; what a batch has drawn so far counts as bad (constant liar).

    So that a long search asks as fast as a short one, the sampler sees the best 25 trials, as many as it ever calls
    good, and the latest `memory`. Failed trials rank below all others.

    Args:
        space: What may be proposed.
        seed: Of all draws.
        first: Proposed before anything else.
        batch: Genotypes asked for at a time.
        candidates: Draws like the good ones, of which the sampler takes the most promising.
        multivariate: Whether it models all decisions jointly, which takes a third of the time, or each by itself, which
            finds more where decisions matter mostly one by one.
        memory: Latest trials it sees.
    """

    def __init__(
        self,
        space: Space,
        seed: int,
        first: Sequence[Genotype] = (),
        batch: int = 50,
        candidates: int = 24,
        multivariate: bool = False,
        memory: int = 225,
    ) -> None:
        super().__init__(space, seed, first)
        if min(batch, candidates, memory) < 1:
            raise ValueError(f"tpe: batch, candidates and memory must be positive, not {batch}, {candidates}, {memory}")
        self.batch, self.candidates, self.multivariate, self.memory = batch, candidates, multivariate, memory
        self.questions = Questions(space)
        self.answers: list[FrozenTrial] = []

    def ask(self) -> list[Genotype]:
        rng = self.rng()
        if not self.told:
            return self.opening(self.batch, rng)
        sampler = TPESampler(seed=rng.getrandbits(32), n_ei_candidates=self.candidates, multivariate=self.multivariate)
        study = self.questions.study(sampler, [StudyDirection.MAXIMIZE], self.remembered())
        found = self.new(self.questions.members(study, TRIES * self.batch, rng), self.batch)
        return found + self.uniform(self.batch - len(found), rng, found)

    def tell(self, trials: Sequence[Trial]) -> None:
        super().tell(trials)
        for trial in trials:
            values = None if trial.score is None else [trial.score]
            self.answers.append(self.questions.answer(trial.genotype, values))

    def remembered(self) -> list[FrozenTrial]:
        """The best and the latest trials, in the order told."""
        scored = [place for place, trial in enumerate(self.told) if trial.score is not None]
        best = sorted(scored, key=lambda place: -(self.told[place].score or 0.0))[:GOOD]
        latest = range(len(self.told))[-self.memory :]
        return [self.answers[place] for place in sorted({*best, *latest})]


class Questions:
    """A space's decisions as Optuna's parameters.

    A decision of few choices is one parameter, the number of its choice; any other is a yes or no for each option, and
    where that opens too many or too few of them, it is put right at random.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.choices = {
            name: list(decision.choices())
            for name, decision in space.decisions.items()
            if decision.most == 1 or decision.size() <= FEW
        }
        self.distributions: dict[str, BaseDistribution] = {}
        for name, decision in space.decisions.items():
            if name in self.choices:
                self.distributions[name] = CategoricalDistribution(range(len(self.choices[name])))
            else:
                for option in decision.options:
                    self.distributions[f"{name}={option}"] = CategoricalDistribution((False, True))

    def answer(
        self, genotype: Genotype, values: list[float] | None, marks: dict[str, Any] | None = None
    ) -> FrozenTrial:
        """A trial as Optuna has it; one without values is pruned, which its samplers rank last or leave out."""
        params: dict[str, int | bool] = {}
        for name, chosen in genotype.items():
            if name in self.choices:
                params[name] = self.choices[name].index(chosen)
            else:
                for option in self.space.decisions[name].options:
                    params[f"{name}={option}"] = option in chosen
        state = TrialState.PRUNED if values is None else TrialState.COMPLETE
        return create_trial(
            state=state, values=values, params=params, distributions=self.distributions, system_attrs=marks
        )

    def genotype(self, params: Mapping[str, Any], rng: Random) -> Genotype:
        """What was drawn; a genotype over the decisions, a member of the space or not."""
        genotype: dict[str, tuple[str, ...]] = {}
        for name, decision in self.space.decisions.items():
            if name in self.choices:
                genotype[name] = self.choices[name][params[name]]
            else:
                chosen = [option for option in decision.options if params[f"{name}={option}"]]
                closed = [option for option in decision.options if option not in chosen]
                chosen += rng.sample(closed, max(0, decision.least - len(chosen)))
                chosen = rng.sample(chosen, min(len(chosen), decision.most))
                genotype[name] = tuple(option for option in decision.options if option in chosen)
        return genotype

    def study(self, sampler: BaseSampler, directions: Sequence[StudyDirection], trials: list[FrozenTrial]) -> Study:
        """A study that was told the trials; without the line that Optuna logs for each study."""
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(sampler=sampler, directions=directions)
        finally:
            optuna.logging.set_verbosity(verbosity)
        study.add_trials(trials)
        return study

    def members(self, study: Study, tries: int, rng: Random) -> Iterator[Genotype]:
        """The members of the space among so many draws of the study's sampler."""
        for _ in range(tries):
            genotype = self.genotype(study.ask(self.distributions).params, rng)
            if genotype in self.space:
                yield genotype
