"""Training: stopping anywhere, early stopping, decay and clipping; recalibration, fitness and the plain scorer."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from components.run import Run
from nascore import group
from nascore.fitness import Fitness, recalibrate, scorer
from nascore.methods.autotower import AutoTower
from nascore.methods.popularity import Popularity
from nascore.net import Net
from nascore.ops.batch_norm import BatchNorm
from nascore.rows import Data
from nascore.schema import Batch
from nascore.space import Genotype
from nascore.tasks import Model, Task
from nascore.training import Fit, Learning, Plan, State, Stopping, load, train
from nascore.two_tower import Training

Prepared = Callable[..., Run]
SMALL = AutoTower(
    blocks=2,
    embedding=4,
    width=8,
    output=6,
    positions=True,
    pool_dropout=0.3,
    training=Training(batch=32, weight_decay=1e-3, clip=0.5, regularizer=1e-2),
)


def fit_of(
    data: Data,
    seed: int = 3,
    method: Any = SMALL,
    plan: Plan | None = None,
    genotype: Genotype | None = None,
    held: Data | None = None,
) -> Fit:
    space = method.space(data.schema)
    space = space if genotype is None else space.narrow(genotype)
    supernet, task = method.supernet(data.schema, space, seed), method.task(data.schema)
    return Fit(supernet, task, data, plan or method.train, seed, method.learning, method.learning and held)


def copied(state: State) -> State:
    return {name: value.clone() for name, value in state.items()}


def assert_equal(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize(("mode", "lazy"), [("resident", True), ("streaming", True), ("resident", False)])
def test_a_training_can_stop_anywhere(prepared: Prepared, mode: Any, lazy: bool) -> None:
    data, method = prepared().rows("train", mode), replace(SMALL, lazy=lazy)
    whole = fit_of(data, method=method)
    whole.advance(20)
    assert len(whole.state()) > 2 * len(whole.weights()) > 20
    for stop in (7, 19):
        first = fit_of(data, method=method)
        first.advance(stop)
        saved = copied(first.state())
        first.advance(1)
        second = fit_of(prepared().rows("train", mode), method=method)
        with torch.no_grad():
            for parameter in second.supernet.parameters():
                parameter.fill_(9.0)
        second.advance(3)
        second.restore(saved)
        assert second.step == stop
        second.advance(20 - stop)
        assert_equal(second.state(), whole.state())


def test_a_sampler_learns_from_held_rows_alone_and_can_stop_anywhere(prepared: Prepared) -> None:
    data, held = prepared().rows("train"), prepared().rows("valid")
    method = replace(SMALL, paths="nasp", nasp=Learning(every=3, learning_rate=0.2))

    def fit() -> Fit:
        return fit_of(data, method=method, held=held)

    whole = fit()
    before = whole.supernet.sampler.state_dict()["strength"].clone()
    whole.advance(2)
    assert torch.equal(whole.supernet.sampler.state_dict()["strength"], before), "a step of it is not due yet"
    gap = whole.task.state_dict()["gap"].clone()
    weights = copied(whole.weights())
    whole.step = 3
    whole._learn()
    own = {name: value for name, value in whole.weights().items() if not name.startswith("supernet.sampler.")}
    assert_equal(own, {name: weights[name] for name in own})
    assert len(own) == len(weights) - 1, "weights and moments of batch norms stay"
    whole = fit()
    whole.advance(3)
    learned = whole.supernet.sampler.state_dict()["strength"]
    assert (learned != before).sum() > 10 and learned.min() >= 0 and learned.max() <= 1
    assert whole.task.training and whole.supernet.net.training
    whole.advance(17)
    for stop in (5, 6):
        first = fit()
        first.advance(stop)
        second = fit()
        second.advance(1)
        second.restore(copied(first.state()))
        second.advance(20 - stop)
        assert_equal(second.state(), whole.state())
    plain = fit()
    plain.advance(2)
    assert torch.equal(plain.task.state_dict()["gap"], gap)
    with pytest.raises(ValueError, match="Nasp learns: it needs settings and rows"):
        fit_of(data, method=method)


def test_each_step_drops_out_anew(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, seeds = fit_of(prepared().rows("train")), list[int]()

    def step(batch: Batch) -> Tensor:
        seeds.append(torch.initial_seed())
        return torch.zeros(())

    monkeypatch.setattr(fit, "_step", step)
    fit.advance(4)
    for rank in (0, 1):
        monkeypatch.setattr(group, "rank", lambda rank=rank: rank)
        fit.step = 4
        fit.advance(1)
    assert len(set(seeds)) == len(seeds) == 6, "by step and by rank"


def test_the_mean_loss_is_that_of_the_steps(prepared: Prepared) -> None:
    data = prepared().rows("train")
    one, other = fit_of(data), fit_of(data)
    each = [one.advance(1) for _ in range(5)]
    assert other.advance(5) == pytest.approx(sum(each) / 5, rel=1e-6) and len(set(each)) == 5


def test_weights_can_be_loaded_into_a_model(prepared: Prepared) -> None:
    fit, other = fit_of(prepared().rows("train")), fit_of(prepared().rows("train"), seed=4)
    fit.advance(3)
    load(other.supernet, other.task, fit.state())
    assert_equal(other.weights(), fit.weights())
    assert "task.gap" in fit.weights() and not any(name.startswith("optimizer") for name in fit.weights())


def test_decay_acts_on_tables_and_matrices_only(prepared: Prepared) -> None:
    fit = fit_of(prepared().rows("train"))
    decayed, others = fit.optimizer.param_groups
    assert decayed["weight_decay"] == 1e-3 and others["weight_decay"] == 0
    names = {name: parameter.dim() for name, parameter in fit.supernet.net.named_parameters()}
    assert {fit.names[parameter] for parameter in decayed["params"]} == {name for name in names if names[name] >= 2}
    assert len(decayed["params"]) + len(others["params"]) == len(names)
    assert decayed["lr"] == others["lr"] == 1e-3


def test_what_is_off_the_path_stands_still_or_goes_on_by_its_moments(prepared: Prepared) -> None:
    lazy, dense = (fit_of(prepared().rows("train"), method=replace(SMALL, lazy=way)) for way in (True, False))
    begun = {name: p.detach().clone() for p, name in dense.names.items()}
    for fit in (lazy, dense):
        fit.advance(1)
    first = {lazy.names[p]: (p.detach().clone(), p.grad.clone()) for p in lazy.names if p.grad is not None}
    for fit in (lazy, dense):
        fit.advance(1)
    still = {name: p for p, name in lazy.names.items() if p.grad is None}
    moved = {name: p for p, name in dense.names.items() if name in still}
    left = [name for name in still if name in first]
    assert len(left) > 5 and any(name.startswith("user_tower.blocks") for name in left)
    for name in left:
        value, gradient = first[name]
        assert torch.equal(still[name], value), name
        plain = begun[name].clone().requires_grad_()
        decay = dense.plan.weight_decay if plain.dim() >= 2 else 0.0
        adam = torch.optim.Adam([plain], lr=dense.plan.learning_rate, weight_decay=decay)
        for each in (gradient, torch.zeros_like(gradient)):
            plain.grad = each.clone()
            adam.step()
        torch.testing.assert_close(moved[name].detach(), plain.detach())
        assert not torch.equal(moved[name], value) or not gradient.any(), name
    never = [name for name in still if name not in first]
    assert len(never) > 5 and all(torch.equal(moved[name], begun[name]) for name in never), "had no gradient so far"


@pytest.mark.parametrize("clip", [0.0, 1e-3, 1e6])
def test_the_joined_gradient_is_clipped(prepared: Prepared, clip: float) -> None:
    data = prepared().rows("train")
    fit, free = (fit_of(data, plan=replace(SMALL.train, clip=one)) for one in (clip, 0.0))
    for one in (fit, free):
        one.advance(1)
    norms = [
        math.sqrt(sum(float(p.grad.square().sum()) for p in one.names if p.grad is not None)) for one in (fit, free)
    ]
    assert norms[1] > 0.1
    assert norms[0] == pytest.approx(1e-3 if clip == 1e-3 else norms[1], rel=1e-4)


def test_the_learning_rate_follows_its_schedule(prepared: Prepared) -> None:
    def rates(schedule: Any) -> list[float]:
        return [Plan(32, steps=4, learning_rate=0.8, schedule=schedule).rate(step) for step in range(5)]

    assert rates("constant") == [0.8] * 5
    assert rates("linear") == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    assert rates("cosine") == pytest.approx([0.8, 0.4 * (1 + 0.5**0.5), 0.4, 0.4 * (1 - 0.5**0.5), 0.0])
    data = prepared().rows("train")
    whole, part, rest = (fit_of(data, plan=replace(SMALL.train, steps=6, schedule="linear")) for _ in range(3))
    whole.advance(6)
    part.advance(2)
    assert [group["lr"] for group in part.optimizer.param_groups] == pytest.approx([1e-3 * 5 / 6] * 2)
    rest.restore(copied(part.state()))
    rest.advance(4)
    assert_equal(rest.state(), whole.state())


def test_stopping_counts_epochs_without_a_better_value() -> None:
    stopping = Stopping(2)
    told = [(0.1, True), (0.3, True), (math.nan, False), (0.4, True), (0.4, False), (0.2, False)]
    for place, (value, better) in enumerate(told):
        assert not stopping.over, place
        assert stopping.better(value) == better
    assert stopping.over and (stopping.best, stopping.best_epoch, stopping.epochs) == (0.4, 4, 6)
    late = Stopping(2, before=3)
    told = [(0.9, False), (0.8, False), (0.7, False), (0.1, True), (0.05, False), (0.1, False)]
    assert [(value, late.better(value)) for value, _ in told if not late.over] == told
    assert late.over and (late.best, late.best_epoch) == (0.1, 4)
    endless = Stopping(0)
    assert not any(endless.better(math.nan) or endless.over for _ in range(50))


CURVE = [0.1, 0.3, math.nan, 0.2, 0.25, 0.29, 0.9]


def told_by_epoch(fit: Fit, values: list[float]) -> Callable[[Model], float]:
    steps = fit.data.steps_per_epoch(fit.plan.batch)
    return lambda model: values[fit.step // steps - 1]


def alone(data: Data, epochs: int = 7) -> Fit:
    genotype = SMALL.space(data.schema).sample(Random(0))
    return fit_of(data, plan=Plan(batch=128, epochs=epochs, patience=4), genotype=genotype)


def test_the_best_epoch_is_kept(prepared: Prepared) -> None:
    data, reported = prepared().rows("train"), []
    fit = alone(data)
    outcome = train(fit, told_by_epoch(fit, CURVE), report=lambda epoch, value: reported.append((epoch, value)))
    steps = data.steps_per_epoch(128)
    assert (outcome.value, outcome.best_epoch, outcome.steps) == (0.3, 2, 6 * steps)
    assert reported == [(1, 0.1), *((epoch, 0.3) for epoch in range(2, 7))]
    again = alone(data)
    losses = [again.advance(steps) for _ in range(2)]
    assert_equal(outcome.weights, again.weights())
    assert [loss for loss, _ in outcome.curve[:2]] == losses
    fit = alone(data, epochs=3)
    assert len(train(fit, told_by_epoch(fit, [0.1, 0.2, 0.3])).curve) == 3, "at most so many epochs"


def test_a_killed_training_ends_as_if_it_had_not_been(prepared: Prepared) -> None:
    data, saved = prepared().rows("train"), list[State]()
    fit = alone(data)
    whole = train(fit, told_by_epoch(fit, CURVE), lambda state: saved.append(copied(state)))
    assert len(saved) == 6
    for state in saved:
        fit = alone(data)
        again = train(fit, told_by_epoch(fit, CURVE), saved=state)
        assert_equal(again.weights, whole.weights)
        assert repr((again.value, again.best_epoch, again.steps, again.curve)) == repr(
            (whole.value, whole.best_epoch, whole.steps, whole.curve)
        )


def test_no_finite_value_leaves_no_weights(prepared: Prepared) -> None:
    fit = alone(prepared().rows("train"), epochs=2)
    outcome = train(fit, lambda model: math.nan)
    assert not outcome.weights and outcome.value == -math.inf and outcome.steps == fit.step > 0
    assert len(outcome.curve) == 2 and all(math.isnan(value) for _, value in outcome.curve)


def test_a_model_without_epochs_is_solved(prepared: Prepared) -> None:
    data = prepared().rows("train")
    fit = fit_of(data, method=Popularity())
    outcome = train(fit, lambda model: float(model(data.batch(torch.arange(3)))["item"].sum()))
    events = outcome.weights["supernet.net.events"][:, 0]
    assert events.sum() == data.rows and (outcome.steps, outcome.curve) == (0, ())
    assert outcome.value == float(events[data.keys(torch.arange(3))[1].long()].sum())


# Scoring


def trained(data: Data, method: Any = SMALL, steps: int = 25) -> tuple[Net, Task]:
    fit = fit_of(data, method=method)
    fit.advance(steps)
    return fit.supernet.net.eval(), fit.task.eval()


def digest(net: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in net.state_dict().values())).hexdigest()


def test_recalibration_sets_moments_to_those_of_the_batch(prepared: Prepared) -> None:
    data = prepared().rows("train")
    net, _ = trained(data)
    genotype = net.space.sample(Random(0))
    sample, before = data.batch(torch.arange(200)), copied(net.state_dict())
    inputs: dict[BatchNorm, Tensor] = {}
    norms = [module for module in net.modules() if isinstance(module, BatchNorm)]
    for norm in norms:
        norm.register_forward_hook(lambda module, given, _: inputs.update({module: given[0]}))
    recalibrate(net, net.space.mix(genotype), sample)
    assert len(inputs) == 2 < len(norms), "one norm of each tower is on the path"
    for name, norm in net.named_modules():
        if norm in inputs:
            torch.testing.assert_close(norm.running_mean, inputs[norm].mean(0), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(norm.running_var, inputs[norm].var(0), rtol=1e-5, atol=1e-6)
            assert not torch.allclose(norm.running_mean, before[f"{name}.running_mean"], atol=1e-3)
    touched = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert len(touched) == 4 and all("running" in name for name in touched)
    assert not net.training and all(not norm.training and norm.momentum == 0.1 for norm in norms)


def test_a_fitness_is_measured_on_the_same_rows_always(prepared: Prepared) -> None:
    data = prepared().rows("valid")
    fitness = Fitness(rows=100, batch=32, calibration=50)
    batches = fitness.fixed_rows(data)
    assert [len(batch) for batch in batches] == [32, 32, 32], "a last smaller batch would be an easier one"
    assert len(set(torch.cat(batches).tolist())) == 96
    assert torch.equal(torch.cat(fitness.fixed_rows(prepared().rows("valid"))), torch.cat(batches))
    assert [len(batch) for batch in Fitness(batch=10_000).fixed_rows(data)] == [data.rows]
    sample = fitness.sample(data)
    assert len(set(sample.tolist())) == 50 and torch.equal(sample, Fitness(calibration=60).sample(data)[:50])


@pytest.mark.parametrize("kind", ["objective", "loss@1", "recall@10", "ndcg@5"])
def test_kinds_of_fitness_equal_loops(prepared: Prepared, kind: str) -> None:
    data = prepared().rows("valid")
    net, task = trained(prepared().rows("train"))
    task.ks = (5, 10)
    model, fitness = net.under(net.space.mix(net.space.sample(Random(1)))), Fitness(kind, rows=100, batch=32)
    if "loss" in kind or kind == "objective":
        losses = []
        for rows in fitness.fixed_rows(data):
            batch = data.batch(rows)
            with torch.no_grad():
                losses.append(float(task.validation_loss(model(batch), batch, plain=kind == "loss@1")))
        golden = -sum(losses) / 3
    else:
        golden = task.evaluate(model, data).means()[kind]
    assert fitness.measure(model, task.train(), data) == pytest.approx(golden, rel=1e-6)
    assert not task.training
    others = {Fitness(other, rows=100, batch=32).measure(model, task, data) for other in ("objective", "loss@1")}
    assert len(others) == 2


def test_an_unknown_fitness_is_an_error_that_names_the_others(prepared: Prepared) -> None:
    _, task = trained(prepared().rows("train"), steps=1)
    with pytest.raises(ValueError, match="fitness 'recall@7' is none of those there are: objective, loss@1, recall@1"):
        Fitness("recall@7").check(task)
    for known in ("objective", "loss@1", "ndcg@100"):
        Fitness(known).check(task)


def test_moments_are_not_measured_on_one_row() -> None:
    with pytest.raises(ValueError, match="calibration must be 0 or above 1"):
        Fitness(calibration=1)


@pytest.mark.parametrize("calibration", [0, 300])
def test_the_plain_scorer_leaves_no_trace(prepared: Prepared, calibration: int) -> None:
    rows, valid = prepared().rows("train"), prepared().rows("valid")
    net, task = trained(rows)
    before, genotypes = digest(net), [net.space.sample(Random(seed)) for seed in range(6)]
    fitness = Fitness(rows=200, batch=64, calibration=calibration)
    scores = scorer(net, task, rows, valid, fitness)(genotypes)
    assert digest(net) == before and len(set(scores)) == 6
    assert scorer(net, task, rows, valid, fitness)(genotypes[::-1]) == scores[::-1], "one leaves nothing to the next"
    other = scorer(net, task, rows, valid, replace(fitness, calibration=100))(genotypes)
    assert other != scores
    if calibration:
        recalibrate(net, net.space.mix(genotypes[2]), rows.batch(fitness.sample(rows)))
    model = net.under(net.space.mix(genotypes[2]))
    assert fitness.measure(model, task, valid) == pytest.approx(scores[2], rel=1e-6)
