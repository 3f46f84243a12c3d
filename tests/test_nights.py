"""Whole nights: cold, refreshed and warm ones, two at once, and killed ones that go on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from benchmarks import planted_days
from benchmarks.replay import plainly
from components import trainings, workers
from components.finalists import contenders
from components.folder import Folder
from components.lease import Busy, Lease, leased
from components.models import opened
from components.registry import Registry
from components.run import Run
from components.versions import Version
from pipelines import __main__ as command
from pipelines import _nights
from pipelines._nights import Night, work
from tests.nights import IHAS, OPTIONS, ROWS, settings

OTHER = {**OPTIONS, "method": {**OPTIONS["method"], "blocks": 1}}


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


@pytest.fixture(scope="module")
def three(raw: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The registry after a cold night, a refresh and a warm night."""
    folder = tmp_path_factory.mktemp("three") / "registry"
    for night, asked in (("4", "auto"), ("5", "refresh"), ("6", "warm")):
        options = OTHER if asked == "refresh" else OPTIONS
        work(settings(raw, folder, night, decide=asked, margin=9.0, options=options), plainly)
        if night == "4" and Registry(str(folder)).champion() is None:
            crown(folder)
    return folder


def crown(folder: Path) -> None:
    """Make version 1 the champion whatever the evidence: models of 20 steps need not beat the click rate."""
    registry = Registry(str(folder))
    with leased(registry.folder / "lease", 60) as lease:
        registry.promote(1, None, lease)


def decision(folder: Path, night: str) -> dict[str, Any]:
    known: dict[str, Any] = json.loads((folder / f"decisions/2026-01-0{night}.json").read_text())
    return known


@pytest.mark.slow
def test_three_nights(three: Path, raw: str) -> None:
    registry = Registry(str(three))
    cold, refresh, warmed = (decision(three, night) for night in "456")
    assert [one["decision"] for one in (cold, refresh, warmed)] == ["cold", "refresh", "warm"]
    assert all(one["state"] == "done" for one in (cold, refresh, warmed)) and registry.versions() == [1, 2, 3]
    assert cold["facts"]["window"] == ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert cold["why"] == "there is no champion"
    assert cold["compared"]["champion"]["label"] == "the click rate of the training rows"
    assert refresh["against"]["version"] == 1 and refresh["compared"]["champion"]["version"] == 1
    assert refresh["spent"]["supernet_steps"] == 0 == refresh["spent"]["genotypes"]
    assert all(registry.about(2)[name] == registry.about(1)[name] for name in ("parts", "base", "searched"))
    assert refresh["promoted"], "the margin lets a refreshed champion through"
    assert warmed["against"]["version"] == 2 and warmed["warm"]["version"] == 1, "version 2 has no supernet"
    assert warmed["spent"]["supernet_steps"] == 10 and cold["spent"]["supernet_steps"] == 20
    assert set(warmed["facts"]["drift"]) >= {"category_0", "number_0", "label"}
    assert len(warmed["facts"]["loss"]["history"]) == 1 and warmed["facts"]["loss"]["bound"] > 0
    front = [one["genotype"] for one in json.loads((three / "versions/1/front.json").read_text())]
    run = Run.load(str(three / "runs/2026-01-06"))
    first = (run.folder / "search").names("*/generation-00000.parquet")[0]
    asked = [json.loads(one) for one in (run.folder / "search").read_table(first)["genotype"].to_pylist()]
    assert asked[: len(front)] == front, "the search begins with yesterday's front"
    assert (three / "reports/2026-01-06.html").read_text().count("<section") >= 3


@pytest.mark.slow
def test_a_version_scores_as_the_run_did(three: Path, raw: str) -> None:
    """From raw rows alone: the log loss of the run's own model on its prepared newest day, in another order."""
    registry, run = Registry(str(three)), Run.load(str(three / "runs/2026-01-04"))
    version = Version(registry.version(1), registry.about(1))
    loss = version.losses(settings(raw, three, "4").rows(("2026-01-03",)))
    one = contenders(run)[0]
    known = opened(run, one, 0)
    scores = known.task.evaluate(known.model, run.rows("test"))
    assert len(loss) == ROWS and np.allclose(np.sort(loss), np.sort(scores.values["log_loss"]), atol=1e-6)
    again = Version(registry.version(1), registry.about(1))
    assert np.array_equal(again.losses(settings(raw, three, "4").rows(("2026-01-03",))), loss)


@pytest.mark.slow
def test_kinds_of_rows_have_their_models_in_a_version(raw: str, tmp_path: Path) -> None:
    """iHAS, cold and warm: what the router and the models of its run say of the newest day, from raw rows."""
    for night in "45":
        asked = settings(raw, tmp_path, night, pipeline="ihas", options=IHAS, decide="cold" if night == "4" else "warm")
        work(asked, plainly)
    registry, run = Registry(str(tmp_path)), Run.load(f"{tmp_path}/runs/2026-01-05")
    assert decision(tmp_path, "5")["warm"]["version"] == 1 and decision(tmp_path, "5")["warm"]["fresh"] == []
    about = registry.about(2)
    version = Version(registry.version(2), about)
    loss = version.losses(asked.rows(("2026-01-04",)))
    one = next(one for one in contenders(run) if one.label == about["label"])
    known = opened(run, one, 0)
    scores = known.task.evaluate(known.model, run.rows("test"))
    assert np.allclose(np.sort(loss), np.sort(scores.values["log_loss"]), atol=1e-6)
    assert one.routed is not about["refreshable"] and len(about["parts"]) == len(one.parts)


@pytest.mark.slow
def test_a_night_that_is_done_is_not_done_again(three: Path, raw: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in three.rglob("*.json") if "lease" not in str(file)}
    never: Callable[..., None] = lambda run, stage: pytest.fail(f"{stage} ran again")  # noqa: E731
    work(settings(raw, three, "6"), never)
    assert "2026-01-06: done before: warm" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in before} == before


@pytest.mark.slow
def test_a_night_without_a_new_day_is_skipped_until_there_is_one(three: Path, raw: str, tmp_path: Path) -> None:
    registry, days = tmp_path / "registry", tmp_path / "days"
    shutil.copytree(three, registry)
    shutil.copytree(raw, days, ignore=shutil.ignore_patterns("day=2026-01-0[67]"))
    work(settings(str(days), registry, "7"), plainly)
    known = decision(registry, "7")
    assert known["why"] == "no complete day after 2026-01-05, which an earlier night has seen"
    assert (known["decision"], known["state"]) == ("skip", "done")
    shutil.copytree(f"{raw}/day=2026-01-06", days / "day=2026-01-06", ignore=shutil.ignore_patterns("_SUCCESS"))
    work(settings(str(days), registry, "7", decide="skip"), plainly)
    assert decision(registry, "7") == known, "a day that is not complete yet"
    (days / "day=2026-01-06/_SUCCESS").touch()
    work(settings(str(days), registry, "7", decide="skip"), plainly)
    assert decision(registry, "7")["facts"]["newest_day"] == "2026-01-06"


@pytest.mark.slow
@pytest.mark.parametrize("state", ["decided", "compared", "done"])
def test_the_day_of_a_night_that_did_not_end_is_still_new(three: Path, raw: str, tmp_path: Path, state: str) -> None:
    registry, days = tmp_path / "registry", tmp_path / "days"
    shutil.copytree(three, registry)
    shutil.copytree(raw, days, ignore=shutil.ignore_patterns("day=2026-01-0[67]"))
    Registry(str(registry)).record("2026-01-06", {**decision(three, "6"), "state": state})
    work(settings(str(days), registry, "7", decide="skip"), plainly)
    facts = decision(registry, "7")["facts"]
    assert facts["newest_day"] == "2026-01-05" and facts["new"] is (state != "done")


@pytest.mark.slow
@pytest.mark.parametrize("moved", [False, True])
def test_a_night_killed_after_its_promotion_promotes_once(three: Path, raw: str, tmp_path: Path, moved: bool) -> None:
    folder = tmp_path / "registry"
    shutil.copytree(three, folder)
    registry, known = Registry(str(folder)), decision(folder, "5")
    for late in registry.aliases()[2:]:
        (folder / f"aliases/{late.sequence:08d}.json").unlink()
    registry.record("2026-01-05", {**known, "state": "compared", "outcome": ""})
    if moved:
        registry.roll_back()
    before = registry.aliases()
    work(settings(raw, folder, "5", margin=9.0), plainly)
    done = decision(folder, "5")
    assert registry.aliases() == before and done["state"] == "done" and done["promoted"] is not moved
    said = "version 2 is not promoted: the champion has moved" if moved else "version 2 is champion: "
    assert done["outcome"].startswith(said)
    assert (folder / "champion.json").read_bytes() == before[-1].text


def at(folder: Path, raw: str, **changes: Any) -> Night:
    """The seventh night, before anything of it was done."""
    registry = Registry(str(folder))
    return Night(settings(raw, folder, "7", **changes), registry, Lease(registry.folder / "lease", 60), plainly)


def made(folder: Path, number: int, copy: int, **changes: Any) -> None:
    """A version like another one that is there, but for some of what it was sealed with."""
    shutil.copytree(folder / f"versions/{number}", folder / f"versions/{copy}")
    sealed = folder / f"versions/{copy}/version.json"
    sealed.write_text(json.dumps({**json.loads(sealed.read_text()), "version": copy, **changes}))


@pytest.mark.slow
def test_what_was_tried_since_the_champion_counts(three: Path, raw: str, tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    shutil.copytree(three, folder)
    for late in Registry(str(folder)).aliases()[2:]:
        (folder / f"aliases/{late.sequence:08d}.json").unlink()
    champion = at(folder, raw).facts()["champion"]
    assert (champion["version"], champion["age"], champion["tried_ago"], champion["searched_ago"]) == (2, 2, 1, 1)
    facts = at(folder, raw, options=OTHER).facts()
    assert facts["method"] == "the search space is another" and facts["champion"]["searched_ago"] == 3
    made(folder, 3, 4, base={**json.loads((folder / "versions/3/version.json").read_text())["base"], "blocks": 1})
    facts = at(folder, raw, options=OTHER).facts()
    assert facts["method"] == "" and facts["champion"]["searched_ago"] == 1, "what was searched once is not cold again"
    made(folder, 4, 5, decision="refresh", newest_day="2026-01-06")
    shutil.rmtree(folder / "versions/4")
    facts = at(folder, raw, options=OTHER).facts()
    assert facts["method"] == "the search space is another", "a refresh searches nothing"
    assert facts["champion"]["tried_ago"] == 0
    registry = Registry(str(folder))
    with leased(registry.folder / "lease", 60) as lease:
        registry.promote(5, registry.champion(), lease)
    champion = at(folder, raw).facts()["champion"]
    assert (champion["version"], champion["searched_ago"]) == (5, 1), "a search that lost counts after a refresh, too"


@pytest.mark.slow
def test_a_warm_night_begins_with_a_supernet_of_its_space_that_was_not_rolled_back(
    three: Path, raw: str, tmp_path: Path
) -> None:
    folder = tmp_path / "registry"
    shutil.copytree(three, folder)
    registry = Registry(str(folder))
    assert at(folder, raw).source() == 3 and at(folder, raw, options=OTHER).source() is None
    assert at(folder, raw, pipeline="ihas", options=IHAS).source() is None
    with leased(registry.folder / "lease", 60) as lease:
        for alias in registry.aliases()[-1:]:
            if alias.version != 3:
                registry.promote(3, alias, lease)
    night = at(folder, raw, decide="warm")
    night.lease.take()
    known = night.decided()
    registry.roll_back()
    assert known["source"] == 3 and at(folder, raw).source() == 1, "version 2 has no supernet"

    def reaches(run: Run, stage: str) -> None:
        raise InterruptedError

    night.do = reaches
    with pytest.raises(InterruptedError):
        night.run(known)
    front = json.loads((folder / "versions/3/front.json").read_text())
    begun = Run.load(f"{folder}/runs/2026-01-07").first
    assert [{name: list(one) for name, one in genotype.items()} for genotype in begun] == [
        one["genotype"] for one in front
    ], "a night keeps the source that it was decided with"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["settings", "weights", "schema", "decisions"])
def test_a_champion_of_another_version_of_nascore_is_told(three: Path, raw: str, tmp_path: Path, what: str) -> None:
    folder = tmp_path / "registry"
    shutil.copytree(three, folder)
    number = json.loads((folder / "champion.json").read_text())["version"]
    if what == "settings":
        sealed = folder / f"versions/{number}/version.json"
        known = json.loads(sealed.read_text())
        changed = {name: {**known[name], "gone": 1} for name in ("method", "base")}
        sealed.write_text(json.dumps({**known, **changed}))
    elif what == "decisions":
        sealed = folder / f"versions/{number}/version.json"
        sealed.write_text(sealed.read_text().replace('"1/dense', '"one/dense'))
    elif what == "schema":
        schema = folder / f"versions/{number}/schema.json"
        schema.write_text(json.dumps({**json.loads(schema.read_text()), "more": 1}))
    else:
        Folder(f"{folder}/versions/{number}").write_tensors("weights-0.safetensors", {"supernet.x": torch.zeros(1)})
    with pytest.raises(ValueError, match=rf"version {number} is of another version of nascore: .* --decide cold$"):
        at(folder, raw).decided()
    night = at(folder, raw, decide="cold")
    night.lease.take()
    known = night.decided()
    assert known["decision"] == "cold" and "is of another version of nascore" in known["facts"]["differs"][0]
    assert "\n" not in known["why"] and at(folder, raw).source() in (1, 3)


@pytest.mark.slow
def test_a_night_whose_page_cannot_be_written_is_not_done(
    three: Path, raw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = tmp_path / "registry"
    shutil.copytree(three, registry)

    def full(*given: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_nights, "write_report", full)
        with pytest.raises(OSError):
            work(settings(raw, registry, "7", decide="skip"), plainly)
    assert decision(registry, "7")["state"] == "decided" and not (registry / "reports/2026-01-07.html").exists()
    work(settings(raw, registry, "7", decide="skip"), plainly)
    assert decision(registry, "7")["state"] == "done" and (registry / "reports/2026-01-07.html").exists()


def test_nothing_is_decided_without_two_days(raw: str, tmp_path: Path) -> None:
    work(settings(raw, tmp_path, "2"), plainly)
    known = decision(tmp_path, "2")
    assert (known["decision"], known["why"]) == ("skip", "there are not two complete days")
    assert Registry(str(tmp_path)).champion() is None


def test_a_lease_of_a_killed_night_is_waited_for(
    raw: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_nights, "POLL", 0.1)
    Lease(Registry(str(tmp_path)).folder / "lease", 0.6).take()
    with pytest.raises(Busy, match="holds the lease"):
        work(settings(raw, tmp_path, "2"), plainly)
    work(settings(raw, tmp_path, "2", wait=30.0), plainly)
    assert capsys.readouterr().out.count("waiting for it") == 1 and decision(tmp_path, "2")["state"] == "done"


SCRIPT = """
import os, signal, sys
from benchmarks.replay import plainly
from pipelines import nightly
die = sys.argv[1]
def staged(run, stage):
    print("stage", stage, flush=True)
    if stage == die:
        os.kill(os.getpid(), signal.SIGKILL)
    plainly(run, stage)
nightly.staged = staged
sys.exit(nightly.main(sys.argv[2:]))
"""


def night(die: str, config: Path) -> subprocess.Popen[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", SCRIPT, die, f"--config={config}"]
    return subprocess.Popen(command, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture
def config(raw: str, tmp_path: Path) -> Path:
    """A first night whose model is promoted in any case."""
    known = {"registry": str(tmp_path / "registry"), "raw": raw, "night": "2026-01-04", "window": 3, "options": OPTIONS}
    (tmp_path / "nightly.yaml").write_text(yaml.safe_dump(known))
    return tmp_path / "nightly.yaml"


@pytest.mark.slow
def test_of_two_nights_at_once_one_works(config: Path) -> None:
    both = [night("", config) for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    worked = [text for text in said if "stage " in text]
    refused = [text for text in said if "holds the lease" in text or "took the lease" in text or "done before" in text]
    assert len(worked) == 1 and len(refused) == 1, said
    assert sorted(process.returncode for process in both) in ([0, 5], [0, 0])
    assert worked[0].count("stage ") == 4 and Registry(str(config.parent / "registry")).versions() == [1]


@pytest.mark.slow
@pytest.mark.parametrize("die", ["supernet", pytest.param("retrain", marks=pytest.mark.long)])
def test_a_killed_night_goes_on(config: Path, die: str) -> None:
    first = night(die, config)
    first.communicate(timeout=300)
    assert first.returncode == -signal.SIGKILL
    registry = Registry(str(config.parent / "registry"))
    begun = registry.decision("2026-01-04")
    assert begun is not None and begun["state"] == "decided" and registry.versions() == []
    second = night("", config)
    said = second.communicate(timeout=300)[0]
    assert second.returncode == 0, said
    assert "stage prepare" not in said and f"stage {die}" in said
    done = registry.decision("2026-01-04")
    assert done is not None and done["state"] == "done" and done["facts"] == begun["facts"]
    assert registry.versions() == [1]


def test_the_command_tells_of_it_and_rolls_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["nightly", f"--registry={tmp_path}", "--rollback"]) == 2
    assert "has no champion; there is nothing to roll back" in capsys.readouterr().err
    registry = Registry(str(tmp_path))
    for _ in range(2):
        number = registry.claim()
        registry.version(number).write_text("a", "b")
        registry.seal(number, {})
        with leased(registry.folder / "lease", 60) as lease:
            registry.promote(number, registry.champion(), lease)
    first = registry.aliases()[0].text
    assert command.main(["nightly", f"--registry={tmp_path}", "--rollback", "1"]) == 0
    assert "champion: version 1 again, was version 2" in capsys.readouterr().out
    assert (tmp_path / "champion.json").read_bytes() == first
    assert command.main(["nightly", f"--registry={tmp_path}", "--raw="]) == 3, "no raw files"
