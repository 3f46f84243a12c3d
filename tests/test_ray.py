"""The stages that run on a cluster: equal to what one process computes, whatever the number of workers."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from components import diagnose, evaluate, retrain, search, supernet
from components.ledger import UNITS
from components.run import Run
from components.settings import Diagnosis, Workers
from components.trainings import continue_training
from components.workers import granted, needs
from nascore.fitness import Fitness
from nascore.methods.autotower import AutoTower
from nascore.methods.googlednn import GoogleDNN
from nascore.methods.popularity import Popularity
from nascore.two_tower import Training

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

TRAINING = Training(batch=128, epochs=2)
METHOD = AutoTower(
    blocks=2, width=16, output=16, embedding=8, steps=40, candidates=24, training=TRAINING, fitness=Fitness(batch=64)
)
RunWith = Callable[..., Run]


def weights_of(run: Run) -> dict[str, torch.Tensor]:
    return run.checkpoint().read_tensors("weights.safetensors")


def scored(run: Run) -> pa.Table:
    """What the searches of a run found, without what depends on time."""
    return (run.folder / "search").read_table("trials.parquet").drop_columns([*UNITS])


def test_two_train_workers_come_close_to_one_process_on_the_joined_batch(run_with: RunWith) -> None:
    method = replace(METHOD, steps=4)
    together, alone = (run_with(method, workers=Workers(train=n, checkpoint=2)) for n in (2, 1))
    supernet.main(together)
    continue_training(alone)
    assert together.folder.exists("supernet/done.json")
    ours, theirs = weights_of(together), weights_of(alone)
    assert ours.keys() == theirs.keys()
    # Adam moves a weight by 1e-3 a step in the direction of its gradient's sign; rounding turns few of the signs
    apart = torch.cat([(ours[name] - value).double().abs().flatten() for name, value in theirs.items()])
    assert apart.max() < 1e-2 and apart.mean() < 2e-5
    curves = [run.checkpoint().read_json("curve.json") for run in (together, alone)]
    assert [point["step"] for point in curves[0]] == [2, 4]
    assert curves[0][0]["loss"] == pytest.approx(curves[1][0]["loss"], rel=1e-3)


def test_an_error_that_a_restart_cannot_mend_is_told_at_once(run_with: RunWith) -> None:
    run = run_with(replace(METHOD, training=replace(TRAINING, learning_rate=1e30)))
    with pytest.raises(FloatingPointError, match="^the supernet's loss is nan at step 40; lower its learning rate$"):
        supernet.main(run)
    assert not run.folder.exists("supernet/done.json")


@pytest.mark.parametrize("stage", [supernet, search])
def test_workers_that_no_machine_can_hold_are_an_error(run_with: RunWith, stage: Any) -> None:
    run = run_with(METHOD, budgets=("",), workers=Workers(train=4, evaluators=4))
    with pytest.raises(ValueError, match="4 workers of 1 CPUs each need more than the cluster's 2; lower --workers"):
        stage.main(run)
    run = run_with(METHOD, budgets=("",), workers=Workers(memory=1 << 20))
    with pytest.raises(ValueError, match="1 workers of 1.04858e.06 GiB each need more than the cluster's .* .memory"):
        stage.main(run)


def test_what_a_worker_needs_is_asked_of_ray(run_with: RunWith) -> None:
    plain, large = (run_with(workers=workers) for workers in (Workers(), Workers(cpus=4, gpus=0.5, memory=1.5)))
    assert needs(plain) == {"CPU": 1} and granted(plain) == {"num_cpus": 1}
    assert needs(large, spared=0.25) == {"CPU": 3.75, "GPU": 0.5, "memory": 3 << 29}
    assert granted(large) == {"num_cpus": 4, "num_gpus": 0.5, "memory": 3 << 29}


@pytest.mark.long
def test_workers_may_ask_for_memory(run_with: RunWith) -> None:
    run = run_with(replace(METHOD, steps=4, candidates=8), strategies=("random:batch=4",), budgets=("",), seeds=(0,))
    run = replace(run, workers=Workers(memory=0.25))
    run.save()
    supernet.main(run)
    search.main(run)
    retrain.main(run)
    assert run.folder.exists("retrain/done.json")


def test_searches_do_not_depend_on_the_evaluators_and_leave_the_weights_alone(run_with: RunWith) -> None:
    """Optuna comes first: what it keeps of a trial must not keep the evaluators that later trials wait for."""
    found = []
    for evaluators in (1, 2):
        run = run_with(
            METHOD,
            strategies=("tpe:batch=8", "random:batch=8"),
            budgets=("macs=100000",),
            seeds=(0, 1),
            keep=2,
            workers=Workers(evaluators=evaluators),
        )
        continue_training(run)
        file = Path(run.checkpoint().path, "weights.safetensors")
        before = hashlib.sha256(file.read_bytes()).hexdigest()
        search.main(run)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == before
        found.append(run)
    one, two = (scored(run) for run in found)
    assert one.equals(two)
    assert one.num_rows == 2 * 2 * METHOD.candidates
    assert max(one["macs"].to_pylist()) <= 100_000
    candidates = [(run.folder / "search").read_json("candidates.json") for run in found]
    assert candidates[0] == candidates[1]
    assert len(candidates[0]) == 4


@pytest.mark.long
def test_models_are_trained_diagnosed_and_tested(run_with: RunWith) -> None:
    run = run_with(
        METHOD,
        GoogleDNN(size="L", embedding=8, output=16, training=TRAINING),
        Popularity(),
        budgets=("macs=100000",),
        seeds=(0, 1),
        keep=1,
        diagnosis=Diagnosis(genotypes=3, seeds=2),
    )
    continue_training(run)
    search.main(run)
    diagnose.main(run)
    found = (run.folder / "diagnose").read_json("diagnose.json")
    assert found["n"] == len(found["points"]) == 3
    assert all(len(point["alone"]) == 2 for point in found["points"])
    retrain.main(run)
    evaluate.main(run)
    report = (run.folder / "evaluate").read_json("report.json")
    assert {row["role"] for row in report["rows"]} == {"found", "baseline"}
    assert {row["model"] for row in report["rows"]} == {"AutoTower macs=100000, evolution", "GoogleDNN L", "Popularity"}
    assert all(row["low"] <= row["value"] <= row["high"] for row in report["rows"])
    assert len(report["paired"]) == 2


SHARED = """
import sys
from components.run import Run
from components.workers import open_scorer

def held(kind):
    total, inside = 0, False
    for line in open("/proc/self/smaps"):
        head = line.split()[0]
        if "-" in head and not head.endswith(":"):
            inside = "weights.safetensors" in line
        elif inside and head == kind + ":":
            total += int(line.split()[1])
    return total

scorer = open_scorer(Run.load(sys.argv[1]), 1 << 20)
weights = [p for side in scorer.sides.values() for block in side.chain.blocks for p in block.parameters()]
total = lambda: round(sum(float(p.double().sum()) for p in weights), 3)
print(total(), flush=True)
sys.stdin.readline()
print(held("Rss"), held("Pss"), flush=True)
sys.stdin.readline()
if sys.argv[2] == "writer":
    for p in weights:
        p.add_(1)
print("wrote", flush=True)
sys.stdin.readline()
print(total(), flush=True)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs /proc/self/smaps to see shared pages")
def test_evaluators_share_the_pages_of_the_weights_and_keep_their_writes_private(run_with: RunWith) -> None:
    run = run_with(replace(METHOD, width=64, steps=2))
    continue_training(run)
    file = Path(run.checkpoint().path, "weights.safetensors")
    before = hashlib.sha256(file.read_bytes()).hexdigest()
    both = [
        subprocess.Popen(
            [sys.executable, "-c", SHARED, run.root, role], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for role in ("writer", "reader")
    ]

    def answers() -> list[str]:
        lines = []
        for process in both:
            assert process.stdout is not None
            lines.append(process.stdout.readline().strip())
        return lines

    def go_on() -> None:
        for process in both:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    first, same = answers()
    assert first == same
    go_on()
    for line in answers():
        rss, pss = (int(number) for number in line.split())
        assert 1024 * rss > 0.8 * file.stat().st_size
        assert pss < 0.7 * rss
    go_on()
    assert answers() == ["wrote"] * 2
    go_on()
    written, read = answers()
    assert read == first and float(written) > float(first) + 1_000
    for process in both:
        process.communicate(timeout=20)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == before
