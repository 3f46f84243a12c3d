"""Whole runs by the command line, for the tests of the pipelines."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

SMALL = {
    "autotower": (
        "--dataset=parquet",
        "--method.blocks=2",
        "--method.width=16",
        "--method.steps=80",
        "--method.candidates=24",
        "--method.fitness.batch=64",
        "--method.training.batch=128",
        "--method.training.epochs=2",
        "--strategies=[evolution:population=8,random:batch=8]",
        "--budgets=[macs=100000]",
        "--rivals=[googlednn:size=L,itemknn,ease,popularity]",
        "--seeds=[0,1]",
        "--keep=1",
        "--diagnosis.genotypes=3",
        "--diagnosis.seeds=1",
        "--tuning.configurations=2",
        "--workers.checkpoint=20",
    ),
    "nasrec": (
        "--dataset=planted_clicks:rows=4000",
        "--method.blocks=2",
        "--method.embedding=4",
        "--method.dense_sizes=[4,8]",
        "--method.sparse_sizes=[2,4]",
        "--method.tokens=2",
        "--method.cap=20",
        "--method.steps=60",
        "--method.batch=64",
        "--method.candidates=20",
        "--method.fitness.rows=300",
        "--method.fitness.batch=128",
        "--method.fitness.calibration=640",
        "--method.head.batch=64",
        "--method.training.batch=64",
        '--strategies=["regularized:population=8,sample=4,children=6"]',
        '--rivals=[logistic_regression,"dnn:embedding=4,width=8,depth=1"]',
        "--keep=2",
        "--seeds=[0,1]",
        "--diagnosis.genotypes=0",
        "--tuning.configurations=0",
        "--workers.checkpoint=30",
    ),
    "dnsrec": (
        "--dataset=planted_sequences:users=150,items=60",
        "--method.hidden=8",
        "--method.inner=8",
        "--method.heads=2",
        "--method.ratios=[0,0.5]",
        "--method.layers=2",
        "--method.cooling=0.02",
        "--method.steps=40",
        "--method.batch=128",
        "--method.learner.every=2",
        "--method.training.length=8",
        "--method.training.batch=256",
        "--method.training.epochs=2",
        "--method.training.rankings=[full,pop100_fixed,recbole_pop100]",
        '--rivals=["sasrec:hidden=8,inner=8,heads=2,layers=1","gru4rec:hidden=8,embedding=8"]',
        "--seeds=[0,1]",
        "--tuning.configurations=0",
        "--workers.checkpoint=20",
    ),
    "ihas": (
        "--dataset=planted_populations:rows=4000",
        "--method.embedding=4",
        "--method.layers=[6]",
        "--method.steps=60",
        "--method.pretrained=20",
        "--method.sparsity=0.5",
        "--method.polarization=1.0",
        "--method.learner.every=1",
        "--method.learner.learning_rate=0.03",
        "--method.training.batch=128",
        "--method.training.learning_rate=0.01",
        "--method.training.epochs=2",
        "--method.models=[clusters,single,open,gates]",
        '--rivals=["fm","deepfm:width=8,depth=1"]',
        "--seeds=[0,1]",
        "--tuning.configurations=2",
        "--workers.checkpoint=30",
    ),
}
"""Options of a small run of each pipeline, a minute long; that of autotower reads the shop, by `--raw`."""


def outside() -> dict[str, str]:
    """The environment of a command that starts a Ray cluster of its own."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def start(
    pipeline: str, root: Path | str, *options: str, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """A pipeline in a process group of its own, on a Ray cluster of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", pipeline, f"--root={root}", *options],
        env=outside() if environment is None else environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have it ignored
    )


def finish(pipeline: str, root: Path | str, *options: str, environment: dict[str, str] | None = None) -> str:
    """What a pipeline said that ran to its end."""
    process = start(pipeline, root, *options, environment=environment)
    try:
        output, _ = process.communicate(timeout=1800)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    return output


def read(root: Path, name: str) -> Any:
    return json.loads((root / name).read_text())


def same(report: dict[str, Any]) -> dict[str, Any]:
    """A report without what depends on time and place."""
    return {name: value for name, value in report.items() if name not in ("timing", "run")}


def report(root: Path) -> dict[str, Any]:
    return same(read(root, "evaluate/report.json"))
