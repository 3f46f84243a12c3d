"""What a night is asked: its settings, which days it looks at, and the run that they make."""

import inspect
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from components.run import Run
from nascore import days as partitions
from nascore import plugins
from nascore.datasets import DataError, Dataset, OnBadRow
from pipelines import __main__ as command
from pipelines._deciding import Rules

Stage = Callable[[Run, str], None]
SMALL: Mapping[str, Any] = {"rivals": [], "keep": 1, "tuning.configurations": 0, "diagnosis.genotypes": 0}
"""What the options of a night's run are where nothing else is asked for."""
SHORTENED = ("steps", "pretrained")


@dataclass(frozen=True, kw_only=True)
class Nightly:
    """One night: what is compared with what, and what may be done about it.

    Args:
        registry: The registry's folder, on any fsspec URL.
        raw: The folder of the raw files: schema.yaml and day partitions such as day=2026-01-30/part-0.parquet.
        pipeline: What is searched: nasrec or ihas.
        night: The date of this night, of which no row is read; today in UTC where it is empty.
        window: Complete days at most that are looked at; the newest of them judges, those before it train.
        exclude: Days that are left out, such as 2026-01-30, because what they hold is wrong.
        options: Further options of the pipeline, by dotted names or nested: {method.steps: 4000, seeds: [0, 1]}.
        warm: Options that differ where the search starts warm.
        warm_steps: Share of the supernet's steps that it is trained for where it starts warm.
        decide: The decision, or auto to let the rules make it.
        rules: When a night does what.
        margin: By how many nats of log loss a refreshed champion, which is promoted if it is not worse, may be worse.
        runs: The folder of the runs, one a night; beside the registry's versions where it is empty.
        on_bad_row: What to do with malformed rows: error, or skip and count.
        lease: Seconds for which the lease holds without a heartbeat.
        wait: The most seconds to wait for the lease while another night holds it.
    """

    registry: str
    raw: str = ""
    pipeline: Literal["nasrec", "ihas"] = "nasrec"
    night: str = ""
    window: int = 7
    exclude: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    warm: dict[str, Any] = field(default_factory=dict)
    warm_steps: float = 0.3
    decide: Literal["auto", "skip", "refresh", "warm", "cold"] = "auto"
    rules: Rules = field(default_factory=Rules)
    margin: float = 0.0
    runs: str = ""
    on_bad_row: OnBadRow = "error"
    lease: float = 300.0
    wait: float = 0.0

    def __post_init__(self) -> None:
        plugins.bounded(self, window=2, warm_steps=0, margin=0, lease=1, wait=0)
        named = [("night", self.night)] if self.night else []
        for name, day in [*named, *(("exclude", day) for day in self.exclude)]:
            if (written := date.fromisoformat(day).isoformat()) != day:
                raise ValueError(f"{name} {day!r}: days are compared as they are written, so write it as {written}")

    @property
    def tonight(self) -> str:
        """The date of this night."""
        return self.night or datetime.fromtimestamp(time.time(), UTC).date().isoformat()

    def rows(self, chosen: Sequence[str]) -> Dataset:
        """The reader of some days."""
        spec = "parquet" + (f":days={'+'.join(chosen)}" if chosen else "")
        dataset: Dataset = plugins.build("datasets", spec, self.raw, self.on_bad_row)
        return dataset

    def days(self) -> tuple[str, ...]:
        """The newest complete days before this night, rising.

        Raises DataError where there is no day at all, or where a later one is marked as complete but has no rows.
        """
        dataset = self.rows(())
        if not (files := dataset.files("day=*/*")):
            raise dataset.missing("folder of a day, such as day=2026-01-30")
        found, empty = (sorted({*days} - {*self.exclude}) for days in partitions.complete(files, self.tonight))
        if empty and empty[-1:] > found[-1:]:
            raise self.unfit(empty[-1], f"no parquet file beside {partitions.SUCCESS}; folders inside it are not read")
        return partitions.latest(found, self.window)

    def unfit(self, day: str, what: str) -> DataError:
        """The error to raise where a day that is needed cannot be used."""
        there = f"{self.raw}/{partitions.COLUMN}={day}"
        return DataError(f"{there}: {what}. Mend the day, or leave it out: --exclude '[{day}]'")

    def run(self, root: str, chosen: Sequence[str], warm: bool = False) -> Run:
        """The pipeline's run over some days, the last of which is held out."""
        known = set(inspect.signature(command._function(self.pipeline)).parameters)
        small = {name: value for name, value in SMALL.items() if name.partition(".")[0] in known}
        settings: dict[str, Any] = {}
        for changes in (small, self.options, self.warm if warm else {}):
            _merge(settings, changes)
        data = {"dataset": f"parquet:days={'+'.join(chosen)}", "raw": self.raw, "on_bad_row": self.on_bad_row}
        fixed = {"root": root, "protocol": "newest_day", **data}
        if taken := sorted(fixed.keys() & settings.keys()):
            raise ValueError(f"options: {', '.join(taken)}: the night itself sets that, leave it out")
        with tempfile.TemporaryDirectory(prefix="nascore-") as scratch:
            written = Path(scratch) / "options.yaml"
            written.write_text(yaml.safe_dump({**settings, **fixed}), encoding="utf-8")
            run = command.parse(self.pipeline, [f"--config={written}"])
        if warm and "steps" not in self.warm.get("method", {}) and "method.steps" not in self.warm:
            run = replace(run, methods=(shortened(run.method, self.warm_steps), *run.methods[1:]))
        return run

    def check(self) -> None:
        """Raise for what is wrong with the pipeline's options by themselves: no file is looked at."""
        for warm in (False, True):
            self.run("/", ("1970-01-01",), warm).check_options()


def shortened(method: Any, share: float) -> Any:
    """A method whose supernet is trained for a share of its steps."""
    there = {one.name: getattr(method, one.name) for one in fields(method) if one.name in SHORTENED}
    return replace(method, **{name: max(1, round(steps * share)) for name, steps in there.items() if steps})


def _merge(settings: dict[str, Any], changes: Mapping[str, Any]) -> None:
    """Put changes into nested settings; dotted names go inside."""
    for name, value in changes.items():
        first, _, rest = str(name).partition(".")
        if rest:
            value = {rest: value}
        if isinstance(value, Mapping):
            inner = settings.setdefault(first, {})
            _merge(inner, value)
        else:
            settings[first] = value
