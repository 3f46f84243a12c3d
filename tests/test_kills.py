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
LONGER = {
    "autotower": ("--method.steps=600", "--method.candidates=80", "--method.training.epochs=4"),
    "nasrec": ("--method.steps=600", "--method.candidates=80", "--method.training.epochs=4", *TUNED),
    "dnsrec": ("--method.steps=400", "--method.training.epochs=4", *TUNED),
    "ihas": ("--method.steps=1000", "--method.training.epochs=4"),
}
"""What the small runs do more of here, so that a stage goes on for a while after it left something to continue."""
LEFT = {
    "supernet": "step-*/done.json",
    "search": "*/generation-*.parquet",
    **{stage: "**/checkpoint.safetensors" for stage in ("diagnose", "tune", "retrain")},
}
"""What a stage leaves on its way, and continues from. DNS-Rec's search, which draws nothing, leaves nothing."""
EARLY = 0.6
"""The share of its usual time within which another stage is killed, so that it is not over before."""


def killed_in(stage: str, seconds: float, left: str, pipeline: str, root: Path, *options: str) -> float:
    """Kill the pipeline within some seconds of the stage's begin, or of what it left first; gives the moment."""
    process = start(pipeline, root, *options)
    assert process.stdout
    said = list[str]()
    while f"{stage} …\n" not in said and (line := process.stdout.readline()):
        said.append(line)
    begun, deadline = time.monotonic(), time.monotonic() + 120
    while left and not list((root / stage).glob(left)) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 1.0 if left else EARLY * seconds))  # the moment is random on purpose
    moment = time.monotonic() - begun
    os.killpg(process.pid, signal.SIGKILL)
    said.append(process.communicate()[0])
    assert process.returncode == -signal.SIGKILL and time.monotonic() < deadline, "".join(said)
    assert not (root / stage / "done.json").exists(), f"{stage} was over before it could be killed"
    return moment


@pytest.mark.long
@pytest.mark.parametrize("pipeline", SMALL)
def test_a_run_killed_in_every_stage_ends_with_the_same_report(tmp_path: Path, shop: Any, pipeline: str) -> None:
    raw = [f"--raw={shop.raw}"] if pipeline == "autotower" else []
    options = (*raw, *SMALL[pipeline], *LONGER[pipeline])
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    took = re.findall(r"^(\w+): done in ([\d.]+) s$", finish(pipeline, undisturbed, *options), re.MULTILINE)
    assert len(took) == (7 if pipeline == "ihas" else 8)
    for stage, seconds in took:
        left = "" if (pipeline, stage) == ("dnsrec", "search") else LEFT.get(stage, "")
        moment = killed_in(stage, float(seconds), left, pipeline, disturbed, *options)
        print(f"{stage}: killed after {moment:.2f} s of about {seconds}")
    finish(pipeline, disturbed, *options)
    assert report(disturbed) == report(undisturbed)
    for name in ("derive/candidates.json", "derive/kinds.json") if pipeline == "ihas" else ("search/candidates.json",):
        assert read(disturbed, name) == read(undisturbed, name)
