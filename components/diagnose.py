"""Does the supernet's ranking deserve trust? Kendall's tau between inherited and stand-alone quality, and its ceiling.

Genotypes drawn uniformly from the first budget are scored by the supernet and trained alone from several seeds; the
ceiling is the tau between two seeds' own trainings: a yardstick, as a ranking by true quality would agree better with
one training than two trainings, both noisy, do. Intervals are bootstrapped over genotypes. Everything is measured on
the validation split.
"""

from itertools import combinations
from random import Random
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from scipy.stats import kendalltau

from components.job import Job
from components.progress import Teller, watching
from components.run import Run
from components.trainings import finished, train_all
from components.workers import RESTARTS, fits, granted, open_scorer
from nascore.rows import seed_of
from nascore.space import Genotype, key

LEAST, RESAMPLES = 3, 2_000
MATTERS = 0.4
"""A ceiling below which two trainings of a model differ about as much as two models do."""
Values = NDArray[np.float64]


def main(run: Run) -> None:
    """Write `diagnose.json`."""
    with run.stage("diagnose", resumes=True) as folder:
        wanted, fitness = run.diagnosis, run.method.fitness.kind
        about = {"metric": run.method.stop.kind, "fitness": fitness, "budget": run.budgets[0]}
        empty = dict.fromkeys(("kendall", "low", "high", "ceiling", "ceiling_low", "ceiling_high"))
        nothing = {"n": 0, **empty, "points": []}
        untested = {**about, **nothing, "verdict": "The supernet's ranking was not tested."}
        if wanted.genotypes < LEAST:
            folder.write_json("diagnose.json", untested)
            return
        drawn = draw(run, wanted.genotypes)
        ids = [run.method.model_id(genotype, run.schema.split_digest) for genotype in drawn]
        jobs = [
            Job.make(f"diagnose/{model_id}/seed={seed}", run.method, genotype, seed)
            for model_id, genotype in zip(ids, drawn, strict=True)
            for seed in range(wanted.seeds)
        ]
        if run.used_up() and sum(finished(run, job) for job in jobs) < LEAST * wanted.seeds:
            run.cut()
            folder.write_json("diagnose.json", untested)
            return
        with watching(run, "diagnose") as board:
            fits(run, 1)
            scores = ray.get(_scores.options(**granted(run)).remote(run.root, drawn, board))
        if not np.isfinite(scores).all():
            raise FloatingPointError("the supernet gives a genotype no finite score; lower its learning rate")
        results = train_all(run, "diagnose", jobs, cut=True)
        values = [np.nan if result is None else result["value"] for result in results]
        alone = np.array(values).reshape(len(drawn), wanted.seeds)
        whole = np.flatnonzero(np.isfinite(alone).all(1))
        if len(whole) < len(drawn):
            run.cut()
        if len(whole) < LEAST:
            folder.write_json("diagnose.json", untested)
            return
        drawn, ids = ([some[n] for n in whole] for some in (drawn, ids))
        scores, alone = np.array(scores)[whole], alone[whole]
        price = run.method.price(run.schema)
        points = [
            {
                "model_id": model_id,
                "genotype": {name: list(chosen) for name, chosen in genotype.items()},
                "score": float(score),
                "alone": own.tolist(),
                "macs": float(price(genotype, "").macs),
            }
            for model_id, genotype, score, own in zip(ids, drawn, scores, alone, strict=True)
        ]
        folder.write_json("diagnose.json", {**about, **judged(scores, alone), "points": points})


@ray.remote(max_retries=RESTARTS)
def _scores(root: str, genotypes: list[Genotype], board: Any) -> list[float]:
    run = Run.load(root)
    tell = Teller(board, "scores", run.workers.gpus, shown=False)
    scores = open_scorer(run, run.workers.cache)(genotypes)
    tell.spent()
    return scores


def draw(run: Run, count: int) -> list[Genotype]:
    """Members of different networks of the first budget, drawn uniformly; fewer if the space holds fewer."""
    space, rng = run.members(run.budgets[0]), Random(f"diagnose/{run.seeds[0]}")
    drawn = dict[str, Genotype]()
    for _ in range(10 * count):
        if len(drawn) < count:
            genotype = space.sample(rng)
            drawn.setdefault(key(space.canonical(genotype)), genotype)
    return list(drawn.values())


def judged(scores: Values, alone: Values) -> dict[str, Any]:
    """Tau of scores (n,) against mean stand-alone quality (n, seeds), its ceiling, their intervals, and a verdict."""
    tau, ceiling = correlation(scores, alone.mean(1)), agreement(alone)
    rng = np.random.default_rng(seed_of("diagnose", "bootstrap"))
    draws = [rng.integers(0, len(scores), len(scores)) for _ in range(RESAMPLES)]
    low, high = _ends([correlation(scores[chosen], alone[chosen].mean(1)) for chosen in draws])
    found = {"n": len(scores), "kendall": tau, "low": low, "high": high, "ceiling": ceiling}
    lowest, most = _ends([agreement(alone[chosen]) for chosen in draws]) if ceiling is not None else (None, None)
    found |= {"ceiling_low": lowest, "ceiling_high": most, "overlap": overlap(scores, alone.mean(1))}
    return {**found, "verdict": _verdict(tau, low, ceiling, most)}


def _ends(resampled: list[Any]) -> tuple[float, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(low), float(high)


def agreement(alone: Values) -> float | None:
    """The mean tau between two seeds' qualities of the same models (n, seeds); None with one seed."""
    pairs = list(combinations(range(alone.shape[1]), 2))
    return float(np.mean([correlation(alone[:, a], alone[:, b]) for a, b in pairs])) if pairs else None


def correlation(one: Values, other: Values) -> float:
    """Kendall's tau-b; 0 where one side is constant."""
    tau = float(kendalltau(one, other).statistic)
    return 0.0 if np.isnan(tau) else tau


def overlap(one: Values, other: Values, top: int = 10) -> float | None:
    """Which share of the best `top` by one is among the best `top` by the other; None with fewer than twice as many."""
    if len(one) < 2 * top:
        return None
    both = set(np.argsort(-one, kind="stable")[:top]) & set(np.argsort(-other, kind="stable")[:top])
    return len(both) / top


def _verdict(tau: float, low: float, ceiling: float | None, most: float | None) -> str:
    if low <= 0:
        told = f"The supernet's ranking cannot be told from chance here (tau {tau:.2f}, interval reaches {low:.2f})."
    else:
        told = f"The supernet ranks better than chance (tau {tau:.2f}, at least {low:.2f})."
    if ceiling is None or most is None:
        return f"{told} With one seed there is no ceiling to compare it with."
    if ceiling < MATTERS:
        agreed = f"{told} Two seeds of the same models agree by tau {ceiling:.2f} only"
        if most < MATTERS:
            return f"{agreed}: the space hardly matters here."
        return f"{agreed}: whether the space matters here these models cannot tell (interval to {most:.2f})."
    return (
        f"{told} That is {tau / ceiling:.0%} of the ceiling {ceiling:.2f}, the agreement of two seeds' own trainings."
    )
