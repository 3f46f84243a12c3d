"""Trainings that stop and go on: supernets from checkpoint to checkpoint, models alone from epoch to epoch, as tasks.

A checkpoint of a supernet is a folder `step-*` of safetensors with `done.json` last.
"""

import time
from collections.abc import Sequence
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from components.folder import Folder
from components.job import Job
from components.ledger import Meter, Spent
from components.progress import TELL_EVERY, News, Teller, watching
from components.run import Run
from components.workers import RESTARTS, granted, settle
from nascore import group
from nascore.methods import Method, from_json
from nascore.net import Net, Supernet
from nascore.rows import Data, Mode, seed_of
from nascore.space import parse
from nascore.training import Fit, Learning, State, refit, train

ROUTER = "router.safetensors"
CHECKPOINT, REFITTED = "checkpoint.safetensors", "refitted.safetensors"
TOLD_EVERY = 50

# Supernets


def continue_training(
    run: Run,
    rank: int = 0,
    world: int = 1,
    tell: Any = lambda news: None,
    method: Method | None = None,
    of: str = "supernet",
) -> None:
    """Train to the end of the plan as one rank, from the newest whole checkpoint on; another method's than the run's
    into a folder of its own.
    """
    device, folder, method = settle(run), run.folder / of, method or run.method
    schema, seed = run.schema, run.seeds[0]
    rows = run.rows("train", run.workers.data, rank, world, device, shown=method.shown)
    supernet = method.supernet(schema, method.space(schema), seed, searching=True).to(device)
    task = method.task(schema).to(device)
    learning = method.learning if supernet.sampler.learns else None
    held = run.rows("valid", run.workers.data, rank, world, device, shown=method.shown) if learning else None
    penalty = method.penalty(supernet.net, measured(folder, method, supernet.net, rank)) if learning else None
    fit = Fit(supernet, task, rows, method.train, seed, learning, held, penalty)
    plan, curve = method.train, list[dict[str, float]]()
    before, started = 0.0, time.monotonic()
    if plan.steps < 1:
        raise ValueError(f"a supernet is trained for 1 step or more, not {plan.steps}")
    if folder.names("step-*/done.json"):
        last = run.checkpoint(of)
        fit.restore({**last.read_tensors("weights.safetensors"), **last.read_tensors("optimizer.safetensors")})
        curve = last.read_json("curve.json")
        before = curve[-1]["seconds"] if curve else 0.0
    stopped = False
    while fit.step < plan.steps and not stopped:
        upto = min(plan.steps, (fit.step // run.workers.checkpoint + 1) * run.workers.checkpoint)
        loss = fit.advance(min(TOLD_EVERY, upto - fit.step))
        if not isfinite(loss):
            raise FloatingPointError(f"the supernet's loss is {loss} at step {fit.step}; lower its learning rate")
        seconds = round(before + time.monotonic() - started, 3)
        curve.append({"step": fit.step, "loss": loss, "seconds": seconds, **supernet.sampler.facts(fit.step)})
        stopped = group.anywhere(bool(tell(News(fit.step, plan.steps, "steps", loss, "loss"))), device)
        if rank == 0 and (fit.step == upto or stopped):
            save(folder, fit, curve)


def measured(folder: Folder, method: Method, net: Net, rank: int) -> dict[str, float]:
    """What the method wants measured on this machine: by the first rank, once a run, for all."""
    if rank == 0 and not folder.exists("measured.json"):
        folder.write_json("measured.json", method.measure(net))
    group.wait()
    known: dict[str, float] = folder.read_json("measured.json")
    return known


def save(folder: Folder, fit: Fit, curve: list[dict[str, float]]) -> None:
    """Write a whole checkpoint, then drop all but it and the one before."""
    target = folder / f"step-{fit.step:09d}"
    state = fit.state()
    weights = fit.weights()
    target.write_tensors("weights.safetensors", weights)
    target.write_tensors("optimizer.safetensors", {name: value for name, value in state.items() if name not in weights})
    target.write_json("curve.json", curve)
    target.write_json("done.json", {"step": fit.step})
    for old in folder.names("step-*/done.json")[:-2]:
        (folder / old.rpartition("/")[0]).clear()


def steps_taken(run: Run, of: str = "supernet") -> int:
    """Steps that the supernet, or one in another folder of the run, was trained for."""
    return int(run.checkpoint(of).read_json("done.json")["step"])


def seen(steps: int, batch: int, learning: Learning | None) -> int:
    """Training examples of so many steps and of the sampler's lessons between them."""
    return steps * batch + (learning.lessons(steps) * (learning.batch or batch) if learning else 0)


# Models trained alone


def train_alone(run: Run, job: Job, tell: Any = lambda news: None) -> dict[str, Any]:
    """Train a job's model from where it was left, into `weights.safetensors`; `result.json` says how it went.

    The value of an attempt that diverged is None.
    """
    folder = run.folder / job.folder
    if folder.done:
        known: dict[str, Any] = folder.read_json("result.json")
        return known
    started, device, meter, before = time.monotonic(), settle(run), Meter(run.workers.gpus), Spent()
    method, schema = from_json(job.method), run.schema
    genotype, plan = method.canonical(parse(job.genotype)), method.retrain
    judged = 0 if method.stop.ranks else method.stop.rows
    seed = seed_of(job.seed, "alone", *((job.part,) if job.part >= 0 else ()))

    def rows(split: str, mode: Mode = "resident", first: int = 0, half: int = -1) -> Data:
        """The rows of the job's part, or every second of them, so that none that a sampler learns from judges it."""
        only = None if job.part < 0 else kinds(run, split) == job.part
        if half >= 0:
            halves = np.arange(schema.rows[split]) % 2 == half
            only = halves if only is None else only & halves
        return run.rows(split, mode, device=device, first=first, shown=method.shown, only=only)

    def fresh(split: str) -> Fit:
        supernet = method.supernet(schema, method.space(schema).narrow(genotype), seed)
        if method.inherits:
            method.begin(supernet.net, searched(run, method.source, job.of))
        learning = method.learning if supernet.sampler.learns else None
        held = rows("valid", run.workers.data, half=1) if learning else None
        task, data = method.task(schema).to(device), rows(split, run.workers.data)
        return Fit(supernet.to(device), task, data, plan, seed, learning, held)

    def save(name: str, state: State) -> None:
        spent = before + meter()
        folder.write_tensors(name, {**state, "spent": torch.tensor([spent.cpu, spent.gpu])})

    def saved(name: str) -> State | None:
        nonlocal before
        if not folder.exists(name):
            return None
        state = folder.read_tensors(name)
        before = Spent(*state.pop("spent", torch.zeros(2)).tolist())
        return state

    fit = fresh("train")
    valid = rows("valid", first=judged, half=0 if fit.learning else -1)
    outcome = train(
        fit,
        lambda model: method.stop.measure(model, fit.task, valid),
        partial(save, CHECKPOINT),
        saved(CHECKPOINT),
        lambda epoch, value: tell(News(epoch, plan.epochs, "epochs", value, lasting=False)),
    )
    if not outcome.weights and not job.tried:
        raise FloatingPointError(
            f"{job.folder}, {method.label}: no epoch gave a finite validation value; (loss, value) by epoch: "
            f"{list(outcome.curve)}; lower its learning rate"
        )
    weights = outcome.weights
    if job.refit:
        again = fresh("train+valid")
        weights = refit(again, outcome.best_epoch, partial(save, REFITTED), saved(REFITTED))
    folder.write_tensors("weights.safetensors", weights)
    result = {
        "model_id": method.model_id(genotype, schema.split_digest),
        "name": method.name,
        "seed": job.seed,
        "value": outcome.value if isfinite(outcome.value) else None,
        "best_epoch": outcome.best_epoch,
        "steps": outcome.steps,
        "examples": seen(outcome.steps, min(plan.batch, fit.data.rows), fit.learning) or fit.data.rows,
        "judged": min(judged, valid.rows) if judged else valid.rows,
        "curve": [[number if isfinite(number) else None for number in epoch] for epoch in outcome.curve],
        "seconds": round(time.monotonic() - started, 3),
        **(before + meter()).told(),
    }
    folder.write_json("result.json", result)
    folder.write_json("done.json", {"seconds": result["seconds"]})
    for name in (CHECKPOINT, REFITTED):
        if folder.exists(name):
            folder.fs.rm(f"{folder.path}/{name}")
    tell(News(plan.epochs, plan.epochs, "epochs", outcome.value, lasting=False))
    return result


def searched(run: Run, method: Method, of: str) -> Supernet:
    """A method's supernet in a folder of the run, with its weights; settled, where `derive` has settled its gates."""
    supernet = method.supernet(run.schema, method.space(run.schema), run.seeds[0], searching=True)
    weights, own = settled(run, method, of), "supernet."
    supernet.load_state_dict({name.removeprefix(own): value for name, value in weights.items() if name.startswith(own)})
    return supernet


def settled(run: Run, method: Method, of: str) -> State:
    """The weights of a supernet and its task, with the threshold of its gates where `derive` has settled it."""
    weights, folder = run.checkpoint(of).read_tensors("weights.safetensors"), run.folder / "derive"
    if method.routes and folder.exists(ROUTER):
        weights["supernet.sampler.threshold"] = folder.read_tensors(ROUTER)["gates.threshold"]
    return weights


def kinds(run: Run, split: str) -> NDArray[np.int8]:
    """The kind of each row of a split, or of several as "train+valid", as `derive` told them apart. Shape (rows,)."""
    folder = run.folder / "derive"
    tables = [folder.read_table(f"kinds-{one}.parquet") for one in split.split("+")]
    found: NDArray[np.int8] = np.concatenate([table["kind"].to_numpy() for table in tables])
    return found


@ray.remote(max_retries=RESTARTS)
def _train_alone(root: str, job: Job, board: Any) -> dict[str, Any]:
    run, work = Run.load(root), f"{job.method['name']} {job.folder.partition('/')[2]}"
    tell = Teller(board, work, run.workers.gpus)
    result = train_alone(run, job, tell)
    tell.spent()
    return result


def finished(run: Run, job: Job) -> bool:
    """Whether a job's model is trained."""
    return (run.folder / job.folder).done


def train_all(run: Run, stage: str, jobs: Sequence[Job], cut: bool = False) -> list[dict[str, Any] | None]:
    """Train every job on the cluster, as many at a time as there are cores or GPUs; results in the order of jobs.

    cut: whether those that are not done when the run's budget is used up are given up: their results are None.
    """
    if cut and run.used_up():
        return [(run.folder / job.folder).read_json("result.json") if finished(run, job) else None for job in jobs]
    with watching(run, stage) as board:
        overall, done = Teller(board, "models", counted=False), 0
        task = _train_alone.options(**granted(run))
        waiting = [task.remote(run.root, job, board) for job in jobs]
        results = dict[Any, dict[str, Any]]()
        pending = list(waiting)
        while pending:
            ready, pending = ray.wait(pending, num_returns=1, timeout=TELL_EVERY)
            if cut and run.used_up():
                more, pending = ray.wait(pending, num_returns=len(pending), timeout=0) if pending else ([], [])
                for reference in pending:
                    ray.cancel(reference, force=True)
                ready, pending = [*ready, *more], []
            for reference in ready:
                results[reference] = ray.get(reference)
            done += len(ready)
            if ready:
                values = [result["value"] for result in results.values() if result["value"] is not None]
                overall(News(done, len(jobs), "models", max(values, default=None)))
        return [results.get(reference) for reference in waiting]
