"""What the steps of a Kubeflow pipeline do: they need no kfp, only what the image holds."""

import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from components.run import Run
from k8s import create_rayjob
from nascore.methods.popularity import Popularity
from pipelines import _rayjob, _steps
from tests import test_k8s_image
from tests.manifests import broken, unsafe

api = test_k8s_image.api


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_steps, "environment", lambda: None)


def plain(run: Run) -> dict[str, Any]:
    return dict(json.loads(json.dumps(run.to_json())))


def test_a_run_is_saved_under_the_day(tmp_path: Path, shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert _steps.NIGHT == create_rayjob.NIGHT
    run = Run(
        root=str(tmp_path / "elsewhere"), dataset="parquet", raw=shop.raw, methods=(Popularity(),), budgets=("macs=1",)
    )
    settings = json.dumps({name: value for name, value in plain(run).items() if name != "root"})
    before = datetime.now(UTC)
    root, digest = _steps.save(f"{tmp_path}/{_steps.NIGHT}", settings)
    assert root in {f"{tmp_path}/{day:%F}" for day in (before, datetime.now(UTC))}
    assert plain(Run.load(root)) == {**plain(run), "root": root} and len(digest) == 12
    assert _steps.save(root, settings) == (root, digest), "the step is tried again"
    assert _steps.save(root, settings.replace('"keep": 3', '"keep": 4'))[1] != digest
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        _steps.save(root, settings.replace(shop.raw, f"{tmp_path}/nothing"))
    assert ended.value.code == 3 and capsys.readouterr().err.startswith("error: ")


def test_a_failing_stage_ends_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list[list[str]]()
    monkeypatch.setattr(_steps, "stage_of", lambda arguments: given.append(arguments) or 5)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of the Secret")
    with pytest.raises(SystemExit) as ended:
        _steps.stage("prepare", "s3://b/r")
    assert ended.value.code == 5 and given == [["prepare", "s3://b/r"]] and os.environ["RAY_AUTH_MODE"] == "token"


def test_a_saved_run_is_taken_through_its_stages(
    run_with: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, given = run_with(stages=("prepare", "search", "evaluate")), list[str]()
    monkeypatch.setattr(_steps, "stage_of", lambda arguments: given.append(arguments[0]) or 4 * (len(given) == 2))
    assert _steps.main([run.root]) == 4 and given == ["prepare", "search"]
    monkeypatch.setattr(_steps, "stage_of", lambda arguments: 0)
    assert _steps.main([run.root]) == 0 and _steps.main([]) == _steps.main(["--help"]) == 2
    with pytest.raises(SystemExit) as ended:
        _steps.main([f"{run.root}/nothing"])
    assert ended.value.code == 2 and "holds no run.json" in capsys.readouterr().err


def test_what_is_shown_is_the_found_model(run_with: Callable[..., Run]) -> None:
    run = run_with()
    plainly = _steps.results(run.root)
    assert plainly.data == f"{run.root}/prepare" and plainly.split_digest == run.schema.split_digest
    assert (plainly.model, plainly.page, plainly.figures) == ("", "", {})
    rows = [
        {"model": name, "role": role, "model_id": name[:1], "metric": metric, "value": 0.5, "low": 0.4, "high": 0.6}
        | {"params": 3.0, "table_params": 2.0, "macs": 1.0}
        for name, role in (("best rival", "baseline"), ("found", "found"))
        for metric in ("recall@50", "auc")
    ]
    report = {"headline": "recall@50", "verdict": "It won.", "rows": rows, "models": {"f": {"kept": False}}}
    (run.folder / "evaluate").write_json("report.json", report)
    (run.folder / "evaluate").write_json("done.json", {})
    (run.folder / "report").write_text("index.html", "<html>")
    (run.folder / "report").write_json("done.json", {})
    shown = _steps.results(run.root)
    assert (shown.model, shown.model_id) == (f"{run.root}/retrain/f", "f")
    assert (shown.page, shown.verdict) == ("<html>", "It won.")
    assert shown.figures["recall@50 of best rival"] == shown.figures["recall@50"] == 0.5 and "auc" not in shown.figures
    report["models"]["f"]["kept"] = True  # type: ignore[index]
    (run.folder / "evaluate").write_json("report.json", report)
    assert _steps.results(run.root).model == f"{run.root}/supernet"


# The step that waits for a RayJob

SUCCEEDED = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


@pytest.fixture
def waits(api: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The step against a cluster where the RayJob shows one status after the other; a number is an answer."""
    monkeypatch.setattr(_rayjob, "create_rayjob", create_rayjob)
    monkeypatch.setattr(_rayjob, "POLL", 0.001)

    def of(*statuses: Any, **given: Any) -> str:
        left, answer = list(statuses), api.answer

        def over_time(method: str, path: str, token: str, body: bytes) -> tuple[int, bytes]:
            name = path.rpartition("/")[2]
            if method == "GET" and name in api.jobs and name != "nascore":
                status = left.pop(0) if len(left) > 1 else left[0]
                if isinstance(status, int):
                    return status, b'{"message": "told"}'
                api.jobs[name]["status"] = status
            return answer(method, path, token, body)

        monkeypatch.setattr(api, "answer", over_time)
        return _rayjob.run("s3://b/my runs/1", **{"attempt": "a1", "template": "nascore", **given})

    return of


def test_the_step_waits_for_its_rayjob(api: Any, waits: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    running = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
    name = waits({}, {"jobDeploymentStatus": "Initializing"}, 503, running, running, 429, SUCCEEDED)
    assert name.startswith("nascore-") and len(name) == len("nascore-") + 10
    assert capsys.readouterr().out.splitlines() == [
        f"RayJob {name}: created, python -m pipelines._steps 's3://b/my runs/1'",
        f"RayJob {name}: New",
        f"RayJob {name}: Initializing",
        f"RayJob {name}: Running RUNNING",
        f"RayJob {name}: Complete SUCCEEDED",
    ]
    job = {part: value for part, value in api.jobs[name].items() if part != "status"}
    assert not broken(job) and unsafe(job) == [f"RayJob {name}: attempts that may last until the next night"]
    assert job["spec"]["suspend"] is False and job["spec"]["entrypoint"].endswith("'s3://b/my runs/1'")
    assert api.jobs["nascore"]["spec"]["suspend"] is True, "the template is as it was"
    assert waits(SUCCEEDED) == name and len(api.jobs) == 2, "the step is tried again"
    assert f"RayJob {name}: there already" in capsys.readouterr().out
    assert waits(SUCCEEDED, attempt="a2") != name and len(api.jobs) == 3, "another run of the pipeline"
    assert job["spec"]["activeDeadlineSeconds"] == 86_400, "it has as long as the step waits"
    queue = "kueue.x-k8s.io/queue-name=nascore"
    name = waits(SUCCEEDED, attempt="a3", timeout=172_800.0, labels=f"{queue},a=b")
    job = api.jobs[name]
    assert job["spec"]["activeDeadlineSeconds"] == 172_800 and job["metadata"]["labels"]["a"] == "b"
    assert job["metadata"]["labels"].items() > api.jobs["nascore"]["metadata"]["labels"].items()


@pytest.mark.parametrize(
    "status, told",
    [
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}, "Failed FAILED, AppFailed"),
        ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "too long"}, "Exceeded, too long"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "Complete STOPPED"),
        ({"jobDeploymentStatus": "ValidationFailed", "message": "bad name"}, "ValidationFailed, bad name"),
        (404, "404, told"),
        (403, "403, told"),
    ],
)
def test_a_rayjob_that_ends_otherwise_fails_the_step(
    waits: Callable[..., str], capsys: pytest.CaptureFixture[str], status: Any, told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        waits({"jobDeploymentStatus": "Running"}, status)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.startswith("error: RayJob nascore-") and told in said and "fake" not in said


def test_the_step_does_not_wait_for_ever(
    waits: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    with pytest.raises(SystemExit):
        waits({"jobDeploymentStatus": "Running"}, timeout=0.2)
    assert (
        time.monotonic() - started < 20
        and "still Running when the time was over; it goes on" in capsys.readouterr().err
    )
    monkeypatch.setattr(_rayjob, "PATIENCE", 0.1)
    with pytest.raises(SystemExit):
        waits(503)
    assert "did not answer for 0 s, 503, told" in capsys.readouterr().err


def test_what_is_not_there_fails_the_step(api: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _rayjob.run("s3://b/r", "a", "other")
    with pytest.raises(SystemExit):
        _rayjob.run("s3://b/r", "a", "nascore", "elsewhere")
    assert capsys.readouterr().err.splitlines()[0] == "error: RayJob other: 404, not found"
    assert api.asked[-1][1] == "/apis/ray.io/v1/namespaces/elsewhere/rayjobs/nascore"


def test_a_rayjobs_name_is_one_that_the_operator_takes() -> None:
    names = {_rayjob.name_of(template, "s3://b/r", "a1") for template in ("nascore", "a" * 47, f"{'b' * 35}-{'c' * 9}")}
    assert all(len(name) <= create_rayjob.LONGEST and "--" not in name for name in names) and len(names) == 3
