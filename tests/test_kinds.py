"""Kinds of rows that are few, or that keep too much or too little, and what is served of settled gates."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from components import derive, prepare, trainings, versions
from components.derive import centroids, ours, told_apart
from components.evaluate import of_kinds
from components.finalists import Finalist, finalists, of_specs
from components.folder import Folder
from components.models import opened
from components.run import Run
from components.trainings import continue_training
from components.versions import Version
from nascore.gated_net import decision
from nascore.methods.adafs import AdaFS
from nascore.routing import Router
from nascore.space import Infeasible, Space
from nascore.training import Fit, train
from tests.test_derive import METHOD as DERIVING

METHOD = replace(DERIVING, scope="batch", models=("gates",))


class Points:
    """Rows that are points, in batches."""

    def __init__(self, point_RK: Tensor) -> None:
        self.point_RK, self.rows = point_RK, len(point_RK)

    def sweep(self, size: int) -> Iterator[Tensor]:
        yield from self.point_RK.split(size)


class Sent:
    """Sends points to the nearest centroid; the only gate is open."""

    nearest = Router.nearest

    def __init__(self, centroid_PK: Tensor) -> None:
        self.centroids, self.gates = centroid_PK, SimpleNamespace(size=1)

    def masked(self, point_BK: Tensor) -> tuple[Tensor, Tensor]:
        return point_BK, torch.ones(len(point_BK), 1)


def blobs(*counts: int) -> tuple[Tensor, Tensor]:
    """Points around 0, 10, 20 … in random order, and which each is around."""
    generator = torch.Generator().manual_seed(sum(counts))
    kind_R = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    kind_R = kind_R[torch.randperm(len(kind_R), generator=generator)]
    return torch.randn(len(kind_R), 3, generator=generator) + 10 * kind_R[:, None], kind_R


@pytest.mark.parametrize("share", [0.05, 0.005])
def test_a_rare_kind_is_found(share: float) -> None:
    """K-means of a batch at a time would by itself give up a centre that has less than a hundredth of the largest."""
    rare = int(30_000 * share)
    points, kind = blobs(30_000 - rare, rare)
    middle = torch.from_numpy(centroids(Sent(torch.zeros(2, 3)), Points(points), 0, lambda news: None))  # type: ignore[arg-type]
    found = Sent(middle).nearest(points)  # type: ignore[arg-type]
    assert adjusted_rand_score(kind, found) > 0.99


@pytest.mark.parametrize(
    "train, valid, fewest, there",
    [
        ((90, 40, 30), (9, 9, 9), 9, [0, 1, 2]),
        ((40, 90, 30), (9, 9, 9), 10, [1]),  # all are small: the largest
        ((90, 8, 30), (9, 9, 9), 9, [0, 2]),
        ((90, 40, 30), (9, 9, 2), 9, [0, 1]),
        ((0, 40, 30), (9, 9, 9), 1, [1, 2]),
    ],
)
def test_rows_of_a_small_kind_go_to_the_nearest_other(train: Any, valid: Any, fewest: int, there: list[int]) -> None:
    rows, middle = {"train": blobs(*train)[0], "valid": blobs(*valid)[0]}, torch.tensor([[0.0], [10.0], [20.0]])
    router = Sent(middle.expand(3, 3))
    found, open_PG = told_apart(router, Points(rows["train"]), Points(rows["valid"]), fewest)  # type: ignore[arg-type]
    assert torch.equal(router.centroids, middle[there].expand(-1, 3)) and (open_PG == np.ones((len(there), 1))).all()
    for split, points in rows.items():
        golden = (points.mean(1)[:, None] - middle[there].T).abs().argmin(1)
        assert found[split].tolist() == golden.tolist()


def test_what_keeps_nothing_is_named() -> None:
    space, method = (
        Space([decision(name, 4, "dimension") for name in "ab"]),
        replace(METHOD, models=("clusters", "single")),
    )
    shares = np.array([[0.9] * 8, [0.2] * 8])
    with pytest.raises(Infeasible, match="by 0.50 of the 1,200 training rows of kind 2: .*--method.clusters"):
        method.derive(space, shares, np.array([3000, 1200]))
    assert len(replace(METHOD, models=("single",)).derive(space, shares, np.array([3000, 1200]))) == 1
    with pytest.raises(Infeasible, match="of all training rows"):
        replace(METHOD, models=("single",)).derive(space, shares[1:], np.array([1200]))


def test_what_keeps_all_is_checked_against_the_budget_at_once(learned: Run) -> None:
    budget = {"budgets": ("table_params=300",)}
    with pytest.raises(Infeasible, match=r"all of --method.models keep all dimensions.* of 300"):
        replace(learned, **budget).check_prepared()  # type: ignore[arg-type]
    wide = replace(METHOD, models=("single", "open", "gates"), wearers=("fm",))
    run = replace(learned, methods=(wide,), budgets=("whole", "table_params=300"))
    run.check_prepared()
    shares, rows = np.linspace(0.4, 0.9, 40)[None], np.array([3200])
    whole, small = (wide.derive(run.members(budget), shares, rows) for budget in run.budgets)
    assert [one.name for one in whole] == ["single", "open", "gates", "gates on fm", "fm without gates"]
    bare = wide.wearing("fm", gated=False)
    assert bare == replace(wide, behind="fm") and replace(wide, inherit=True).wearing("fm", gated=False) == bare
    assert [one.name for one in small] == ["single"]


@pytest.mark.parametrize("wearers", [("fm", "fm"), ("",)])
def test_wearers_are_nets_each_once(wearers: Any) -> None:
    with pytest.raises(ValueError, match="wearers are click nets, each once"):
        replace(METHOD, wearers=wearers)


def test_each_budget_has_its_sentence() -> None:
    def one(kind: str, budget: str) -> Finalist:
        parts = ({},) * (2 if kind == "clusters" else 1)
        return Finalist(f"iHAS {budget}, {kind}", "found", METHOD, parts, f"{kind}-{budget}", budget, kind)

    models = [one(kind, budget) for budget in ("whole", "small") for kind in ("clusters", "single")]
    numbers = ({"delta": -0.1, "low": -0.2, "high": -0.05, "p": 0.01}, {"delta": 0, "low": -1, "high": 1, "p": 0.9})
    pairs = [
        {"a": a.label, "b": b.label, "metric": "log_loss", **known}
        for a, b, known in zip(models[::2], models[1::2], numbers, strict=True)
    ]
    wanted = replace(METHOD, models=("clusters", "single"))
    told = of_kinds(models, pairs, True, wanted)
    assert told.count("A model for each of 2 kinds of rows") == 2
    assert "helps here, whole: log_loss" in told and "does not help here, small: log_loss" in told
    assert of_kinds(models[:2], pairs, True, wanted).startswith("A model for each of 2 kinds of rows helps here: log")
    many = replace(wanted, clusters=5)
    assert "each of 2 kinds of rows, of 5 that were sought, helps here: " in of_kinds(models[:2], pairs, True, many)
    assert "alone has 100 training and validation rows, of 5" in of_kinds(models[1:2], pairs, True, many)


def test_a_rivals_own_settings_of_settings_are_taken() -> None:
    first, other = of_specs(["autofield:share=0.25,learner.every=10", "adafs"], METHOD.training, METHOD)
    assert first.learning == replace(METHOD.learner, every=10) and first.share == 0.25  # type: ignore[attr-defined]
    assert other.learning == replace(METHOD.learner, after=20)
    with pytest.raises(ValueError, match=r"autofield:learner\.often=10.*no setting 'often'; it has: every, learn"):
        of_specs(["autofield:learner.often=10"], METHOD.training, METHOD)
    with pytest.raises(ValueError, match=r"autofield:learner\.every=often.*often"):
        of_specs(["autofield:learner.every=often"], METHOD.training, METHOD)


def test_a_controller_that_would_never_begin_is_refused(learned: Run) -> None:
    few = AdaFS(embedding=4, layers=(6,), pretrained=50, training=METHOD.training)  # 2 epochs of 25 steps
    models = replace(METHOD, models=("single",))
    with pytest.raises(ValueError, match="begins after 50 steps, but 2 epochs of 3,200 rows are 50: lower pretrained"):
        replace(learned, methods=(models, few)).check_prepared()
    replace(learned, methods=(models, replace(few, pretrained=49))).check_prepared()


def test_epochs_before_the_controller_begins_do_not_count(learned: Run) -> None:
    """Of 25 steps each: the first lesson is in the third."""
    training = replace(METHOD.training, epochs=9, patience=1)
    method = AdaFS(embedding=4, layers=(6,), pretrained=50, learner=METHOD.learner, training=training)
    supernet, train_rows = method.supernet(learned.schema, method.space(learned.schema), 0), learned.rows("train")
    fit = Fit(
        supernet, method.task(learned.schema), train_rows, method.retrain, 0, method.learning, learned.rows("valid")
    )
    values = iter([0.9, 0.8, 0.1, 0.0])
    outcome = train(fit, lambda model: next(values))
    assert (outcome.best_epoch, outcome.value, len(outcome.curve)) == (3, 0.1, 4)


# What is served


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose supernet is trained: 3,200 rows to train on."""
    root = str(tmp_path_factory.mktemp("runs") / "gates")
    known: dict[str, Any] = {"protocol": "stratified", "strategies": (), "budgets": ("whole",)}
    run = Run(root=root, dataset="planted_populations:rows=4000", raw="", methods=(METHOD,), seeds=(0,), **known)
    prepare.main(run)
    run.save()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "settle", lambda run: "cpu")
        continue_training(run)
    return run


def test_a_version_of_the_gates_answers_as_they_were_tested(
    learned: Run, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derive, "settle", lambda run: "cpu")
    (learned.folder / "derive").write_json("candidates.json", {"": ours(learned)})
    (only,) = finalists(learned)
    golden = opened(learned, only, 0).model
    folder = Folder(str(tmp_path / "version"))
    version = Version(folder, versions.write(learned, folder, {}, METHOD))
    batch = learned.rows("test").batch(torch.arange(100))
    with torch.no_grad():
        assert torch.equal(version.model(batch), golden(batch))
    raw = learned.checkpoint().read_tensors("weights.safetensors")["supernet.sampler.threshold"]
    assert float(raw) == 0.5 != float(folder.read_tensors("weights-0.safetensors")["supernet.sampler.threshold"])
