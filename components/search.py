"""Searches by Ray Tune: a trial is one whole search (strategy, budget, seed) with its own pool of resident evaluators.

Evaluators memory-map the node's one copy of the supernet. A strategy asks for a batch, the pool scores it grouped by
shared prefixes, the strategy is told; each batch is one file `search/<trial>/generation-*.parquet`. A killed search
retells its files and goes on; scores hang on nothing but the genotype, so neither timing nor the number of evaluators
matters. One evaluator is set aside for each search, the others work where there is room for them: a search that loses
a node goes on with those that are left, and with more as soon as there are nodes again. What the run was given to
retrain, and what a sampler has learned to prefer, are scored as one more trial.
"""

import json
import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
from ray import tune
from ray.exceptions import RayActorError, RayError, RayTaskError

from components.errors import cause
from components.ledger import Meter, Spent
from components.progress import News, Teller, beside, watching
from components.run import Folder, Run
from components.workers import RESTARTS, fits, granted, needs, open_scorer, settle
from nascore import plugins
from nascore.cost import UNITS, Cost
from nascore.rows import seed_of
from nascore.space import Genotype, key, parse
from nascore.strategies import Strategy, Trial

Score = Callable[[Sequence[Genotype]], list[float | None]]
GIVEN = "given"
SHARE = 0.01


@dataclass(frozen=True)
class Search:
    """One trial: which strategy, under which budget, from which seed."""

    strategy: str
    budget: str
    seed: int

    @property
    def id(self) -> str:
        """The name of its folder."""
        plain = "".join(
            letter if letter.isalnum() or letter in "-._" else "_" for letter in f"{self.strategy}-{self.budget}"
        )
        return f"{plain}-seed{self.seed}"


def main(run: Run) -> None:
    """Run all searches that are not done, then write `trials.parquet`, `candidates.json` and `front.json`."""
    run.check_prepared()
    searches = [Search(s, b, seed) for b in run.budgets for s in run.strategies for seed in run.seeds]
    searches += [Search(GIVEN, b, run.seeds[0]) for b in run.budgets if unsearched(run, b)]
    if len({search.id for search in searches}) < len(searches):
        raise ValueError(f"a strategy, budget or seed is named twice: {', '.join(search.id for search in searches)}")
    with run.stage("search", resumes=True) as folder, watching(run, "search") as board:
        left = [search for search in searches if not (folder / search.id).done]
        if left:
            _tune(run, left, board)
            unfinished = [search.id for search in left if not (folder / search.id).done]
            if unfinished:
                raise OSError(f"these searches were stopped before their end: {', '.join(unfinished)}")
        write_results(run, folder, searches)
        if any((folder / search.id).read_json("done.json")["stopped"] for search in searches):
            run.cut()


def _tune(run: Run, searches: Sequence[Search], board: Any) -> None:
    """Run the searches as one Tune experiment on node-local scratch; the run folder is their only state."""
    places = places_for(run)
    long = sum(search.strategy != GIVEN for search in searches)
    pool = run.workers.evaluators or max(1, places // max(1, long))
    fits(run, pool)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    table = _Table.options(**beside()).remote()  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix="nascore-tune-") as scratch:
        results = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_trial, root=run.root, pool=pool, table=table, board=board),
                tune.PlacementGroupFactory([{"CPU": SHARE}, needs(run, SHARE)]),
            ),
            param_space={"number": tune.grid_search(list(range(len(searches)))), "searches": searches},
            tune_config=tune.TuneConfig(metric="best", mode="max", reuse_actors=True),
            run_config=tune.RunConfig(
                name=f"search-{time.time_ns()}",
                storage_path=scratch,
                failure_config=tune.FailureConfig(max_failures=RESTARTS),
                verbose=0,
            ),
        ).fit()
        ray.kill(table)
        for error in filter(None, [ray.get(board.failure.remote()), *results.errors]):
            raise error


def places_for(run: Run) -> int:
    """How many workers the cluster can run at a time."""
    there = ray.cluster_resources()
    return min(int(there.get(unit, 0) // each) for unit, each in needs(run).items())


def _trial(config: dict[str, Any], root: str, pool: int, table: Any, board: Any) -> None:
    run, search = Run.load(root), config["searches"][config["number"]]
    settle(run)
    granting = {**granted(run, SHARE), "max_restarts": RESTARTS}
    anywhere = {"scheduling_strategy": "DEFAULT"}  # beside what Tune has set aside for this search
    evaluators = [
        _Evaluator.options(**granting, **(anywhere if number else {})).remote(root, board)  # type: ignore[attr-defined]
        for number in range(pool)
    ]
    best = -math.inf
    try:
        spent = dict[str, Spent]()
        tell = Teller(board, search.id)  # the evaluators hold the GPUs
        best = continue_search(run, search, pooled(evaluators, table, spent), tell, spent)
    except Exception as error:  # raised by `main`: Tune would start the search again, as it does when a node is lost
        why = cause(error)
        ray.get(board.fail.remote(OSError(str(why)) if isinstance(why, RayError) else why))
    finally:
        for evaluator in evaluators:
            ray.kill(evaluator)  # what a library still holds of this frame would keep it, and its place, for ever
    tune.report({"best": best})


def continue_search(
    run: Run,
    search: Search,
    score: Score,
    tell: Any = lambda news: None,
    spent: Mapping[str, Spent] = {},  # noqa: B006
) -> float:
    """Run one search to its end from what its folder holds; the best score.

    spent: what each genotype cost that `score` has scored, by its key.
    """
    folder, method = run.folder / "search" / search.id, run.method
    space, price = run.members(search.budget), method.price(run.schema)
    strategy: Strategy
    if search.strategy == GIVEN:
        strategy = Given(space, search.seed, list(unsearched(run, search.budget).values()))
    else:
        strategy = plugins.build("strategies", search.strategy, space, search.seed, run.first)
    for name in folder.names("generation-*.parquet"):
        retell(strategy, folder.read_table(name), name)
    most, stopped = len(strategy.first) if search.strategy == GIVEN else method.candidates, False
    while len(strategy.told) < most:
        if tell(_news(strategy, most)) and strategy.best(1):
            stopped = True
            break
        asked = strategy.ask()[: most - len(strategy.told)]
        if not asked:
            break
        started = time.monotonic()
        scored = [method.canonical(genotype) for genotype in asked]
        scores = score(scored)
        seconds = (time.monotonic() - started) / len(asked)
        trials = [Trial(g, s, price(g, "")) for g, s in zip(asked, scores, strict=True)]
        table = _table(run, strategy, trials, seconds, [spent.get(key(one), Spent()) for one in scored])
        folder.write_table(f"generation-{strategy.tellings:05d}.parquet", table)
        strategy.tell(trials)
    best = strategy.best(1)
    if not best and search.strategy != GIVEN:
        raise FloatingPointError(f"search {search.id}: none of {len(strategy.told)} genotypes has a finite score")
    tell(_news(strategy, len(strategy.told)))
    folder.write_json("done.json", {"scored": len(strategy.told), "stopped": stopped})
    return (best[0].score or 0.0) if best else -math.inf


class Given(Strategy):
    """Proposes what it was given and nothing else."""

    def ask(self) -> list[Genotype]:
        return [genotype for genotype in self.first if self.name(genotype) not in self.known]


def unsearched(run: Run, budget: str) -> Mapping[str, Genotype]:
    """What is retrained without a search: what a sampler has learned, and what the run was given.

    The latter under the first budget that holds it.
    """
    space = run.members(budget)
    earlier = [run.members(other) for other in run.budgets[: run.budgets.index(budget)]]
    named: dict[str, Genotype] = {}
    whole = run.method.space(run.schema)
    if run.method.learning and whole.size() == 1:
        (only,) = whole.members()
        named |= {"only": only} if only in space else {}
    elif run.method.learning:
        sampler = run.method.sampler(whole, run.seeds[0])
        weights = run.checkpoint().read_tensors("weights.safetensors")
        sampler.load_state_dict({name: weights[f"supernet.sampler.{name}"] for name in sampler.state_dict()})
        decided = sampler.decide(space)
        if decided is not None:
            named[type(sampler).__module__.rpartition(".")[2]] = decided
    for place, genotype in enumerate(run.given):
        if genotype in space and not any(genotype in other for other in earlier):
            named[f"given {place + 1}"] = genotype
    return named


def _news(strategy: Strategy, total: int) -> News:
    best = strategy.best(1)
    return News(len(strategy.told), total, "genotypes", best[0].score if best else None)


def retell(strategy: Strategy, table: pa.Table, name: str) -> None:
    """Tell a strategy one of its recorded batches; raises if it would not have asked for it."""
    rows = table.to_pylist()
    recorded = [parse(row["genotype"]) for row in rows]
    asked = strategy.ask()[: len(recorded)]
    if [key(genotype) for genotype in asked] != [key(genotype) for genotype in recorded]:
        raise ValueError(f"{name} was written by another version of this search; remove its folder to search anew")
    strategy.tell(
        [
            Trial(g, row["score"], Cost(**{unit: row[unit] for unit in UNITS}))
            for g, row in zip(recorded, rows, strict=True)
        ]
    )


def _table(run: Run, strategy: Strategy, trials: Sequence[Trial], seconds: float, spent: Sequence[Spent]) -> pa.Table:
    """One row a genotype; what another search had scored cost nothing here."""
    digest = run.schema.split_digest
    return pa.Table.from_pylist(
        [
            {
                "generation": strategy.tellings,
                "number": len(strategy.told) + place,
                "model_id": run.method.model_id(trial.genotype, digest),
                "genotype": key(trial.genotype),
                "parents": json.dumps([key(parent) for parent in strategy.parents.get(key(trial.genotype), ())]),
                "score": trial.score,
                **{unit: float(getattr(trial.cost, unit)) for unit in UNITS},
                "feasible": trial.genotype in strategy.space,
                "seconds": seconds,
                **own.told(),
            }
            for place, (trial, own) in enumerate(zip(trials, spent, strict=True))
        ]
    )


def pooled(evaluators: Sequence[Any], table: Any, spent: dict[str, Spent]) -> Score:
    """Scores by a pool: what another search has scored is looked up; the rest is shared out by the first half of the
    decisions, so that an evaluator meets again what it has computed before. What an evaluator loses that dies, others
    score; it is asked again once Ray has started it anew. `spent` is told what each genotype cost.
    """
    away = {one.ready.remote(): one for one in evaluators}
    here = list[Any]()

    def crew() -> list[Any]:
        """Who is there; waits for the first."""
        while away:
            ready, _ = ray.wait([*away], num_returns=len(away) if here else 1, timeout=0 if here else None)
            for reference in ready:
                one = away.pop(reference)
                try:
                    ray.get(reference)
                    here.append(one)
                except RayActorError:
                    if not (away or here):
                        raise
            if here:
                break
        return sorted(here, key=evaluators.index)

    def score(genotypes: Sequence[Genotype]) -> list[float | None]:
        texts = [key(genotype) for genotype in genotypes]
        scores: dict[str, float | None] = ray.get(table.get.remote(texts))
        known, named = {*scores}, dict(zip(texts, genotypes, strict=True))
        prefixes = {text: seed_of([*one.items()][: len(one) // 2]) for text, one in named.items() if text not in known}
        while left := [text for text in prefixes if text not in scores]:
            present = crew()
            shares = [[text for text in left if prefixes[text] % len(present) == n] for n in range(len(present))]
            waiting = [one.score.remote(share) for one, share in zip(present, shares, strict=True)]
            for one, share, reference in zip(present, shares, waiting, strict=True):
                try:
                    found, each = ray.get(reference)
                    scores.update(zip(share, found, strict=True))
                    spent.update(dict.fromkeys(share, each))
                except RayActorError as error:
                    if isinstance(error, RayTaskError):
                        raise  # what it met, not its own end
                    here.remove(one)
                    away[one.ready.remote()] = one
        table.put.remote({text: scores[text] for text in prefixes})
        return [scores[text] for text in texts]

    return score


@ray.remote(num_cpus=0)
class _Table:
    """Scores of all searches over one supernet, by genotype."""

    def __init__(self) -> None:
        self.scores: dict[str, float | None] = {}

    def get(self, texts: list[str]) -> dict[str, float | None]:
        return {text: self.scores[text] for text in texts if text in self.scores}

    def put(self, scores: dict[str, float | None]) -> None:
        self.scores.update(scores)


@ray.remote
class _Evaluator:
    """One resident scorer over the node's copy of the supernet."""

    def __init__(self, root: str, board: Any) -> None:
        run = Run.load(root)
        self.gpus, self.tell = run.workers.gpus, Teller(board, "evaluators", run.workers.gpus, shown=False)
        self.score_all = open_scorer(run, run.workers.cache * run.workers.cpus // (os.cpu_count() or 1))

    @ray.method(max_task_retries=-1)
    def ready(self) -> None:
        """Answers once it is there, however often it must be started for that."""

    def score(self, texts: list[str]) -> tuple[list[float | None], Spent]:
        """Their scores, and what one of them cost on average."""
        meter = Meter(self.gpus)
        scores = self.score_all([parse(text) for text in texts])
        spent, share = meter(), 1 / max(1, len(texts))
        self.tell.spent()
        return [score if math.isfinite(score) else None for score in scores], Spent(
            spent.cpu * share, spent.gpu * share
        )


def write_results(run: Run, folder: Folder, searches: Sequence[Search]) -> None:
    """`trials.parquet`, all that was scored; `candidates.json`, what to retrain, and `as` what; `front.json`.

    Of the candidates of a budget that have the same name the one that does best alone is compared with the rivals.
    """
    tables = []
    for search in searches:
        for name in (folder / search.id).names("generation-*.parquet"):
            table = (folder / search.id).read_table(name)
            for title, value in (
                ("seed", search.seed),
                ("budget", search.budget),
                ("strategy", search.strategy),
                ("trial", search.id),
            ):
                table = table.add_column(0, title, pa.array([value] * len(table)))
            tables.append(table)
    trials = pa.concat_tables(tables, promote_options="default")  # a batch without any score has a column of nulls
    rows = [row for row in trials.to_pylist() if row["score"] is not None]
    rows.sort(key=lambda row: (-row["score"], row["macs"], row["genotype"]))
    kept = list[tuple[str, dict[str, Any]]]()
    for budget in run.budgets:
        scored = {row["model_id"]: row for row in rows if row["budget"] == budget and row["strategy"] == GIVEN}
        named = unsearched(run, budget)
        ids = {name: run.method.model_id(genotype, run.schema.split_digest) for name, genotype in named.items()}
        for name, genotype in named.items():
            if ids[name] not in scored:
                print(f"  {name} has no finite score under {budget} and is left out: {key(genotype)}", flush=True)
        beside = [(name, scored[ids[name]]) for name in named if ids[name] in scored]
        kept += [(name, row) for name, row in beside if not name.startswith(GIVEN)]
        for strategy in run.strategies:
            own = [row for row in rows if row["budget"] == budget and row["strategy"] == strategy]
            kept += [(strategy, row) for row in list({row["model_id"]: row for row in own}.values())[: run.keep]]
            if run.front:
                kept += [(f"{strategy}, front {place + 1}", row) for place, row in enumerate(front(own))]
        kept += [(name, row) for name, row in beside if name.startswith(GIVEN)]
    if not (kept or run.strategies):
        raise FloatingPointError("nothing that was given has a finite score; train the supernet for longer")
    folder.write_table("trials.parquet", trials)
    folder.write_json("candidates.json", [{**_candidate(row), "as": name} for name, row in kept])
    folder.write_json("front.json", [_candidate(row) for row in front(rows)])


def front(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no other beats in score at as few MACs, cheapest first; `rows` best first."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        if not kept or row["macs"] < kept[-1]["macs"]:
            kept.append(row)
    return kept[::-1]


def _candidate(row: dict[str, Any]) -> dict[str, Any]:
    names = ("model_id", "score", *UNITS, "budget", "strategy")
    return {name: row[name] for name in names} | {"genotype": json.loads(row["genotype"])}
