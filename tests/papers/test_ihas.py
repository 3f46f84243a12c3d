"""iHAS's figures and equations: gates, their noise and penalty, thresholds, what a majority keeps, what it costs."""

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, ks_2samp, kstest
from torch import Tensor

from nascore.buckets import BUCKETS
from nascore.cost import Budget, Cost
from nascore.methods import from_json
from nascore.methods.ihas import IHAS
from nascore.rows import seed_of
from nascore.samplers.bernoulli import BINS, Bernoulli, histograms, uniforms, valleys
from nascore.schema import Column, Schema
from nascore.space import Decision, Infeasible, Space

CRITEO = Schema(
    "",
    "",
    0,
    0,
    (*(Column(f"i{n}", kind="number") for n in range(13)), *(Column(f"c{n}", size=100 + n) for n in range(26))),
    "stratified",
)
SPACE = Space([Decision("a", ("0", "1", "2"), 0, 3), Decision("b", ("0", "1", "2"), 0, 3)])
SEED = 5


def gates(method: IHAS, rows: int, scale: float = 1.0) -> tuple[Bernoulli, dict[str, Tensor]]:
    """Gates over two fields of three numbers with weights as after a training, and what they see."""
    torch.manual_seed(1)
    sampler = replace(method, embedding=3).sampler(SPACE, SEED)
    assert isinstance(sampler, Bernoulli)
    with torch.no_grad():
        for parameter in sampler.parameters():
            parameter.normal_(0, scale)
    return sampler, {"kept": torch.randn(rows, 6), "rows": torch.arange(rows)}


def joined(mix: Any) -> Tensor:
    return torch.cat(list(mix.values()), -1)


# Settings and sizes


def test_settings_are_those_of_section_4_4() -> None:
    method = IHAS()
    assert (method.embedding, method.layers, method.temperature, method.clusters) == (16, (16, 8), 0.1, 2)
    for plan in (method.train, method.retrain):
        known = (plan.optimizer, plan.learning_rate, plan.weight_decay, plan.batch, plan.clip, plan.schedule)
        assert known == ("adam", 1e-3, 1e-6, 2048, 0.0, "constant")
    assert (method.learning.every, method.learning.learning_rate, method.learning.batch) == (100, 1e-3, 0)
    assert method.learning.after == method.pretrained < method.train.steps
    assert method.sparsity > 0 and method.polarization > 0 and method.instances and method.scope == "sample"


@pytest.mark.parametrize(
    "preset, change",
    [
        ("ihas_1", {"models": ("gates",)}),
        ("ihas_2", {"models": ("single",)}),
        ("ihas_3", {"polarization": 0.0}),
        ("ihas_4", {"instances": False}),
        ("base", {"models": ("open",)}),
    ],
)
def test_variants_are_those_of_section_4_7(preset: str, change: Any) -> None:
    assert from_json({"name": "ihas", **IHAS.presets[preset]}) == replace(IHAS(), **change)


def test_gates_of_criteo_have_389_thousand_weights() -> None:
    method = IHAS()
    sampler = method.sampler(method.space(CRITEO), 0)
    assert sampler.cost() == Cost(params=624 * 624 + 624, macs=624 * 624)
    assert sum(one.numel() for one in sampler.parameters()) == 624 * 624 + 624
    alike = replace(method, instances=False).sampler(method.space(CRITEO), 0)
    assert alike.cost() == Cost(params=624)


def test_a_router_costs_the_tables_the_gates_and_the_centroids() -> None:
    method, tables = IHAS(), 16 * (13 * BUCKETS + sum(100 + n for n in range(26)))
    router = method.router(method.supernet(CRITEO, method.space(CRITEO), 0), 3)
    assert router.cost() == Cost(params=624 * 624 + 624 + 3 * 624, table_params=tables, macs=624 * 624 + 3 * 624)
    supernet = method.supernet(CRITEO, method.space(CRITEO), 0)
    perceptron = Cost(params=624 * 16 + 16 + 16 * 8 + 8 + 8 + 1, table_params=tables, macs=624 * 16 + 16 * 8 + 8)
    assert supernet.cost() == perceptron + supernet.sampler.cost()
    assert method.price(CRITEO)(next(iter(everything(method))), "") == perceptron


def everything(method: IHAS) -> Sequence[Any]:
    return [{name: one.options for name, one in method.space(CRITEO).decisions.items()}]


# Stochastic selection, eq. 1 and 2


def test_two_classes_of_gumbel_noise_are_one_of_logistic_noise() -> None:
    generator = torch.Generator().manual_seed(2)
    uniform = torch.rand(2, 40_000, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    open_, closed = -(-uniform.log()).log()
    p, tau = 0.3, 0.1
    classes = torch.stack([math.log(p) + open_, math.log(1 - p) + closed])
    logit = math.log(p / (1 - p))
    assert torch.equal(classes.argmax(0) == 0, logit + open_ - closed > 0)
    torch.testing.assert_close((classes / tau).softmax(0)[0], ((logit + open_ - closed) / tau).sigmoid())
    sampler, x = gates(replace(IHAS(), pretrained=0), 10_000)
    soft = Bernoulli(SPACE, SEED, 6, hard=False, temperature=1.0)
    soft.load_state_dict(sampler.state_dict())
    noise = (joined(soft.relaxed(x, 4)).double().logit() - soft.logit(x).double()).detach().numpy()
    for place in range(6):
        assert kstest(noise[:, place], "logistic").pvalue > 1e-4
        assert ks_2samp(noise[:, place], (open_ - closed).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("instances", [True, False])
def test_a_gate_opens_with_its_probability(instances: bool) -> None:
    sampler, x = gates(replace(IHAS(), pretrained=0, instances=instances), 3)
    draws = 3_000
    for draw in (sampler, sampler.relaxed):
        opened = sum(joined(draw(x, step)).detach() for step in range(draws))
        likely = sampler.probability(x).expand(3, -1)
        assert len({tuple(row) for row in joined(draw(x, 0)).tolist()}) > 1, "each row draws its own"
        for count, p in zip(opened.flatten().tolist(), likely.flatten().tolist(), strict=True):
            assert binomtest(round(count), draws, p).pvalue > 1e-4


@pytest.mark.parametrize("tau", [0.1, 1.0])
@pytest.mark.parametrize("instances", [True, False])
def test_forward_is_hard_and_backward_is_soft(instances: bool, tau: float) -> None:
    sampler, x = gates(replace(IHAS(), temperature=tau, instances=instances), 200)
    mix = joined(sampler.relaxed(x, 9))
    assert {*mix.flatten().tolist()} == {0.0, 1.0}
    uniform = uniforms(x["rows"], 6, seed_of("gates relaxed", SEED, 9)).double()
    noise = (uniform / (1 - uniform)).log()
    logit = sampler.logit(x).detach().double().requires_grad_()
    soft = ((logit - noise) / tau).sigmoid()
    assert torch.equal(mix.detach() > 0.5, soft > 0.5)
    slope = torch.randn(mix.shape, generator=torch.Generator().manual_seed(3))
    (golden_G,) = torch.autograd.grad((soft * slope.double()).sum(), [logit])
    bias = sampler.gate.bias if sampler.gate is not None else sampler.logits
    assert bias is not None
    found = torch.autograd.grad((mix * slope).sum(), [*sampler.parameters()])
    torch.testing.assert_close(found[-1].double(), golden_G.sum(0) if instances else golden_G, rtol=1e-3, atol=1e-3)
    if instances:
        torch.testing.assert_close(found[0].double(), golden_G.T @ x["kept"].double(), rtol=1e-3, atol=1e-3)


# Polarization, eq. 5


@pytest.mark.parametrize("sparsity, polarization", [(0.3, 0.3), (0.02, 0.5), (0.4, 0.0), (0.0, 0.1)])
def test_the_penalty_is_that_of_equation_5(sparsity: float, polarization: float) -> None:
    method = replace(IHAS(), sparsity=sparsity, polarization=polarization)
    sampler, x = gates(method, 7)
    mix = sampler.relaxed(x, 0)
    net: Any = None
    penalty = method.penalty(net, {})
    assert penalty is not None
    found, total = penalty(mix, sampler), 0.0
    rows = sampler.probability(x).tolist()
    for row in rows:
        mean = sum(row) / len(row)
        for p in row:
            total += sparsity * p - polarization * abs(p - mean)
    assert float(found.detach()) == pytest.approx(total / (len(rows) * 6), rel=1e-5)
    assert found.requires_grad


def test_without_a_penalty_there_is_none() -> None:
    net: Any = None
    assert replace(IHAS(), sparsity=0.0, polarization=0.0).penalty(net, {}) is None


def test_equal_weights_push_down_what_is_below_the_mean_alone() -> None:
    sampler, _ = gates(IHAS(), 1)
    method, net = replace(IHAS(), sparsity=0.6, polarization=0.6), None
    penalty = method.penalty(net, {})  # type: ignore[arg-type]
    assert penalty is not None
    rows = torch.tensor([[0.1, 0.2, 0.3, 0.7, 0.8, 0.9], [0.45, 0.5, 0.52, 0.9, 0.95, 0.97]], requires_grad=True)
    sampler.last = rows
    (slope,) = torch.autograd.grad(penalty({}, sampler), [rows])
    torch.testing.assert_close(slope, torch.tensor([[2.0] * 3 + [0.0] * 3] * 2) * 0.6 / 12)
    sampler.last = uneven = torch.tensor([[0.1, 0.2, 0.2, 0.2, 0.3, 0.9]], requires_grad=True)
    (slope,) = torch.autograd.grad(penalty({}, sampler), [uneven])
    shared = (1 - 5) / 6  # the mean itself moves
    torch.testing.assert_close(slope, torch.tensor([[2 + shared] * 5 + [shared]]) * 0.6 / 6)


# The threshold searcher


def searched(values: Sequence[float]) -> float:
    """The lower end of the first valley among 20 bins of means of three neighbours."""
    count = [0] * BINS
    for value in values:
        count[min(BINS - 1, int(torch.tensor(value) * BINS))] += 1
    near = [count[max(0, n - 1) : n + 2] for n in range(BINS)]
    mean = [Fraction(sum(own), len(own)) for own in near]
    for n in range(1, BINS - 1):
        fallen = any(mean[k] < mean[k - 1] for k in range(1, n + 1))
        lowest = mean[n - 1] >= mean[n] <= mean[n + 1]
        if fallen and lowest and sum(count[:n]) and sum(count[n + 1 :]):
            return n / BINS
    return 0.5


def test_thresholds_equal_a_plain_search() -> None:
    rng, valley = np.random.default_rng(0), 0
    for number in range(600):
        left, right = rng.beta(*rng.uniform(0.3, 9, 2), size=(2, int(rng.integers(1, 400))))
        own = np.concatenate([left, right[: int(rng.integers(0, len(right) + 1))]]).astype(np.float32)
        found = float(valleys(histograms(torch.from_numpy(own)[None]))[0])
        assert found == pytest.approx(searched(own.tolist())), f"case {number}"
        valley += found != 0.5
    assert 200 < valley < 600


def test_two_peaks_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    low, high = rng.normal(0.12, 0.03, 200), rng.normal(0.85, 0.04, 120)
    values = torch.tensor(np.concatenate([low, high]).clip(0, 1), dtype=torch.float32)
    threshold = float(valleys(histograms(values[None]))[0])
    assert low.max() <= threshold <= high.min()


@pytest.mark.parametrize("mean, spread", [(0.05, 0.05), (0.3, 0.1), (0.5, 0.1), (0.8, 0.1), (0.97, 0.02), (0.6, 0.0)])
def test_one_peak_has_no_valley(mean: float, spread: float) -> None:
    at = (torch.arange(1_000) + 0.5) / 1_000
    values = mean + spread * (2 * at - 1).erfinv() * 2**0.5
    assert float(valleys(histograms(values.clamp(0, 1)[None]))[0]) == 0.5


def test_every_row_has_a_threshold_of_its_own() -> None:
    values = torch.cat([torch.full((1, 60), 0.12), torch.full((1, 60), 0.5)])
    values[0, 40:], values[1, 40:] = 0.42, 0.95
    one, other = valleys(histograms(values)).tolist()
    assert 0.12 < one < 0.42 and 0.5 < other < 0.95


# Majorities


def shares(*values: float) -> Any:
    return np.array(values)


def test_a_kind_keeps_what_half_of_its_rows_keep() -> None:
    method, space = replace(IHAS(), embedding=3), SPACE
    open_PG = np.array([[0.5, 0.49, 1.0, 0.0, 0.1, 0.2], [0.7, 0.1, 0.2, 0.9, 0.5, 0.4]])
    rows = np.array([300, 100])
    clusters, single = method.derive(space, open_PG, rows)
    assert clusters.name == "clusters" and clusters.parts == (
        {"a": ("0", "2"), "b": ()},
        {"a": ("0",), "b": ("0", "1")},
    )
    mean = [(3 * one + other) / 4 for one, other in open_PG.T.tolist()]
    assert single.name == "single" and not single.kept and not clusters.kept
    golden = [str(n) for n in range(3) if mean[n] >= 0.5], [str(n) for n in range(3) if mean[3 + n] >= 0.5]
    assert single.parts == ({"a": tuple(golden[0]), "b": tuple(golden[1])},)
    strict = replace(method, majority=0.8).derive(space, open_PG, rows)[0]
    assert strict.parts == ({"a": ("2",), "b": ()}, {"a": (), "b": ("0",)})


def test_models_are_derived_in_the_order_asked_for() -> None:
    open_PG, rows = np.full((2, 6), 0.9), np.array([1, 1])
    every = replace(IHAS(), models=("gates", "single", "open", "clusters"))
    found = every.derive(SPACE, open_PG, rows)
    assert [(one.name, len(one.parts), one.kept) for one in found] == [
        ("gates", 1, True),
        ("single", 1, False),
        ("open", 1, False),
        ("clusters", 2, False),
    ]
    assert found[2].parts == ({name: one.options for name, one in SPACE.decisions.items()},)
    alone = every.derive(SPACE, open_PG[:1], rows[:1])
    assert [one.name for one in alone] == ["gates", "single", "open"], "one kind of rows has one model"
    assert [one.name for one in IHAS().derive(SPACE, open_PG[:1], rows[:1])] == ["single"]


class Limit(Budget):
    """No more than some dimensions."""

    def __init__(self, most: int) -> None:
        super().__init__({"params": most}, lambda genotype, under: Cost(params=sum(map(len, genotype.values()))))


def test_a_budget_raises_the_majority() -> None:
    method, open_G = IHAS(), shares(0.5, 0.6, 0.9, 0.3, 0.9, 0.7)
    assert method.kept(SPACE, open_G) == {"a": ("0", "1", "2"), "b": ("1", "2")}
    for most, golden in (
        (4, {"a": ("1", "2"), "b": ("1", "2")}),
        (3, {"a": ("2",), "b": ("1", "2")}),
        (2, {"a": ("2",), "b": ("1",)}),
    ):
        assert method.kept(SPACE.within(Limit(most)), open_G) == golden
    with pytest.raises(Infeasible, match=r"params 2 of 1.*lower --method.sparsity") as error:
        method.kept(SPACE.within(Limit(1)), open_G)
    assert "no dimension is kept by 0.90" not in str(error.value), "two are"
    few = shares(0.4, 0.1, 0.0, 0.2, 0.49, 0.3)
    with pytest.raises(Infeasible, match="no dimension is kept by 0.50 of all training rows") as error:
        method.kept(SPACE.within(Limit(1)), few)
    assert "params 0 of 1" not in str(error.value), "the limit is not what is in the way"
    with pytest.raises(Infeasible, match="no dimension is kept by 0.50 of all training rows: lower --method.sparsity"):
        method.kept(SPACE, few)


@pytest.mark.parametrize("majority, share", [(0.5, 0.5), (1.0, 1.0)])
def test_what_is_in_the_way_is_told_where_no_majority_is_larger(majority: float, share: float) -> None:
    with pytest.raises(Infeasible, match="params 6 of 3") as error:
        replace(IHAS(), majority=majority).kept(SPACE.within(Limit(3)), np.full(6, share))
    assert "no dimension is kept" not in str(error.value)


def test_a_budget_that_leaves_no_model_is_an_error() -> None:
    """Not a comparison of rivals alone."""
    method = replace(IHAS(), models=("open", "gates"))
    with pytest.raises(Infeasible, match="params 6 of 3"):
        method.check(CRITEO, SPACE.within(Limit(3)))


def test_only_what_is_asked_for_must_keep_something() -> None:
    closed, rows = np.zeros((2, 6)), np.array([5, 5])
    for kind in ("open", "gates"):
        models: Any = (kind,)
        (found,) = replace(IHAS(), models=models).derive(SPACE, closed, rows)
        assert found.name == kind and found.parts == ({name: ("0", "1", "2") for name in "ab"},)
