"""Strategies: what to try next. One a file.

To add one: write `nascore/strategies/<name>.py` with one class that extends `Strategy`; settings are further keyword
parameters with defaults, so `evolution:population=20` works on the command line. A strategy's state is what it was
told: `ask` depends on nothing but the constructor and the trials told so far, so a resume is a retelling. It draws with
`self.rng()`, which hangs on (seed, name, number of tellings). The tests then hold it to proposing members only, to
exact replay, to its pinned proposals, and to doing no worse than random search on a table.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from nascore.cost import Cost
from nascore.space import Genotype, Infeasible, Space, key

TRIES = 3
WALKED = 10_000


@dataclass(frozen=True)
class Trial:
    """A genotype that was scored: higher is better, None where scoring failed."""

    genotype: Genotype
    score: float | None
    cost: Cost = Cost()


class Strategy(ABC):
    """Asks for members of `space` in batches and is told how they did.

    first: genotypes proposed before anything else, such as yesterday's front; those that are no members are left out.
    """

    def __init__(self, space: Space, seed: int, first: Sequence[Genotype] = ()) -> None:
        self.space, self.seed = space, seed
        self.first = tuple({self.name(genotype): genotype for genotype in first if genotype in space}.values())
        self.told: list[Trial] = []
        self.known: set[str] = set()
        self.tellings = 0
        self.parents: dict[str, tuple[Genotype, ...]] = {}

    @abstractmethod
    def ask(self) -> list[Genotype]:
        """The next genotypes to score, all members of the space and none of them told before; [] when all were."""

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take note of one asked batch's results, in the order asked."""
        self.told.extend(trials)
        self.known.update(self.name(trial.genotype) for trial in trials)
        self.tellings += 1

    def rng(self) -> Random:
        return Random(f"{type(self).__name__}/{self.seed}/{self.tellings}")

    def name(self, genotype: Genotype) -> str:
        """What all genotypes of one network have in common."""
        return key(self.space.canonical(genotype))

    def best(self, count: int) -> list[Trial]:
        """The best told trials, ties in the order told."""
        scored = [trial for trial in self.told if trial.score is not None]
        return sorted(scored, key=lambda trial: -(trial.score or 0.0))[:count]

    def note(self, child: Genotype, *parents: Genotype) -> Genotype:
        """Remember whose child it is, unless it was told before; returns the child."""
        if self.name(child) not in self.known:
            self.parents.setdefault(key(child), parents)
        return child

    def opening(self, count: int, rng: Random) -> list[Genotype]:
        """All of `first`, filled up to `count` with uniform draws."""
        first = list(self.first)
        return first + self.uniform(count - len(first), rng, first)

    def uniform(self, count: int, rng: Random, asked: Sequence[Genotype] = ()) -> list[Genotype]:
        """Up to `count` new genotypes drawn uniformly; fewer of a small space are all that it has left.

        Raises Infeasible where draws meet no member at all.
        """
        found, small = list[Genotype](), self.space.size() <= WALKED
        for _ in range(1 if small else TRIES):
            found += self.fresh(lambda: self.space.sample(rng), count - len(found), [*asked, *found])
        if len(found) < count and small:
            left = list(self.space.members())
            rng.shuffle(left)
            found += self.new(left, count - len(found), [*asked, *found])
        if not (found or asked or self.told):
            found.append(self.space.sample(rng))
        return found

    def fresh(self, draw: Callable[[], Genotype], count: int, asked: Sequence[Genotype] = ()) -> list[Genotype]:
        """Up to `count` new genotypes, in at most ten draws for each; a draw that meets no member ends them."""
        return self.new((draw() for _ in range(10 * count)), count, asked)

    def new(self, drawn: Iterable[Genotype], count: int, asked: Sequence[Genotype] = ()) -> list[Genotype]:
        """The first `count` genotypes that were neither told nor asked before."""
        taken = {self.name(genotype) for genotype in asked} | self.known
        found: list[Genotype] = []
        if count < 1:
            return found
        try:
            for genotype in drawn:
                if (name := self.name(genotype)) not in taken:
                    taken.add(name)
                    found.append(genotype)
                if len(found) == count:
                    break
        except Infeasible:
            pass
        return found


CONTRACT = Strategy
