"""Methods that gate, weigh or prune vectors in a run: the same twice and after a kill, told in JSON, learning."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from components import derive, prepare, trainings
from components.finalists import finalists, known_as, trained
from components.models import opened
from components.run import Run
from components.settings import Workers
from components.trainings import searched, train_alone
from nascore.gated_net import GatedNet
from nascore.methods import Derived, Method
from nascore.methods.adafs import AdaFS
from nascore.methods.autofield import AutoField
from nascore.methods.dnn import Dnn
from nascore.methods.ihas import IHAS
from nascore.methods.optembed import OptEmbed
from nascore.methods.optfs import OptFS
from nascore.methods.pep import PEP
from nascore.pruned_net import SearchedNet
from nascore.samplers.bernoulli import Bernoulli
from nascore.space import parse
from nascore.training import Fit, Learning
from tests.test_gated_methods import SMALL, TRAINING, fit_of

QUICK: dict[str, Any] = {**SMALL, "steps": 16, "training": replace(TRAINING, batch=128, epochs=2)}
FAST = replace(QUICK["training"], learning_rate=0.05)
LEARNER = Learning(every=1, learning_rate=0.05)
OURS = IHAS(**QUICK, pretrained=4, learner=LEARNER, wearers=("deepfm:width=6,depth=1",), models=("open",))
DECIDERS: dict[str, Method] = {
    "autofield": AutoField(**QUICK, learner=LEARNER, cooling=0.01),
    "pep": PEP(**QUICK, share=0.4, threshold=-2.0),
    "optfs": OptFS(**{**QUICK, "training": FAST}, weight=1e-3, sharpness=8.0, rewind=0.25),
    "optembed": OptEmbed(**QUICK, weight=1.0, generations=2),
}
LOOKED: dict[str, Method] = {
    "soft": AdaFS(**QUICK, pretrained=4, learner=LEARNER),
    "hard": AdaFS(**QUICK, pretrained=4, learner=LEARNER, kind="hard"),
}
RunOf = Callable[..., Run]
each_decider = pytest.mark.parametrize("name", DECIDERS)


@pytest.fixture(autouse=True)
def as_in_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker sets its process's threads and denormals; the tests' process keeps its own."""
    for module in (derive, trainings):
        monkeypatch.setattr(module, "settle", lambda run: "cpu")


@pytest.fixture
def run_of(clicks: Run, tmp_path: Path) -> RunOf:
    """A run of a test's own over the same clicks, with rivals beside ours; ours decides nothing."""

    def made(*rivals: Method) -> Run:
        root = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(f"{clicks.root}/prepare", root / "prepare")
        stages = ("prepare", "supernet", "derive", "retrain", "evaluate", "report")
        known: dict[str, Any] = {"strategies": (), "budgets": ("whole",), "stages": stages, "seeds": (5, 6)}
        methods = (OURS, *rivals)
        run = replace(clicks, root=str(root), methods=methods, workers=Workers(checkpoint=6), **known)
        run.save()
        return run

    return made


class Killed(Exception):
    """What ends a training from outside."""


def killed_after(steps: int) -> Callable[[Any], None]:
    def tell(news: Any) -> None:
        if news.done > steps:
            raise Killed

    return tell


def decided(run: Run, tell: Any = lambda news: None) -> list[dict[str, Any]]:
    """What the run's rival decides; `derive` writes it."""
    (rival,) = run.methods[1:]
    name = known_as(run, rival)
    found = derive.rivals(run, rival, name, tell)
    (run.folder / "derive").write_json("candidates.json", {"": [], name: found})
    return found


def states(run: Run) -> list[dict[str, Tensor]]:
    """The weights and the optimisers of the last checkpoint of the rival's supernet."""
    last = run.checkpoint(f"derive/{known_as(run, run.methods[1])}")
    return [last.read_tensors(f"{name}.safetensors") for name in ("weights", "optimizer")]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@each_decider
def test_a_search_decides_the_same_twice_and_after_a_kill(run_of: RunOf, name: str) -> None:
    one, same, killed, other = (run_of(DECIDERS[name]) for _ in range(4))
    found = decided(one)
    assert decided(same) == found
    with pytest.raises(Killed):
        decided(killed, killed_after(11))
    assert killed.checkpoint(f"derive/{known_as(killed, killed.methods[1])}").read_json("done.json") == {"step": 6}
    assert decided(killed) == found
    for run in (same, killed):
        for state, golden in zip(states(run), states(one), strict=True):
            assert_same(state, golden)
    other = replace(other, seeds=(9, 6))
    decided(other)
    weights = states(one)[0]
    assert any(not torch.equal(value, weights[name]) for name, value in states(other)[0].items())


@each_decider
def test_what_was_decided_is_read_back_and_trained_anew(
    run_of: RunOf, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    run, method = run_of(DECIDERS[name]), DECIDERS[name]
    found, of = decided(run), f"derive/{known_as(run, DECIDERS[name])}"
    supernet = searched(run, method, of).eval()
    genotype = method.decide(supernet, method.task(run.schema), run.rows("train"), run.rows("valid"))
    assert json.loads(json.dumps(found)) == found and [parse(one["parts"][0]) for one in found] == [genotype]
    assert genotype in method.space(run.schema) and found[0]["as"] == name and not found[0]["kept"]
    monkeypatch.setattr(derive, "continue_training", None)
    assert decided(run) == found, "is not searched again"
    (one,) = finalists(run)
    assert (one.genotype, one.of, one.method) == (genotype, of, method)
    (job,) = one.jobs(6, f"retrain/{one.model_id}/part=0")
    assert job.folder == trained(one, 6) and json.loads(json.dumps(job.genotype)) == job.genotype
    train_alone(run, job)
    known, batch = opened(run, one, 6), run.rows("test").batch(torch.arange(50))
    net: Any = known.modules["model"].net
    price = method.price(run.schema)(genotype, "")
    if name == "autofield":
        assert len(net.order) == 5 and known.cost == price
    else:
        searching: Any = supernet.net
        assert torch.equal(net.masks.kept, searching.found()) and 0 < net.masks.kept.mean() < 1
        assert 0 < known.cost.table_params < price.table_params, "what is masked costs nothing"
    with torch.no_grad():
        output = known.model(batch)
        places = (net.masks.kept if name != "autofield" else torch.ones(1, 1)).bool().expand(-1, 4)
        for count in net.tables.fields:
            weight = net.tables.group(count).weight
            if name in ("pep", "optfs"):
                weight[~places] = 1e3
        assert torch.equal(known.model(batch), output) and len({*output.tolist()}) > 10


@pytest.mark.parametrize("name", [*LOOKED, "worn"])
def test_a_model_that_keeps_its_gates_is_the_same_twice_and_after_a_kill(run_of: RunOf, name: str) -> None:
    runs, weights = [run_of(*([LOOKED[name]] if name in LOOKED else [])) for _ in range(3)], []
    for place, run in enumerate(runs):
        wearers = []
        if name == "worn":
            trainings.continue_training(run)
            wearers = [derive.candidate(Derived("gates on deepfm", ({},), wearer=OURS.wearers[0]), "whole")]
        (run.folder / "derive").write_json("candidates.json", {"": wearers})
        (one,) = finalists(run)
        (job,) = one.jobs(6, f"retrain/{one.model_id}/part=0")
        if place == 2:
            with pytest.raises(Killed):
                train_alone(run, job, killed_after(1))
            assert (run.folder / job.folder).exists("checkpoint.safetensors")
        train_alone(run, job)
        weights.append((run.folder / job.folder).read_tensors("weights.safetensors"))
    if name == "worn":
        model: Any = opened(run, one, 6).modules["model"]
        learned: Any = searched(run, OURS, "supernet")
        router = model.net.router
        assert torch.equal(router.gates.gate.weight, learned.sampler.gate.weight), "as they were learned"
        assert torch.equal(router.vectors.tables.group(4).weight, learned.net.tables.group(4).weight)
    for same in weights[1:]:
        assert_same(same, weights[0])


def test_validation_rows_that_teach_the_controller_do_not_judge_the_model(
    run_of: RunOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Fit] = []

    class Noted(Fit):
        def __init__(self, *given: Any, **also: Any) -> None:
            super().__init__(*given, **also)
            made.append(self)

    monkeypatch.setattr(trainings, "Fit", Noted)
    run = run_of(LOOKED["soft"])
    (run.folder / "derive").write_json("candidates.json", {"": []})
    (one,) = finalists(run)
    result = train_alone(run, one.jobs(6, f"retrain/{one.model_id}/part=0")[0])
    read = opened(run, one, 6)
    (fit,), valid = made, run.rows("valid")
    assert fit.held is not None and torch.equal(fit.held.packed, valid.packed[1::2])
    assert torch.equal(fit.data.packed, run.rows("train").packed) and result["judged"] == (valid.rows + 1) // 2
    assert result["examples"] == (2 * result["steps"] - 4) * 128, "a lesson after each step but the first four"
    batch = valid.batch(torch.arange(0, valid.rows, 2))
    assert batch.label is not None
    for model, value in ((fit.supernet.eval().steadily, result["curve"][-1][1]), (read.model, result["value"])):
        with torch.no_grad():
            p = model(batch).double().sigmoid().numpy()
        chance = np.where(batch.label.numpy() > 0, p, 1 - p)
        assert value == pytest.approx(np.log(chance).mean(), abs=1e-5)


# What carries the signal


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """9,600 rows of one population to train on: four fields tell of a click, six do not."""
    root = str(tmp_path_factory.mktemp("runs") / "planted")
    dataset = "planted_populations:rows=12000,populations=1"
    run = Run(root=root, dataset=dataset, raw="", methods=(Dnn(),), protocol="stratified")
    prepare.main(run)
    return run


def worth(run: Run, fit: Fit) -> dict[str, float]:
    """What a search makes of each field: how probable, how much weight, or how much of its table stays."""
    sampler, net = fit.supernet.eval().sampler, fit.supernet.net
    assert isinstance(net, GatedNet)
    if isinstance(net, SearchedNet):
        parts = dict(zip(net.names, net.found().split([*net.sizes.values()]), strict=True))
    elif isinstance(sampler, Bernoulli):
        assert sampler.logits is not None
        parts = dict(sampler.split(sampler.logits.detach()))  # type: ignore[arg-type]
    else:
        mix = sampler.steady(net.embed(run.rows("test").batch(torch.arange(1_000))))
        parts = dict(mix)  # type: ignore[arg-type]
    return {name: float(part.detach().mean()) for name, part in parts.items()}


PLANTED: dict[str, Any] = {**SMALL, "layers": (8,), "training": replace(TRAINING, batch=128, learning_rate=0.01)}
LESSONS = Learning(every=1, learning_rate=0.02, weight_decay=0.0, batch=256)


@pytest.mark.parametrize(
    "method",
    [
        AutoField(**PLANTED, learner=LESSONS, cooling=2e-3, share=0.4),
        AdaFS(**PLANTED, learner=LESSONS, pretrained=100),
        AdaFS(**PLANTED, learner=LESSONS, pretrained=100, kind="hard"),
        PEP(**PLANTED, threshold=-4.0),
        OptFS(**{**PLANTED, "steps": 400}, weight=3e-4, sharpness=20.0),
        OptEmbed(**PLANTED, weight=1e-3),
    ],
    ids=lambda method: method.label,
)
def test_fields_that_tell_of_a_click_are_kept_before_those_that_do_not(planted: Run, method: Method) -> None:
    fit = fit_of(planted, method)
    fit.advance(400)
    found = worth(planted, fit)
    useful = [found[f"category_{place}"] for place in (1, 2, 3, 4)]
    noise = [found[f"category_{place}"] for place in (0, 5, 6, 7, 8, 9)]
    assert min(useful) > max(noise)
    if isinstance(method, AutoField):
        decided = method.decide(fit.supernet, fit.task, planted.rows("train"), planted.rows("valid"))
        assert [name for name, chosen in decided.items() if chosen] == [f"category_{place}" for place in (1, 2, 3, 4)]
