"""What speed is measured against computes the same: its forward, its item frequencies, its step, its ranking."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor

from benchmarks import reference
from benchmarks.reference import Frequency, Reference
from components.run import Run
from nascore.methods import from_json
from nascore.methods.autotower import AutoTower
from nascore.net import Net, Supernet
from nascore.rows import Data
from nascore.tasks.retrieval import Retrieval


class Both:
    """Our supernet of the preset `authors`, without dropout, and the reference with its weights."""

    def __init__(self, data: Data) -> None:
        method = from_json({"name": "autotower", "blocks": 3, **AutoTower.presets["authors"]})
        assert isinstance(method, AutoTower)
        self.method = replace(method, pool_dropout=0.0)
        self.space = self.method.space(data.schema)
        self.supernet: Supernet = self.method.supernet(data.schema, self.space, 0)
        self.net: Net = self.supernet.net
        self.reference = Reference(data.schema, self.space)
        self.reference.take(self.net)
        for module in self.reference.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0


@pytest.fixture(scope="module")
def both(prepared: Callable[..., Run]) -> Both:
    return Both(prepared().rows("train"))


def every_option(both: Both) -> list[dict[str, tuple[str, ...]]]:
    """Paths that together run each option of each decision."""
    decisions = both.space.decisions
    most = max(len(decision.options) for decision in decisions.values())
    return [{name: (d.options[place % len(d.options)],) for name, d in decisions.items()} for place in range(most)]


@pytest.mark.parametrize("training", [True, False])
def test_the_forward_of_every_option_is_ours(both: Both, prepared: Callable[..., Run], training: bool) -> None:
    batch = prepared().rows("train").batch(torch.arange(64))
    both.net.train(training)
    both.reference.train(training)
    for path in every_option(both):
        ours = both.net(both.net.embed(batch), both.space.mix(path))
        user, item, penalty = both.reference(batch, path)
        torch.testing.assert_close(user, ours["user"], atol=1e-4, rtol=0)
        torch.testing.assert_close(item, ours["item"], atol=1e-4, rtol=0)
        norms: Tensor = 1e-5 * (ours["user/input"].norm() + ours["item/input"].norm())
        torch.testing.assert_close(penalty, norms, atol=0, rtol=1e-4)


def test_the_first_step_has_our_loss_and_changes_the_same_weights(prepared: Callable[..., Run]) -> None:
    data = prepared().rows("train")
    both, batch = Both(data), data.batch(torch.arange(128))
    path = both.space.sample(Random(3))
    task = Retrieval(data.schema.items, 128, regularizer=1e-5)
    ours = task.loss(both.net(both.net.embed(batch), both.space.mix(path)), batch)
    before = {name: value.detach().clone() for name, value in both.reference.named_parameters()}
    training = reference.Training(both.reference, 128)
    assert training.step(batch, path) == pytest.approx(float(ours.detach()), rel=1e-4)
    moved = {name for name, value in both.reference.named_parameters() if not torch.equal(value, before[name])}
    chosen = [f"blocks.{place}.{path[f'user/{place}'][0].partition(',')[0]}." for place in range(3)]
    blocks = {name for name in moved if name.startswith("towers.user.blocks")}
    assert all(any(part in name for part in chosen) for name in blocks)
    assert all(any(part in name for name in blocks) for part in chosen)
    assert {"towers.user.stem.weight", "towers.item.stem.weight"} <= moved


def test_frequencies_one_by_one_are_the_closed_form() -> None:
    counted, task = Frequency(12, 4), Retrieval(12, 4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        item_B = torch.randint(1, 12, (8,), generator=generator)
        log_p = counted.observe(item_B)
        task.observe(item_B)
        torch.testing.assert_close(torch.tensor(counted.gap, dtype=torch.float64), task.gap, atol=1e-12, rtol=0)
        torch.testing.assert_close(log_p, -task.gap[item_B].log().float())
    assert task.gap.unique().numel() > 6


def test_the_ranking_user_by_user_is_ours(both: Both, prepared: Callable[..., Run]) -> None:
    data, path = prepared().rows("test"), both.space.sample(Random(5))
    both.net.eval()
    task = Retrieval(data.schema.items, 64, ks=(5, 50))
    ours = task.evaluate(both.net.under(both.space.mix(path)), data)
    assert reference.rank(both.reference, path, data, task.ks) == pytest.approx(
        {name: float(values.mean()) for name, values in ours.values.items()}, abs=1e-3
    )
