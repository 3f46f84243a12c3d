"""What TensorBoard and MLflow are given: read back from their own files."""

import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from components import tracking
from components.folder import Folder
from components.run import Run
from components.tracking import News, plain, trackers, wanted
from nascore.methods.popularity import Popularity

RunWith = Callable[..., Run]


def scalars(data: bytes) -> Iterator[tuple[str, int, float]]:
    """The scalars of an event file: records of a length and its checksum, the event, and its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    place = 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        event = Event.FromString(data[place + 12 : place + 12 + length])
        place += 16 + length
        for value in event.summary.value:
            yield value.tag, event.step, round(value.simple_value, 4)


def events(folder: Folder) -> list[tuple[str, int, float]]:
    return [one for name in folder.names("*tfevents*") for one in scalars(folder.fs.cat_file(f"{folder.path}/{name}"))]


def of(done: int, best: float | None, **more: Any) -> News:
    return News(done, 10, "steps", best, **more)


@pytest.fixture
def run(run_with: RunWith) -> Run:
    return run_with(Popularity())


def test_tensorboard_gets_each_step_once(run: Run) -> None:
    with trackers(run, "search") as (board,):
        board({"a b:c": of(1, 0.5), "silent": of(1, None)}, False)
        board({"a b:c": of(1, 0.5)}, False)
        board({"a b:c": of(2, 0.75, label="loss")}, True)
    with trackers(run, "report") as (board,):
        board.results({"tested/recall@10/Popularity": 0.25}, "<html>")
    assert events(run.folder / "tensorboard/search") == [("a_b_c/best", 1, 0.5), ("a_b_c/loss", 2, 0.75)]
    assert events(run.folder / "tensorboard/report") == [("tested/recall_10/Popularity", 0, 0.25)]


def test_in_object_storage_event_files_are_whole_and_renewed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = Folder("memory://tracked/tensorboard/search")
    board = tracking._TensorBoard(Folder("memory://tracked"), "search", str(tmp_path))
    board({"a": of(1, 0.5)}, False)
    assert folder.names("*") == []
    monkeypatch.setattr(tracking, "PUBLISHED_EVERY", 0)
    board({"a": of(2, 0.75)}, False)
    assert events(folder) == [("a/best", 1, 0.5), ("a/best", 2, 0.75)]
    board({"a": of(3, 1.0)}, False)
    board.close("RUNNING")
    assert len(folder.names("*")) == 1 and len(events(folder)) == 3
    folder.clear()


def test_an_interrupted_stage_keeps_what_was_told(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt), trackers(run, "search") as (board,):
        board({"a": of(1, 0.5)}, False)
        raise KeyboardInterrupt
    assert events(run.folder / "tensorboard/search") == [("a/best", 1, 0.5)]


def test_a_tracker_that_fails_is_left_alone(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with trackers(run, "search") as (board,):
        assert isinstance(board, tracking._Watching)
        board({"a": of(1, 0.5)}, False)
        (inner,) = board.inner
        inner.writer.close()  # as a full disk would: what is written from now on raises
        for done in range(2, 200):
            board({"a": of(done, 0.5)}, False)
    told = [line for line in capsys.readouterr().out.splitlines() if "TensorBoard" in line]
    assert len(told) == 1 and told[0].startswith("  TensorBoard gets nothing more of this stage: ValueError: ")


def test_how_many_models_are_done_is_no_curve(run: Run) -> None:
    with trackers(run, "tune") as (board,):
        board({"models": News(1, 9, "models", 0.5)}, True)
    assert events(run.folder / "tensorboard/tune") == []


# MLflow


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of a tracking store of the test's own."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    monkeypatch.chdir(tmp_path)
    from mlflow import MlflowClient

    return MlflowClient()


@pytest.mark.filterwarnings("ignore")
def test_a_run_is_one_run_of_mlflows_however_often_it_was_interrupted(run: Run, server: Any) -> None:
    with pytest.raises(KeyboardInterrupt), trackers(run, "search") as (_, flow):
        flow({"a b:c": of(1, 0.5)}, True)
        raise KeyboardInterrupt
    known = run.folder.read_json("mlflow.json")
    assert known["experiment"] == "nascore"
    assert server.get_run(known["run_id"]).info.status == "KILLED"
    with trackers(run, "search") as (_, flow):
        assert server.get_run(known["run_id"]).info.status == "RUNNING"
        flow({"a b:c": of(1, 0.5)}, False)  # too early to be sent
        flow({"a b:c": of(2, 0.75)}, True)
    with trackers(run, "report") as (_, flow):
        flow.results({"tested/recall@10/Popularity": 0.25}, "<html>done</html>")
    (there,) = server.search_runs([server.get_experiment_by_name("nascore").experiment_id])
    assert there.info.run_id == known["run_id"] and there.info.status == "FINISHED"
    assert there.data.metrics == {"search/a_b_c/best": 0.75, "tested/recall_10/Popularity": 0.25}
    history = server.get_metric_history(known["run_id"], "search/a_b_c/best")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 0.75)]
    assert there.data.params["protocol"] == "user_temporal" and there.data.params["methods.0.name"] == "popularity"
    assert there.data.tags["split_digest"] == run.schema.split_digest
    assert [one.path for one in server.list_artifacts(known["run_id"])] == ["report.html"]


@pytest.mark.filterwarnings("ignore")
def test_a_run_goes_on_without_an_mlflow_that_does_not_answer(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with trackers(run, "search") as (board, flow):
        for one in (board, flow):
            one({"a": of(1, 0.5)}, True)
    told = [line for line in capsys.readouterr().out.splitlines() if "MLflow" in line]
    assert len(told) == 1 and told[0].startswith("  MLflow gets nothing more of this stage: ")
    assert "secret" not in told[0]
    assert events(run.folder / "tensorboard/search") == [("a/best", 1, 0.5)]
    assert not run.folder.exists("mlflow.json")


def test_an_mlflow_that_is_not_installed_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wanted()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"MLflow is not there: pip install 'nascore\[mlflow\]', or unset it"):
        wanted()


def test_names_are_those_that_both_take() -> None:
    assert plain("tested/recall@10/AutoTower L, tpe:n=3") == "tested/recall_10/AutoTower_L__tpe_n_3"
