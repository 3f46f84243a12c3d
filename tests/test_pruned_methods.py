"""Methods that prune tables, against their papers' equations: PEP, OptFS, OptEmbed.

As for those that weigh vectors, what is expected is computed by NumPy from plain tables.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from components.run import Run
from nascore import fitness
from nascore.buckets import in_buckets
from nascore.methods._gated import PrunedMethod
from nascore.methods.optembed import OptEmbed
from nascore.methods.optfs import OptFS
from nascore.methods.pep import PEP
from nascore.net import Supernet
from nascore.pruned_net import PrunedNet
from nascore.space import Genotype, Space
from nascore.training import Fit
from tests.test_gated_methods import (
    SCHEMA,
    SIZES,
    SMALL,
    TRAINING,
    WIDTH,
    changed,
    copy,
    embedded,
    fit_of,
    perceptron,
    places,
    plain,
    rows,
    searching,
    sigmoid,
)


def model_of(run: Run, method: PrunedMethod, source: Supernet, seed: int = 0) -> PrunedNet:
    """The model of what a supernet found, as it begins."""
    net, read = method.supernet(run.schema, Space([]), seed).net, method.supernet(run.schema, Space([]), 9, True)
    read.load_state_dict(copy(source))  # as from a checkpoint
    method.begin(net, read)
    assert isinstance(net, PrunedNet)
    return net


# PEP


def test_an_entry_of_pep_is_what_is_above_its_threshold() -> None:
    net, batch = searching(PEP(**SMALL)), rows()
    v, s = plain(net.matrix)[places(batch)], plain(net.thresholds.weight)[places(batch)]
    golden = (np.sign(v) * np.maximum(0, np.abs(v) - sigmoid(s))).reshape(len(batch), -1)
    x = embedded(net, batch)
    np.testing.assert_allclose(plain(net.searched(x)), golden, atol=1e-12)
    np.testing.assert_allclose(plain(net(x, {})), perceptron(net, golden), atol=1e-12)
    assert 0.1 < (golden == 0).mean() < 0.9 and (golden < 0).any()
    fresh: Any = PEP(**SMALL, threshold=-3.0).searching(SCHEMA, Space([]))
    assert {*fresh.thresholds.weight.flatten().tolist()} == {-3.0}


def test_pep_learns_entries_and_thresholds_by_their_slopes() -> None:
    net, batch = searching(PEP(**SMALL)), rows()
    reached = torch.zeros(len(net.matrix), dtype=torch.bool)
    reached[places(batch)] = True

    def loss() -> Any:
        return net(net.embed(batch), {}).square().sum()

    for weight in (net.matrix, net.thresholds.weight):
        (slope,) = torch.autograd.grad(loss(), [weight])
        assert not slope[~reached].any() and 0.1 < float((slope[reached] == 0).double().mean()) < 0.9
        for row, dim in [(row, dim) for row in reached.nonzero().flatten().tolist() for dim in range(WIDTH)][::3]:
            ends = []
            with torch.no_grad():
                for step in (1e-6, -2e-6):
                    weight[row, dim] += step
                    ends.append(float(loss()))
                weight[row, dim] += 1e-6
            assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float(slope[row, dim]), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("share", [1e-9, 0.013, 0.3, 0.5, 0.99, 1.0])
def test_pep_keeps_exactly_its_share_and_the_highest_above_their_thresholds(share: float) -> None:
    net = searching(PEP(**SMALL, share=share))
    above = np.abs(plain(net.matrix)) - sigmoid(plain(net.thresholds.weight))
    count = max(1, round(share * above.size))
    golden = np.zeros(above.size)
    golden[above.flatten().argsort()[::-1][:count]] = 1
    assert np.array_equal(plain(net.found()), golden.reshape(above.shape))
    with torch.no_grad():
        net.matrix[2:40] = 0.25
        net.thresholds.weight[2:40] = 0.0
    assert float(net.found().sum()) == count, "of those alike some are left out"


def test_a_model_of_pep_has_the_first_vectors_and_of_them_the_entries_that_survived(clicks: Run) -> None:
    method = PEP(**SMALL, share=0.4, threshold=-2.0)
    fit = fit_of(clicks, method, seed=7)
    first = copy(fit.supernet)
    fit.advance(12)
    assert "net.vectors.tables.groups.4.weight" in changed(first, copy(fit.supernet))
    net = model_of(clicks, method, fit.supernet, seed=3)
    assert torch.equal(net.tables.group(WIDTH).weight, first["net.vectors.tables.groups.4.weight"])
    own = method.supernet(clicks.schema, Space([]), 3).net
    assert torch.equal(net.first.weight, own.first.weight), "its layers are drawn anew"  # type: ignore[arg-type]
    searched: Any = fit.supernet.net
    assert torch.equal(net.masks.kept, searched.found())
    kept = net.masks.kept.bool()
    assert int(kept.sum()) == round(0.4 * kept.numel()) == net.cost({}).table_params


@pytest.mark.parametrize("optimizer", ["adam", "adagrad"])
def test_what_is_masked_never_gets_weights(clicks: Run, optimizer: Any) -> None:
    method = PEP(**{**SMALL, "training": replace(TRAINING, optimizer=optimizer, clip=1.0)}, share=0.4)
    fit = fit_of(clicks, method)
    fit.advance(3)
    net = model_of(clicks, method, fit.supernet)
    table, kept = net.tables.group(WIDTH).weight, net.masks.kept.bool()
    before = table.detach().clone()
    sampler = method.sampler(Space([]), 0)
    alone = Fit(Supernet(net, sampler), method.task(clicks.schema), clicks.rows("train"), method.train, 0)
    alone.advance(25)
    assert torch.equal(table[~kept], before[~kept])
    reached = torch.zeros(len(table), 1, dtype=torch.bool)
    reached[net.embed(alone.data.batch(torch.arange(alone.data.rows)))["places"]] = True
    assert float((table != before)[kept & reached].double().mean()) > 0.9, "what is kept is trained"
    batch = clicks.rows("test").batch(torch.arange(100))
    net.eval()
    output = net.only()(batch)
    with torch.no_grad():
        table[~kept] = 1e3
        assert torch.equal(net.only()(batch), output)
        table[kept] *= 2
        assert not torch.equal(net.only()(batch), output)


# OptFS


@pytest.mark.parametrize("step, sharpness", [(0, 1.0), (3, 200**0.25), (6, 200**0.5), (12, 200.0)])
def test_a_vector_of_optfs_is_scaled_by_a_gate_that_grows_sharper(step: int, sharpness: float) -> None:
    net, batch = searching(OptFS(**SMALL)), rows()
    net.at(step)
    x, gate = embedded(net, batch), sigmoid(sharpness * plain(net.gates)[places(batch)]) / sigmoid(0.5)
    golden = (plain(net.matrix)[places(batch)] * gate).reshape(len(batch), -1)
    np.testing.assert_allclose(plain(net.searched(x)), golden, rtol=1e-6)
    np.testing.assert_allclose(plain(net(x, {})), perceptron(net, golden), rtol=1e-4, atol=1e-6)
    fresh: Any = OptFS(**SMALL).searching(SCHEMA, Space([]))
    fresh.at(0)
    assert {*fresh.gates.flatten().tolist()} == {0.5} and fresh.gates.shape == (sum(SIZES.values()), 1)
    torch.testing.assert_close(fresh.searched(fresh.embed(batch)), fresh.embed(batch)["kept"])


def test_the_penalty_of_optfs_is_the_sum_of_all_gates_and_closes_them(clicks: Run) -> None:
    net = searching(OptFS(**SMALL, weight=0.03, sharpness=16.0))
    net.at(6)
    gate = sigmoid(4 * plain(net.gates))
    penalty = net.penalty()
    assert float(penalty.detach()) == pytest.approx(0.03 * gate.sum())
    (slope,) = torch.autograd.grad(penalty, [net.gates])
    np.testing.assert_allclose(plain(slope), 0.03 * 4 * gate * (1 - gate))
    for weight in (0.0, 0.1):
        fit = fit_of(clicks, OptFS(**SMALL, weight=weight, sharpness=4.0))
        searched: Any = fit.supernet.net
        fit.advance(8)
        ids_BN = searched.embed(fit.data.batch(torch.arange(fit.data.rows)))["ids"]
        never = torch.ones(len(searched.gates), dtype=torch.bool)
        never[ids_BN.long() + searched.row] = False
        alone = searched.gates.detach()[never]
        assert len(alone) > 10, "buckets that no row is in"
        assert bool((alone < 0.45).all()) if weight else bool((alone == 0.5).all()), "by the penalty alone"


def test_optfs_keeps_values_with_gates_above_0() -> None:
    net = searching(OptFS(**SMALL))
    with torch.no_grad():
        net.gates[:3] = torch.tensor([[0.0], [1e-6], [-1e-6]])
    assert net.found().tolist() == [[float(gate > 0)] for gate in plain(net.gates)[:, 0]]
    assert net.found()[:3].tolist() == [[0.0], [1.0], [0.0]]


@pytest.mark.parametrize("rewind, after", [(0.0, 0), (0.25, 3), (0.5, 6), (0.99, 11)])
def test_a_model_of_optfs_begins_with_the_weights_of_its_share_of_the_steps(
    clicks: Run, rewind: float, after: int
) -> None:
    method = OptFS(**SMALL, rewind=rewind, weight=0.1)
    fit = fit_of(clicks, method)
    fit.advance(after)
    early = {name: value for name, value in copy(fit.supernet.net).items() if "early" not in name}
    fit.advance(12 - after)
    net = model_of(clicks, method, fit.supernet, seed=3)
    weights = {name: value for name, value in net.named_parameters()}
    assert {*weights} == {name for name in early if name.startswith(("vectors.", "first.", "rest."))} - {
        name for name in early if name.endswith((".first", ".rows"))
    }
    assert not changed(weights, early)
    assert {*changed(weights, copy(fit.supernet.net))} == {*weights}, "they went on from there"
    searched: Any = fit.supernet.net
    assert torch.equal(net.masks.kept, (searched.gates > 0).float())


# OptEmbed


def drawn_widths(seed: int, steps: int) -> list[dict[str, int]]:
    """The width of each field at each step."""
    method = OptEmbed(**SMALL)
    sampler, found = method.supernet(SCHEMA, method.space(SCHEMA), seed, searching=True).sampler, []
    for step in reversed(range(steps)):
        mix = sampler(None, step)
        assert all(sorted(weights) == [0.0] * (WIDTH - 1) + [1.0] for weights in mix.values())
        found.append({name: weights.index(1.0) + 1 for name, weights in mix.items()})
    return found[::-1]


def test_each_step_of_optembed_draws_a_width_for_each_field() -> None:
    found = drawn_widths(0, 2_000)
    assert found[:50] == drawn_widths(0, 50) != drawn_widths(1, 50)
    for name in SIZES:
        for width in range(1, WIDTH + 1):
            assert binomtest(sum(one[name] == width for one in found), 2_000, 1 / WIDTH).pvalue > 1e-4
    alike = sum(one["a"] == one["b"] for one in found)
    assert binomtest(alike, 2_000, 1 / WIDTH).pvalue > 1e-4, "each by itself"


def test_a_row_of_optembed_stays_by_its_norm_and_is_read_up_to_its_width() -> None:
    net, batch, least = searching(OptEmbed(**SMALL)), rows(), np.array([1.5, 1.9, 1.2])
    with torch.no_grad():
        net.thresholds.copy_(torch.from_numpy(least))
    v_BND = plain(net.matrix)[places(batch)]
    stays = np.abs(v_BND).sum(2) > least
    assert 0.2 < stays.mean() < 0.8 and {*stays.flatten()} == {True, False}
    for widths in ((2, 1, 4), (4, 4, 4), (1, 3, 2)):
        genotype = {name: (f"first {width}",) for name, width in zip(SIZES, widths, strict=True)}
        read = np.arange(WIDTH) < np.array(widths)[:, None]
        golden = perceptron(net, (v_BND * stays[:, :, None] * read).reshape(len(batch), -1))
        np.testing.assert_allclose(plain(net(embedded(net, batch), net.space.mix(genotype))), golden, atol=1e-12)
    every = np.abs(plain(net.matrix)).sum(1) > least.repeat([*SIZES.values()])
    assert net.found().tolist() == every.astype(float)[:, None].tolist()


def test_thresholds_of_optembed_are_learned_through_a_long_tailed_step() -> None:
    net, batch = searching(OptEmbed(**SMALL, weight=0.2)), rows()
    with torch.no_grad():
        net.thresholds.copy_(torch.tensor([1.5, 1.9, 1.2], dtype=torch.float64))
    x_BND = torch.from_numpy(plain(net.matrix)[places(batch)]).requires_grad_()
    upstream = np.random.default_rng(1).normal(size=x_BND.shape)
    output = net.searched({"kept": x_BND.flatten(1)})
    slopes = torch.autograd.grad((output.view_as(x_BND) * torch.from_numpy(upstream)).sum(), [x_BND, net.thresholds])
    x = plain(x_BND)
    above = np.abs(x).sum(2) - [1.5, 1.9, 1.2]
    far = np.abs(above)
    tail = np.interp(far, [0, 0.4, 1, 1 + 1e-12], [2, 0.4, 0.4, 0])
    assert all(((far > low) & (far < high)).any() for low, high in ((0, 0.4), (0.4, 1), (1, 9)))
    through = tail * (x * upstream).sum(2)
    np.testing.assert_allclose(plain(slopes[1]), -through.sum(0), rtol=1e-5)
    golden = upstream * (above > 0)[:, :, None] + through[:, :, None] * np.sign(x)
    np.testing.assert_allclose(plain(slopes[0]), golden, rtol=1e-5, atol=1e-6)
    assert float(net.penalty().detach()) == pytest.approx(0.2 * np.exp([-1.5, -1.9, -1.2]).sum())
    (slope,) = torch.autograd.grad(net.penalty(), [net.thresholds])
    np.testing.assert_allclose(plain(slope), -0.2 * np.exp([-1.5, -1.9, -1.2]))


def test_a_model_of_optembed_has_the_first_numbers_of_rows_that_stayed_anew() -> None:
    method, batch, widths = OptEmbed(**SMALL), rows(), {"a": 2, "n": 1, "b": 4}
    source = Supernet(searching(method), method.sampler(method.space(SCHEMA), 0))
    searched: Any = source.net
    with torch.no_grad():
        searched.thresholds.copy_(torch.tensor([1.5, 1.9, 1.2]))
    space = method.space(SCHEMA).narrow({name: (f"first {width}",) for name, width in widths.items()})
    net, fresh = (method.supernet(SCHEMA, space, 3).net for _ in range(2))
    method.begin(net, source)
    assert isinstance(net, PrunedNet) and changed(fresh.state_dict(), net.state_dict()) == {"masks.kept"}
    found = dict(zip(SIZES, searched.found().split([*SIZES.values()]), strict=True))
    ids, parts, kept = in_buckets(batch, ("n",)), list[Any](), 0.0
    for name in sorted(SIZES, key=lambda name: widths[name]):
        stays = plain(found[name])
        parts.append((plain(net.tables.group(widths[name]).weight) * stays)[ids[name].numpy()])
        kept += stays.sum() * widths[name]
        assert 0 < stays.mean() < 1
    np.testing.assert_allclose(
        plain(net.only()(batch)), perceptron(net, np.concatenate(parts, 1)), rtol=1e-4, atol=1e-6
    )
    assert net.cost(net.only_mix()).table_params == kept


def test_evolution_scores_widths_by_validation_rows_behind_the_thresholds(
    clicks: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, told = OptEmbed(**SMALL, generations=4), list[tuple[Genotype, float]]()
    fit, plain_scorer = fit_of(clicks, method), fitness.scorer

    def noted(*given: Any) -> Any:
        def score(asked: Any) -> list[float]:
            values = plain_scorer(*given)(asked)
            told.extend(zip(asked, values, strict=True))
            return values

        return score

    fit.advance(12)
    net: Any = fit.supernet.eval().net
    with torch.no_grad():
        net.thresholds.fill_(float(net.matrix.abs().sum(1).median()))
    monkeypatch.setattr(fitness, "scorer", noted)
    valid = clicks.rows("valid")
    decided = method.decide(fit.supernet, fit.task, clicks.rows("train"), valid)
    assert len(told) == 4 * 20 == len({str(one) for one, _ in told}) and decided in net.space
    assert decided == max(told, key=lambda one: one[1])[0]
    batch = valid.batch(torch.arange(valid.rows))
    x_BND = plain(net.embed(batch)["kept"]).reshape(valid.rows, -1, WIDTH)
    stays = np.abs(x_BND).sum(2) > plain(net.thresholds)
    for genotype, value in (told[0], told[33], told[-1]):
        widths = np.array([int(genotype[name][0].removeprefix("first ")) for name in net.names])
        read = stays[:, :, None] * (np.arange(WIDTH) < widths[:, None])
        p = sigmoid(perceptron(net, (x_BND * read).reshape(valid.rows, -1)))
        assert batch.label is not None
        chance = np.where(batch.label.numpy() > 0, p, 1 - p)
        assert value == pytest.approx(np.log(chance).mean(), abs=1e-5)
