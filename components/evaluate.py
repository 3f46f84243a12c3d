"""The only reader of the test split: found models and rivals, once each, with intervals and paired comparisons.

Models are measured on the cluster, on CPUs, a worker each; what a worker holds is one model and the test split.
A model's interval is Student's t over units (users, or rows) and seeds together. A comparison of two is paired by
units, and the seeds of each side add to its uncertainty, which with one seed is the paired t-test's. Each stands by
itself: of many some leave zero out by chance. Only to fall behind the best of several rivals takes more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray
from scipy.stats import t as student

from components.finalists import Finalist, contenders, decided
from components.models import Opened, opened
from components.progress import News, Teller, watching
from components.run import Run
from components.workers import RESTARTS, fits, granted, settle
from nascore import plugins
from nascore.cost import UNITS, Cost
from nascore.methods import Method
from nascore.rows import Data
from nascore.tasks import Scores

SINGLE = "single"
Values = NDArray[np.float64]
Tested = tuple[list[Scores], Cost]


def main(run: Run) -> None:
    """Write `units.parquet` and `report.json`."""
    with run.stage("evaluate") as folder:
        compared = contenders(run)
        models = {one.model_id: one for one in compared}
        found = dict(zip(models, test_all(run, [*models.values()]), strict=True))
        scores = {name: by_seed for name, (by_seed, _) in found.items()}
        costs = {name: cost for name, (_, cost) in found.items()}
        folder.write_table("units.parquet", units(run, scores))
        report = compare(run, compared, scores, costs)
        folder.write_json("report.json", report)
    for line in filter(None, (report["verdict"], report["kinds"])):
        print(f"  {line}", flush=True)


def test_all(run: Run, models: Sequence[Finalist]) -> list[Tested]:
    """What each model does on the test split, as many at a time as there are cores; in the order of the models."""
    with watching(run, "evaluate") as board:
        fits(run, 1)
        overall, found = Teller(board, "models", counted=False), dict[Any, Tested]()
        cpus = {name: each for name, each in granted(run).items() if name != "num_gpus"}
        waiting = [_tested.options(**cpus).remote(run.root, one, board) for one in models]
        pending = list(waiting)
        while pending:
            (ready,), pending = ray.wait(pending)
            found[ready] = ray.get(ready)
            overall(News(len(found), len(models), "models"))
        return [found[one] for one in waiting]


@ray.remote(max_retries=RESTARTS)
def _tested(root: str, one: Finalist, board: Any) -> Tested:
    run = Run.load(root)
    settle(run)
    tell = Teller(board, f"model {one.model_id}", shown=False)
    found = tested(run, one)
    tell.spent()
    return found


def tested(run: Run, one: Finalist) -> Tested:
    """A model's scores on the test split from each seed, and what it costs."""
    scores, test = list[Scores](), run.rows("test")
    for seed in run.seeds:
        known = opened(run, one, seed)
        scores.append(measure(known, one, test))
    return scores, known.cost


def measure(known: Opened, contender: Finalist, test: Data) -> Scores:
    """One retrained model on the test split."""
    return known.task.evaluate(known.model, test.showing(contender.method.shown))


def units(run: Run, scores: dict[str, list[Scores]]) -> pa.Table:
    """One row a (model, seed, unit, metric); every interval and p-value follows from it."""
    tables = []
    for model_id, by_seed in scores.items():
        for seed, one in zip(run.seeds, by_seed, strict=True):
            for metric, values in one.values.items():
                count = len(values)
                columns = {"model": [model_id] * count, "seed": [seed] * count, "unit": one.units, "cold": one.cold}
                tables.append(pa.table({**columns, "metric": [metric] * count, "value": values}))
    return pa.concat_tables(tables)


def compare(
    run: Run, contenders: list[Finalist], scores: dict[str, list[Scores]], costs: Mapping[str, Cost]
) -> dict[str, Any]:
    """The report: one row a model and metric, found against rivals, and what to conclude."""
    task = run.method.task(run.schema)
    headline = task.headline
    rows, paired = [], []
    derived = {one["as"] for one in decided(run).get("", [])}
    for contender in contenders:
        spent = {unit: float(getattr(costs[contender.model_id], unit)) for unit in UNITS}
        for metric, matrix in _matrices(scores[contender.model_id]).items():
            share = metric.partition("/")[0] not in task.lower | task.ratios
            low, high = interval(matrix, 1.0 if share else np.inf)
            rows.append(
                {
                    "model": contender.label,
                    "role": contender.role,
                    "model_id": contender.model_id,
                    "metric": metric,
                    "value": float(matrix.mean()),
                    "low": low,
                    "high": high,
                    "seeds": list(run.seeds),
                    **spent,
                }
            )
    for one in (contender for contender in contenders if contender.role == "found"):
        for other in contenders:
            plain = {one.strategy, other.strategy} <= {"", *run.strategies, *derived}
            if other.model_id != one.model_id and (plain or other.role == "baseline"):
                a, b = (_matrices(scores[c.model_id])[headline] for c in (one, other))
                paired.append({"a": one.label, "b": other.label, "metric": headline, **against(a, b)})
    protocol = plugins.load("protocols", run.protocol)
    diagnosis = (run.folder / "diagnose").read_json("diagnose.json") if (run.folder / "diagnose").done else {}
    stages = [stage for stage in run.stages if (run.folder / stage).done]
    return {
        "run": run.root,
        "split_digest": run.schema.split_digest,
        "protocol": scores[contenders[0].model_id][0].protocol,
        "leaks": protocol.leaks,
        "sees": protocol.sees,
        "headline": headline,
        "verdict": verdict(contenders, rows, paired, headline, headline in task.lower),
        "kinds": of_kinds(contenders, paired, headline in task.lower, run.method),
        "rows": rows,
        "paired": paired,
        "models": {
            c.model_id: {
                "label": c.label,
                "parts": [
                    {name: list(chosen) for name, chosen in c.method.canonical(part).items()} for part in c.parts
                ],
                "kept": c.kept,
                "budget": c.budget,
                "strategy": c.strategy,
                "candidate": c.candidate,
            }
            for c in contenders
        },
        "diagnose": {name: diagnosis.get(name) for name in ("kendall", "low", "high", "ceiling", "n", "verdict")},
        "timing": {stage: (run.folder / stage).read_json("done.json")["seconds"] for stage in stages},
    }


def of_kinds(contenders: list[Finalist], paired: list[dict[str, Any]], lower: bool, method: Method) -> str:
    """Whether a model for each kind of rows does better than one for all, a sentence a budget; "" without such."""
    wanted, routed, told_of = method.kinds, [one for one in contenders if one.routed], []
    if wanted > 1 and not routed and any(one.strategy == SINGLE for one in contenders):
        return f"One kind of rows alone has {method.fewest} training and validation rows, of {wanted} that were sought."
    for one in routed:
        other = next((c for c in contenders if (c.budget, c.strategy) == (one.budget, SINGLE)), None)
        if other is not None:
            pair = next(pair for pair in paired if (pair["a"], pair["b"]) == (one.label, other.label))
            helps = pair["high"] < 0 if lower else pair["low"] > 0
            hurts = pair["low"] > 0 if lower else pair["high"] < 0
            told = "helps" if helps else "does not help but hurts" if hurts else "does not help"
            difference = f"{pair['delta']:+.4f} [{pair['low']:+.4f}, {pair['high']:+.4f}], p = {pair['p']:.2g}"
            under = f", {one.budget}" if len({each.budget for each in routed}) > 1 else ""
            few = f", of {wanted} that were sought," if len(one.parts) < wanted else ""
            told_of.append(
                f"A model for each of {len(one.parts)} kinds of rows{few} {told} here{under}: {pair['metric']} against "
                f"one model for all {difference}."
            )
    return " ".join(told_of)


def _matrices(by_seed: list[Scores]) -> dict[str, Values]:
    """(seeds, units) of each metric: over units with training rows, and apart over those without."""
    cold = by_seed[0].cold
    matrices = {}
    for metric in by_seed[0].values:
        values = np.stack([one.values[metric] for one in by_seed])
        for name, chosen in ((metric, ~cold), (f"{metric}/cold", cold)):
            if chosen.any():
                matrices[name] = values[:, chosen]
    return matrices


def interval(matrix: Values, most: float = np.inf) -> tuple[float, float]:
    """95 % interval of the mean of a (seeds, units) matrix: that of its difference from nothing, see `against`.

    It ends where no mean can be: at 0, and at `most`.
    """
    told = against(matrix, np.zeros((1, matrix.shape[1])))
    return max(told["low"], 0.0), min(told["high"], most)


def against(a: Values, b: Values) -> dict[str, float]:
    """Mean difference a - b of two (seeds, units) matrices over the same units, its 95 % interval and p-value.

    Student's t of the paired differences of means over seeds; the variances of both sides' means over their own seeds
    are added, with the degrees of freedom of Welch and Satterthwaite. One unit tells nothing.
    """
    difference, units = a.mean(0) - b.mean(0), a.shape[1]
    delta = float(difference.mean())
    if units == 1:
        return {"delta": delta, "low": min(delta, 0.0), "high": max(delta, 0.0), "p": 1.0}
    parts = [(difference.var(ddof=1) / units, units - 1)]
    parts += [(side.mean(1).var(ddof=1) / len(side), len(side) - 1) for side in (a, b) if len(side) > 1]
    variance = sum(part for part, _ in parts)
    if not variance:
        return {"delta": delta, "low": delta, "high": delta, "p": float(delta == 0)}
    freedom = variance**2 / sum(part**2 / free for part, free in parts)
    error = np.sqrt(variance)
    low, high = student.interval(0.95, freedom, delta, error)
    p = 2 * student.sf(abs(delta), freedom, scale=error)
    return {"delta": delta, "low": float(low), "high": float(high), "p": float(p)}


def verdict(
    contenders: list[Finalist],
    rows: list[dict[str, Any]],
    paired: list[dict[str, Any]],
    headline: str,
    lower: bool = False,
) -> str:
    """Whether the first found model beats the best rival, in one sentence. lower: whether less is better.

    The best is known from the same rows: to beat it is harder than to beat any one rival, but to be behind it is
    easier, so that p is multiplied by their number (Bonferroni) before it says so.
    """
    value = {row["model"]: row["value"] for row in rows if row["metric"] == headline}
    first = contenders[0]
    baselines = [contender.label for contender in contenders if contender.role == "baseline"]
    if not baselines:
        return f"{first.label} reaches {headline} {value[first.label]:.4f}; there was no rival to compare it with."
    best = (min if lower else max)(baselines, key=lambda label: value[label])
    pair = next(one for one in paired if one["a"] == first.label and one["b"] == best)
    told = f"{headline} {value[first.label]:.4f} against {value[best]:.4f} of {best}, difference {pair['delta']:+.4f}"
    told += f" [{pair['low']:+.4f}, {pair['high']:+.4f}], p = {pair['p']:.2g}"
    better, worse = pair["low"] > 0, pair["high"] < 0
    if lower:
        better, worse = worse, better
    if better:
        return f"{first.label} beats the best rival: {told}."
    if len(baselines) > 1 and worse:
        chance = min(1.0, pair["p"] * len(baselines))
        told, worse = f"{told}, of {len(baselines)} rivals {chance:.2g}", chance < 0.05
    if worse:
        return f"{first.label} did not beat the best rival here but fell behind it: {told}."
    return f"{first.label} did not beat the best rival here: {told}."
