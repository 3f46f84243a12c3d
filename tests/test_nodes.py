"""Nodes lost in the middle of a run: it finishes on those that are left, with the same weights, candidates and report.

This file is also the script that the test starts: a cluster of several nodes on this machine, in a process of its own.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NODES = 4
TRIAL = "ImplicitFunc"  # what Tune calls the actor of a search
OPTIONS = (
    "--dataset=planted_clicks:rows=4000",
    "--method.blocks=1",
    "--method.embedding=4",
    "--method.dense_sizes=[4,8]",
    "--method.sparse_sizes=[2,4]",
    "--method.tokens=2",
    "--method.cap=20",
    "--method.steps=1200",
    "--method.batch=64",
    "--method.candidates=400",
    "--method.fitness.rows=300",
    "--method.fitness.calibration=640",
    "--method.head.batch=64",
    "--method.training.batch=64",
    "--strategies=regularized:population=8,sample=4,children=8",
    "--rivals=logistic_regression",
    "--keep=1",
    "--seeds=0",
    "--diagnosis.genotypes=0",
    "--tuning.configurations=0",
    "--workers.train=2",
    "--workers.evaluators=3",
    "--workers.checkpoint=100",
)


@pytest.mark.ray
@pytest.mark.long
def test_lost_nodes_leave_no_trace(tmp_path: Path) -> None:
    scratch = tempfile.mkdtemp(prefix="ray-")  # pytest's own folders are too deep for Ray's sockets
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own |= {"RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": scratch, "PYTHONPATH": str(Path(__file__).parent.parent)}
    own |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "RAY_worker_niceness": "0"}
    try:
        script = [sys.executable, __file__, str(tmp_path)]
        both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        done = subprocess.run(script, env=own, text=True, timeout=1800, **both)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    assert done.returncode == 0, done.stdout
    lost = [line.removeprefix("lost the node of ") for line in done.stdout.splitlines() if line.startswith("lost ")]
    assert lost == ["TrainWorker", "_Evaluator", TRIAL], done.stdout
    left, whole = (found(tmp_path / name) for name in ("left", "whole"))
    assert left == whole


def found(root: Path) -> dict[str, Any]:
    """What a run found, without what depends on time and place."""
    (weights,) = root.glob("supernet/step-000001200/weights.safetensors")
    report = json.loads((root / "evaluate/report.json").read_text())
    return {
        "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "candidates": json.loads((root / "search/candidates.json").read_text()),
        "report": {name: value for name, value in report.items() if name not in ("timing", "run")},
    }


def main(folder: Path) -> int:
    """A run that loses three nodes, then the same run undisturbed."""
    from components.run import environment

    environment()
    from ray.cluster_utils import Cluster

    from pipelines.__main__ import main as command

    cluster = Cluster()
    cluster.add_node(num_cpus=0, include_dashboard=False)
    os.environ["RAY_ADDRESS"] = cluster.address
    for _ in range(NODES):
        cluster.add_node(num_cpus=1)
    left, whole = folder / "left", folder / "whole"
    losing = threading.Thread(target=lose, args=(cluster, left), daemon=True)
    losing.start()
    code = command(["nasrec", f"--root={left}", *OPTIONS])
    losing.join(1)
    while len(cluster.worker_nodes) < NODES:
        cluster.add_node(num_cpus=1)
    code = code or command(["nasrec", f"--root={whole}", *OPTIONS])
    import ray

    ray.shutdown()
    cluster.shutdown()
    return code


def lose(cluster: Any, root: Path) -> None:
    """Take away the nodes of three workers, one after the other."""
    once(lambda: any(root.glob("supernet/step-*/done.json")))
    take(cluster, "TrainWorker")
    once(lambda: any(root.glob("search/*/generation-00002.parquet")))
    take(cluster, "_Evaluator", besides=TRIAL)
    once(lambda: len(list(root.glob("search/*/generation-*.parquet"))) > 5)
    take(cluster, TRIAL)


def once(holds: Callable[[], bool]) -> None:
    while not holds():
        time.sleep(0.02)


def take(cluster: Any, title: str, besides: str = "\n") -> None:
    """Kill all processes of a node where an actor of this class lives, and none of another."""
    living: dict[str, list[str]] = {}
    for actor in actors():
        living.setdefault(actor["Address"]["NodeID"], []).append(f"{actor['ActorClassName']} {actor['Name']}")
    for node in cluster.worker_nodes:
        names = " ".join(living.get(node.node_id, []))
        if title in names and besides not in names:
            cluster.remove_node(node, allow_graceful=False)
            print(f"lost the node of {title}", flush=True)
            return
    print(f"no node of {title} alone: {living}", flush=True)


def actors() -> list[dict[str, Any]]:
    import ray

    return [one for one in ray._private.state.actors().values() if one["State"] == "ALIVE"]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
