"""Gates that open by chance: their noise, what is drawn, its gradients, and what is settled in the end."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, chisquare, kstest
from torch import Tensor

from nascore.rows import seed_of
from nascore.samplers import bernoulli
from nascore.samplers.bernoulli import BINS, Bernoulli, histograms, uniforms, valleys
from nascore.space import Decision, Genotype, Infeasible, Space

SPACE = Space([Decision("a", ("0", "1"), 0, 2), Decision("b", ("0", "1", "2"), 0, 3)])
WIDTH = 5
Numbers = NDArray[np.float64]


def numbers(rows: Tensor, count: int, seed: int) -> Numbers:
    found: Numbers = uniforms(rows, count, seed).double().numpy()
    return found


def inputs(rows: int = 6, first: int = 0, scale: float = 1.0) -> dict[str, Tensor]:
    kept = scale * torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(1))
    return {"kept": kept, "rows": torch.arange(first, first + rows)}


def sampler(seed: int = 3, alike: bool = False, **settings: Any) -> Bernoulli:
    """Gates with weights as after a training."""
    torch.manual_seed(7)
    one = Bernoulli(SPACE, seed, 0 if alike else WIDTH, **settings)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.normal_()
    return one


def joined(mix: Any) -> Tensor:
    """The weights of all decisions side by side."""
    return torch.cat([torch.as_tensor(one) for one in mix.values()], -1)


# Noise


@pytest.mark.parametrize("rows", [torch.arange(40_000), torch.arange(40_000) * 53_687, torch.arange(40_000) + 2**30])
@pytest.mark.parametrize("seed", [0, 1, seed_of("gates", 0, 1)])
def test_noise_is_uniform_in_every_place(rows: Tensor, seed: int) -> None:
    found = numbers(rows, 6, seed)
    assert found.min() > 0 and found.max() < 1
    for place in range(6):
        assert kstest(found[:, place], "uniform").pvalue > 1e-4
    assert kstest(found.flatten(), "uniform").pvalue > 1e-4
    assert len(np.unique(found[:, 0])) > 39_000, "23 bits are few enough for some to meet"


def test_noise_is_uniform_along_one_row() -> None:
    for row in (0, 1, 12_345, 2**31 - 1):
        assert kstest(numbers(torch.tensor([row]), 30_000, 9)[0], "uniform").pvalue > 1e-4


@pytest.mark.parametrize("count", [2, 625])
def test_noise_is_never_0_or_1(count: int) -> None:
    found = uniforms(torch.arange(4_000_000 // count), count, 4)
    assert found.dtype == torch.float32 and bool(((found > 0) & (found < 1)).all())
    assert found.min() < 3 / 2**20 and found.max() > 1 - 3 / 2**20
    assert bool(found.logit().isfinite().all())


def assert_independent(one: Numbers, other: Numbers) -> None:
    """By correlation and by the counts of 64 squares."""
    assert abs(np.corrcoef(one, other)[0, 1]) < 4.5 / len(one) ** 0.5
    cells = np.bincount((one * 8).astype(int) * 8 + (other * 8).astype(int), minlength=64)
    assert chisquare(cells).pvalue > 1e-5


def test_noise_is_independent_across_places() -> None:
    found = numbers(torch.arange(20_000), 9, 11)
    for one in range(9):
        for other in range(one):
            assert_independent(found[:, one], found[:, other])
    far = numbers(torch.arange(5_000), 1_024, 11)
    for other in (0, 2, 3, 5, 129, 257, 513, 1_023):
        assert_independent(far[:, 1], far[:, other])


def test_noise_is_independent_across_rows() -> None:
    rows = torch.arange(1 << 15)
    found = numbers(rows, 4, 12)
    for away in (1, 2, 16, 255, 4_096):
        for place in range(4):
            assert_independent(found[:-away, place], found[away:, place])
        assert_independent(found[:-away, 0], found[away:, 1])


def test_noise_is_independent_across_seeds() -> None:
    rows = torch.arange(1 << 15)
    found = [numbers(rows, 3, seed) for seed in (0, 1, 2, 1 << 20, 1 << 31, 1 << 32, 1 << 61)]
    for one in range(len(found)):
        for other in range(one):
            for place in range(3):
                assert_independent(found[one][:, place], found[other][:, place])


def test_a_step_by_step_seed_gives_new_noise_to_every_row() -> None:
    found = np.stack([numbers(torch.arange(50), 4, seed_of("gates", 0, step)) for step in range(3_000)])
    for row in (0, 1, 49):
        for place in (0, 3):
            own = found[:, row, place]
            assert kstest(own, "uniform").pvalue > 1e-4
            assert_independent(own[:-1], own[1:])
    assert_independent(found[:, 0, 0], found[:, 1, 0])


def test_noise_hangs_on_the_global_row_alone() -> None:
    order = torch.randperm(500, generator=torch.Generator().manual_seed(2))
    whole = uniforms(torch.arange(500), 7, 5)
    assert torch.equal(uniforms(order, 7, 5), whole[order])
    assert torch.equal(torch.cat([uniforms(part, 7, 5) for part in order.split(123)]), whole[order])
    assert torch.equal(uniforms(torch.arange(500), 3, 5), whole[:, :3]), "nor on how many gates there are"
    assert torch.equal(uniforms(torch.arange(500, dtype=torch.int32), 7, 5), whole)


def test_words_are_mixed_one_to_one() -> None:
    words = torch.randint(0, 2**31, (200_000,), generator=torch.Generator().manual_seed(3)).unique()
    assert len(bernoulli.mixed(words).unique()) == len(words)
    assert bernoulli.mixed(words).min() >= 0 and bernoulli.mixed(words).max() < 2**31


# Draws


def test_a_row_has_the_same_gates_in_any_batch() -> None:
    one, x = sampler(), inputs(40, first=100)
    whole = {draw: joined(getattr(one, draw)(x, 5)) for draw in ("forward", "relaxed")}
    order = torch.randperm(40, generator=torch.Generator().manual_seed(4))
    for places in (order, order[:13], torch.arange(0, 40, 2), torch.arange(1, 40, 2)):
        part = {name: value[places] for name, value in x.items()}
        for draw, golden in whole.items():
            torch.testing.assert_close(joined(getattr(one, draw)(part, 5)), golden[places])


def test_draws_hang_on_the_seed_the_step_and_the_purpose() -> None:
    x = inputs(200)
    drawn = [joined(sampler(seed)(x, step)) for seed in (3, 4) for step in (5, 6)]
    drawn.append(joined(sampler().relaxed(x, 5)).detach())
    assert torch.equal(joined(sampler()(x, 5)), drawn[0])
    for one in range(5):
        assert not any(torch.equal(drawn[one], drawn[other]) for other in range(one))


@pytest.mark.parametrize("alike", [False, True])
def test_a_gate_is_open_as_often_as_its_probability_says(alike: bool) -> None:
    one, x = sampler(alike=alike), inputs(4)
    draws = 4_000
    opened = sum(joined(one(x, step)) for step in range(draws))
    expected = one.probability(x).detach()
    assert opened.shape == expected.shape == ((5,) if alike else (4, 5))
    for count, p in zip(opened.flatten().tolist(), expected.flatten().tolist(), strict=True):
        assert binomtest(int(count), draws, p).pvalue > 1e-4


@pytest.mark.parametrize("alike", [False, True])
def test_all_gates_are_open_at_first(alike: bool) -> None:
    one, x = sampler(alike=alike, closed=4), inputs()
    for step in range(4):
        assert one(x, step) == {"a": (1.0, 1.0), "b": (1.0, 1.0, 1.0)} and one.last is None
    assert any(0.0 in joined(one(x, step)) for step in range(4, 20)) and one.last is not None


@pytest.mark.parametrize("alike", [False, True])
def test_weights_of_the_nets_own_steps_have_no_gradient(alike: bool) -> None:
    one, x = sampler(alike=alike), inputs()
    x["kept"].requires_grad_()
    assert not joined(one(x, 0)).requires_grad
    joined(one.relaxed(x, 0)).sum().backward()
    assert x["kept"].grad is None, "nor does a lesson reach the net"
    assert all(parameter.grad is not None for parameter in one.parameters())


@pytest.mark.parametrize("logit", [-50.0, -30.0, 30.0, 50.0])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("alike", [False, True])
def test_sure_gates_have_finite_gradients(alike: bool, hard: bool, logit: float) -> None:
    one, x = sampler(alike=alike, hard=hard, coldest=0.01, temperature=0.01), inputs(500)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.fill_(0.0 if parameter.dim() == 2 else logit)
    mix = joined(one.relaxed(x, 0))
    assert one.last is not None
    apart = (one.last - one.last.mean(-1, keepdim=True)).abs().mean()
    (mix.sum() + one.last.mean() - apart).backward()
    for parameter in one.parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all())
    torch.testing.assert_close(mix, torch.full_like(mix, float(logit > 0)))


def test_a_temperature_cools_to_its_coldest() -> None:
    one = sampler(temperature=1.0, cooling=0.1, coldest=0.25)
    assert [one.tau(step) for step in (0, 5, 7, 8, 99)] == pytest.approx([1, 0.5, 0.3, 0.25, 0.25])
    x = inputs(300)
    cooled = joined(sampler(hard=False, temperature=1.5, cooling=0.1, coldest=0.25).relaxed(x, 5))
    torch.testing.assert_close(cooled, joined(sampler(hard=False, temperature=1.0).relaxed(x, 5)))


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"temperature": 0.1, "coldest": 0.2}, {"cooling": -0.1}, {"coldest": 0.0}]
)
def test_temperatures_out_of_bounds_are_errors(settings: Any) -> None:
    with pytest.raises(ValueError, match="temperature >= coldest > 0 and cooling >= 0 does not hold"):
        Bernoulli(SPACE, 0, **settings)


def test_facts_are_the_mean_and_the_distance_from_it() -> None:
    one, x = sampler(), inputs(3)
    assert one.facts(0) == {}
    one.relaxed(x, 2)
    rows = one.probability(x).tolist()
    mean = [sum(row) / 5 for row in rows]
    apart = [abs(p - m) for row, m in zip(rows, mean, strict=True) for p in row]
    assert one.facts(2) == pytest.approx({"open": sum(mean) / 3, "polarization": sum(apart) / 15})


def test_cost_is_that_of_the_weights() -> None:
    assert (sampler().cost().params, sampler().cost().macs, sampler().cost().table_params) == (5 * 5 + 5, 25, 0)
    assert (sampler(alike=True).cost().params, sampler(alike=True).cost().macs) == (5, 0)


# What is settled


def test_settled_gates_are_above_the_threshold_of_their_scope() -> None:
    x = inputs(50, scale=2.0)
    for alike in (False, True):
        for scope in ("sample", "batch", "none"):
            one = sampler(alike=alike, scope=scope)
            one.threshold.fill_(0.7 if scope == "batch" else 0.5)
            found = joined(one.steady(x))
            assert found.dtype == torch.float32 and found.shape == (50, 5)
            p = one.probability(x).detach().expand(50, 5)
            golden = []
            for row in p:
                own = float(valleys(histograms(row[None]))[0]) if scope == "sample" else float(one.threshold)
                golden.append([float(value > own) for value in row.tolist()])
            assert found.tolist() == golden
            assert torch.equal(one.opened(x).float(), found)


def test_a_threshold_is_saved_with_the_gates() -> None:
    one, other = sampler(scope="batch"), sampler(scope="batch")
    one.threshold.fill_(0.65)
    assert "threshold" in one.state_dict()
    other.load_state_dict(one.state_dict())
    assert float(other.threshold) == pytest.approx(0.65)


def test_histograms_equal_a_loop() -> None:
    values = torch.rand(30, 41, generator=torch.Generator().manual_seed(6))
    values[0, :6] = torch.tensor([0.0, 1.0, 0.5, 0.05, 0.9999999, 0.3])
    golden = [[0] * BINS for _ in values]
    for row, own in zip(golden, values, strict=True):
        for value in own:
            row[min(BINS - 1, int(float(value * BINS)))] += 1
    assert histograms(values).tolist() == golden


def test_a_valley_of_many_rows_is_not_lost_to_rounding() -> None:
    """Of 40 million rows of 624 gates a bin may hold a billion values, more than single precision tells apart."""
    for seed in range(200):
        drawn = torch.randint(0, 10**9, (BINS,), generator=torch.Generator().manual_seed(seed))
        falling = drawn.sort(descending=True).values
        falling[12:] = 0
        assert float(valleys(falling[None].float())[0]) == 0.5, "nothing is open beyond the last full bin"


# What is decided where all rows are alike


class Most:
    """Allows no more than some open options, and of "b" an even number only."""

    def __init__(self, most: int, even: bool = False) -> None:
        self.most, self.even = most, even

    def excess(self, genotype: Genotype) -> float:
        odd = self.even and len(genotype["b"]) % 2
        return max(sum(map(len, genotype.values())) - self.most, float(odd))

    def explain(self, genotype: Genotype) -> str:
        return f"{sum(map(len, genotype.values()))} of {self.most}"


def test_what_is_likelier_open_than_closed_is_decided() -> None:
    one = Bernoulli(SPACE, 0)
    assert one.logits is not None and bool((one.logits > 0).all()), "at first all are"
    assert one.decide(SPACE) == {"a": ("0", "1"), "b": ("0", "1", "2")}
    with torch.no_grad():
        one.logits.copy_(torch.tensor([0.1, -0.2, 2.0, 0.7, -3.0]))
    assert one.decide(SPACE) == {"a": ("0",), "b": ("0", "1")}
    assert one.decide(SPACE.within(Most(2))) == {"a": (), "b": ("0", "1")}
    assert one.decide(SPACE.within(Most(1))) == {"a": (), "b": ("0",)}
    assert one.decide(SPACE.within(Most(9, even=True))) == {"a": ("0",), "b": ("0", "1")}
    with pytest.raises(Infeasible, match="cannot be brought within the limits"):
        one.decide(SPACE.within(Most(-1)))


def test_gates_that_hang_on_the_row_decide_nothing_for_all() -> None:
    assert sampler().decide(SPACE) is None


def test_probabilities_are_a_sigmoid_of_a_linear_map() -> None:
    one, x = sampler(), inputs(4)
    assert one.gate is not None
    weight, bias = one.gate.weight.tolist(), one.gate.bias.tolist()
    for row, found in zip(x["kept"].tolist(), one.probability(x).tolist(), strict=True):
        for own, b, p in zip(weight, bias, found, strict=True):
            logit = sum(w * v for w, v in zip(own, row, strict=True)) + b
            assert p == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-5)
