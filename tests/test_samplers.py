"""Samplers: what each is held to by being in the gallery, and that the uniform one is uniform."""

from collections import Counter
from typing import Any

import pytest
import torch

from nascore import plugins
from nascore.methods.autotower import AutoTower
from nascore.samplers import Sampler, likeliest
from nascore.samplers.nasp import Nasp
from nascore.samplers.uniform import Uniform
from nascore.space import Decision, Genotype, Infeasible, Space, key

SPACE = Space(
    [Decision("a", ("x", "y", "z")), Decision("b", ("p", "q", "r"), least=0, most=2), Decision("c", ("only",))]
)
PICKED = Space([SPACE.decisions["a"], SPACE.decisions["c"]])
FREE = Space([Decision(name, one.options, 0, len(one.options)) for name, one in SPACE.decisions.items()])
NAMES = plugins.names("samplers")
ALIKE = ("darts", "recnas")  # these draw nothing, so seeds make no difference


class Within:
    """At most so many options open, as a budget."""

    def __init__(self, most: int) -> None:
        self.most = most

    def excess(self, genotype: Genotype) -> float:
        return sum(map(len, genotype.values())) - 2 - self.most

    def explain(self, genotype: Genotype) -> str:
        return f"{2 + self.excess(genotype)} of {self.most} open"


def sampler(name: str, seed: int = 0) -> Sampler:
    room = plugins.load("samplers", name)
    made: Sampler = room(PICKED if room.picks_one else FREE if room.picks_any else SPACE, seed)
    return made


def member(mix: Any) -> Any:
    return {
        name: tuple(option for option, weight in zip(SPACE.decisions[name].options, weights, strict=True) if weight)
        for name, weights in mix.items()
    }


def run(one: Sampler, step: int) -> Any:
    """What runs at a step, as numbers on the host."""
    return {name: torch.as_tensor(weights).tolist() for name, weights in one(None, step).items()}


@pytest.mark.parametrize("name", NAMES)
def test_draws_hang_on_seed_and_step_alone(name: str) -> None:
    one, same, other = sampler(name), sampler(name), sampler(name, seed=1)
    draws = [run(one, step) for step in range(30)]
    assert [run(same, step) for step in reversed(range(30))][::-1] == draws
    assert ([run(other, step) for step in range(30)] == draws) == (name in ALIKE)
    assert len({key(member(mix)) for mix in draws}) > (0 if one.learns else 5)


@pytest.mark.parametrize("name", NAMES)
def test_every_decision_of_the_space_is_weighed(name: str) -> None:
    for step in range(50):
        one = sampler(name)
        weighed = {decision: len(weights) for decision, weights in one(None, step).items()}
        assert weighed == ({"a": 3, "c": 1} if one.picks_one else {"a": 3, "b": 3, "c": 1})


@pytest.mark.parametrize("name", NAMES)
def test_what_is_decided_is_a_member_or_nothing(name: str) -> None:
    one = sampler(name)
    for space in (one.space, one.space.within(Within(1))):
        decided = one.decide(space)
        assert (decided in space) if one.learns else decided is None


@pytest.mark.parametrize("name", [name for name in NAMES if sampler(name).learns])
def test_what_learns_is_saved_and_gets_gradients(name: str) -> None:
    one, other = sampler(name), sampler(name)
    mix = one.relaxed(None, 0).values()
    sum((torch.as_tensor(weights) * torch.rand(len(weights))).sum() for weights in mix).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in one.parameters())
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(torch.randn_like(parameter))
    other.load_state_dict(one.state_dict())
    assert [run(other, step) for step in range(5)] == [run(one, step) for step in range(5)]
    assert other.decide(one.space) == one.decide(one.space)


@pytest.mark.parametrize("name", [name for name in NAMES if plugins.load("samplers", name).picks_one])
def test_who_picks_one_takes_no_other_decisions(name: str) -> None:
    with pytest.raises(ValueError, match=r"picks one option of a decision, no more or less as \['b'\] may"):
        plugins.load("samplers", name)(SPACE, 0)


@pytest.mark.parametrize("name", [name for name in NAMES if plugins.load("samplers", name).picks_any])
def test_who_opens_any_number_takes_no_other_decisions(name: str) -> None:
    with pytest.raises(ValueError, match=r"opens any number of options, not as many as \['a', 'b', 'c'\] must"):
        plugins.load("samplers", name)(SPACE, 0)


def test_uniform_draws_every_member_alike() -> None:
    uniform = Uniform(SPACE, 3)
    mixes = [uniform(None, step) for step in range(3_000)]
    assert all(member(mix) in SPACE and mix == SPACE.mix(member(mix)) for mix in mixes)
    drawn = Counter(member(mix)["a"] for mix in mixes)
    assert all(abs(count / 3_000 - 1 / 3) < 0.03 for count in drawn.values()) and len(drawn) == 3
    assert len({key(member(mix)) for mix in mixes}) == SPACE.size() == 3 * 7


def test_options_open_one_after_the_other() -> None:
    space = Space([Decision("a", tuple("wxyz")), Decision("b", ("p", "q", "r"), least=2, most=3)])
    growing, uniform = Uniform(space, 5, growth=80), Uniform(space, 5)
    opened = [growing.opened(step) for step in range(80)]
    counts = {name: [len(one.decisions[name].options) for one in opened] for name in "ab"}
    assert counts == {"a": [1 + step // 20 for step in range(80)], "b": [2 + (step * 3 >= 160) for step in range(80)]}
    for before, after in zip(opened, opened[1:], strict=False):
        for name in "ab":
            assert set(before.decisions[name].options) <= set(after.decisions[name].options)
    for step in range(80):
        mix = growing(None, step)
        chosen = {
            name: tuple(o for o, w in zip(d.options, mix[name], strict=True) if w)
            for name, d in space.decisions.items()
        }
        assert chosen in opened[step]
    assert [growing(None, step) for step in range(80, 200)] == [uniform(None, step) for step in range(80, 200)]
    first = {Uniform(space, seed, growth=80).opened(0).decisions["a"].options for seed in range(20)}
    assert len(first) == 4, "which option is first hangs on the seed"


def test_nasp_runs_the_strongest_and_learns_from_the_gradient_there() -> None:
    nasp = Nasp(SPACE, 0)
    strong = {"a": (0.2, 0.9, 0.4), "b": (0.6, 0.1, 0.8), "c": (0.3,)}
    with torch.no_grad():
        nasp.strength.copy_(torch.tensor([one for values in strong.values() for one in values]))
    assert member(nasp(None, 0)) == {"a": ("y",), "b": ("p", "r"), "c": ("only",)}
    mix = nasp.relaxed(None, 0)
    assert {name: tuple(weights.tolist()) for name, weights in mix.items()} == nasp(None, 0)
    (3 * mix["a"][0] + mix["a"][1] - 5 * mix["b"][1]).backward()  # type: ignore[index]
    assert nasp.strength.grad is not None
    assert nasp.strength.grad.tolist() == pytest.approx([2, 0, -1, 0, -5, 0, 0]), "where one is picked, differences"
    with torch.no_grad():
        nasp.strength.sub_(0.4 * nasp.strength.grad)
    nasp.settle()
    assert nasp.strength.tolist() == pytest.approx([0, 0.5, 0.4, 0.6, 1, 0.8, 0.5]), "where one is picked, 1/2 at most"
    assert member(nasp(None, 1))["b"] == ("q", "r"), "as many as may be open, the strongest first"


@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_nasp_finds_the_best_of_many_by_its_own_steps(noise: float) -> None:
    space = Space([Decision("op", tuple(map(str, range(12))))])
    for seed in range(3):
        nasp, generator = Nasp(space, seed), torch.Generator().manual_seed(seed)
        learning = AutoTower().nasp
        adam = torch.optim.Adam(nasp.parameters(), learning.learning_rate, weight_decay=learning.weight_decay)
        slope = torch.randn(12, generator=generator)
        slope[5] = slope.min() - 0.5
        for step in range(1_500):
            adam.zero_grad()
            mix: Any = nasp.relaxed(None, step)["op"]
            (mix * (slope + noise * torch.randn(12, generator=generator))).sum().backward()
            adam.step()
            nasp.settle()
        assert nasp.decide(space) == {"op": ("5",)}


def test_what_nasp_runs_stays_as_long_as_nothing_promises_more() -> None:
    space, learning = Space([Decision("op", ("a", "b"))]), AutoTower().nasp
    nasp = Nasp(space, 0)
    adam = torch.optim.Adam(nasp.parameters(), learning.learning_rate, weight_decay=learning.weight_decay)
    with torch.no_grad():
        nasp.strength.copy_(torch.tensor([0.6, 0.4]))
    for step in range(200):
        adam.zero_grad()
        mix: Any = nasp.relaxed(None, step)["op"]
        (mix * torch.tensor([-1.0, 1.0])).sum().backward()
        adam.step()
        nasp.settle()
    assert nasp.strengths()["op"] == pytest.approx({"a": 0.5, "b": 0.1}, abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_options_of_nasp_do_not_gather_where_the_first_one_wins(seed: int) -> None:
    """What runs is trained, and so looks worse on held-out rows than it is: the lead changes again and again."""
    space, good = Space([Decision("op", tuple(map(str, range(16))))]), 12
    nasp, generator = Nasp(space, seed), torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(nasp.parameters(), AutoTower().nasp.learning_rate)
    for step in range(3_000):
        adam.zero_grad()
        mix: Any = nasp.relaxed(None, step)["op"]
        slope = torch.randn(16, generator=generator)
        slope[good] -= 0.3
        slope[int(mix.detach().argmax())] += 0.5
        (mix * slope).sum().backward()
        adam.step()
        nasp.settle()
    assert nasp.decide(space) == {"op": (str(good),)} and int((nasp.strength == nasp.strength.max()).sum()) == 1


def test_the_likeliest_member_loses_least_for_keeping_the_limits() -> None:
    space = Space([Decision(name, ("small", "middle", "large")) for name in "pqr"])
    price = {"small": 1.0, "middle": 3.0, "large": 9.0}

    class Budget:
        def __init__(self, limit: float) -> None:
            self.limit = limit

        def excess(self, genotype: Genotype) -> float:
            return sum(price[chosen] for (chosen,) in genotype.values()) / self.limit - 1

        def explain(self, genotype: Genotype) -> str:
            return f"{self.excess(genotype):.1f} over"

    worth = {"p": (0.1, 0.2, 0.9), "q": (0.1, 0.8, 0.9), "r": (0.5, 0.4, 0.3)}

    def liked(name: str, choice: tuple[str, ...]) -> float:
        return worth[name][("small", "middle", "large").index(choice[0])]

    def likeliest_within(limit: float) -> list[str]:
        return [chosen for (chosen,) in likeliest(space.within(Budget(limit)), liked).values()]

    assert likeliest_within(27) == ["large", "large", "small"]
    assert likeliest_within(13) == ["large", "middle", "small"]
    assert likeliest_within(3) == ["small", "small", "small"]
    with pytest.raises(Infeasible, match="0.5 over"):
        likeliest_within(2)


def test_an_anchor_runs_every_so_manyth_step() -> None:
    plain, anchored = Uniform(SPACE, 3, growth=20), Uniform(SPACE, 3, growth=20, anchor=4)
    first = member(anchored(None, 0))
    assert first in SPACE and first["a"] == (anchored.order["a"][0],) and first["b"] == (anchored.order["b"][0],)
    for step in range(40):
        if step % 4:
            assert anchored(None, step) == plain(None, step)
        else:
            assert member(anchored(None, step)) == first
    assert member(Uniform(SPACE, 4, anchor=1)(None, 0)) != first
