"""A run and its folder: files whole or not at all, what is refused, what a stage leaves behind."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components import prepare, workers
from components import run as running
from components.errors import told as line_of
from components.run import STAGES, Folder, Run
from components.settings import Diagnosis, Workers
from nascore import space
from nascore.datasets import DataError
from nascore.fitness import Fitness
from nascore.methods.autotower import AutoTower
from nascore.methods.bst import BST
from nascore.methods.ease import EASE
from nascore.methods.googlednn import GoogleDNN
from nascore.methods.gru4rec import GRU4Rec
from nascore.methods.itemknn import ItemKNN
from nascore.methods.mind import MIND
from nascore.methods.popularity import Popularity
from nascore.methods.sasrec import SASRec
from nascore.methods.senet import SENET
from nascore.sequence_net import Training as SequenceTraining
from nascore.space import Infeasible, Space
from nascore.two_tower import Training

METHOD = AutoTower(blocks=2, item_blocks=3, fitness=Fitness("loss@1", rows=7), training=Training(batch=64, clip=0.5))


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Folder]:
    if request.param == "disk":
        yield Folder(f"{tmp_path}/run/")
    else:
        yield Folder(f"memory://{tmp_path.name}/run")
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def test_what_is_written_is_read(folder: Folder) -> None:
    tensors = {"a": torch.arange(6.0).view(2, 3).T, "b": torch.tensor(7, dtype=torch.int64)}
    table = pa.table({"x": [1, None, 3], "y": ["a", "b", "c"]})
    for name in ("here", "deep/er/there"):
        folder.write_text(f"{name}.txt", "žluťoučký\n")
        folder.write_json(f"{name}.json", {"b": [1, None], "a": 0.1})
        folder.write_tensors(f"{name}.safetensors", tensors)
        folder.write_table(f"{name}.parquet", table)
        assert folder.read_text(f"{name}.txt") == "žluťoučký\n"
        assert folder.read_json(f"{name}.json") == {"b": [1, None], "a": 0.1}
        found = folder.read_tensors(f"{name}.safetensors")
        assert found.keys() == tensors.keys() and all(torch.equal(found[key], tensors[key]) for key in tensors)
        assert folder.read_table(f"{name}.parquet") == table
    assert (folder / "deep").read_text("er/there.txt") == folder.read_text("deep/er/there.txt")
    assert folder.names("deep/*/*.txt") == ["deep/er/there.txt"]
    assert folder.names("*.txt") == ["here.txt"] and folder.names("nothing/*") == []


def test_tensors_are_read_into_memory_of_their_own(folder: Folder) -> None:
    folder.write_tensors("t", {"a": torch.ones(3)})
    folder.read_tensors("t")["a"].zero_()
    assert folder.read_tensors("t")["a"].sum() == 3


def test_a_file_can_be_replaced(folder: Folder) -> None:
    for text in ("first, and longer", "second"):
        folder.write_text("a", text)
        assert folder.read_text("a") == text


def test_a_failing_write_leaves_what_was_there(folder: Folder) -> None:
    folder.write_text("a", "old")
    with pytest.raises(OSError, match="full"), folder.writing("a") as local:
        Path(local).write_text("half")
        raise OSError("full")
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder.write_json("b", math.nan)
    with pytest.raises(OSError, match="full"), folder.writing("c/d") as local:
        raise OSError("full")
    assert folder.read_text("a") == "old"
    assert not folder.exists("b") and not folder.exists("c") and folder.names("*") == ["a"]


def test_a_kill_while_publishing_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Folder(str(tmp_path))
    folder.write_text("generation-0", "old")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.write_text("generation-0", "new")
    with pytest.raises(KeyboardInterrupt):
        folder.write_text("generation-1", "new")
    assert folder.read_text("generation-0") == "old" and not folder.exists("generation-1")
    assert not folder.names("*.parquet") and not folder.names("generation-?")[1:]


def test_a_folder_can_be_emptied(folder: Folder) -> None:
    folder.clear()
    folder.write_text("a/b/c", "x")
    (folder / "a").clear()
    assert not folder.exists("a") and folder.names("a/*") == []


def test_a_folder_is_done_when_it_says_so(folder: Folder) -> None:
    folder.write_text("x", "x")
    assert not folder.done
    folder.write_json("done.json", {})
    assert folder.done


# Runs


def run_of(root: str, **changes: Any) -> Run:
    methods = (METHOD, GoogleDNN(size="H", training=METHOD.training), Popularity())
    given = {"dataset": "parquet", "raw": "/r", "methods": methods, "seeds": (4, 5), "budgets": ("M", "macs=3e5")}
    return Run(root=root, **{**given, **changes})


def test_a_run_is_read_as_it_was_saved(folder: Folder) -> None:
    run = run_of(
        folder.url,
        first=({"user/0": ("mlp:16",), "item/0": ("a", "b")},),
        diagnosis=Diagnosis(7, 3),
        workers=Workers(train=2, gpus=0.5, data="streaming"),
        protocol="authors",
        stages=("prepare", "supernet"),
    )
    run.save()
    assert Run.load(folder.url) == run
    run.save()
    assert folder.names("*") == ["run.json"]


def test_a_run_may_go_on_elsewhere_with_other_workers(tmp_path: Path) -> None:
    run_of(f"{tmp_path}/a", workers=Workers(train=2), stages=("prepare",)).save()
    (tmp_path / "a").rename(tmp_path / "b")
    moved = run_of(f"{tmp_path}/b", workers=Workers(train=8), stages=("prepare", "supernet"))
    moved.save()
    assert Run.load(f"{tmp_path}/b") == moved
    with pytest.raises(FileNotFoundError, match="holds no run.json; start one with: python -m pipelines"):
        Run.load(f"{tmp_path}/a")


@pytest.mark.parametrize(
    "change, told",
    [
        ({"seeds": (4,)}, r"seeds\.1: 5 there, None here"),
        ({"raw": "/other"}, "raw: /r there, /other here"),
        ({"methods": (replace(METHOD, blocks=3),)}, r"methods\.0\.blocks: 2 there, 3 here; methods\.1\."),
        ({"diagnosis": Diagnosis(3)}, r"diagnosis\.genotypes: 40 there, 3 here"),
        ({"keep": 9, "protocol": "authors"}, "protocol: user_temporal there, authors here; keep: 3 there, 9 here"),
        ({"first": ({"item/0": ("mlp:16",)},)}, r"first\.0\.item/0\.0: None there, mlp:16 here"),
    ],
)
def test_a_folder_of_another_run_is_refused(folder: Folder, change: dict[str, Any], told: str) -> None:
    run_of(folder.url).save()
    for stage in STAGES:
        (folder / stage).write_text("begun", "x")
    with pytest.raises(ValueError, match=rf"holds another run\. {told}.*Choose another --root"):
        run_of(folder.url, **change).save()
    assert Run.load(folder.url) == run_of(folder.url)


@pytest.mark.parametrize(
    "begun, free, fixed",
    [
        ("prepare", {"methods": (replace(METHOD, blocks=3),), "keep": 9, "seeds": (7,)}, {"raw": "/other"}),
        ("supernet", {"budgets": ("L",), "seeds": (4, 6), "refit": True}, {"methods": (replace(METHOD, blocks=3),)}),
        ("search", {"diagnosis": Diagnosis(3), "methods": (METHOD,)}, {"budgets": ("L",)}),
        ("diagnose", {"refit": True}, {"diagnosis": Diagnosis(3)}),
        ("retrain", {"keep": 9}, {"refit": True}),
    ],
)
def test_what_no_begun_stage_uses_may_change(
    folder: Folder, begun: str, free: dict[str, Any], fixed: dict[str, Any]
) -> None:
    run_of(folder.url).save()
    (folder / begun).write_text("begun", "x")
    run_of(folder.url, **free).save()
    assert Run.load(folder.url) == run_of(folder.url, **free)
    with pytest.raises(ValueError, match="holds another run"):
        run_of(folder.url, **free, **{name: value for name, value in fixed.items() if name not in free}).save()


@pytest.mark.parametrize(
    "error, line",
    [
        (KeyboardInterrupt(), "interrupted"),
        (ValueError("a bad name"), "a bad name"),
        (FileNotFoundError(2, "no such file", "x"), "[Errno 2] no such file: 'x'"),
        (TypeError("ours"), None),
        (KeyError("ours"), None),
    ],
)
def test_errors_from_outside_are_one_line(error: BaseException, line: str | None) -> None:
    assert line_of(error) == line


def test_a_stage_is_done_at_its_end(folder: Folder) -> None:
    run = run_of(folder.url)
    with pytest.raises(OSError), run.stage("search") as inside:
        inside.write_text("left", "x")
        raise OSError
    assert not (folder / "search").done and folder.exists("search/left")
    with run.stage("search", resumes=True) as inside:
        assert inside.read_text("left") == "x" and not inside.done
    assert (folder / "search").done and (folder / "search").read_json("done.json")["seconds"] >= 0
    with run.stage("search") as inside:
        assert not inside.exists("left") and not inside.done
    assert folder.names("search/*") == ["search/done.json"]


def test_a_stage_leaves_an_older_report_to_be_made_anew(folder: Folder) -> None:
    run, report = run_of(folder.url), folder / "report"
    with run.stage("report") as inside:
        inside.write_text("index.html", "before")
    assert report.done
    with pytest.raises(OSError), run.stage("diagnose", resumes=True):
        raise OSError
    assert not report.done and report.read_text("index.html") == "before"
    with run.stage("report"):
        pass
    assert report.done


def test_the_newest_whole_checkpoint_is_taken(folder: Folder) -> None:
    run = run_of(folder.url)
    with pytest.raises(FileNotFoundError, match="holds no supernet; make it with: python -m components supernet"):
        run.checkpoint()
    for step, whole in ((900, True), (2_000, True), (10_000, True), (11_000, False)):
        (folder / f"supernet/step-{step:09d}").write_text("weights.safetensors", "x")
        if whole:
            (folder / f"supernet/step-{step:09d}").write_json("done.json", {})
    assert run.checkpoint().url == f"{folder.url}/supernet/step-000010000"


def test_members_keep_the_budget(run_with: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "DRAWS", 300)
    run = run_with(METHOD)
    everything = run.members("")
    assert isinstance(everything, Space) and not everything.constraints
    price, rng = METHOD.price(run.schema), Random(0)
    for _ in range(10):
        drawn = run.members("macs=60000,user/params=60000").sample(rng)
        assert price(drawn, "").macs <= 60_000 and price(drawn, "user").params <= 60_000
    assert max(float(price(everything.sample(rng), "").macs) for _ in range(30)) > 60_000
    with pytest.raises(Infeasible, match="macs .* of 10"):
        run.members("macs=10").sample(rng)
    with pytest.raises(ValueError, match="'XXL'.*budgets with a name in autotower: L, M, H"):
        run.members("XXL")


def test_rows_are_opened_for_a_rank(run_with: Callable[..., Run]) -> None:
    data = run_with(METHOD).rows("train", "streaming", 1, 3)
    assert (data.split, data.mode, data.rank, data.world, data.device) == ("train", "streaming", 1, 3, "cpu")


# Where it runs


def test_the_environment_is_set_before_ray_and_never_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*running.ENVIRONMENT, "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(running, "running_cluster", lambda: False)
    running.environment()
    assert os.environ["OMP_NUM_THREADS"] == "3" and os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    token = os.environ["RAY_AUTH_TOKEN"]
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(token) == 64
    running.environment()
    assert os.environ["RAY_AUTH_TOKEN"] == token
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(running, "running_cluster", lambda: True)
    running.environment()
    assert "RAY_AUTH_MODE" not in os.environ, "a cluster that runs has its own"


def test_a_cluster_is_found_by_its_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(running.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert not running.running_cluster()
    (tmp_path / "ray").mkdir()
    for text in ("", "nonsense", "127.0.0.1:1"):
        (tmp_path / "ray/ray_current_cluster").write_text(text)
        assert not running.running_cluster(), text
    monkeypatch.setenv("RAY_ADDRESS", "ray://somewhere")
    assert running.running_cluster()


def test_a_run_is_plain_json(tmp_path: Path) -> None:
    run_of(str(tmp_path)).save()
    known = json.loads((tmp_path / "run.json").read_text())
    assert known["methods"][0]["name"] == "autotower" and known["methods"][0]["training"]["clip"] == 0.5
    assert known["workers"]["train"] == 1 and known["seeds"] == [4, 5]


def test_every_event_of_a_past_needs_an_order_of_equal_times(prepared: Callable[..., Run]) -> None:
    methods = (SASRec(training=SequenceTraining(length=4, targets="all")),)
    with pytest.raises(ValueError, match="under user_temporal events of equal times .* must be leave_one_out"):
        replace(prepared(), methods=methods).check_data()
    replace(prepared("leave_one_out"), methods=methods).check_data()


def test_rivals_of_another_task_or_with_a_choice_are_refused(run_with: Callable[..., Run]) -> None:
    short = SequenceTraining(length=4)
    with pytest.raises(ValueError, match="sasrec is trained and judged for NextItem, autotower for Retrieval"):
        run_with(METHOD, SASRec(training=short), budgets=("macs=1e9",)).check_prepared()
    with pytest.raises(ValueError, match="autotower has something to decide"):
        run_with(Popularity(), AutoTower(blocks=1), budgets=("macs=1e9",)).check_prepared()
    run_with(SASRec(training=short), GRU4Rec(training=short), budgets=("macs=1e9",)).check_prepared()


def test_all_methods_of_a_task_are_rivals_of_each_other(run_with: Callable[..., Run]) -> None:
    floors = (Popularity(), ItemKNN(), EASE())
    nets = tuple(rival(size="L", training=METHOD.training) for rival in (GoogleDNN, SENET, BST, MIND))
    run_with(METHOD, *nets, *floors, budgets=("macs=1e9",)).check_prepared()
    run_with(ItemKNN(), EASE(), *nets, budgets=("macs=1e9",)).check_prepared()


def test_a_split_that_nothing_can_be_ranked_on_is_refused(prepared: Callable[..., Run], tmp_path: Path) -> None:
    log = pa.table({"buyer": [1, 1, 1, 1] * 5, "article": [7, 8, 7, 8] * 5, "at": range(20)})
    pq.write_table(log, tmp_path / "log")
    (tmp_path / "schema.yaml").write_text(
        "rows: log\nuser: buyer\nitem: article\ntimestamp: at\nfeatures:\n  - {name: article, side: item}\n"
    )
    shopping = replace(prepared(), methods=(AutoTower(blocks=1),), budgets=("",))
    run = replace(shopping, root=f"{tmp_path}/run", raw=str(tmp_path))
    prepare.main(run)
    with pytest.raises(DataError, match="on the valid split under protocol user_temporal: none of its users has both"):
        run.check_prepared()
    shopping.check_prepared()


def test_whether_a_budget_is_met_does_not_hang_on_how_it_is_spelled(
    run_with: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, sample = list[float](), Space.sample
    monkeypatch.setattr(Space, "sample", lambda own, rng: (drawn.append(rng.random()), sample(own, rng))[1])
    run_with(METHOD, budgets=("macs=1e9", "macs=1000000000", "M")).check_prepared()
    assert len(drawn) >= 3 and len({*drawn}) == 1


# Files on a node


def test_a_node_fetches_a_file_once_and_drops_old_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    folder = Folder(f"memory://{tmp_path.name}")
    request.addfinalizer(folder.clear)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("a", "b"):
        folder.write_text(name, name)
    first = Path(workers.staged(folder, "a"))
    assert first.read_text() == "a"
    os.utime(first, (0, 0))
    assert workers.staged(folder, "a") == str(first) and time.time() - first.stat().st_mtime < 60, "it is in use again"
    os.utime(first, (0, 0))
    second = Path(workers.staged(folder, "b"))
    assert second.parent == first.parent and not first.exists() and second.read_text() == "b"
    assert workers.staged(Folder(str(tmp_path)), "x") == f"{tmp_path}/x", "on local disk nothing is fetched"
