"""What goes to TensorBoard, always, and to MLflow, where `MLFLOW_TRACKING_URI` is set.

TensorBoard's files stand in `<root>/tensorboard/<stage>`; in object storage they are renewed every 30 s. To MLflow a
run of ours is one run of its own, named by `mlflow.json`, however often it was interrupted. Trackers only watch: what
they are not told, or cannot pass on, changes no result.
"""

import importlib.util
import os
import re
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


@contextmanager
def trackers(run: Run, stage: str) -> Iterator[list[Tracker]]:
    """All that watch a stage; they are closed when it ends."""
    with tempfile.TemporaryDirectory(prefix="nascore-events-") as scratch:
        opened: list[_TensorBoard | _MLflow] = [_TensorBoard(run.folder / "tensorboard" / stage, scratch)]
        if wanted():
            opened.append(_MLflow(run))
        status = "FAILED"
        try:
            yield list(opened)
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


class _TensorBoard:
    """Event files of one attempt at a stage. scratch: where they are written first, if not in place."""

    def __init__(self, folder: Folder, scratch: str) -> None:
        self.folder, self.local = folder, "file" in folder.fs.protocol
        self.place = Path(folder.path if self.local else scratch)
        from tensorboardX import SummaryWriter  # loads clients of Google's storage, which no worker needs

        self.writer = SummaryWriter(str(self.place), flush_secs=10)
        self.done, self.published = dict[str, int](), time.monotonic()

    def __call__(self, known: Mapping[str, News], last: bool) -> None:
        for name, news in newer(known, self.done):
            self.writer.add_scalar(name, news.best, news.done)
        if last or time.monotonic() - self.published > PUBLISHED_EVERY:
            self.publish()

    def results(self, values: Mapping[str, float], page: str) -> None:
        for name, value in values.items():
            self.writer.add_scalar(plain(name), value, 0)

    def publish(self) -> None:
        """Send what a thread of the writer's has flushed by now."""
        self.published = time.monotonic()
        for file in () if self.local else self.place.iterdir():
            self.folder.publish(str(file), file.name)

    def close(self, status: str) -> None:
        self.writer.close()
        self.publish()


class _MLflow:
    """One run of MLflow's, found again by what `mlflow.json` says."""

    def __init__(self, run: Run) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self.run, self.id, self.alive = run, "", True
        self.done, self.sent = dict[str, int](), time.monotonic()
        self.safely(self.connect)

    def connect(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client, uri = MlflowClient(), os.environ["MLFLOW_TRACKING_URI"]
        folder = self.run.folder
        known = folder.read_json("mlflow.json") if folder.exists("mlflow.json") else {}
        if known.get("uri") == uri:
            self.id = known["run_id"]
            self.client.update_run(self.id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "nascore")
        there = self.client.get_experiment_by_name(name)
        experiment = there.experiment_id if there else self.client.create_experiment(name)
        tags = {"root": folder.url, "method": self.run.method.name, "split_digest": self.run.schema.split_digest}
        made = self.client.create_run(experiment, tags=tags, run_name=folder.path.rpartition("/")[2])
        self.id = made.info.run_id
        asked = [Param(plain(name), str(value)[:LONGEST]) for name, value in leaves(self.run.to_json()).items()]
        for first in range(0, len(asked), MOST):
            self.client.log_batch(self.id, params=asked[first : first + MOST])
        folder.write_json("mlflow.json", {"uri": uri, "experiment": name, "run_id": self.id})

    def __call__(self, known: Mapping[str, News], last: bool) -> None:
        if last or time.monotonic() - self.sent > SENT_EVERY:
            self.sent = time.monotonic()
            values = [(name, news.best, news.done) for name, news in newer(known, self.done)]
            self.safely(lambda: self.log(values))

    def results(self, values: Mapping[str, float], page: str) -> None:
        self.safely(lambda: self.log([(plain(name), value, 0) for name, value in values.items()]))
        self.safely(lambda: self.client.log_text(self.id, page, "report.html"))

    def log(self, values: list[tuple[str, float | None, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value, step in values]
        for first in range(0, len(metrics), MOST):
            self.client.log_batch(self.id, metrics=metrics[first : first + MOST])

    def close(self, status: str) -> None:
        self.safely(lambda: self.client.update_run(self.id, status=status))

    def safely(self, call: Callable[[], object]) -> None:
        """Say so once where MLflow does not answer, and go on without it."""
        from mlflow.exceptions import MlflowException

        if self.alive:
            try:
                call()
            except (MlflowException, OSError) as error:
                print(f"  MLflow gets nothing more of this stage: {str(error).splitlines()[0]}", flush=True)
                self.alive = False


def newer(known: Mapping[str, News], done: dict[str, int]) -> Iterator[tuple[str, News]]:
    """The news that have a value and went on since they were last asked for, and the names of their values."""
    for key, news in known.items():
        if news.best is not None and done.get(key) != news.done:
            done[key] = news.done
            yield plain(f"{key}/{news.label}"), news


def plain(name: str) -> str:
    """A name that both take."""
    return re.sub(r"[^-\w./ ]", "_", name).replace(" ", "_")
