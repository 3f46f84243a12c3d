"""Methods that weigh vectors, against their papers' equations: AutoField, AdaFS, and nets that wear gates of iHAS.

Nets are small, with weights as after a training; what is expected is computed by NumPy from plain tables.
"""

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import kstest
from torch import Tensor
from torch.nn import functional

from components.run import Run
from nascore.buckets import BUCKETS, in_buckets
from nascore.click_net import ClickTraining
from nascore.cost import Cost
from nascore.gated_net import GatedNet
from nascore.methods import Method
from nascore.methods.adafs import AdaFS
from nascore.methods.autofield import AutoField
from nascore.methods.ihas import IHAS
from nascore.methods.worn import Worn
from nascore.net import Supernet
from nascore.rows import seed_of
from nascore.samplers.bernoulli import Bernoulli, histograms, valleys
from nascore.schema import Batch, Column, Schema
from nascore.space import Decision, Space
from nascore.training import Fit, Learning

WIDTH = 4
SIZES = {"a": 6, "n": BUCKETS, "b": 5}
SCHEMA = Schema("", "", 0, 0, (Column("a", size=6), Column("n", kind="number"), Column("b", size=5)), "stratified")
TRAINING = ClickTraining(
    batch=64, optimizer="adam", learning_rate=0.02, clip=0.0, warmup=0.0, schedule="constant", weight_decay=0.0
)
SMALL: dict[str, Any] = {"embedding": WIDTH, "layers": (5,), "steps": 12, "training": TRAINING}
LEARNER = Learning(every=1, learning_rate=0.05, weight_decay=0.1, batch=50)
Numbers = NDArray[np.float64]


def sigmoid(x: Any) -> Numbers:
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def rows(count: int = 40) -> Batch:
    generator = torch.Generator().manual_seed(3)
    columns = {name: torch.randint(0, SIZES[name], (count,), generator=generator).int() for name in "ab"}
    return Batch({**columns, "n": torch.randn(count, generator=generator).exp() * 9 - 4}, {}, torch.arange(count))


def searching(method: Method, seed: int = 2) -> Any:
    """The net that searches, with weights as after a training."""
    net = method.searching(SCHEMA, method.space(SCHEMA))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    return net.double().eval()


def places(batch: Batch) -> NDArray[np.int64]:
    """Where each row's values stand in the tables one after the other. Shape (B, N)."""
    ids, starts = in_buckets(batch, ("n",)), np.cumsum([0, *SIZES.values()])
    return np.stack([ids[name].numpy() + start for name, start in zip(SIZES, starts[:-1], strict=True)], 1)


def plain(tensor: Tensor) -> Numbers:
    return tensor.detach().double().numpy()


def embedded(net: GatedNet, batch: Batch) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in net.embed(batch).items()}


def perceptron(net: Any, x_BK: Numbers) -> Numbers:
    """What a net of one hidden layer says of vectors side by side."""
    hidden = np.maximum(x_BK @ plain(net.first.weight).T + plain(net.first.bias), 0)
    logit_B: Numbers = (hidden @ plain(net.rest[-1].weight).T + plain(net.rest[-1].bias))[:, 0]
    return logit_B


def whole(net: GatedNet) -> Any:
    return net.space.mix({name: one.options[-1:] for name, one in net.space.decisions.items()})


def fit_of(run: Run, method: Method, seed: int = 0, double: bool = False, **plan: Any) -> Fit:
    supernet = method.supernet(run.schema, method.space(run.schema), seed, searching=True)
    supernet, task = supernet.double() if double else supernet, method.task(run.schema)
    learning, known = method.learning if supernet.sampler.learns else None, replace(method.train, steps=12, **plan)
    return Fit(supernet, task, run.rows("train"), known, seed, learning, run.rows("valid"))


def copy(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# AutoField


def fields(count: int) -> Space:
    return Space([Decision(f"f{place}", ("all",), 0, 1) for place in range(count)])


def test_fields_of_autofield_are_weighed_by_two_classes_of_gumbel_noise_that_cools() -> None:
    space = fields(3)
    still, cooling = (AutoField(**SMALL, cooling=rate).sampler(space, 4).double() for rate in (0.0, 5e-5))
    logit = torch.tensor([0.3, -2.0, 1.7], dtype=torch.float64)
    with torch.no_grad():
        for sampler in (still, cooling):
            sampler.logits.copy_(logit)  # type: ignore[union-attr,operator]
    noise = {}
    for step in (*range(700), 5_000, 19_799, 19_801, 90_000):
        weights = torch.cat([*still(None, step).values()])
        noise[step] = weights.logit() - logit
        golden = torch.stack([logit + noise[step], torch.zeros(3)]) / max(0.01, 1 - 5e-5 * step)
        torch.testing.assert_close(torch.cat([*cooling(None, step).values()]), golden.softmax(0)[0])
    drawn = torch.stack([*noise.values()])
    assert kstest(drawn.flatten().numpy(), "logistic").pvalue > 1e-4, "one Gumbel number less another"
    assert abs(float(torch.corrcoef(drawn.T)[0, 1])) < 0.15
    lesson = torch.cat([*still.relaxed(None, 0).values()])
    assert lesson.requires_grad and not torch.allclose(lesson.logit() - logit, noise[0]), "a lesson draws its own"


@pytest.mark.parametrize("share", [0.01, 0.28, 0.5, 0.56, 1.0])
@pytest.mark.parametrize("count", [1, 7, 25])
def test_autofield_keeps_its_share_of_the_fields_the_most_probable(share: float, count: int) -> None:
    space, rng = fields(count), np.random.default_rng(count)
    method = AutoField(**SMALL, share=share)
    net: Any = torch.nn.Module()
    net.space = space
    supernet = Supernet(net, method.sampler(space, 0))
    logits = rng.permutation(np.linspace(-3, 1, count))
    assert isinstance(supernet.sampler, Bernoulli) and supernet.sampler.logits is not None
    with torch.no_grad():
        supernet.sampler.logits.copy_(torch.from_numpy(logits))
    nothing: Any = None
    decided = method.decide(supernet, nothing, nothing, nothing)
    kept = ceil(Fraction(str(share)) * count)
    golden = {f"f{place}" for place in np.argsort(-logits)[:kept]}
    assert {name for name, chosen in decided.items() if chosen == ("all",)} == golden and decided in space
    weighed = AdaFS(**SMALL, kind="hard", share=share).sampler(space, 0).double()
    mix = weighed.relaxed({"kept": torch.randn(9, count * WIDTH, dtype=torch.float64)}, 0)
    assert (torch.cat([*mix.values()], 1) > 0).sum(1).tolist() == [kept] * 9, "as do hard weights of AdaFS"


# AdaFS


def weighed(sampler: Any, x_BK: Numbers, kept: int = 0) -> Numbers:
    """What a controller says of rows. Shape (B, fields)."""
    mean, var = x_BK.mean(0), x_BK.var(0)
    if not sampler.training:
        mean, var = plain(sampler.norm.running_mean), plain(sampler.norm.running_var)
    first, _, last = sampler.layers
    hidden = np.maximum((x_BK - mean) / np.sqrt(var + 1e-5) @ plain(first.weight).T + plain(first.bias), 0)
    odds = np.exp(hidden @ plain(last.weight).T + plain(last.bias))
    weights: Numbers = odds / odds.sum(1, keepdims=True)
    if kept:
        for row in weights:
            row[np.argsort(-row)[kept:]] = 0
            row /= row.sum()
    return weights


@pytest.mark.parametrize("kind, kept", [("soft", 0), ("hard", 4)])
def test_weights_of_adafs_are_a_softmax_over_fields_or_its_largest_alone(kind: Any, kept: int) -> None:
    sampler: Any = AdaFS(**SMALL, kind=kind, pretrained=5, hidden=9).sampler(fields(7), 0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sampler.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 2)
    x = {"kept": torch.randn(30, 28, generator=generator, dtype=torch.float64) * 2 + 1}
    assert all(weights == (1.0,) for weights in sampler(x, 4).values()) and not sampler.begun
    assert torch.equal(torch.cat([*sampler.steady(x).values()], 1), torch.ones(30, 7)), "equal ones until then"
    scale = kept or 7
    for step in (5, 6):
        found = plain(torch.cat([*sampler(x, step).values()], 1))
        np.testing.assert_allclose(found, weighed(sampler, x["kept"].numpy(), kept) * scale)
        np.testing.assert_allclose(found.sum(1) / scale, 1)
        assert ((found > 0).sum(1) == (kept or 7)).all() and len({*found.max(1)}) > 20, "each row has its own"
    moved = sampler.norm.running_mean.clone()
    sampler.eval()
    found = plain(torch.cat([*sampler.steady(x).values()], 1))
    np.testing.assert_allclose(found, weighed(sampler, x["kept"].numpy(), kept) * scale)
    assert torch.equal(sampler.norm.running_mean, moved) and bool(sampler.begun)
    assert sampler.cost() == Cost(params=28 * 9 + 9 + 9 * 7 + 7, macs=28 * 9 + 9 * 7)
    method = AdaFS(**SMALL, kind=kind)
    net, batch = searching(method), rows()
    mix = {name: torch.rand(len(batch), 1, dtype=torch.float64) for name in SIZES}
    v_BND = plain(net.tables.group(WIDTH).weight)[places(batch)] * np.stack([plain(one) for one in mix.values()], 1)
    np.testing.assert_allclose(plain(net(embedded(net, batch), mix)), perceptron(net, v_BND.reshape(len(batch), -1)))


def test_the_net_of_adafs_is_trained_alone_first_then_by_turns_with_the_controller(clicks: Run) -> None:
    method = AdaFS(**SMALL, pretrained=4, learner=Learning(every=2, learning_rate=0.05))
    fit = fit_of(clicks, method)
    before, mixes = copy(fit.supernet), []
    fit.supernet.net.register_forward_pre_hook(lambda net, given: mixes.append(given[1]))
    fit.advance(4)
    assert all(weights == (1.0,) for mix in mixes for weights in mix.values()) and len(mixes) == 4
    assert all(name.startswith("net.") for name in changed(before, copy(fit.supernet)))
    fit.advance(1)
    assert all(one.shape == (64, 1) and not one.requires_grad for one in mixes[-1].values())
    parts = {name for name in before if name.startswith("sampler.layers.")}
    assert not parts & changed(before, copy(fit.supernet))
    fit.advance(1)
    assert parts <= changed(before, copy(fit.supernet)), "the first lesson"
    for plan, learner, still in ((0.0, 0.05, "net."), (0.02, 0.0, "sampler.layers.")):
        changes = replace(method, pretrained=0, learner=Learning(learning_rate=learner))
        fit = fit_of(clicks, changes, learning_rate=plan)
        before = copy(fit.supernet)
        fit.advance(6)
        moved = changed(before, copy(fit.supernet))
        assert moved and not any(name.startswith(still) for name in moved), "each level changes its own weights"


@pytest.mark.parametrize("kind", ["autofield", "soft", "hard"])
def test_a_lesson_is_a_step_of_adam_on_validation_rows(clicks: Run, kind: Any) -> None:
    """First-order: the weights of the net are held fast."""
    gated = AutoField(**SMALL, learner=LEARNER, cooling=0.1)
    method = gated if kind == "autofield" else AdaFS(**SMALL, kind=kind, pretrained=0, learner=LEARNER)
    fit = fit_of(clicks, method, double=True, learning_rate=0.0)
    net, sampler = fit.supernet.net, fit.supernet.sampler
    assert isinstance(net, GatedNet)
    own = [one.detach().clone().requires_grad_() for one in sampler.parameters()]
    adam = torch.optim.Adam(own, 0.05, weight_decay=0.1)
    batches = clicks.rows("valid").batches(50, seed_of(0, "held rows"))
    for step in range(3):
        batch = next(batches)
        x_BK, tau = net.embed(batch)["kept"].detach(), 1 - 0.1 * step
        if kind == "autofield":
            drawn = torch.cat([*sampler.relaxed(None, step).values()]).detach()
            noise = tau * drawn.logit() - own[0].detach()
            weight_BF = ((own[0] + noise) / tau).sigmoid().expand(50, -1)
        else:
            normed = (x_BK - x_BK.mean(0)) / (x_BK.var(0, correction=0) + 1e-5).sqrt()
            weight_BF = (functional.linear(normed, *own[:2]).relu() @ own[2].T + own[3]).softmax(1)
            if kind == "hard":
                place_BK = weight_BF.detach().argsort(1, descending=True)[:, :5]
                weight_BF = weight_BF * torch.zeros_like(weight_BF).scatter(1, place_BK, 1.0)
                weight_BF = weight_BF / weight_BF.sum(1, keepdim=True)
            weight_BF = weight_BF * (5 if kind == "hard" else 10)
        hidden = net.first(x_BK * weight_BF.repeat_interleave(WIDTH, 1)).relu()
        assert batch.label is not None
        loss = functional.binary_cross_entropy_with_logits(net.rest[-1](hidden)[:, 0], batch.label.double())
        for parameter, slope in zip(own, torch.autograd.grad(loss, own), strict=True):
            parameter.grad = slope
        adam.step()
        fit.advance(1)
        for parameter, golden in zip(sampler.parameters(), own, strict=True):
            torch.testing.assert_close(parameter, golden, rtol=1e-6, atol=1e-8)


# Worn gates


def worn(behind: str, scope: Any = "sample") -> tuple[Worn, Supernet, Any]:
    """A method that wears gates, the supernet that learned them, and the net that has begun with them."""
    gates = IHAS(**SMALL, pretrained=2, scope=scope, learner=LEARNER)
    method, source = gates.wearing(behind, True), gates.supernet(SCHEMA, gates.space(SCHEMA), 0)
    assert isinstance(method, Worn)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        source.sampler.get_buffer("threshold").fill_(0.8)
    net: Any = method.supernet(SCHEMA, method.space(SCHEMA), 5).net
    torch.manual_seed(seed_of(5, "weights"))
    bare = gates.behind_them(SCHEMA, Space([]), behind)
    method.begin(net, source)
    assert not changed(bare.state_dict(), net.own.state_dict()), "its own net is the one without gates"
    return method, source, net.eval()


def opened(source: Any, batch: Batch, scope: str) -> NDArray[np.bool_]:
    """Which dimensions the gates leave open for each row. Shape (B, K)."""
    x_BK = plain(source.net.tables.group(WIDTH).weight)[places(batch)].reshape(len(batch), -1)
    p = sigmoid(x_BK @ plain(source.sampler.gate.weight).T + plain(source.sampler.gate.bias))
    own = valleys(histograms(torch.from_numpy(p).float())).numpy()[:, None]
    mask: NDArray[np.bool_] = p > (own if scope == "sample" else 0.8)
    return mask


@pytest.mark.parametrize("scope", ["sample", "batch"])
@pytest.mark.parametrize("behind", ["", "fm", "deepfm:width=6,depth=1"])
def test_a_net_wears_the_gates_that_were_found_and_no_others(behind: str, scope: Any) -> None:
    method, source, net = worn(behind, scope)
    batch = rows(12)
    mask = opened(source, batch, scope)
    assert 0.2 < mask.mean() < 0.8
    bare = method.gates.behind_them(SCHEMA, Space([]), behind).eval()
    with torch.no_grad():
        found = net.only()(batch)
        for row in range(12):
            bare.load_state_dict(net.own.state_dict())
            open_ND = torch.from_numpy(mask[row].reshape(3, WIDTH))
            bare.tables.group(WIDTH).weight[places(batch)[row]] *= open_ND
            if hasattr(bare.behind, "wide"):
                bare.behind.wide.tables.weight[places(batch)[row]] *= open_ND.any(1, keepdim=True)
            torch.testing.assert_close(bare.only()(batch.take(torch.tensor([row])))[0], found[row])
        own = {name: one.data_ptr() for name, one in net.own.named_parameters()}
        assert not {one.data_ptr() for one in net.router.parameters()} & {*own.values()}, "tables of its own"


@pytest.mark.parametrize("behind", ["", "deepfm:width=6,depth=1"])
def test_worn_gates_are_not_trained_and_cost_what_they_look_at(behind: str, clicks: Run) -> None:
    method, source, net = worn(behind)
    tables, gates = sum(SIZES.values()) * WIDTH, 12 * 12 + 12
    bare = method.gates.behind_them(SCHEMA, Space([]), behind)
    assert net.cost({}) == bare.cost({}) + Cost(params=gates, table_params=tables, macs=12 * 12)
    assert net.cost({}) == method.price(SCHEMA)({}, "")
    frozen = sum(one.numel() for one in net.parameters() if not one.requires_grad)
    assert frozen == gates + tables and net.cost({}, "gates").params == gates
    learned = method.gates.supernet(clicks.schema, method.gates.space(clicks.schema), 1)
    fit = fit_of(clicks, method)
    method.begin(fit.supernet.net, learned)
    before = copy(fit.supernet.net)
    fit.advance(5)
    moved = changed(before, copy(fit.supernet.net))
    weights = {name for name, one in fit.supernet.net.named_parameters() if one.requires_grad}
    without_numbers = {"own.behind.wide.weights.weight"} & weights  # all of them are categories
    assert moved == weights - without_numbers and all(name.startswith("own.") for name in moved)
