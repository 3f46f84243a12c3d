"""Where the stages meet Ray: the connection, what a worker is granted, and weights on a node."""

import hashlib
import logging
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import ray
import torch
from safetensors.torch import load_file

from components.run import Folder, Run, running_cluster
from nascore.methods import Scorer

UNITS = {"CPU": ("CPUs", 1), "GPU": ("GPUs", 1), "memory": ("GiB", 1 << 30)}
RESTARTS = 16
"""How often a piece of work may lose its worker or node. Ray does not count actors whose node it drained in time."""
STAGED = 3 * 86_400
"""Seconds for which a node keeps a file that it fetched, at least."""


def connect() -> None:
    """Join the cluster that `components.run.environment` found, or start a local one that takes every core."""
    if ray.is_initialized():
        return
    if running_cluster():
        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    else:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            object_store_memory=256 << 20,
        )


def fits(run: Run, workers: int) -> None:
    """Raise if so many workers can never run on a local cluster; say so where one may still grow."""
    for unit, each in needs(run).items():
        there, (title, size) = ray.cluster_resources().get(unit, 0), UNITS[unit]
        if workers * each > there:
            lacking = f"{workers} workers of {each / size:g} {title} each need more than the cluster's {there / size:g}"
            if not running_cluster():
                raise ValueError(f"{lacking}; lower --workers.train, --workers.evaluators, .cpus, .gpus or .memory")
            print(f"  {lacking}; waiting for more", flush=True)


def needs(run: Run, spared: float = 0.0) -> dict[str, float]:
    """What one worker asks of a node, as Ray counts it; `spared` is what it leaves of its CPUs."""
    memory = int(run.workers.memory * UNITS["memory"][1])
    wanted = {"CPU": run.workers.cpus - spared, "GPU": run.workers.gpus, "memory": memory}
    return {unit: each for unit, each in wanted.items() if each}


def granted(run: Run, spared: float = 0.0) -> dict[str, float]:
    """The same as options of a task or an actor of Ray."""
    names = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}
    return {names[unit]: each for unit, each in needs(run, spared).items()}


def settle(run: Run) -> str:
    """Bound this worker process's threads and give its device: "cuda" where the run grants GPUs, else "cpu"."""
    torch.set_num_threads(run.workers.cpus)
    torch.set_flush_denormal(True)
    return "cuda" if run.workers.gpus else "cpu"


def staged(folder: Folder, name: str) -> str:
    """A path on this node's disk to a finished file of a run, fetched once a node; to be memory-mapped by many."""
    if "file" in folder.fs.protocol:
        return f"{folder.path}/{name}"
    known = hashlib.sha256(f"{folder.url}/{name}/{folder.fs.info(f'{folder.path}/{name}')}".encode()).hexdigest()
    local = Path(tempfile.gettempdir()) / f"nascore-staged-{os.getuid()}" / known
    if local.exists():
        os.utime(local)
    else:
        local.parent.mkdir(exist_ok=True)
        for old in local.parent.glob("*"):
            with suppress(OSError):
                if old.is_file() and time.time() - old.stat().st_mtime > STAGED:
                    old.unlink()  # whoever has it mapped keeps it
        with tempfile.TemporaryDirectory(dir=local.parent) as scratch:
            folder.fs.get_file(f"{folder.path}/{name}", f"{scratch}/file")
            os.replace(f"{scratch}/file", local)
    return str(local)


def open_scorer(run: Run, cache_bytes: int) -> Scorer:
    """The scorer of the run's supernet, whose weights are the node's memory-mapped file: shared, never written to."""
    device = settle(run)
    method, schema = run.method, run.schema
    weights = load_file(staged(run.checkpoint(), "weights.safetensors"), device)
    with torch.device("meta"):
        supernet, task = method.supernet(schema, method.space(schema), 0), method.task(schema)
    for part, module in (("supernet.", supernet), ("task.", task)):
        own = {name.removeprefix(part): value for name, value in weights.items() if name.startswith(part)}
        module.load_state_dict(own, assign=True)
        module.eval().requires_grad_(False)
    fitness = method.fitness
    train = run.rows("train", device=device, first=max(1, fitness.calibration), shown=method.shown)
    valid = run.rows("valid", device=device, first=0 if fitness.ranks else fitness.rows, shown=method.shown)
    return method.scorer(supernet.net, task, train, valid, cache_bytes)
