"""Samplers: what each is held to by being in the gallery, and that the uniform one is uniform."""

from collections import Counter
from typing import Any

import pytest

from nascore import plugins
from nascore.samplers import Sampler
from nascore.samplers.uniform import Uniform
from nascore.space import Decision, Space, key

SPACE = Space(
    [Decision("a", ("x", "y", "z")), Decision("b", ("p", "q", "r"), least=0, most=2), Decision("c", ("only",))]
)
NAMES = plugins.names("samplers")


def sampler(name: str, seed: int = 0) -> Sampler:
    made: Sampler = plugins.load("samplers", name)(SPACE, seed)
    return made


def member(mix: Any) -> Any:
    return {
        name: tuple(option for option, weight in zip(decision.options, mix[name], strict=True) if weight)
        for name, decision in SPACE.decisions.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_draws_hang_on_seed_and_step_alone(name: str) -> None:
    one, same, other = sampler(name), sampler(name), sampler(name, seed=1)
    draws = [one(None, step) for step in range(30)]
    assert [same(None, step) for step in reversed(range(30))][::-1] == draws
    assert [other(None, step) for step in range(30)] != draws
    assert len({key(member(mix)) for mix in draws}) > 5


@pytest.mark.parametrize("name", NAMES)
def test_every_decision_of_the_space_is_weighed(name: str) -> None:
    for step in range(50):
        mix = sampler(name)(None, step)
        assert {name: len(weights) for name, weights in mix.items()} == {"a": 3, "b": 3, "c": 1}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_decided_is_a_member_or_nothing(name: str) -> None:
    decided = sampler(name).decide()
    assert decided is None or decided in SPACE


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
