"""Whole runs by the command line, for the tests of the pipelines."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def outside() -> dict[str, str]:
    """The environment of a command that starts a Ray cluster of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def finish(pipeline: str, root: Path, *options: str) -> str:
    """What a pipeline said that ran to its end."""
    command = [sys.executable, "-m", "pipelines", pipeline, f"--root={root}", *options]
    done = subprocess.run(
        command, env=outside(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def read(root: Path, name: str) -> Any:
    return json.loads((root / name).read_text())


def report(root: Path) -> dict[str, Any]:
    """The report without what depends on time and place."""
    return {name: value for name, value in read(root, "evaluate/report.json").items() if name not in ("timing", "run")}
