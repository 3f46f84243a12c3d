"""Whole runs of every pipeline, killed (-9) once in each stage: the report is that of a run which nothing disturbed."""

import os
import random
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import SMALL, finish, read, report, start

TUNED = ("--tuning.configurations=2", "--diagnosis.genotypes=3", "--diagnosis.seeds=1")
EARLY = 0.6
"""The share of its usual time within which a stage is killed, so that it is not over before."""


def killed_in(stage: str, after: float, pipeline: str, root: Path, *options: str) -> None:
    """Run the pipeline, and kill it so many seconds after it began the stage."""
    process = start(pipeline, root, *options)
    assert process.stdout
    said = list[str]()
    while f"{stage} …\n" not in said and (line := process.stdout.readline()):
        said.append(line)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGKILL)
    said.append(process.communicate()[0])
    assert process.returncode == -signal.SIGKILL, "".join(said)
    assert not (root / stage / "done.json").exists(), f"{stage} was over before it could be killed"


@pytest.mark.long
@pytest.mark.parametrize("pipeline", SMALL)
def test_a_run_killed_in_every_stage_ends_with_the_same_report(tmp_path: Path, shop: Any, pipeline: str) -> None:
    options = (*SMALL[pipeline], *(TUNED if pipeline != "ihas" else ()))
    if pipeline == "autotower":
        options = (f"--raw={shop.raw}", *options)
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    took = re.findall(r"^(\w+): done in ([\d.]+) s$", finish(pipeline, undisturbed, *options), re.MULTILINE)
    assert len(took) == (7 if pipeline == "ihas" else 8)
    for stage, seconds in took:
        after = random.uniform(0, EARLY * float(seconds))  # the moment is random on purpose
        print(f"{stage}: killed after {after:.2f} s of about {seconds}")
        killed_in(stage, after, pipeline, disturbed, *options)
    finish(pipeline, disturbed, *options)
    assert report(disturbed) == report(undisturbed)
    for name in ("derive/candidates.json", "derive/kinds.json") if pipeline == "ihas" else ("search/candidates.json",):
        assert read(disturbed, name) == read(undisturbed, name)
