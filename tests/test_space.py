"""Decisions, genotypes, spaces and mixes."""

from collections import Counter
from itertools import islice
from random import Random

import pytest

from nascore.space import Decision, Genotype, Infeasible, Space, key, parse

OP = Decision("op", ("a", "b", "c"))
FROM = Decision("from", ("raw", "1", "2"), least=1, most=2)
GATE = Decision("gate", ("x", "y"), least=0, most=2)
SPACE = Space([OP, FROM, GATE])


class AtMost:
    """A constraint on the number of open options."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def excess(self, genotype: Genotype) -> float:
        return sum(len(chosen) for chosen in genotype.values()) - self.limit

    def explain(self, genotype: Genotype) -> str:
        return f"open {self.excess(genotype) + self.limit:.0f} of {self.limit}"


def test_a_decision_lists_what_it_allows() -> None:
    for decision in (OP, FROM, GATE):
        choices = list(decision.choices())
        assert len(choices) == len(set(choices)) == decision.size()
        assert all(chosen in decision for chosen in choices)
    assert list(FROM.choices()) == [("raw",), ("1",), ("2",), ("raw", "1"), ("raw", "2"), ("1", "2")]
    assert list(GATE.choices())[0] == ()


@pytest.mark.parametrize("chosen", [(), ("raw", "1", "2"), ("1", "raw"), ("raw", "raw"), ("3",)])
def test_a_decision_refuses_what_it_does_not_allow(chosen: tuple[str, ...]) -> None:
    assert chosen not in FROM


@pytest.mark.parametrize("decision", [OP, FROM, GATE], ids=lambda decision: str(decision.name))
def test_samples_of_a_decision_are_uniform_in_number_and_members(decision: Decision) -> None:
    rng = Random(1)
    drawn = Counter(decision.sample(rng) for _ in range(6_000))
    assert set(drawn) == set(decision.choices())
    numbers = decision.most - decision.least + 1
    for chosen, count in drawn.items():
        alike = sum(len(other) == len(chosen) for other in decision.choices())
        assert abs(count / 6_000 - 1 / numbers / alike) < 0.03


@pytest.mark.parametrize("least, most", [(-1, 1), (2, 1), (1, 4)])
def test_a_decision_with_impossible_bounds_is_an_error(least: int, most: int) -> None:
    with pytest.raises(ValueError, match="'op'.*least.*most"):
        Decision("op", ("a", "b", "c"), least, most)


def test_names_are_given_once() -> None:
    with pytest.raises(ValueError, match="named twice"):
        Decision("op", ("a", "a"))
    with pytest.raises(ValueError, match="named twice"):
        Space([OP, OP])


def test_a_space_holds_its_members_and_nothing_else() -> None:
    members = list(SPACE.members())
    assert len(members) == len({key(genotype) for genotype in members}) == SPACE.size() == 3 * 6 * 4
    assert all(genotype in SPACE for genotype in members)
    genotype = {"op": ("a",), "from": ("raw",), "gate": ()}
    assert genotype in SPACE
    assert {**genotype, "more": ("x",)} not in SPACE
    assert {"op": ("a",), "from": ("raw",)} not in SPACE
    assert {**genotype, "op": ("z",)} not in SPACE


def test_a_narrower_space_draws_members_only() -> None:
    narrow = SPACE.within(AtMost(2)).within(AtMost(3))
    rng = Random(2)
    allowed = {key(genotype) for genotype in narrow.members()}
    assert allowed == {key(g) for g in SPACE.members() if sum(map(len, g.values())) <= 2}
    one, other = narrow.sample(rng), narrow.sample(rng)
    for _ in range(200):
        drawn = [
            narrow.sample(rng),
            narrow.mutate(one, rng, chance=0.5),
            narrow.mutate(one, rng, times=1),
            narrow.cross(one, other, rng),
        ]
        assert all(key(genotype) in allowed and genotype in narrow for genotype in drawn)
        one, other = drawn[0], drawn[3]
    assert not SPACE.constraints, "the wide space stays as it is"


def test_mutation_by_times_changes_that_many_decisions() -> None:
    space = Space([OP, FROM, GATE, Decision("fixed", ("only",))])
    rng = Random(3)
    for times in (1, 2, 3):
        for _ in range(50):
            parent = space.sample(rng)
            child = space.mutate(parent, rng, times=times)
            assert sum(child[name] != parent[name] for name in parent) == times
    with pytest.raises(Infeasible, match="only 3 have an alternative"):
        space.mutate(space.sample(rng), rng, times=4)


def test_mutation_by_chance_redraws_each_decision_with_that_probability() -> None:
    space = Space([Decision(str(i), tuple("abcdefghij")) for i in range(10)])
    rng = Random(4)
    parent = space.sample(rng)
    changed: Counter[str] = Counter()
    for _ in range(2_000):
        child = space.mutate(parent, rng, chance=0.3)
        changed.update(name for name in parent if child[name] != parent[name])
    assert all(abs(changed[name] / 2_000 - 0.3 * 0.9) < 0.04 for name in parent)


@pytest.mark.parametrize("chance, times", [(0.0, 0), (0.5, 1)])
def test_mutation_takes_either_a_chance_or_a_number(chance: float, times: int) -> None:
    with pytest.raises(ValueError, match="either"):
        SPACE.mutate(SPACE.sample(Random(0)), Random(0), chance=chance, times=times)


def test_a_cross_takes_every_decision_from_one_parent() -> None:
    rng = Random(5)
    one, other = {"op": ("a",), "from": ("1",), "gate": ("x",)}, {"op": ("b",), "from": ("2",), "gate": ()}
    children = Counter(key(SPACE.cross(one, other, rng)) for _ in range(800))
    assert len(children) == 8
    assert all(60 < count < 140 for count in children.values())
    for child in map(parse, children):
        assert all(child[name] in (one[name], other[name]) for name in child)


def test_a_mix_opens_what_the_genotype_opens() -> None:
    mix = SPACE.mix({"op": ("b",), "from": ("raw", "2"), "gate": ()})
    assert mix == {"op": (0.0, 1.0, 0.0), "from": (1.0, 0.0, 1.0), "gate": (0.0, 0.0)}


def test_the_narrowed_space_has_one_member() -> None:
    genotype = {"op": ("b",), "from": ("raw", "2"), "gate": ()}
    narrow = SPACE.narrow(genotype)
    assert narrow.size() == 1
    assert [dict(member) for member in narrow.members()] == [genotype]
    assert narrow.sample(Random(0)) == genotype
    assert narrow.mix(genotype) == {"op": (1.0,), "from": (1.0, 1.0), "gate": ()}
    with pytest.raises(ValueError, match="not a member"):
        SPACE.narrow({**genotype, "op": ("z",)})


def test_an_empty_space_says_what_the_nearest_genotype_needs() -> None:
    with pytest.raises(Infeasible, match=r'1,000 draws and 10,000 changes.*"gate":\[\].*open 2 of 1'):
        Space([OP, FROM, GATE]).within(AtMost(1)).sample(Random(0))
    with pytest.raises(Infeasible, match=r"1,000 draws.*open 1 of 0"):
        Space([Decision("fixed", ("only",))]).within(AtMost(0)).sample(Random(0))


class Lonely:
    """At most one decision is not "a"."""

    def excess(self, genotype: Genotype) -> float:
        return sum(chosen != ("a",) for chosen in genotype.values()) - 1

    def explain(self, genotype: Genotype) -> str:
        return f"{self.excess(genotype) + 1:.0f} of 1"


def test_members_too_rare_for_draws_are_met_all_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nascore.space.RARE", 10)
    space = Space([Decision(str(place), tuple("abcd")) for place in range(12)]).within(Lonely())
    rng = Random(6)
    drawn = Counter(key(space.sample(rng)) for _ in range(1_500))
    assert len(drawn) == 1 + 12 * 3, "of 16,777,216 genotypes, which ten draws do not meet"
    assert all(15 < count < 80 for count in drawn.values()), drawn


def test_a_walk_begins_at_the_nearest_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nascore.space.RARE", 50)
    monkeypatch.setattr("nascore.space.DRAWS", 0)
    space = Space([Decision(str(place), tuple("abcd")) for place in range(12)])
    rng = Random(6)
    nearest = min((space.sample(rng) for _ in range(50)), key=Lonely().excess)
    with pytest.raises(Infeasible) as told:
        space.within(Lonely()).sample(Random(6))
    assert key(nearest) in str(told.value)


def test_draws_hang_on_the_generator_alone() -> None:
    def draws() -> list[str]:
        rng = Random(7)
        return [key(SPACE.sample(rng)) for _ in range(20)]

    assert draws() == draws()


def test_a_genotype_survives_json() -> None:
    for genotype in islice(SPACE.members(), 20):
        assert parse(key(genotype)) == genotype
    assert key({"b": ("1",), "a": ("2",)}) == key({"a": ("2",), "b": ("1",)}) == '{"a":["2"],"b":["1"]}'
    assert parse({"op": "a", "from": ["raw", "1"]}) == {"op": ("a",), "from": ("raw", "1")}
