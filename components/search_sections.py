"""The report's sections about the search: how it went, score against cost, trust in the ranking, tuning."""

from collections.abc import Sequence
from html import escape
from itertools import accumulate, groupby
from math import inf, sqrt
from statistics import mean, stdev

from scipy.stats import t

from components import pictures
from components.page import NONE, interval, lead, number, short, table, views
from components.run import Run
from components.told import Row, Told
from nascore.space import parse

UNITS = {"macs": "MACs per example", "params": "parameters", "table_params": "parameters in tables"}
COUNTS = (50, 100, 250, 500, 1_000, 2_000)


def search(told: Told) -> str:
    """Every search's best score as it went on."""
    scored = [trial for trial in told.trials if trial["score"] is not None]
    if not scored:
        return lead("This was not measured: the run holds no search.")
    run, fitness = told.run, told.run.method.fitness.kind
    panels = {}
    for budget in run.budgets:
        own = [trial for trial in told.trials if trial["budget"] == budget and trial["strategy"] in run.strategies]
        if own:
            panels[budget] = pictures.progress(own, run.strategies, fitness) + by_count(own)
    searches, different = (len({trial[name] for trial in told.trials}) for name in ("trial", "genotype"))
    if not panels:
        return lead(f"Nothing was searched: {different} was given or learned, and scored with the supernet's weights.")
    text = f"{searches} searches scored {len(told.trials):,} genotypes, {different:,} of them different, with the "
    text += f"supernet's weights on validation rows. Score: {fitness}, higher is better. A line is one search, a "
    text += "colour one strategy. The table: best score so far, mean over seeds with its 95 % interval."
    return lead(text) + views("progress", "Budget", panels)


def by_count(trials: Sequence[Row]) -> str:
    """A table: for each strategy the best score after some numbers of genotypes, mean and interval over seeds.

    trials: ordered by trial and number.
    """
    longest = max(trial["number"] for trial in trials) + 1
    counts = [*(count for count in COUNTS if count < longest), longest]
    searches: dict[str, list[list[float]]] = {}
    for _, group in groupby(trials, key=lambda trial: trial["trial"]):
        own = list(group)
        so_far = accumulate((-inf if trial["score"] is None else trial["score"] for trial in own), max)
        searches.setdefault(own[0]["strategy"], []).append(list(so_far))
    rows = []
    for strategy, known in searches.items():
        cells = [_spread([best[min(count, len(best)) - 1] for best in known]) for count in counts]
        rows.append([escape(strategy), *cells])
    return table("Best score by genotypes scored", ("Strategy", *(f"{count:,}" for count in counts)), rows)


def _spread(values: Sequence[float]) -> str:
    """Mean of one value a seed and, of two or more, Student's 95 % interval of the mean."""
    if -inf in values:
        return NONE
    if len(values) == 1:
        return number(values[0])
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return f"{number(mean(values))}<small>{interval(mean(values) - half, mean(values) + half)}</small>"


def front(told: Told) -> str:
    """All scored genotypes at their cost, with the front of score and cost."""
    scored = [trial for trial in told.trials if trial["score"] is not None]
    if not scored:
        return lead("This was not measured: the run holds no search.")
    run = told.run
    once = {(trial["strategy"], trial["genotype"]): trial for trial in scored}
    rows = sorted(once.values(), key=lambda trial: -trial["score"])
    marked = told.marked()
    limits = {budget: run.method.limits(budget) for budget in run.budgets}
    limited = dict.fromkeys(name for kept in limits.values() for name in kept)
    panels = {}
    for name in sorted({**limited, "macs": None}, key=lambda name: (name not in limited, name != "macs")):
        under, _, unit = name.rpartition("/")
        title = f"{UNITS[unit]} in {under}" if under else UNITS[unit]
        costs = _costs(run, rows, under, unit)
        priced = [{**row, "cost": costs[row["genotype"]]} for row in rows]
        kept = {budget: limit[name] for budget, limit in limits.items() if name in limit}
        lines = [("" if "=" in budget else f"{budget} ") + f"≤ {short(limit)}" for budget, limit in kept.items()]
        drawn = list(zip(lines, kept.values(), strict=True))
        panels[title] = pictures.front(priced, title, told.strategies, drawn, marked)
    text = "A dot is a scored genotype; the line is the front, the best score at each cost or below. Open diamonds "
    text += "were retrained; large marks won and are in the comparison. Dashed: the limits of the budgets."
    if len(rows) > pictures.SHOWN:
        text += (
            f" One in {-(-len(rows) // pictures.SHOWN)} of {len(rows):,} genotypes is drawn; the front is that of all."
        )
    return lead(text) + views("front", "Cost", panels)


def _costs(run: Run, rows: Sequence[Row], under: str, unit: str) -> dict[str, float]:
    """A unit of the whole model, or of one of its parts, by genotype."""
    if not under:
        return {row["genotype"]: row[unit] for row in rows}
    price = run.method.price(run.schema)
    return {row["genotype"]: float(getattr(price(parse(row["genotype"]), under), unit)) for row in rows}


def ranking(told: Told) -> str:
    """Supernet's score against stand-alone quality."""
    known = told.diagnosis
    if not known.get("n"):
        return lead("This was not measured: no genotypes were trained alone to test the supernet's ranking.")
    seeds = len(known["points"][0]["alone"])
    facts = {
        "Kendall's τ": number(known["kendall"], places=2),
        "95 % interval": interval(known["low"], known["high"], places=2) or NONE,
        "Ceiling": number(known["ceiling"], places=2),
        "Its 95 % interval": interval(known.get("ceiling_low"), known.get("ceiling_high"), places=2) or NONE,
        "Genotypes": f"{known['n']:,}",
        "Seeds each": str(seeds),
    }
    text = f"A dot is one genotype: its score with the supernet's weights against its {known['metric']}, trained alone"
    text += f", the mean of {seeds} seeds with the worst and the best." if seeds > 1 else " from one seed."
    text += " The ceiling is the τ between two seeds' own trainings." if known["ceiling"] is not None else ""
    listed = "".join(f"<div><dt>{name}</dt><dd><b>{fact}</b></dd></div>" for name, fact in facts.items())
    return f"<p>{escape(known['verdict'])}</p>\n{lead(text)}<dl class='numbers'>{listed}</dl>" + pictures.correlation(
        known["points"], known["fitness"], known["metric"]
    )


def tuning(told: Told) -> str:
    """What was tried of every method, and the examples that each side used."""
    known = told.tuning
    if not known.get("methods"):
        return lead("This was not measured: every method was trained with its own settings.")
    spent, rows = known["spent"], []
    for one in known["methods"]:
        chosen = ", ".join(f"{name} = {value}" for name, value in one["settings"].items()) or "its own"
        first, best = one["tried"][0]["value"], one["value"]
        over = "its own diverged" if first is None else f"{number(best - first, '+')} over its own"
        gained = f"{number(best)}<small>{over}</small>"
        rows.append([escape(one["label"]), escape(chosen), gained, f"{len(one['tried'])}", f"{one['examples']:,}"])
    text = "Settings are chosen by real trainings on validation rows, one seed each, a method's own settings first. "
    text += f"Our supernet saw {spent['supernet']:,} training examples, calibrating candidates {spent['search']:,}, "
    text += f"our tuning {spent['tuning']:,}: a rival went on until it had seen {sum(spent.values()):,} or tried all."
    head = ("Method", "Best settings", "Validation value", "Tried", "Examples")
    return lead(text) + table("Tuning", head, rows, text=2)
