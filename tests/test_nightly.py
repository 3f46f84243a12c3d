"""Nights: what is decided from which numbers, what is asked for, and what a warm start takes along."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from benchmarks import planted_days
from benchmarks.replay import plainly
from components import trainings, warm, workers
from components.lease import leased
from components.registry import Registry
from components.run import Run
from components.versions import vocabulary
from components.warm import inherit, placed
from nascore.sparse import Tables
from pipelines import nightly
from pipelines._asked import Nightly, shortened
from pipelines._deciding import Rules, bound, decide
from pipelines._nights import Night, summary
from tests.nights import ROWS, settings


@pytest.fixture(scope="module", autouse=True)
def as_in_a_test() -> Iterator[None]:
    """A worker sets its process's threads and denormals; the tests' process keeps its own."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (trainings, workers):
            patch.setattr(module, "settle", lambda run: "cpu")
        yield


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Seven days, 2026-01-01 to 07, of which the last two differ."""
    folder = tmp_path_factory.mktemp("days")
    planted_days.write(folder, 7, ROWS, drift=6)
    return str(folder)


# What is decided

FACTS: dict[str, Any] = {
    "window": ["2026-01-01", "2026-01-02"],
    "newest_day": "2026-01-02",
    "new": True,
    "champion": {"version": 1, "age": 1, "tried_ago": 1, "searched_ago": 1, "refreshable": True},
    "differs": [],
    "method": "",
    "drift": {"a": {"excess": 0.1}, "b": {"excess": 0.0}, "label": {"excess": 0.0}},
    "loss": {"relative": 0.9, "error": 0.01, "bound": 0.92},
}


def champion(**changes: Any) -> dict[str, Any]:
    return {"champion": {**FACTS["champion"], **changes}}


def drifted(**excess: float) -> dict[str, Any]:
    return {"drift": {name: {"excess": value} for name, value in excess.items()}}


@pytest.mark.parametrize(
    "changes, rules, decision, why",
    [
        ({}, {}, "skip", "1 days old and nothing drifts"),
        ({"window": ["2026-01-02"]}, {}, "skip", "not two complete days"),
        ({"new": False, **drifted(a=9.0)}, {}, "skip", "no complete day after 2026-01-02"),
        ({"champion": None}, {}, "cold", "no champion"),
        ({"differs": ["b"]}, {}, "cold", "cannot be compared, as these differ: b"),
        ({"method": "the search space is another"}, {}, "cold", "the search space is another than"),
        (drifted(a=2.0), {}, "cold", "severe drift: a 2.00"),
        (drifted(a=2.0), {"severe": 3.0}, "warm", "drift: a 2.00"),
        (drifted(a=2.0), {"ignore": ("a",)}, "skip", "nothing drifts"),
        ({"loss": {"relative": 1.0, "bound": None}}, {}, "cold", "1.000 of the click rate's"),
        (drifted(a=0.2), {}, "warm", "drift: a 0.20, 0.2 or more"),
        (drifted(label=0.3), {}, "warm", "drift: label"),
        (drifted(a=0.2, b=0.1), {"features": 2}, "skip", "nothing drifts"),
        (drifted(a=0.2, b=0.3), {"features": 2}, "warm", "drift: a 0.20, b 0.30"),
        ({"loss": {"relative": 0.93, "bound": 0.92}}, {}, "warm", "above 0.9200"),
        ({"loss": {"relative": 0.93, "bound": None}}, {}, "skip", "nothing drifts"),
        (champion(searched_ago=14), {}, "warm", "the last search was 14 days ago"),
        (champion(searched_ago=14), {"search": 0}, "skip", "nothing drifts"),
        (champion(age=4, tried_ago=4), {}, "refresh", "4 days old, more than 3"),
        (champion(age=9, tried_ago=3), {}, "skip", "9 days old and nothing drifts"),
        (champion(age=9, tried_ago=4), {}, "refresh", "9 days old, the last challenger 4, more than 3"),
        (champion(age=4, tried_ago=4, refreshable=False), {}, "warm", "no single architecture"),
    ],
)
def test_rules(changes: dict[str, Any], rules: dict[str, Any], decision: str, why: str) -> None:
    found, told = decide({**FACTS, **changes}, Rules(**rules))
    assert (found, why in told) == (decision, True), told


def test_the_bound_of_the_loss() -> None:
    rules, one = Rules(sigmas=3, slack=0.01), {"relative": 0.9, "error": 0.03}
    assert bound([one], 0.04, rules) == pytest.approx(0.9 + 3 * 0.05 + 0.009)
    three = [{"relative": value, "error": 0.0} for value in (0.8, 0.9, 1.0)]
    assert bound(three, 0.0, rules) == pytest.approx(0.9 + 3 * 0.1 + 0.009), "nights differ by 0.1"
    assert bound(three[:2], 0.0, rules) == pytest.approx(0.85 * 1.01), "two nights do not say how far nights differ"


def test_a_loss_is_told_beside_that_of_the_click_rate() -> None:
    label = np.array([1, 0, 0, 0], np.int8)
    loss = -np.log(np.where(label, 0.25, 0.75))
    told = summary(loss, label)
    assert (told["rows"], told["click_rate"], told["relative"]) == (4, 0.25, pytest.approx(1.0))
    assert told["error"] == pytest.approx(loss.std() / 2 / loss.mean())


# Settings


def test_settings_are_read_from_a_file_and_the_command_line(tmp_path: Path, raw: str) -> None:
    known = {"registry": "r", "raw": raw, "rules": {"drift": 0.3, "ignore": ["a"]}, "options": {"method.steps": 7}}
    (tmp_path / "nightly.yaml").write_text(yaml.safe_dump(known))
    given = ["--night=2026-01-03", "--rules.fresh=9", "--on-bad-row=skip", "--exclude=[2025-12-31]"]
    found = nightly.parsed([f"--config={tmp_path}/nightly.yaml", *given])
    assert found == Nightly(
        registry="r",
        raw=raw,
        night="2026-01-03",
        rules=Rules(drift=0.3, ignore=("a",), fresh=9),
        options={"method.steps": 7},
        on_bad_row="skip",
        exclude=("2025-12-31",),
    )
    assert found.days() == ("2026-01-01", "2026-01-02")
    run = found.run("/tmp/r", found.days())
    assert (run.dataset, run.protocol) == ("parquet:days=2026-01-01+2026-01-02", "newest_day")
    assert run.method.steps == 7 and run.methods[1:] == () and run.keep == 1 and run.tuning.configurations == 0
    warmed = replace(found, warm={"method": {"warmup": 0.0}, "keep": 2}).run("/tmp/r", found.days(), warm=True)
    assert (warmed.method.steps, warmed.method.warmup, warmed.keep) == (2, 0.0, 2)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"options": {"strategies": ["randum"]}}, "no 'randum' in strategies"),
        ({"options": {"root": "r", "protocol": "temporal"}}, "options: protocol, root: the night itself sets that"),
        ({"warm": {"stages": ["prepair"]}}, "no stage 'prepair'"),
        ({"night": "20260128"}, "night '20260128': days are compared as they are written, so write it as 2026-01-28"),
        ({"exclude": ["20260128"]}, "exclude '20260128': days are compared"),
    ],
)
def test_wrong_options_of_the_pipeline_are_told_first(
    options: dict[str, Any], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nightly.yaml").write_text(yaml.safe_dump({"registry": f"{tmp_path}/registry", "raw": "r", **options}))
    assert nightly.main([f"--config={tmp_path}/nightly.yaml"]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "registry").exists()


def test_a_shorter_supernet() -> None:
    from nascore.methods.ihas import IHAS

    method = shortened(IHAS(pretrained=1_000, steps=2_000), 0.25)
    assert (method.pretrained, method.steps) == (250, 500)
    assert shortened(IHAS(pretrained=0, steps=2_000), 0.25).pretrained == 0
    with pytest.raises(ValueError, match="no lesson"):
        shortened(IHAS(pretrained=1_000, steps=2_000), 0.001)


@pytest.mark.parametrize("night", ["2026-1-1", "today"])
def test_a_wrong_date_is_told(night: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ValueError, SystemExit)):
        nightly.parsed(["--registry=r", f"--night={night}"])


# What a warm start takes along


def test_rows_of_tables_are_matched_by_value() -> None:
    at, of = placed("a", {"a": (np.array([0, 2, 1]), np.array([0, 1, 5]))}, 4, 7)
    assert at.tolist() == [0, 1, 2] and of.tolist() == [0, 5, 1]
    at, of = placed("a", {"a": (np.array([0, 1, 2, 3]), np.array([0, 4, 5, 6]))}, 3, 3)
    assert at.tolist() == [0, 1, 2] and of.tolist() == [0, 2, 1], "where rows are shared the first id counts"
    at, of = placed("bucket", {}, 4, 3)
    assert at.tolist() == of.tolist() == [0, 1, 2], "ids that mean the same on both days"


def prepared(raw: str, root: Path, days: str) -> Run:
    run = settings(raw, root, "9").run(str(root), days.split())
    run.save()
    plainly(run, "prepare")
    return run


def test_a_warm_supernet_keeps_what_it_knows(raw: str, tmp_path: Path) -> None:
    old = prepared(raw, tmp_path / "old", "2026-01-01 2026-01-02 2026-01-03")
    new = prepared(raw, tmp_path / "new", "2026-01-03 2026-01-04 2026-01-05")
    plainly(old, "supernet")
    known = old.folder / "version"
    known.write_text("schema.json", (old.folder / "prepare").read_text("schema.json"))
    for name in (old.folder / "prepare").names("vocabulary/*"):
        known.write_table(name, (old.folder / "prepare").read_table(name))
    weights = old.checkpoint().read_tensors("weights.safetensors")
    known.write_tensors("supernet.safetensors", weights)
    told = warm.begin(new, known, old.method)
    assert told["fresh"] == []
    begun = new.checkpoint().read_tensors("weights.safetensors")
    fresh = new.method.supernet(new.schema, new.method.space(new.schema), new.seeds[0], searching=True).state_dict()
    table, started = "supernet.net.tables.weight", dict[str, tuple[int, int]]()
    first = (0, 0)
    for column in (one for one in new.schema.columns if one.kind == "category"):
        started[column.name] = first
        first = first[0] + column.size, first[1] + old.schema[column.name].size
    met = {True: 0, False: 0}
    for name, (start, start_before) in started.items():
        today, then = (vocabulary(run.folder / "prepare", name) for run in (new, old))
        before = dict(zip(then.values.to_pylist(), then.id_V.tolist(), strict=True))
        for value, number in zip(today.values.to_pylist(), today.id_V.tolist(), strict=True):
            row = begun[table][start + number]
            met[value in before] += 1
            if value in before:
                assert torch.equal(row, weights[table][start_before + before[value]]), (name, value)
            else:
                assert torch.equal(row, fresh["net.tables.weight"][start + number]), (name, value)
        assert torch.equal(begun[table][start], weights[table][start_before]), "unknown values"
        counts = told["rows"][f"net.tables.{name}"]
        assert counts["known"] + counts["new"] == new.schema[name].size
    assert met[True] > 100 and met[False] >= 4
    others = [name for name in begun if name.startswith("supernet.") and "tables." not in name]
    assert others and all(torch.equal(begun[name], weights[name]) for name in others)
    assert warm.begin(new, known, old.method) == told, "what has begun is not begun again"
    plainly(new, "supernet")
    after = new.checkpoint().read_tensors("weights.safetensors")
    assert not torch.equal(after[table], begun[table]) and new.checkpoint().url.endswith("step-000000020")


def test_tables_of_another_width_stay_fresh(raw: str, tmp_path: Path) -> None:
    run = prepared(raw, tmp_path / "run", "2026-01-01 2026-01-02")
    wide = replace(run.method, embedding=8)
    one, two = (m.supernet(run.schema, m.space(run.schema), 0, searching=True) for m in (run.method, wide))
    weight = one.net.tables.weight.clone()  # type: ignore[union-attr]
    told = inherit(one, two, two.state_dict(), {})
    assert "net.tables.weight" in told["fresh"] and torch.equal(one.net.tables.weight, weight)  # type: ignore[union-attr]
    assert isinstance(one.net.tables, Tables)


@pytest.mark.parametrize("wrong", ["empty", "one label", "no file"])
def test_a_day_that_tells_nothing_is_named_and_can_be_left_out(
    raw: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    days, registry = tmp_path / "days", f"{tmp_path}/registry"
    shutil.copytree(raw, days)
    (file,) = (days / "day=2026-01-05").glob("*.parquet")
    table = pq.read_table(file)
    ones = table.filter(pc.equal(table["click"], 1))
    if wrong == "no file":
        file.rename(file.parent / "hour.parquet.partial")
    else:
        pq.write_table(table.slice(0, 0) if wrong == "empty" else ones, file)
    told = {
        "empty": "it holds no row",
        "one label": f"all {len(ones)} labels are 1",
        "no file": "no parquet file beside",
    }
    for night in "67" if wrong == "one label" else "6":
        assert nightly.main([f"--registry={registry}", f"--raw={days}", f"--night=2026-01-0{night}"]) == 3
        said = capsys.readouterr().err
        assert f"day=2026-01-05: {told[wrong]}" in said and "leave it out: --exclude '[2026-01-05]'" in said
    left = settings(str(days), tmp_path, "7", exclude=("2026-01-05",))
    assert left.days() == ("2026-01-03", "2026-01-04", "2026-01-06")
    with leased(Registry(registry).folder / "lease", 60) as lease:
        assert Night(left, Registry(registry), lease, plainly).facts()["new"]


def test_a_folder_without_a_day_is_no_night_to_skip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw/dt=2026-01-01").mkdir(parents=True)
    assert nightly.main([f"--registry={tmp_path}/registry", f"--raw={tmp_path}/raw"]) == 3
    assert f"{tmp_path}/raw: there is no folder of a day, such as day=2026-01-30" in capsys.readouterr().err
