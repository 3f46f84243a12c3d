"""What workers tell the board: it is counted, shown to Ray's metrics agent, and answered by whether to stop."""

import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from ray.exceptions import RayActorError

from components import diagnose, evaluate, progress, report, retrain, search, supernet, tune
from components.ledger import Spent
from components.progress import Board, Teller, watching
from components.run import Run
from components.settings import Allowance, Diagnosis, Tuning, Workers
from components.tracking import News
from nascore.methods.autotower import AutoTower
from nascore.methods.popularity import Popularity
from nascore.two_tower import Training

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]
RunWith = Callable[..., Run]


def news(done: int, **more: Any) -> News:
    return News(done, 3, "genotypes", 0.25, **more)


def spin(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_what_workers_spend_is_in_the_ledger(run_with: RunWith) -> None:
    run = run_with(Popularity())
    with run.stage("search"), watching(run, "search") as board:
        one, silent = Teller(board, "one", 2.0), Teller(board, "two", shown=False)
        uncounted = Teller(board, "driver", counted=False)
        spin(0.1)
        assert not one(news(1)) and not uncounted(news(3))
        silent(news(3))
    (attempt,) = [known for known in run.ledger.attempts() if known["stage"] == "search"]
    assert attempt["work"].keys() == {"one", "two", "driver"}
    assert attempt["work"]["one"]["cpu_seconds"] >= 0.1 and attempt["work"]["one"]["gpu_seconds"] >= 0.2
    assert attempt["work"]["driver"] == {"cpu_seconds": 0, "gpu_seconds": 0} and not attempt["stopped"]
    tags = {name for name in run.folder.names("tensorboard/search/*")}
    assert len(tags) == 1, "one file an attempt"


def test_a_used_up_budget_stops_workers(run_with: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "TELL_EVERY", 0.01)
    run = run_with(Popularity(), budget=Allowance(gpu_hours=1 / 3600))
    for stage, ends in (("search", True), ("retrain", False)):
        with run.stage(stage), watching(run, stage) as board:
            tell, until = Teller(board, "one", gpus=50.0), time.monotonic() + 20
            while not tell(news(1)) and time.monotonic() < until - (0 if ends else 18):
                time.sleep(0.02)
            assert tell.stopped == ends


def test_a_board_that_is_gone_is_told_by_the_driver_and_not_by_workers(run_with: RunWith) -> None:
    import ray

    run = run_with(Popularity())
    with pytest.raises(RayActorError), run.stage("search"), watching(run, "search") as board:
        tell = Teller(board, "one")
        ray.kill(board)
        assert not tell(news(3)) and not tell(news(3))
        time.sleep(3 * progress.TELL_EVERY)
    assert not (run.folder / "search").done and len(run.ledger.attempts()) == 1


def test_costs_are_watched_whatever_becomes_of_the_terminal(run_with: RunWith, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(lines: Any, known: Any, last: bool) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(progress._Lines, "__call__", closed)
    run = run_with(Popularity())
    with pytest.raises(BrokenPipeError), run.stage("search"), watching(run, "search") as board:
        time.sleep(2 * progress.TELL_EVERY)
        Teller(board, "one", 50.0)(news(3))
    (attempt,) = run.ledger.attempts()
    assert attempt["work"].keys() == {"one"}


def test_what_an_evaluator_meets_is_not_its_own_end() -> None:
    import ray

    @ray.remote(num_cpus=0)
    class Meets:
        def ready(self) -> None: ...

        def score(self, texts: list[str]) -> Any:
            raise RayActorError  # of another actor that it asked

    table = search._Table.remote()  # type: ignore[attr-defined]
    with pytest.raises(RayActorError):
        search.pooled([Meets.remote()], table, {})([{"a": ("b",)}])  # type: ignore[attr-defined]


@pytest.mark.long
def test_a_run_without_a_budget_left_ends_with_the_best_so_far(run_with: RunWith) -> None:
    training = Training(batch=128, epochs=1, patience=0, stop="recall@10")
    method = AutoTower(
        blocks=1, item_blocks=1, width=8, output=8, embedding=4, steps=10**6, training=training, candidates=40
    )
    run = run_with(
        method,
        Popularity(),
        budgets=("",),
        strategies=("random:batch=4",),
        seeds=(0,),
        workers=Workers(train=2, evaluators=1, checkpoint=10**6),
        budget=Allowance(wall=20 / 3600),
        diagnosis=Diagnosis(genotypes=4, seeds=1),
        tuning=Tuning(configurations=3),
    )
    for stage in (supernet, search, diagnose, tune, retrain, evaluate, report):
        stage.main(run)
    last = run.folder.read_json("supernet/curve.json")[-1]["step"]
    assert 0 < last < 10**6 and run.checkpoint().read_json("done.json") == {"step": last}
    assert len((run.folder / "search").read_table("trials.parquet")) == 4
    assert run.folder.read_json("diagnose/diagnose.json")["n"] == 0
    assert run.folder.read_json("tune/tuned.json")["methods"] == []
    assert len({row["model"] for row in run.folder.read_json("evaluate/report.json")["rows"]}) == 2
    page = run.folder.read_text("report/index.html")
    assert (
        "Stopped early:</strong> --budget.wall 0.00555556 h was used up; supernet, search, diagnose, tune ended" in page
    )


def test_rays_metrics_say_how_far_the_work_is(run_with: RunWith) -> None:
    import ray

    run = run_with(Popularity())
    (node,) = ray.nodes()
    with run.stage("search"), watching(run, "search") as board:
        tell = Teller(board, "evolution", 0.5)
        spin(0.1)
        tell(news(2))
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        found, until = dict[str, float](), time.monotonic() + 60
        while len(found) < 5 and time.monotonic() < until:
            time.sleep(0.5)
            lines = urllib.request.urlopen(url, timeout=10).read().decode().splitlines()
            tags = ('work="evolution"', 'stage="search"', f'run="{run.folder.path.rpartition("/")[2]}"')
            known = [line for line in lines if line.startswith("ray_nascore_") and all(tag in line for tag in tags)]
            found = {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in known}
    assert found.pop("ray_nascore_cpu_seconds_total") >= 0.1 and found.pop("ray_nascore_gpu_seconds_total") >= 0.05
    assert found == {"ray_nascore_done": 2, "ray_nascore_total": 3, "ray_nascore_value": 0.25}


def test_a_worker_that_is_started_again_counts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    board, counted = Board("run", "search"), list[Spent]()
    monkeypatch.setattr(board, "metrics", lambda key, news, more: counted.append(more))
    for worker, cpu in (("a", 1.0), ("a", 3.0), ("b", 2.0)):
        board.tell("one", None, worker, Spent(cpu))
    assert counted == [Spent(1.0), Spent(2.0), Spent(2.0)]
    assert sum((own for _, own in board.read()[1].values()), Spent()) == Spent(5.0)
