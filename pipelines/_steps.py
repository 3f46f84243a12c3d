"""What the steps of a Kubeflow pipeline do; nothing here needs kfp.

`python -m pipelines._steps <run-url>` takes a saved run through its stages: the command of the RayJob that one of these
steps creates.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from components.__main__ import main as stage_of
from components.errors import exit_code, told
from components.folder import Folder
from components.run import Run, environment

NIGHT = "$(date -u +%F)"
"""What stands for the day in a root, as in the RayJob's command under k8s/."""


@dataclass(frozen=True)
class Results:
    """What a finished run has to show.

    data and model: folders of the run; the model's is "" where nothing was tested. page: the report, "" where there is
    none. verdict: what the test says, in a sentence. figures: values of the test by name.
    """

    data: str
    split_digest: str
    page: str = ""
    model: str = ""
    model_id: str = ""
    verdict: str = ""
    figures: dict[str, float] = field(default_factory=dict)


def main(arguments: list[str]) -> int:
    """Take a saved run through its stages; finished ones are skipped. The exit code is that of the last one."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print("usage: python -m pipelines._steps <run-url>")
        return 2
    with _told():
        planned = Run.load(arguments[0]).planned
    return next((code for name in planned if (code := stage_of([name, arguments[0]]))), 0)


def save(root: str, settings: str) -> tuple[str, str]:
    """Write `run.json` after all was checked; the root with its day written out, and a digest of the settings.

    Args:
        root: The run's folder; `$(date -u +%F)` in it stands for today.
        settings: The run as JSON; its own root does not count.
    """
    root = root.replace(NIGHT, f"{datetime.now(UTC):%F}")
    with _told(), tempfile.TemporaryDirectory(prefix="nascore-") as scratch:
        Folder(scratch).write_text("run.json", settings)
        run = replace(Run.load(scratch), root=root)
        run.check()
        run.save()
    print(f"{root}/run.json: written", flush=True)
    return root, hashlib.sha256(settings.encode()).hexdigest()[:12]


def stage(name: str, root: str) -> None:
    """One stage of a run; exits with its exit code if it fails."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if code := stage_of([name, root]):
        sys.exit(code)


def results(root: str) -> Results:
    """What a run holds when its stages are done; of the models, the first found, which the verdict is about."""
    with _told():
        run = Run.load(root)
        page = (run.folder / "report").read_text("index.html") if (run.folder / "report").done else ""
        known = Results(f"{run.folder.url}/prepare", run.schema.split_digest, page)
        if not (run.folder / "evaluate").done:
            return known
        report = (run.folder / "evaluate").read_json("report.json")
    rows = [row for row in report["rows"] if row["metric"] == report["headline"]]
    first = next((row for row in rows if row["role"] == "found"), rows[0])
    figures = {report["headline"]: first["value"]}
    figures |= {name: first[name] for name in ("low", "high", "params", "table_params", "macs")}
    figures |= {f"{report['headline']} of {row['model']}": row["value"] for row in rows}
    kept = report["models"][first["model_id"]]["kept"]
    return replace(
        known,
        model=f"{run.folder.url}/{'supernet' if kept else 'retrain/' + first['model_id']}",
        model_id=first["model_id"],
        verdict=report["verdict"],
        figures=figures,
    )


@contextmanager
def _told() -> Iterator[None]:
    """Say in one line what a person can mend, and exit with its code."""
    try:
        environment()
        yield
    except Exception as error:
        if (why := told(error)) is None:
            raise
        print(f"error: {why}", file=sys.stderr, flush=True)
        sys.exit(exit_code(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
