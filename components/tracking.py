"""What goes to TensorBoard, always, and to MLflow, where `MLFLOW_TRACKING_URI` is set.

TensorBoard's files stand in `<root>/tensorboard/<stage>`; in object storage they are renewed every 30 s. To MLflow a
run of ours is one run of its own, named by `mlflow.json`, however often it was interrupted. Trackers only watch: what
they are not told, or cannot pass on, changes no result.
"""

import importlib.util
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from components.folder import Folder
from components.run import Run, leaves

PUBLISHED_EVERY = 30.0
SENT_EVERY = 10.0
LONGEST = 500
MOST = 100
"""Characters of a value and values of a batch that every MLflow server takes."""


@dataclass(frozen=True)
class News:
    """How far one piece of work is: `done` of `total` units, the best value so far; lasting news stay when done."""

    done: int
    total: int
    unit: str
    best: float | None = None
    label: str = "best"
    lasting: bool = True


class Tracker(Protocol):
    """Where news and results go."""

    def __call__(self, known: Mapping[str, News], last: bool) -> None:
        """The newest news of each piece of work."""

    def results(self, values: Mapping[str, float], page: str) -> None:
        """What came out at the end, by name, and the report."""

    def close(self, status: str) -> None:
        """The stage has ended: FINISHED with the run, RUNNING without it, FAILED or KILLED."""


@contextmanager
def trackers(run: Run, stage: str) -> Iterator[list[Tracker]]:
    """All that watch a stage; they are closed when it ends."""
    with tempfile.TemporaryDirectory(prefix="nascore-events-") as scratch:
        opened: list[Tracker] = [_Watching("TensorBoard", lambda: _TensorBoard(run.folder, stage, scratch))]
        if wanted():
            opened.append(_Watching("MLflow", lambda: _MLflow(run, stage)))
        status = "FAILED"
        try:
            yield opened
            status = "FINISHED" if stage == run.planned[-1] else "RUNNING"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            for one in opened:
                one.close(status)


def wanted() -> bool:
    """Whether MLflow is to be told; raises where it is, but is not installed."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return False
    if importlib.util.find_spec("mlflow") is None:
        raise ValueError("MLFLOW_TRACKING_URI is set, MLflow is not there: pip install 'nascore[mlflow]', or unset it")
    return True


class _Watching:
    """A tracker that may fail, whatever its library raises: that is said once, and the work goes on without it."""

    def __init__(self, name: str, open_: Callable[[], Tracker]) -> None:
        self.name, self.inner = name, list[Tracker]()
        self.safely(lambda: self.inner.append(open_()))

    def __call__(self, known: Mapping[str, News], last: bool) -> None:
        self.safely(lambda: [one(known, last) for one in self.inner])

    def results(self, values: Mapping[str, float], page: str) -> None:
        self.safely(lambda: [one.results(values, page) for one in self.inner])

    def close(self, status: str) -> None:
        self.safely(lambda: [one.close(status) for one in self.inner])

    def safely(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            why = re.sub(r"//[^/@\s]*@", "//", f"{type(error).__name__}: {error}".splitlines()[0])
            print(f"  {self.name} gets nothing more of this stage: {why}", flush=True)
            self.inner.clear()


class _TensorBoard:
    """An event file of one attempt at a stage. scratch: where it is written first, if not in place."""

    def __init__(self, folder: Folder, stage: str, scratch: str) -> None:
        # loads clients of Google's storage, which no worker needs
        from tensorboardX.event_file_writer import EventsWriter

        self.folder = folder / "tensorboard" / stage
        self.local = "file" in folder.fs.protocol
        place = Path(self.folder.path if self.local else scratch)
        place.mkdir(parents=True, exist_ok=True)
        self.writer = EventsWriter(str(place / "events"), f".{secrets.token_hex(3)}")
        self.file = Path(self.writer._file_name)
        self.done, self.published = dict[str, int](), time.monotonic()

    def __call__(self, known: Mapping[str, News], last: bool) -> None:
        for name, news in newer(known, self.done):
            self.add(name, float(news.best or 0.0), news.done)
        if time.monotonic() - self.published > PUBLISHED_EVERY:
            self.publish()

    def results(self, values: Mapping[str, float], page: str) -> None:
        for name, value in values.items():
            self.add(plain(name), value, 0)

    def add(self, name: str, value: float, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self.writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    def publish(self) -> None:
        self.published = time.monotonic()
        self.writer.flush()
        if not self.local:
            self.folder.publish(str(self.file), self.file.name)

    def close(self, status: str) -> None:
        self.publish()
        self.writer.close()


class _MLflow:
    """One run of MLflow's, found again by what `mlflow.json` says."""

    def __init__(self, run: Run, stage: str) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient

        self.client, self.stage = MlflowClient(), stage
        self.done, self.sent = dict[str, int](), time.monotonic()
        folder, uri = run.folder, re.sub(r"//[^/@\s]*@", "//", os.environ["MLFLOW_TRACKING_URI"])
        known = folder.read_json("mlflow.json") if folder.exists("mlflow.json") else {}
        if known.get("uri") == uri:
            self.id = known["run_id"]
            self.client.update_run(self.id, status="RUNNING")
        else:
            self.id = self.begun(run, uri)

    def begun(self, run: Run, uri: str) -> str:
        """The id of a new run; who its server is, is kept without a password."""
        from mlflow.entities import Param

        folder, name = run.folder, os.environ.get("MLFLOW_EXPERIMENT_NAME", "nascore")
        there = self.client.get_experiment_by_name(name)
        experiment = there.experiment_id if there else self.client.create_experiment(name)
        tags = {"root": folder.url, "method": run.method.name, "split_digest": run.schema.split_digest}
        made = self.client.create_run(experiment, tags=tags, run_name=folder.path.rpartition("/")[2]).info.run_id
        folder.write_json("mlflow.json", {"uri": uri, "experiment": name, "run_id": made})
        asked = [Param(plain(name), str(value)[:LONGEST]) for name, value in leaves(run.to_json()).items()]
        for first in range(0, len(asked), MOST):
            self.client.log_batch(made, params=asked[first : first + MOST])
        return str(made)

    def __call__(self, known: Mapping[str, News], last: bool) -> None:
        if last or time.monotonic() - self.sent > SENT_EVERY:
            self.sent = time.monotonic()
            self.log({f"{self.stage}/{name}": (news.best, news.done) for name, news in newer(known, self.done)})

    def results(self, values: Mapping[str, float], page: str) -> None:
        self.log({plain(name): (value, 0) for name, value in values.items()})
        self.client.log_text(self.id, page, "report.html")

    def log(self, values: Mapping[str, tuple[float | None, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, (value, step) in values.items()]
        for first in range(0, len(metrics), MOST):
            self.client.log_batch(self.id, metrics=metrics[first : first + MOST])

    def close(self, status: str) -> None:
        self.client.update_run(self.id, status=status)


def newer(known: Mapping[str, News], done: dict[str, int]) -> Iterator[tuple[str, News]]:
    """The news that have a value and went on since they were last asked for, and the names of their values.

    How many of several models are done is no curve.
    """
    for key, news in known.items():
        if news.best is not None and news.unit != "models" and done.get(key) != news.done:
            done[key] = news.done
            yield plain(f"{key}/{news.label}"), news


def plain(name: str) -> str:
    """A name that both take."""
    return re.sub(r"[^-\w./ ]", "_", name).replace(" ", "_")
