"""iHAS's two levels: the net learns from training rows, the gates from validation rows, and not before their time."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from components import prepare
from components.run import Run
from nascore.gated_net import GatedNet
from nascore.methods.ihas import IHAS
from nascore.net import Supernet
from nascore.rows import seed_of
from nascore.samplers.bernoulli import Bernoulli, uniforms
from nascore.training import Fit, Learning, Plan

SMALL = IHAS(embedding=3, layers=(4,), pretrained=6, steps=20, learner=Learning(every=2, learning_rate=0.05))
PLAN = Plan(batch=64, steps=20, learning_rate=0.01)


@pytest.fixture(scope="module")
def populations(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """1,600 rows to train on and 200 to learn gates from."""
    root = str(tmp_path_factory.mktemp("runs") / "populations")
    run = Run(root=root, dataset="planted_populations:rows=2000", raw="", methods=(IHAS(),), protocol="stratified")
    prepare.main(run)
    return run


def fit_of(run: Run, method: IHAS, plan: Plan, double: bool = False) -> Fit:
    supernet, task = method.supernet(run.schema, method.space(run.schema), 0), method.task(run.schema)
    supernet = supernet.double() if double else supernet
    penalty = method.penalty(supernet.net, {})
    return Fit(supernet, task, run.rows("train"), plan, 0, method.learning, run.rows("valid"), penalty)


def copy(supernet: Supernet) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in supernet.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_gates_are_open_and_not_learned_while_pretraining(populations: Run) -> None:
    fit = fit_of(populations, SMALL, PLAN)
    before, mixes = copy(fit.supernet), []
    fit.supernet.net.register_forward_pre_hook(lambda net, given: mixes.append(given[1]))
    fit.advance(7)
    assert len(mixes) == 7 and all(weight == 1.0 for mix in mixes[:6] for one in mix.values() for weight in one)
    assert all(isinstance(one, Tensor) and 0.0 in one.detach() for one in mixes[6].values())
    assert not any(name.startswith("sampler") for name in changed(before, copy(fit.supernet)))
    fit.advance(1)
    moved = changed(before, copy(fit.supernet))
    assert {"sampler.gate.weight", "sampler.gate.bias"} <= moved and "sampler.threshold" not in moved
    later = replace(SMALL, learner=replace(SMALL.learner, after=9)).learning
    assert (later.after, SMALL.learning.after, SMALL.learning.every) == (9, 6, 2)


def test_each_level_changes_its_own_weights(populations: Run) -> None:
    still = replace(PLAN, learning_rate=0.0)
    fit = fit_of(populations, SMALL, still)
    before = copy(fit.supernet)
    fit.advance(20)
    assert changed(before, copy(fit.supernet)) == {"sampler.gate.weight", "sampler.gate.bias"}
    unlearned = replace(SMALL, learner=replace(SMALL.learner, learning_rate=0.0))
    fit = fit_of(populations, unlearned, PLAN)
    fit.advance(20)
    moved = changed(before, copy(fit.supernet))
    assert moved and all(name.startswith("net.") for name in moved)


def test_a_lesson_is_a_step_of_adam_on_validation_rows(populations: Run) -> None:
    """First-order: the weights of the net are held fast, the rows are those of the other split."""
    learner = Learning(every=1, learning_rate=0.05, weight_decay=0.1, batch=50)
    method = replace(SMALL, pretrained=0, sparsity=0.2, polarization=0.3, learner=learner)
    fit = fit_of(populations, method, replace(PLAN, learning_rate=0.0), double=True)
    net, sampler = fit.supernet.net, fit.supernet.sampler
    assert isinstance(net, GatedNet) and isinstance(sampler, Bernoulli) and sampler.gate is not None
    weight, bias = (one.detach().clone().requires_grad_() for one in (sampler.gate.weight, sampler.gate.bias))
    adam = torch.optim.Adam([weight, bias], 0.05, weight_decay=0.1)
    tables = dict(net.named_parameters())["vectors.tables.groups.3.weight"].detach()
    first = torch.tensor([0, *net.sizes.values()]).cumsum(0)[:-1]
    batches = populations.rows("valid").batches(50, seed_of(0, "held rows"))
    for step in range(3):
        batch = next(batches)
        place_BN = torch.stack([batch[name] for name in net.names], 1).long() + first
        x = tables[place_BN].flatten(1)
        logit = x @ weight.T + bias
        uniform = uniforms(batch.rows, len(bias), seed_of("gates relaxed", 0, step))
        soft = ((logit - uniform.logit()) / 0.1).sigmoid()
        mask = (soft > 0.5).double() + (soft - soft.detach())
        hidden = functional.linear(x * mask, net.first.weight, net.first.bias).relu()  # type: ignore[arg-type]
        output = net.rest[-1](hidden).squeeze(1)
        p = logit.sigmoid()
        assert batch.label is not None
        loss = functional.binary_cross_entropy_with_logits(output, batch.label.double())
        loss = loss + 0.2 * p.mean() - 0.3 * (p - p.mean(1, keepdim=True)).abs().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        fit.advance(1)
        torch.testing.assert_close(sampler.gate.weight, weight, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sampler.gate.bias, bias, rtol=1e-5, atol=1e-6)
