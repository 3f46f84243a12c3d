"""The samplers that learn logits, against plain loops: gumbel, darts, proxyless and recnas."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor, nn

from nascore.cost import Cost
from nascore.net import Choose, Net, Supernet
from nascore.rows import seed_of
from nascore.samplers import Logits
from nascore.samplers.darts import Darts
from nascore.samplers.gumbel import Gumbel
from nascore.samplers.proxyless import Proxyless
from nascore.samplers.recnas import RecNas
from nascore.schema import Batch, Column, Schema
from nascore.space import Decision, Genotype, Mix, Space
from nascore.tasks import Task
from nascore.training import Fit, Learning, Plan

SPACE = Space([Decision("a", tuple("wxyz")), Decision("b/op", ("p", "q", "r")), Decision("c", ("only",))])
LEARNED = {"a": (0.3, -1.0, 1.1, 0.0), "b/op": (-0.2, 0.9, 0.1), "c": (0.7,)}
ROOMS = (Darts, Gumbel, Proxyless, RecNas)


def learned(room: Any, seed: int = 5, **settings: Any) -> Any:
    one = room(SPACE, seed, **settings)
    with torch.no_grad():
        one.logits.copy_(torch.tensor([logit for logits in LEARNED.values() for logit in logits]))
    return one


def softmax(logits: Any, tau: float = 1.0) -> list[float]:
    powers = [math.exp(logit / tau) for logit in logits]
    return [power / sum(powers) for power in powers]


def weights(mix: Any) -> dict[str, list[float]]:
    return {name: torch.as_tensor(one).tolist() for name, one in mix.items()}


def drawn_by(counts: Counter[int], shares: list[float]) -> bool:
    """Whether draws may well have come from these probabilities."""
    expected = [counts.total() * share for share in shares]
    return len(shares) == 1 or chisquare([counts[place] for place in range(len(shares))], expected).pvalue > 1e-3


def gradient(one: Logits, mix: Any, slope: Any) -> dict[str, list[float]]:
    """That of Σ slope·weight with respect to the logits."""
    loss = sum((torch.as_tensor(mix[name]) * torch.tensor(slope[name])).sum() for name in mix)
    (found,) = torch.autograd.grad(loss, [one.logits])  # type: ignore[list-item]
    return {name: part.tolist() for name, part in one.split(found).items()}


def softmax_gradient(shares: list[float], slope: Any, tau: float = 1.0) -> list[float]:
    mean = sum(share * one for share, one in zip(shares, slope, strict=True))
    return [share * (one - mean) / tau for share, one in zip(shares, slope, strict=True)]


SLOPE = {"a": (0.5, -1.5, 2.0, 1.0), "b/op": (1.0, 3.0, -2.0), "c": (4.0,)}


@pytest.mark.parametrize("step", [0, 700, 25_000])
@pytest.mark.parametrize("purpose", ["gumbel", "gumbel relaxed"])
def test_gumbel_weights_are_those_of_the_formula(purpose: str, step: int) -> None:
    gumbel = learned(Gumbel).double()
    mix = gumbel(None, step) if purpose == "gumbel" else gumbel.relaxed(None, step)
    tau, found = max(0.01, 1 - 5e-5 * step), weights(mix)
    for name, logits in LEARNED.items():
        generator = torch.Generator().manual_seed(seed_of(purpose, 5, name, step))
        uniform = torch.rand(len(logits), generator=generator, dtype=torch.float64).tolist()
        noisy = [logit - math.log(-math.log(u)) for logit, u in zip(logits, uniform, strict=True)]
        golden = softmax([one - max(noisy) for one in noisy], tau)
        assert found[name] == pytest.approx(golden, rel=1e-4), "the logits were set in single precision"
    single = learned(Gumbel)
    same = single(None, step) if purpose == "gumbel" else single.relaxed(None, step)
    assert same["a"].dtype == torch.float32 and weights(same)["a"] == pytest.approx(found["a"], abs=1e-3)


def test_gumbel_cools_to_its_coldest() -> None:
    gumbel = Gumbel(SPACE, 0)
    assert gumbel.tau(0) == 1 and gumbel.tau(10_000) == pytest.approx(0.5)
    assert gumbel.tau(19_799) > 0.01 + 4e-5 and gumbel.tau(19_800) == pytest.approx(0.01)
    assert gumbel.tau(19_801) == gumbel.tau(30_000) == gumbel.coldest == 0.01
    assert gumbel.facts(30_000)["temperature"] == 0.01
    assert Gumbel(SPACE, 0, temperature=5.0, coldest=0.5, cooling=1.0).tau(3) == 2
    assert min(max(part.tolist()) for part in gumbel(None, 30_000).values()) > 0.9, "nearly a path"


def test_a_decision_draws_the_same_noise_in_any_space() -> None:
    alone = Gumbel(Space([SPACE.decisions["b/op"]]), 5)
    assert torch.equal(alone(None, 3)["b/op"], Gumbel(SPACE, 5)(None, 3)["b/op"])  # type: ignore[arg-type]
    assert not torch.equal(alone(None, 3)["b/op"], alone.relaxed(None, 3)["b/op"])  # type: ignore[arg-type]


def test_the_largest_weight_is_drawn_as_often_as_the_softmax_says() -> None:
    gumbel = learned(Gumbel)
    for draw in (gumbel, gumbel.relaxed):
        found = [weights(draw(None, step)) for step in range(5_000)]
        for name, logits in LEARNED.items():
            counts = Counter(max(range(len(logits)), key=one[name].__getitem__) for one in found)
            assert counts.total() == 5_000 and drawn_by(counts, softmax(logits))


@pytest.mark.parametrize("room", [Gumbel, Darts, RecNas])
def test_only_a_learning_step_has_a_gradient(room: Any) -> None:
    one = learned(room)
    tau = one.tau(900) if room is not Darts else 1.0
    assert not any(isinstance(part, Tensor) and part.requires_grad for part in one(None, 900).values())
    mix = one.relaxed(None, 900)
    found, shares = gradient(one, mix, SLOPE), weights(mix)
    for name in SPACE.decisions:
        assert found[name] == pytest.approx(softmax_gradient(shares[name], SLOPE[name], tau), abs=1e-5)


def test_darts_weighs_by_the_softmax() -> None:
    darts = learned(Darts)
    for mix in (darts(None, 0), darts.relaxed(None, 7)):
        assert weights(mix) == {name: pytest.approx(softmax(logits), rel=1e-5) for name, logits in LEARNED.items()}


def test_proxyless_draws_paths_by_the_softmax() -> None:
    proxyless = learned(Proxyless)
    mixes = [proxyless(None, step) for step in range(5_000)]
    assert all(isinstance(one, tuple) and sorted(one)[-2:] in ([0, 1], [1]) for mix in mixes for one in mix.values())
    for name, logits in LEARNED.items():
        counts = Counter(mix[name].index(1.0) for mix in mixes)
        assert counts.total() == 5_000 and drawn_by(counts, softmax(logits))


def test_proxyless_compares_two_options_drawn_without_replacement() -> None:
    proxyless, left_out, opened = learned(Proxyless), Counter[int](), Counter[int]()
    for step in range(5_000):
        mix = proxyless.relaxed(None, step)
        (found,) = torch.autograd.grad(mix["b/op"][0] - mix["b/op"][2] + 2 * mix["b/op"][1], proxyless.logits)
        pair = tuple(place for place, one in enumerate(proxyless.split(found)["b/op"].tolist()) if one)
        assert len(pair) == 2 and sorted(mix["b/op"].tolist()) == [0, 0, 1]
        left_out[3 - sum(pair)] += 1
        if pair == (0, 1):
            opened[mix["b/op"].tolist().index(1)] += 1
    p, q, r = softmax(LEARNED["b/op"])
    both = [one * other * (1 / (1 - one) + 1 / (1 - other)) for one, other in ((q, r), (p, r), (p, q))]
    assert drawn_by(left_out, both)
    assert drawn_by(opened, [p / (p + q), q / (p + q)])


def test_proxyless_gradients_are_those_of_the_softmax_of_two() -> None:
    proxyless = learned(Proxyless)
    for step in range(20):
        mix = proxyless.relaxed(None, step)
        assert all(sorted(part)[-2:] in ([0, 1], [1]) for part in weights(mix).values())
        found = gradient(proxyless, mix, SLOPE)
        assert found["c"] == [0]
        for name in ("a", "b/op"):
            pair = [place for place, one in enumerate(found[name]) if one]
            assert len(pair) == 2 and weights(mix)[name].index(1) in pair
            shares = softmax([LEARNED[name][place] for place in pair])
            golden = softmax_gradient(shares, [SLOPE[name][place] for place in pair])
            assert [found[name][place] for place in pair] == pytest.approx(golden, abs=1e-5)


def test_proxyless_moves_the_two_against_each_other() -> None:
    proxyless = learned(Proxyless)
    before = proxyless.logits.detach().clone()
    proxyless.settle()
    assert torch.equal(proxyless.logits, before), "nothing was compared"
    adam = torch.optim.Adam(proxyless.parameters(), lr=0.2, weight_decay=1e-2, fused=True)
    for step in range(30):
        old, logits = proxyless.shares(), proxyless.split(proxyless.logits.detach().clone())
        found = gradient(proxyless, proxyless.relaxed(None, step), SLOPE)
        proxyless.logits.grad = torch.tensor([one for part in found.values() for one in part])
        adam.step()
        proxyless.settle()
        new = proxyless.shares()
        assert proxyless.current() == new, "what runs next is drawn by what was just learned"
        for name, part in proxyless.split(proxyless.logits).items():
            for place, option in enumerate(SPACE.decisions[name].options):
                if found[name][place]:
                    assert abs(new[name][option] - old[name][option]) > 1e-6
                else:
                    assert new[name][option] == pytest.approx(old[name][option], rel=1e-5)
                    assert part[place] == logits[name][place]


def test_recnas_cools_and_closes_what_weighs_little() -> None:
    recnas = learned(RecNas, steps=100, threshold=0.8)
    assert [recnas.tau(step) for step in (0, 50, 100, 500)] == pytest.approx([1, 0.1**0.5, 0.1, 0.1])
    assert weights(recnas(None, 50))["a"] == pytest.approx(softmax(LEARNED["a"], 0.1**0.5), rel=1e-5)
    assert recnas(None, 0)["c"] == (1.0,) and isinstance(recnas(None, 0)["a"], Tensor)
    opened = {name: list(range(len(logits))) for name, logits in LEARNED.items()}
    for step, left in ((0, [0, 2]), (20, [0, 2]), (60, [2])):
        for name, logits in LEARNED.items():
            shares = softmax([logits[place] for place in opened[name]], 0.1 ** (step / 100))
            kept = zip(opened[name], shares, strict=True)
            opened[name] = [place for place, share in kept if share >= 0.8 / len(logits)]
        assert opened["a"] == left
        recnas.relaxed(None, step)
        recnas.settle()
        found = {name: part.nonzero().flatten().tolist() for name, part in recnas.split(recnas.open).items()}
        running = {name: [place for place, one in enumerate(part) if one] for name, part in recnas(None, step).items()}
        assert found == running == opened
    assert recnas(None, 60)["a"] == recnas.relaxed(None, 60)["a"] == (0, 0, 1, 0)
    assert not recnas.learns, "one option is left of each decision"
    assert recnas.decide(SPACE) == {"a": ("y",), "b/op": ("q",), "c": ("only",)}


def test_what_recnas_closed_stays_closed() -> None:
    recnas = learned(RecNas, threshold=0.6)
    recnas.relaxed(None, 0)
    recnas.settle()
    assert (~recnas.open).nonzero().flatten().tolist() == [1, 4]
    with torch.no_grad():
        recnas.logits[[1, 4]] = 9.0
        recnas.logits[3] = -9.0
    recnas.settle()
    assert (~recnas.open).nonzero().flatten().tolist() == [1, 3, 4]
    assert recnas.logits[[1, 3, 4]].tolist() == [-1e4] * 3
    other = RecNas(SPACE, 8, threshold=0.6)
    assert weights(other(None, 0))["a"] == [0.25] * 4
    other.load_state_dict(recnas.state_dict())
    assert weights(other(None, 0)) == weights(recnas(None, 0)) and torch.equal(other.open, recnas.open)
    assert [bool(one) for one in weights(other(None, 0))["a"]] == [True, False, True, False]


@pytest.mark.parametrize("threshold, logit", [(0.0, 90.0), (0.5, math.nan)])
def test_recnas_closes_nothing_without_cause(threshold: float, logit: float) -> None:
    recnas = learned(RecNas, threshold=threshold)
    with torch.no_grad():
        recnas.logits[[0, 4]] = logit
    recnas.settle()
    assert recnas.open.all()


@pytest.mark.parametrize("room", ROOMS)
def test_facts_are_the_shares_and_how_even_they_are(room: Any) -> None:
    one = learned(room)
    facts = one.facts(400)
    golden = {"temperature": one.tau(400)} if room in (Gumbel, RecNas) else {}
    for name, logits in LEARNED.items():
        shares = dict(zip(SPACE.decisions[name].options, softmax(logits), strict=True))
        golden |= {f"share/{name}/{option}": share for option, share in shares.items()}
        golden[f"entropy/{name}"] = -sum(share * math.log(share) for share in shares.values())
    assert facts == pytest.approx(golden, abs=1e-6)
    assert sum(value for key, value in facts.items() if key.startswith("share/")) == pytest.approx(3)
    even = room(SPACE, 0).facts(0)
    assert even["entropy/a"] == pytest.approx(math.log(4)) and even["entropy/c"] == 0
    with torch.no_grad():
        one.logits[0] = 1e4
    assert one.facts(0)["entropy/a"] == 0 and one.facts(0)["share/a/x"] == 0


def lesson(one: Logits, adam: torch.optim.Optimizer, costs: Any, step: int) -> None:
    """A learning step, as `Fit` takes it."""
    mix = one.relaxed(None, step)
    loss = sum((torch.as_tensor(mix[name]) * torch.tensor(costs[name])).sum() for name in mix)
    (one.logits.grad,) = torch.autograd.grad(loss, [one.logits])  # type: ignore[list-item]
    adam.step()
    adam.zero_grad()
    one.settle()


@pytest.mark.parametrize("room", ROOMS)
def test_the_cheapest_is_learned_and_decided(room: Any) -> None:
    costs = {"a": (1.0, 0.4, 0.2, 0.9), "b/op": (0.3, 0.5, 0.1), "c": (7.0,)}
    one = room(SPACE, 3, **({"steps": 300} if room is RecNas else {}))
    adam = torch.optim.Adam(one.parameters(), lr=0.05, weight_decay=1e-6, fused=True)
    for step in range(300):
        if one.learns:
            lesson(one, adam, costs, step)
    assert one.decide(SPACE) == {"a": ("y",), "b/op": ("r",), "c": ("only",)}
    facts = one.facts(300)
    assert facts["share/a/y"] > 0.8 and facts["share/b/op/r"] > 0.8
    assert one.learns != (room is RecNas), "what recnas closes cannot be learned any more"
    assert one.double().decide(SPACE) == {"a": ("y",), "b/op": ("r",), "c": ("only",)}


class Dear:
    """Forbids one option, and a pair of others."""

    def excess(self, genotype: Genotype) -> float:
        return (genotype["a"] == ("y",)) + (genotype["a"] in (("y",), ("w",)) and genotype["b/op"] == ("q",))

    def explain(self, genotype: Genotype) -> str:
        return "too dear"


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_decided_keeps_the_limits(room: Any) -> None:
    one, narrow = learned(room, **({"threshold": 0.9} if room is RecNas else {})), SPACE.within(Dear())
    assert one.decide(SPACE) == {"a": ("y",), "b/op": ("q",), "c": ("only",)} and one.decide(SPACE) not in narrow
    assert one.decide(narrow) in narrow
    fewer = Space([Decision("a", ("w", "x")), Decision("b/op", ("r",)), SPACE.decisions["c"]])
    assert one.decide(fewer) == {"a": ("w",), "b/op": ("r",), "c": ("only",)}
    if room is RecNas:
        one.relaxed(None, 20_000)
        one.settle()
        assert not one.learns and one.decide(narrow) in narrow, "closed options are decided where nothing else may be"


WRONG = [(room, name, value) for room in (Gumbel, RecNas) for name, value in (("coldest", 0.0), ("temperature", 1e-3))]
WRONG += [(Gumbel, "cooling", -1.0), (RecNas, "steps", 0), (RecNas, "threshold", 1.0), (RecNas, "threshold", math.nan)]


@pytest.mark.parametrize("room, name, value", WRONG)
def test_settings_out_of_bounds_are_refused(room: Any, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{room.__name__}: .*{name}={value}"):
        room(SPACE, 0, **{name: value})


class Times(nn.Module):
    """An option that multiplies, and counts how often it does."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.count = nn.Parameter(torch.tensor(factor)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.factor * x


class Product(Net):
    """A choice among factors for each decision, one after the other."""

    def __init__(self, space: Space) -> None:
        super().__init__(Schema("", "", 0, 0, (Column("n", "row", "number"),), "given"), space)
        self.chosen = nn.ModuleList(
            Choose({option: Times(1.0 + n) for n, option in enumerate(decision.options)})
            for decision in space.decisions.values()
        )

    def embed(self, batch: Batch) -> Any:
        return batch.columns["n"][:, None]

    def forward(self, x: Any, mix: Mix) -> Any:
        for one, choose in zip(mix.values(), self.chosen, strict=True):
            x = choose(one, x)
        return x

    def costs(self, mix: Mix) -> dict[str, Cost]:
        return {}


class Least(Task):
    """The smaller the output, the better."""

    metrics = ()

    def loss(self, output: Any, batch: Batch) -> Tensor:
        return output.mean()  # type: ignore[no-any-return]

    validation_loss = loss  # type: ignore[assignment]

    def evaluate(self, model: Any, data: Any) -> Any: ...


class Ones:
    """Rows of ones, without end."""

    device = "cpu"

    def steps_per_epoch(self, size: int) -> int:
        return 1

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        while True:
            yield Batch({"n": torch.ones(size)}, {}, torch.arange(size))


@pytest.mark.parametrize("room", ROOMS)
def test_a_supernet_trains_with_each(room: Any) -> None:
    def fit(seed: int = 1) -> Fit:
        sampler, rows = room(SPACE, seed, **({"steps": 60} if room is RecNas else {})), Ones()
        plan, learning = Plan(4, steps=90, learning_rate=1e-6), Learning(every=2, learning_rate=0.2)
        return Fit(Supernet(Product(SPACE), sampler), Least(), rows, plan, seed, learning, rows)  # type: ignore[arg-type]

    whole = fit()
    whole.advance(90)
    assert whole.supernet.sampler.decide(SPACE) == {"a": ("w",), "b/op": ("p",), "c": ("only",)}
    for stop in (7, 60):
        first, second = fit(), fit()
        first.advance(stop)
        second.advance(3)
        second.restore({name: value.clone() for name, value in first.state().items()})
        second.advance(90 - stop)
        for name, value in whole.weights().items():
            assert torch.equal(second.weights()[name], value), name
    if room is RecNas:
        assert not whole.supernet.sampler.learns
        net: Any = whole.supernet.net
        counts = [option.count for option in net.chosen[0].options.values()]
        whole.advance(5)
        ran = [option.count - before for option, before in zip(net.chosen[0].options.values(), counts, strict=True)]
        assert ran == [5, 0, 0, 0], "closed options do not run, and nothing is left to learn"
