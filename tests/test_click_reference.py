"""What the speed of click search is measured against computes the same where masks and slices agree."""

from dataclasses import replace
from random import Random

import pytest
import torch

from benchmarks import click_reference as reference
from components.run import Run
from nascore.fitness import Fitness
from nascore.head_scoring import HeadTuning
from nascore.methods.nasrec import NASRec
from nascore.rows import Data
from nascore.schema import Batch
from nascore.space import Genotype
from nascore.training import Fit, Plan

SETTINGS = {
    "blocks": 3,
    "embedding": 8,
    "dense_sizes": (3, 8),
    "sparse_sizes": (2, 5),
    "tokens": 2,
    "square_gating": True,
    "attention": "transformer",
    "warmup": 0.0,
    "steps": 1,
    "learning_rate": 0.1,
}


class Both:
    """Our net with the wiring of the public code, and the reference with its weights."""

    def __init__(self, data: Data, norm: bool = True) -> None:
        self.method = NASRec(norm=norm, **SETTINGS)  # type: ignore[arg-type]
        self.space = self.method.space(data.schema)
        self.supernet = self.method.supernet(data.schema, self.space, 0)
        self.net = self.supernet.net
        sums = {name: value for name, value in self.net.named_parameters() if ".add.left" in name}
        with torch.no_grad():
            for value in self.net.parameters():
                value.normal_(0, 0.3)
            for name, value in sums.items():
                self.net.get_parameter(name.replace("left", "right")).copy_(value)
        self.reference = self.taken(data)

    def taken(self, data: Data) -> reference.Reference:
        made = reference.Reference(self.method, data.schema)
        made.take(self.net)
        return made

    def paths(self, count: int, sizes: bool = False, operators: tuple[str, ...] = ()) -> list[Genotype]:
        """Random paths; at the largest sizes unless `sizes`; of some operators, if any are named."""
        rng, paths = Random(1), []
        for _ in range(count):
            path = dict(self.space.sample(rng))
            for name, decision in self.space.decisions.items():
                if name.endswith("/size") and not sizes:
                    path[name] = decision.options[-1:]
                allowed = [option for option in decision.options if option in operators]
                if name.endswith("/op") and allowed:
                    path[name] = (rng.choice(allowed),)
            paths.append(path)
        return paths


@pytest.fixture(scope="module")
def data(clicks: Run) -> Data:
    return clicks.rows("train")


def batches(data: Data, count: int, size: int) -> list[Batch]:
    return [data.batch(torch.arange(start, start + size)) for start in range(0, count * size, size)]


def test_paths_of_the_largest_sizes_have_our_logits(data: Data) -> None:
    both, (batch,) = Both(data), batches(data, 1, 64)
    paths = both.paths(40)
    for path in paths:
        ours = both.net.under(both.space.mix(path))(batch)
        torch.testing.assert_close(both.reference(batch, path), ours, atol=1e-4, rtol=1e-4)
    for name, decision in both.space.decisions.items():
        if name.endswith(("op", "from")):
            assert {option for path in paths for option in path[name]} == {*decision.options}


def test_without_norms_smaller_ones_have_them_too(data: Data) -> None:
    both, (batch,) = Both(data, norm=False), batches(data, 1, 64)
    for path in both.paths(40, sizes=True, operators=("fc", "gating", "add", "dot", "embed_fc")):
        ours = both.net.under(both.space.mix(path))(batch)
        torch.testing.assert_close(both.reference(batch, path), ours, atol=1e-4, rtol=1e-4)


def test_a_step_has_our_loss_and_our_weights_afterwards(data: Data) -> None:
    """Sums are left out, as they have two maps in our net."""
    both = Both(data)
    (path,) = both.paths(1, operators=("fc", "gating", "dot", "embed_fc", "attention"))
    both.supernet.sampler.forward = lambda x, step: both.space.mix(path)  # type: ignore[method-assign]
    plan = both.method.train
    fit = Fit(both.supernet, both.method.task(data.schema), data, plan, 0)
    batch = next(data.batches(plan.batch, 0))
    fit.batches = iter([batch])
    loss = fit.advance(1)
    before = {name: value.detach().clone() for name, value in both.reference.named_parameters()}
    training = reference.Training(both.reference)
    assert training.step(batch, path, plan.rate(0)) == pytest.approx(loss, rel=1e-5)
    expected = dict(both.taken(data).named_parameters())
    for name, value in both.reference.named_parameters():
        torch.testing.assert_close(value, expected[name], atol=2e-5, rtol=1e-4, msg=name)
    furthest = {name: float((value.detach() - before[name]).abs().max()) for name, value in expected.items()}
    assert furthest["head.weight"] > 1e-2 and sum(far > 1e-2 for far in furthest.values()) > 10


def test_a_tuned_candidate_has_our_score_and_leaves_the_net_as_it_was(data: Data, clicks: Run) -> None:
    both, valid = Both(data), clicks.rows("valid")
    tuning, fitness = HeadTuning(batch=64, learning_rate=0.1), Fitness(rows=150, calibration=640)
    method = replace(both.method, head=tuning, fitness=fitness)
    scorer = method.scorer(both.net, method.task(data.schema), data, valid)
    paths = both.paths(3)
    ours = scorer(paths)
    plan = Plan(64, 10, 0, 0, tuning.learning_rate, 0.0, tuning.clip, "cosine", "adagrad", tuning.warmup)
    for _ in range(2):
        found = [reference.score(both.reference, p, batches(data, 10, 64), batches(valid, 3, 50), plan) for p in paths]
        assert found == pytest.approx([-one for one in ours], rel=1e-4)
    untuned = [reference.evaluate(both.reference, path, batches(valid, 3, 50)) for path in paths]
    assert all(abs(one - other) > 1e-3 for one, other in zip(found, untuned, strict=True))
