"""Kinds of rows: what is written about them, budgets, what each kind's model is trained on, and how rows are sent."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from components import derive, evaluate, prepare, trainings
from components.derive import centroids, ours
from components.finalists import Finalist, finalists
from components.models import ROUTER, opened
from components.run import Run
from components.settings import Workers
from components.trainings import continue_training, kinds, searched, train_alone
from nascore.click_net import ClickTraining
from nascore.cost import Cost
from nascore.gated_net import GatedNet
from nascore.methods.ihas import ADAM, IHAS
from nascore.routing import Routed
from nascore.rows import seed_of
from nascore.samplers.bernoulli import histograms, valleys
from nascore.space import Infeasible, parse
from nascore.training import Fit, Learning

TRAINING: ClickTraining = replace(ADAM, batch=128, learning_rate=0.01, epochs=2)
METHOD = IHAS(
    embedding=4,
    layers=(6,),
    pretrained=20,
    steps=60,
    sparsity=0.5,
    polarization=1.0,
    models=("clusters", "single", "open", "gates"),
    learner=Learning(every=1, learning_rate=0.03, weight_decay=0.0),
    training=TRAINING,
)
STAGES = ("prepare", "supernet", "derive", "tune", "retrain", "evaluate", "report")
RunWith = Callable[..., Run]


@pytest.fixture(autouse=True)
def as_in_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker sets its process's threads and denormals; the tests' process keeps its own."""
    for module in (derive, trainings):
        monkeypatch.setattr(module, "settle", lambda run: "cpu")
    monkeypatch.setattr(evaluate, "test_all", lambda run, models: [evaluate.tested(run, one) for one in models])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose supernet is trained, only to be read: 3,200 rows to train on, 400 to validate, 400 to test."""
    root = str(tmp_path_factory.mktemp("runs") / "learned")
    dataset = "planted_populations:rows=4000"
    known: dict[str, Any] = {"protocol": "stratified", "strategies": (), "budgets": ("whole",), "stages": STAGES}
    run = Run(root=root, dataset=dataset, raw="", methods=(METHOD,), seeds=(0, 1), **known)
    prepare.main(run)
    run.save()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "settle", lambda run: "cpu")
        continue_training(run)
    return run


@pytest.fixture
def run_of(learned: Run, tmp_path: Path) -> RunWith:
    """A run of a test's own over the same data and supernet."""

    def made(method: IHAS = METHOD, **changes: Any) -> Run:
        root = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        for stage in ("prepare", "supernet"):
            shutil.copytree(f"{learned.root}/{stage}", root / stage)
        run = replace(learned, root=str(root), methods=(method,), **changes)
        run.save()
        return run

    return made


def told(run: Run) -> list[dict[str, Any]]:
    """What `derive` writes."""
    found = ours(run)
    (run.folder / "derive").write_json("candidates.json", {"": found})
    return found


def named(run: Run) -> dict[str, Finalist]:
    return {one.strategy: one for one in finalists(run)}


def looked_up(run: Run, split: str) -> tuple[Tensor, Tensor]:
    """Each row's vectors behind settled gates and which are open: (rows, 40) each."""
    supernet = searched(run, run.method, "supernet").eval()
    net, gates, data = supernet.net, supernet.sampler, run.rows(split)
    assert isinstance(net, GatedNet)
    table, starts = net.tables.group(4).weight.detach(), np.cumsum([0, *net.sizes.values()])[:-1]
    batch = data.batch(torch.arange(data.rows))
    weight, bias = gates.gate.weight.detach(), gates.gate.bias.detach()  # type: ignore[union-attr]
    x = torch.cat([table[batch[name].long() + start] for name, start in zip(net.names, starts, strict=True)], 1)
    p = (x @ weight.T + bias).sigmoid()
    mask = torch.stack([row > valleys(histograms(row[None]))[0] for row in p])
    return x * mask, mask


def nearest(points: Tensor, middle: Tensor) -> list[int]:
    return [*torch.stack([(points - one).square().sum(1) for one in middle]).argmin(0).tolist()]


# What is written


def test_every_row_has_the_kind_of_its_nearest_centroid(run_of: RunWith) -> None:
    run = run_of()
    candidates, rows = told(run), []
    middle = (run.folder / "derive").read_tensors(ROUTER)["centroids"]
    assert middle.shape == (2, 40)
    for split in ("train", "valid"):
        points, masks = looked_up(run, split)
        golden, found = nearest(points, middle), kinds(run, split)
        assert found.dtype == np.int8 and found.tolist() == golden and len(found) == run.schema.rows[split]
        if split == "train":
            rows, own = [golden.count(kind) for kind in (0, 1)], masks.double()
            shares = [own[torch.tensor(golden) == kind].mean(0).tolist() for kind in (0, 1)]
    assert kinds(run, "train+valid").tolist() == [*kinds(run, "train"), *kinds(run, "valid")]
    known = (run.folder / "derive").read_json("kinds.json")
    assert known == {"rows": rows, "shares": [rows[0] / sum(rows), rows[1] / sum(rows)]} and min(rows) > 300
    names = [column.name for column in run.schema.columns]

    def kept(share: list[float]) -> dict[str, list[str]]:
        return {name: [str(d) for d in range(4) if share[4 * n + d] >= 0.5] for n, name in enumerate(names)}

    mean = [(rows[0] * a + rows[1] * b) / sum(rows) for a, b in zip(*shares, strict=True)]
    assert [one["as"] for one in candidates] == ["clusters", "single", "open", "gates"]
    assert candidates[0]["parts"] == [kept(shares[0]), kept(shares[1])]
    assert candidates[1]["parts"] == [kept(mean)]
    assert candidates[2]["parts"] == candidates[3]["parts"] == [{name: list("0123") for name in names}]
    assert [one["kept"] for one in candidates] == [False, False, False, True]
    dims = [sum(map(len, part.values())) for part in candidates[0]["parts"]]
    assert 0 < min(dims) and max(dims) < 40, "some gates are open and some are closed, or the test says little"


def test_the_same_run_derives_the_same(run_of: RunWith) -> None:
    one, other = run_of(), run_of()
    assert told(one) == told(other)
    first, second = ((run.folder / "derive").read_tensors(ROUTER) for run in (one, other))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert np.array_equal(kinds(one, "train"), kinds(other, "train"))
    ours(one)
    assert torch.equal((one.folder / "derive").read_tensors(ROUTER)["centroids"], first["centroids"]), "once more"


def test_streamed_rows_are_told_apart_as_resident_ones(run_of: RunWith) -> None:
    resident, streamed = run_of(), run_of(workers=Workers(data="streaming"))
    assert told(resident) == told(streamed)
    for split in ("train", "valid"):
        assert np.array_equal(kinds(resident, split), kinds(streamed, split))


def test_centroids_are_near_those_of_k_means(run_of: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where batches are small, of fewer rows than kinds even: no other two means explain points much better."""
    from sklearn.cluster import KMeans

    run = run_of()
    points = looked_up(run, "train")[0]
    best = KMeans(2, n_init=20, random_state=0).fit(points.numpy()).inertia_
    router = METHOD.router(searched(run, METHOD, "supernet").eval(), 2)
    for rows in (derive.ROWS, 400, 1):
        monkeypatch.setattr(derive, "ROWS", rows)
        with torch.inference_mode():
            middle = torch.from_numpy(centroids(router, run.rows("train"), 0, lambda news: None))
        inertia = float(torch.stack([(points - one).square().sum(1) for one in middle]).min(0).values.sum())
        assert best * 0.999 <= inertia < best * 1.05


def with_centroids(monkeypatch: pytest.MonkeyPatch, *middle: Any) -> None:
    given: NDArray[np.float32] = np.stack(middle).astype(np.float32)
    monkeypatch.setattr(derive, "centroids", lambda *known: given)


def test_kinds_without_rows_are_left_out(run_of: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run_of()
    golden = told(plain)
    middle = (plain.folder / "derive").read_tensors(ROUTER)["centroids"].numpy()
    run = run_of(replace(METHOD, clusters=4))
    with_centroids(monkeypatch, np.full(40, 99.0), middle[0], np.full(40, -99.0), middle[1])
    assert told(run) == golden
    for split in ("train", "valid"):
        assert np.array_equal(kinds(run, split), kinds(plain, split))
    assert (run.folder / "derive").read_tensors(ROUTER)["centroids"].shape == (2, 40)
    assert len((run.folder / "derive").read_json("kinds.json")["rows"]) == 2


def test_a_kind_of_training_rows_alone_goes_to_the_nearest_other(
    run_of: RunWith, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_of()
    told(plain)
    middle = (plain.folder / "derive").read_tensors(ROUTER)["centroids"]
    train, valid = looked_up(plain, "train")[0], looked_up(plain, "valid")[0]
    far = (train - train.mean(0)).square().sum(1).argsort(descending=True)
    lonely = next(
        3 * train[row]
        for row in far.tolist()
        if 2 not in nearest(valid, torch.stack([*middle, 3 * train[row]]))
        and 2 in nearest(train, torch.stack([*middle, 3 * train[row]]))
    )
    run = run_of(replace(METHOD, clusters=3))
    with_centroids(monkeypatch, middle[0].numpy(), lonely.numpy(), middle[1].numpy())
    told(run)
    for split in ("train", "valid"):
        assert np.array_equal(kinds(run, split), kinds(plain, split))


def test_one_kind_of_rows_has_one_model(run_of: RunWith) -> None:
    run = run_of(replace(METHOD, clusters=1))
    assert [(one["as"], len(one["parts"])) for one in told(run)] == [("single", 1), ("open", 1), ("gates", 1)]
    assert not kinds(run, "train").any()


# Budgets


def test_each_part_keeps_its_budget(run_of: RunWith) -> None:
    method = replace(METHOD, models=("clusters", "single"))
    price = method.price(run_of().schema)
    whole = told(run_of(method))
    least = min(float(price(parse(part), "").table_params) for one in whole for part in one["parts"])
    budget = f"table_params={int(0.6 * least)}"
    found = told(run_of(method, budgets=("whole", budget)))
    assert [(one["as"], one["budget"]) for one in found] == [
        *(("clusters", "whole"), ("single", "whole")),
        *(("clusters", budget), ("single", budget)),
    ]
    assert found[:2] == whole
    for one, wide in zip(found[2:], whole, strict=True):
        for part, own in zip(one["parts"], wide["parts"], strict=True):
            assert 0 < float(price(parse(part), "").table_params) <= int(0.6 * least)
            assert all({*part[name]} <= {*own[name]} for name in part), "by a larger majority"


def test_what_is_over_the_budget_is_not_told_under_it(run_of: RunWith) -> None:
    """The one with all dimensions and the supernet are over nearly every budget."""
    run = run_of(budgets=("table_params=300",))
    price = METHOD.price(run.schema)
    for one in told(run):
        for part in one["parts"]:
            assert float(price(parse(part), "").table_params) <= 300, one["as"]


def test_a_budget_that_nothing_keeps_is_an_error(run_of: RunWith) -> None:
    with pytest.raises(Infeasible, match=r"table_params [\d,]*[1-9][\d,]* of 5.*lower --method.sparsity"):
        ours(run_of(budgets=("table_params=5",)))


def test_a_small_budget_is_not_refused_beforehand(run_of: RunWith) -> None:
    """What is derived by a larger majority keeps it, however few draws would."""
    run = run_of(replace(METHOD, models=("clusters", "single")), budgets=("table_params=120",))
    assert told(run)
    run.check_prepared()


# Thresholds of many rows


def test_the_supernet_itself_is_judged_with_the_threshold_that_was_found(run_of: RunWith) -> None:
    run = run_of(replace(METHOD, scope="batch"))
    told(run)
    supernet, data = searched(run, run.method, "supernet").eval(), run.rows("train")
    net, gates = supernet.net, supernet.sampler
    x = net.embed(data.batch(torch.arange(data.rows)))
    p = gates.probability(x)  # type: ignore[operator]
    golden = float(valleys(histograms(p).double().sum(0)[None])[0])
    tensors = (run.folder / "derive").read_tensors(ROUTER)
    assert float(tensors["gates.threshold"]) == pytest.approx(golden) and golden != 0.5
    batch = run.rows("test").batch(torch.arange(100))
    x = net.embed(batch)
    mask = (gates.probability(x) > golden).float()  # type: ignore[operator]
    whole = {name: (1.0,) * 4 for name in net.space.decisions}
    expected = net({**x, "kept": x["kept"] * mask}, whole)
    torch.testing.assert_close(opened(run, named(run)["gates"], 0).model(batch), expected)


# Trainings of parts


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Fit]:
    """All trainings, as they are made."""
    made: list[Fit] = []

    class Noted(Fit):
        def __init__(self, *given: Any, **also: Any) -> None:
            super().__init__(*given, **also)
            made.append(self)

    monkeypatch.setattr(trainings, "Fit", Noted)
    return made


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_part_is_trained_and_judged_on_its_kind_of_rows(run_of: RunWith, fits: list[Fit], mode: Any) -> None:
    run = run_of(workers=Workers(data=mode), refit=True)
    told(run)
    one, judged = named(run)["clusters"], 0
    jobs = one.jobs(1, f"retrain/{one.model_id}/part={{part}}", refit=True)
    assert [(job.part, job.refit, parse(job.genotype)) for job in jobs] == [
        (part, True, genotype) for part, genotype in enumerate(one.parts)
    ]
    for part, job in enumerate(jobs):
        fits.clear()
        result = train_alone(run, job)
        for fit, split in zip(fits, ("train", "train+valid"), strict=True):
            whole, own = run.rows(split).packed, torch.from_numpy(kinds(run, split) == part)
            assert fit.data.rows == int(own.sum()) and torch.equal(fit.data.packed, whole[own])
            assert fit.data.mode == mode and fit.seed == seed_of(1, "alone", part)
        rows = int((kinds(run, "valid") == part).sum())
        assert result["judged"] == rows
        valid = run.rows("valid")
        batch = valid.batch(torch.from_numpy(kinds(run, "valid") == part).nonzero().squeeze(1))
        task, model = fits[0].task, fits[0].supernet.eval()
        last = result["curve"][-1][1]
        with torch.no_grad():
            assert -float(task.loss(model.steadily(batch), batch)) == pytest.approx(last, rel=1e-5)
        judged += rows
    assert judged == run.schema.rows["valid"]


def test_what_is_cut_out_may_begin_with_the_supernets_weights(run_of: RunWith) -> None:
    method = replace(METHOD, inherit=True, training=replace(TRAINING, learning_rate=0.0, weight_decay=0.0, epochs=1))
    run = run_of(method)
    told(run)
    wide = searched(run, method, "supernet").eval().net
    for part, job in enumerate(named(run)["clusters"].jobs(0, "retrain/inherited/part={part}")):
        result = train_alone(run, job)
        valid = run.rows("valid", only=kinds(run, "valid") == part)
        mix = wide.space.mix(parse(job.genotype))
        assert result["value"] == pytest.approx(method.stop.measure(wide.under(mix), method.task(run.schema), valid))


@pytest.fixture
def trained(run_of: RunWith) -> Run:
    """All models trained from the first seed, one epoch each."""
    run = run_of(replace(METHOD, training=replace(TRAINING, epochs=1)), seeds=(0,))
    told(run)
    for one in finalists(run):
        for job in one.jobs(0, f"retrain/{one.model_id}/part={{part}}"):
            train_alone(run, job)
    return run


def test_each_row_is_answered_by_the_model_of_its_kind(trained: Run) -> None:
    one = named(trained)["clusters"]
    known, valid = opened(trained, one, 0), trained.rows("valid")
    assert isinstance(known.model, Routed)
    batch = valid.batch(torch.arange(valid.rows))
    with torch.no_grad():
        found, sent = known.model(batch), known.model.router(batch)
        apart = [model(batch) for model in known.model.models]
        single = [known.model(batch.take(torch.tensor([row])))[0] for row in range(40)]
    assert sent.tolist() == kinds(trained, "valid").tolist(), "what was saved sends rows as before"
    torch.testing.assert_close(found, torch.where(sent == 0, *apart))
    torch.testing.assert_close(torch.stack(single), found[:40])
    assert not torch.allclose(*apart)


def test_costs_of_models_add_up(trained: Run) -> None:
    models = named(trained)
    price = METHOD.price(trained.schema)
    tables = sum(column.size for column in trained.schema.columns) * 4
    router = Cost(params=40 * 40 + 40 + 2 * 40, table_params=tables, macs=40 * 40 + 2 * 40)
    shares = (trained.folder / "derive").read_json("kinds.json")["shares"]
    each = [price(part, "") for part in models["clusters"].parts]
    cost = opened(trained, models["clusters"], 0).cost
    assert cost.params == router.params + each[0].params + each[1].params
    assert cost.table_params == tables + each[0].table_params + each[1].table_params
    macs = [float(one.macs) for one in each]
    assert cost.macs == pytest.approx(router.macs + shares[0] * macs[0] + shares[1] * macs[1])
    assert opened(trained, models["single"], 0).cost == price(models["single"].genotype, "")
    whole = price(models["open"].genotype, "")
    assert opened(trained, models["open"], 0).cost == whole
    assert opened(trained, models["gates"], 0).cost == whole + Cost(params=40 * 40 + 40, macs=40 * 40)
    assert models["gates"].jobs(0, "x") == [] and models["gates"].model_id != models["open"].model_id


@pytest.mark.parametrize("changes, told_of", [({"models": ("single",)}, ""), ({"clusters": 1}, "")])
def test_kinds_that_were_not_asked_for_are_not_reported(run_of: RunWith, changes: Any, told_of: str) -> None:
    """One model for all is iHAS-2, however many kinds of rows there are."""
    run = run_of(replace(METHOD, training=replace(TRAINING, epochs=1), **changes), seeds=(0,))
    told(run)
    for one in finalists(run):
        for job in one.jobs(0, f"retrain/{one.model_id}/part={{part}}"):
            train_alone(run, job)
    evaluate.main(run)
    assert (run.folder / "evaluate").read_json("report.json")["kinds"] == told_of
