"""What may be decided, apart from what is built: decisions, spaces of genotypes, and the mixes they become.

A genotype names, for each decision, the options that are open. A mix gives every option a weight; under the mix of a
genotype each open option weighs 1 and each closed one 0.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import comb, inf, prod
from random import Random
from typing import Any, Protocol

from torch import Tensor

Choice = tuple[str, ...]
Genotype = Mapping[str, Choice]
Weights = tuple[float, ...] | Tensor
Mix = Mapping[str, Weights]

DRAWS = 10_000
RARE = 1_000
MIXING = 20


class Infeasible(ValueError):
    """No member of the space keeps its constraint, or none was found in 10,000 tries."""


@dataclass(frozen=True)
class Decision:
    """Open at least `least` and at most `most` of the options; "pick one" is the default."""

    name: str
    options: tuple[str, ...]
    least: int = 1
    most: int = 1

    def __post_init__(self) -> None:
        if len(set(self.options)) != len(self.options):
            raise ValueError(f"decision {self.name!r}: an option is named twice in {self.options}")
        if not 0 <= self.least <= self.most <= len(self.options):
            raise ValueError(
                f"decision {self.name!r}: 0 <= least <= most <= {len(self.options)} options does not hold for "
                f"least={self.least}, most={self.most}"
            )

    def choices(self) -> Iterator[tuple[str, ...]]:
        """Every legal set of open options, in the order of the options."""
        for count in range(self.least, self.most + 1):
            yield from combinations(self.options, count)

    def size(self) -> int:
        return sum(comb(len(self.options), count) for count in range(self.least, self.most + 1))

    def sample(self, rng: Random) -> tuple[str, ...]:
        """Draw a number of options uniformly, then as many options without replacement, in their own order."""
        if self.least == self.most == 1:
            return (self.options[rng.randrange(len(self.options))],)
        chosen = set(rng.sample(self.options, rng.randint(self.least, self.most)))
        return tuple(option for option in self.options if option in chosen)

    def __contains__(self, chosen: tuple[str, ...]) -> bool:
        ordered = tuple(option for option in self.options if option in set(chosen))
        return ordered == tuple(chosen) and self.least <= len(chosen) <= self.most


class Constraint(Protocol):
    """What a narrower space asks of its members, such as a budget."""

    def excess(self, genotype: Genotype) -> float:
        """How far the genotype is from keeping the constraint; it keeps it at 0 or less."""

    def explain(self, genotype: Genotype) -> str:
        """One line that sets what the genotype needs against what is allowed."""


class Space:
    """All genotypes over some decisions that keep every constraint.

    >>> space = Space([Decision("op", ("a", "b")), Decision("from", ("raw", "1"), most=2)])
    >>> space.size(), {"op": ("a",), "from": ("raw",)} in space
    (6, True)
    """

    def __init__(
        self,
        decisions: Sequence[Decision],
        constraints: Sequence[Constraint] = (),
        canonical: Callable[[Genotype], Genotype] = lambda genotype: genotype,
    ) -> None:
        """canonical: the genotype that stands for all that are the same network."""
        self.decisions = {decision.name: decision for decision in decisions}
        self.constraints, self.canonical = tuple(constraints), canonical
        if len(self.decisions) != len(decisions):
            raise ValueError(f"a decision is named twice in {[decision.name for decision in decisions]}")

    def size(self) -> int:
        """Number of genotypes before constraints."""
        return prod(decision.size() for decision in self.decisions.values())

    def members(self) -> Iterator[Genotype]:
        """Every member in a fixed order; for spaces small enough to walk."""
        names = list(self.decisions)
        for chosen in product(*(decision.choices() for decision in self.decisions.values())):
            genotype = dict(zip(names, chosen, strict=True))
            if self.allows(genotype):
                yield genotype

    def allows(self, genotype: Genotype) -> bool:
        return all(constraint.excess(genotype) <= 0 for constraint in self.constraints)

    def excess(self, genotype: Genotype) -> float:
        """How far the genotype is from keeping the constraint that it breaks most; it keeps all at 0 or less."""
        return max((constraint.excess(genotype) for constraint in self.constraints), default=0.0)

    def explain(self, genotype: Genotype) -> str:
        """What the constraints that the genotype breaks say of it."""
        return "; ".join(one.explain(genotype) for one in self.constraints if one.excess(genotype) > 0)

    def __contains__(self, genotype: Genotype) -> bool:
        return (
            genotype.keys() == self.decisions.keys()
            and all(chosen in self.decisions[name] for name, chosen in genotype.items())
            and self.allows(genotype)
        )

    def sample(self, rng: Random) -> Genotype:
        """A member: every decision drawn by itself, redrawn together until the constraints are kept.

        So members are equally likely where each decision picks one option; see `Decision.sample` for others. Where
        1,000 draws meet no member, the one nearest to the constraints walks: see `_walk`.
        """
        nearest, excess = self._nearest(
            lambda: {name: decision.sample(rng) for name, decision in self.decisions.items()}, RARE
        )
        return nearest if excess <= 0 else self._walk(nearest, excess, rng)

    def mutate(self, genotype: Genotype, rng: Random, *, chance: float = 0.0, times: int = 0) -> Genotype:
        """A member near `genotype`: each decision is redrawn with probability `chance`, or `times` of them change."""
        if bool(chance) == bool(times):
            raise ValueError("mutate takes either chance or times")
        open_to_change = [name for name, decision in self.decisions.items() if decision.size() > 1]
        if times > len(open_to_change):
            raise Infeasible(f"{times} decisions cannot change: only {len(open_to_change)} have an alternative")

        def draw() -> Genotype:
            if chance:
                names = [name for name in self.decisions if rng.random() < chance]
                return {**genotype, **{name: self.decisions[name].sample(rng) for name in names}}
            changed = dict(genotype)
            for name in rng.sample(open_to_change, times):
                while changed[name] == genotype[name]:
                    changed[name] = self.decisions[name].sample(rng)
            return changed

        return self._first_allowed(draw)

    def cross(self, one: Genotype, other: Genotype, rng: Random) -> Genotype:
        """A member that takes every decision from one of two parents, each with probability 1/2."""
        return self._first_allowed(
            lambda: {name: (one if rng.random() < 0.5 else other)[name] for name in self.decisions}
        )

    def mix(self, genotype: Genotype) -> Mix:
        """Weight 1 for each open option, 0 for each closed one, on the host."""
        return {
            name: tuple(1.0 if option in genotype[name] else 0.0 for option in decision.options)
            for name, decision in self.decisions.items()
        }

    def narrow(self, genotype: Genotype) -> "Space":
        """The space whose only member is `genotype`."""
        if genotype not in self:
            raise ValueError(f"not a member of the space: {key(genotype)}")
        return Space(
            [Decision(name, genotype[name], len(genotype[name]), len(genotype[name])) for name in self.decisions]
        )

    def within(self, constraint: Constraint) -> "Space":
        """The members that also keep `constraint`; the space itself stays as it is."""
        return Space(list(self.decisions.values()), (*self.constraints, constraint), self.canonical)

    def _nearest(self, draw: Callable[[], Genotype], draws: int) -> tuple[Genotype, float]:
        """The first member among so many draws, else what is nearest to being one, and how far it is from that."""
        nearest, least = None, inf
        for _ in range(draws):
            genotype = draw()
            excess = self.excess(genotype)
            if nearest is None or excess < least:
                nearest, least = genotype, excess
            if least <= 0:
                break
        assert nearest is not None
        return nearest, least

    def _first_allowed(self, draw: Callable[[], Genotype]) -> Genotype:
        nearest, excess = self._nearest(draw, DRAWS)
        if excess > 0:
            raise self._infeasible(nearest, f"{DRAWS:,} draws")
        return nearest

    def _walk(self, genotype: Genotype, excess: float, rng: Random) -> Genotype:
        """A member drawn from where draws of whole genotypes meet none.

        Decisions are redrawn one at a time and keep what was drawn if that takes the genotype no further from the
        constraints, or no longer out of them. Once within, that is the Metropolis rule for what `sample` draws from:
        20 redraws of each decision, in the mean, forget where the walk came in. Members that no change of one decision
        connects with it are not met.
        """
        names = [name for name, decision in self.decisions.items() if decision.size() > 1]
        left = DRAWS if names else 0
        while left:
            left -= 1
            name = rng.choice(names)
            changed = {**genotype, name: self.decisions[name].sample(rng)}
            if (beyond := self.excess(changed)) > max(excess, 0):
                continue
            if beyond <= 0 < excess:
                left = MIXING * len(names)
            genotype, excess = changed, beyond
        if excess > 0:
            raise self._infeasible(genotype, f"{RARE:,} draws and {DRAWS:,} changes of the nearest")
        return genotype

    def _infeasible(self, nearest: Genotype, tried: str) -> Infeasible:
        return Infeasible(f"no member found in {tried}; the nearest one was {key(nearest)}: {self.explain(nearest)}")


def key(genotype: Genotype) -> str:
    """The genotype as one line of JSON, the same for equal genotypes."""
    return json.dumps({name: list(chosen) for name, chosen in genotype.items()}, sort_keys=True, separators=(",", ":"))


def parse(value: str | Mapping[str, Any]) -> Genotype:
    """A genotype from JSON, or from what JSON became."""
    loaded: Mapping[str, Any] = json.loads(value) if isinstance(value, str) else value
    return {name: (chosen,) if isinstance(chosen, str) else tuple(chosen) for name, chosen in loaded.items()}
