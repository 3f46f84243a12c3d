"""The run as one page, `report/index.html`: what was found, whether it is better, and how far to trust the search."""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

from components import pictures
from components.page import NONE, count, details, duration, interval, lead, number, page, short, table, views
from components.run import Run
from nascore.cost import Cost
from nascore.space import Genotype, parse

CUTOFFS = ("", "10", "50")
SMALLER_IS_BETTER = ("loss", "log_loss")
UNITS = {"macs": "MACs per example", "params": "parameters", "table_params": "parameters in tables"}
Row = dict[str, Any]


def main(run: Run) -> None:
    """Write `index.html`."""
    with run.stage("report") as folder:
        told = Told(run)
        sections = {
            "Comparison": ("Is it better?", comparison(told)),
            "Search": ("How the search went", search(told)),
            "Front": ("Score against cost", front(told)),
            "Ranking": ("Can the supernet's ranking be trusted?", ranking(told)),
            "Architecture": ("What was found", architecture(told)),
            "Training": ("Training", training(told)),
            "Time": ("Time per stage", time_spent(told)),
            "Settings": ("How this was made", settings(told)),
        }
        body = f"<header>\n{heading(told, list(sections))}\n</header>\n<main>\n"
        for title, (question, content) in sections.items():
            body += f'<section id="{title.lower()}" aria-labelledby="{title.lower()}-title">\n'
            body += f'<h2 id="{title.lower()}-title">{question}</h2>\n{content}\n</section>\n'
        folder.write_text("index.html", page(f"{run.method.label} on {run.dataset}", f"{body}</main>"))


class Told:
    """What the stages of a run wrote; what a stage that was left out would have written is empty."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.statistics: Row = self._read("prepare", "statistics.json", {})
        self.losses: list[Row] = self._read("supernet", "curve.json", [])
        self.candidates: list[Row] = self._read("search", "candidates.json", [])
        self.diagnosis: Row = self._read("diagnose", "diagnose.json", {})
        self.report: Row = self._read("evaluate", "report.json", {})
        self.headline = str(self.report.get("headline", ""))
        stage, name = run.folder / "search", "trials.parquet"
        self.trials: list[Row] = stage.read_table(name).to_pylist() if stage.exists(name) else []
        self.trials.sort(key=lambda trial: (trial["budget"], trial["strategy"], trial["seed"], trial["number"]))
        stage = run.folder / "retrain"
        self.results: list[Row] = [stage.read_json(name) for name in stage.names("*/part=*/seed=*/result.json")]
        self.models = self._models()
        self.found = [model for model in self.models if model["role"] == "found"]
        self.baselines = [model for model in self.models if model["role"] != "found"]

    def _read(self, stage: str, name: str, otherwise: Any) -> Any:
        folder = self.run.folder / stage
        return folder.read_json(name) if folder.exists(name) else otherwise

    def _models(self) -> list[Row]:
        """The models of the comparison, each with its rows by metric: found ones, then baselines, best first."""
        models: dict[tuple[str, str], Row] = {}
        for row in self.report.get("rows", []):
            model = models.setdefault((row["model"], row["model_id"]), {**row, "metrics": {}})
            model["metrics"][row["metric"]] = row
        found = [model for model in models.values() if model["role"] == "found"]
        others = [model for model in models.values() if model["role"] != "found"]
        return found + sorted(others, key=lambda model: loss(model["metrics"][self.headline]))

    def label(self, model_id: str) -> str:
        """What the comparison calls a model, "" if it is not in it; two searches may have found the same."""
        return " = ".join(model["model"] for model in self.models if model["model_id"] == model_id)


def loss(row: Row) -> float:
    """The row's value, negated unless smaller is better."""
    kind = row["metric"].partition("/")[0].partition("@")[0]
    return float(row["value"]) if kind in SMALLER_IS_BETTER else -float(row["value"])


def heading(told: Told, titles: Sequence[str]) -> str:
    """The verdict, the figures to remember, the data and the budgets."""
    run, schema, about = told.run, told.run.schema, told.statistics
    limits = []
    for budget in run.budgets:
        kept = ", ".join(f"{name} ≤ {short(limit)}" for name, limit in run.method.limits(budget).items())
        limits.append(kept if "=" in budget else f"{budget}: {kept or 'no limit'}")
    users = [f"{schema.users - 1:,}", *(f"{split} {users:,}" for split, users in about.get("users_in", {}).items())]
    bad = ", ".join(f"{name} {rows:,}" for name, rows in about.get("bad_rows", {}).items() if rows)
    facts = {
        "Data": run.dataset,
        "Protocol": told.report.get("protocol", schema.protocol),
        "Rows": " · ".join(f"{split} {rows:,}" for split, rows in schema.rows.items()),
        "Users": " · ".join(users),
        "Items": f"{schema.items - 1:,}",
        "Split digest": schema.split_digest[:12],
        "Budgets": "; ".join(limits),
        "Strategies": ", ".join(run.strategies),
        "Seeds": ", ".join(map(str, run.seeds)),
        "Malformed rows left out": bad,
        "Rows left out as not positive": f"{about['not_positive']:,}" if about.get("not_positive") else "",
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(fact)}</dd></div>" for name, fact in facts.items() if fact)
    links = "".join(f'<a href="#{title.lower()}">{title}</a>' for title in titles)
    leaks = told.report.get("leaks")
    warning = f'<p class="warning"><strong>This protocol leaks:</strong> {escape(leaks)}.</p>' if leaks else ""
    verdict = told.report.get("verdict") or "No model of this run was tested."
    return (
        f'<p class="eyebrow">Report of an architecture search</p>\n'
        f"<h1>{escape(run.method.label)} on {escape(run.dataset)}</h1>\n"
        f'<p class="verdict">{escape(verdict)}</p>\n{warning}{_tiles(told)}\n<dl>{listed}</dl>\n'
        f'<nav aria-label="Sections">{links}</nav>\n'
        "<noscript><p>The figures need JavaScript; the tables hold their numbers.</p></noscript>"
    )


def _tiles(told: Told) -> str:
    """The first found model, the best rival, their difference, and the trust in the search."""
    tiles = []
    for model in (*told.found[:1], *told.baselines[:1]):
        row = model["metrics"][told.headline]
        tiles.append((number(row["value"]), model["model"], f"{told.headline} {interval(row['low'], row['high'])}"))
    names = {(found["model"], rival["model"]) for found in told.found[:1] for rival in told.baselines[:1]}
    for pair in told.report.get("paired", []):
        if (pair["a"], pair["b"]) in names:
            tiles.append((number(pair["delta"], "+"), "Difference", interval(pair["low"], pair["high"], "+")))
    if told.diagnosis.get("n"):
        tau, low, high = (number(told.diagnosis[name], places=2) for name in ("kendall", "low", "high"))
        tiles.append((f"τ {tau}", "Supernet's rank correlation", f"[{low}, {high}]"))
    lines = (f"<b>{escape(value)}</b><span>{escape(what)}</span><span>{more}</span>" for value, what, more in tiles)
    return f'<div class="tiles">{"".join(f"<div>{line}</div>" for line in lines)}</div>' if tiles else ""


def comparison(told: Told) -> str:
    """All models on the rows held out for the end, and found ones against the others pair by pair."""
    if not told.models:
        return lead("This was not measured: no model of this run was tested.")
    metrics = dict.fromkeys(metric for model in told.models for metric in model["metrics"])
    warm = sorted((metric for metric in metrics if "/" not in metric), key=lambda metric: metric != told.headline)
    cuts = {*CUTOFFS, told.headline.partition("@")[2]}
    chosen = [metric for metric in warm if metric.partition("@")[2] in cuts]
    cold = [f"{metric}/cold" for metric in chosen if f"{metric}/cold" in metrics]
    seeds = told.models[0]["seeds"]
    measured = any(row["low"] is not None for model in told.models for row in model["metrics"].values())
    text = "Measured once, on rows that no earlier stage reads. "
    text += f"Means over seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"One seed ({seeds[0]})"
    text += "; in brackets the 95 % interval. " if measured else "; no interval was measured. "
    content = lead(f"{text}Marked: the best value of each metric.")
    content += pictures.whiskers([model["metrics"][told.headline] for model in told.models], told.headline)
    content += _metrics(told, "Quality and cost of every model", chosen, [told.headline], costs=True)
    if len(warm) > len(chosen):
        content += details("All metrics", _metrics(told, "All metrics", warm, warm))
    if cold:
        content += _metrics(told, "Users without training rows", cold, cold)
    if told.report.get("paired"):
        content += _paired(told)
    return content


def _metrics(told: Told, caption: str, metrics: Sequence[str], spread: Sequence[str], costs: bool = False) -> str:
    """One row a model; those of `spread` with their intervals."""
    best = {}
    for metric in metrics:
        best[metric] = min(loss(model["metrics"][metric]) for model in told.models if metric in model["metrics"])
    rows = []
    for model in told.models:
        cells = [escape(model["model"]), escape(model["role"])]
        for metric in metrics:
            row = model["metrics"].get(metric, {"value": None})
            value = number(row["value"])
            if row["value"] is not None and loss(row) == best[metric]:
                value = f'<strong class="best">{value}</strong>'
            spoken = interval(row.get("low"), row.get("high")) if metric in spread else ""
            cells.append(f"{value}<small>{spoken}</small>" if spoken else value)
        if costs:
            cells.append(", ".join(map(str, model["seeds"])))
            cells += [count(model[unit]) for unit in ("params", "table_params", "macs")]
        rows.append(cells)
    priced = ("Seeds", "Params", "Table params", "MACs") if costs else ()
    titles = (metric.removesuffix("/cold") for metric in metrics)
    return table(caption, ("Model", "Role", *titles, *priced), rows, text=2, found=len(told.found))


def _paired(told: Told) -> str:
    """Every found model against all others."""
    panels = {}
    for label, group in groupby(told.report["paired"], key=lambda pair: str(pair["a"])):
        pairs = list(group)
        head = ("Against", "Reading", f"Difference in {pairs[0]['metric']}", "p")
        panels[label] = table(
            f"{label} against the others, unit by unit", head, [_pair(pair) for pair in pairs], text=2
        )
    return views("paired", "Paired comparisons of", panels)


def _pair(pair: Row) -> list[str]:
    ends = sorted(loss({**pair, "value": end}) for end in (pair["low"], pair["high"]) if end is not None)
    reading = '<span class="no">not told apart</span>'
    if ends and ends[-1] < 0:
        reading = '<span class="good">▲ better</span>'
    elif ends and ends[0] > 0:
        reading = '<span class="bad">▼ worse</span>'
    p = NONE if pair["p"] is None else "&lt; 0.0001" if pair["p"] < 1e-4 else f"{pair['p']:.2g}"
    delta = f"{number(pair['delta'], '+')}<small>{interval(pair['low'], pair['high'], '+')}</small>"
    return [escape(pair["b"]), reading, delta, p]


def search(told: Told) -> str:
    """Every search's best score as it went on."""
    scored = [trial for trial in told.trials if trial["score"] is not None]
    if not scored:
        return lead("This was not measured: the run holds no search.")
    run, fitness = told.run, told.run.method.fitness.kind
    panels = {}
    for budget in run.budgets:
        own = [trial for trial in told.trials if trial["budget"] == budget]
        if own:
            panels[budget] = pictures.progress(own, run.strategies, fitness)
    searches, different = (len({trial[name] for trial in told.trials}) for name in ("trial", "genotype"))
    text = f"{searches} searches scored {len(told.trials):,} genotypes, {different:,} of them different, with the "
    text += f"supernet's weights on validation rows. Score: {fitness}, higher is better. A line is one search, a "
    text += "colour one strategy."
    return lead(text) + views("progress", "Budget", panels)


def front(told: Told) -> str:
    """All scored genotypes at their cost, with the front of score and cost."""
    scored = [trial for trial in told.trials if trial["score"] is not None]
    if not scored:
        return lead("This was not measured: the run holds no search.")
    run = told.run
    once = {(trial["strategy"], trial["genotype"]): trial for trial in scored}
    rows = sorted(once.values(), key=lambda trial: -trial["score"])
    marked = {one["model_id"]: told.label(one["model_id"]) for one in told.candidates}
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
        panels[title] = pictures.front(priced, title, run.strategies, drawn, marked)
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


def architecture(told: Told) -> str:
    """A drawing of each found model."""
    if not told.found:
        return lead("This was not measured: the run holds no found model.")
    run = told.run
    space, price = run.method.space(run.schema), run.method.price(run.schema)
    options = (option for decision in space.decisions.values() for option in decision.options)
    families = list(dict.fromkeys(option.partition(":")[0] for option in options))
    drawings = []
    for model_id in dict.fromkeys(model["model_id"] for model in told.found):
        about = told.report["models"][model_id]
        chosen = parse(about["genotype"])
        genotype = {name: chosen[name] for name in sorted(chosen, key=list(space.decisions).index)}
        cost = price(genotype, "")
        line = f"{count(float(cost.macs))} MACs per example · {count(float(cost.params))} parameters · "
        line += f"{count(float(cost.table_params))} in tables<br><code>{escape(model_id)}</code>"
        drawn = (
            pictures.drawing(genotype, families, _parts(genotype, price)) if genotype else lead("Nothing to decide.")
        )
        title = escape(told.label(model_id))
        drawings.append(f'<article><h3>{title}</h3><p class="note">{line}</p>{drawn}</article>')
    text = "A column is a part of the model, a box a decision with what was chosen. The number in a box is its MACs, "
    text += "the bar its share of all."
    return lead(text) + f'<div class="drawings">{"".join(drawings)}</div>'


def _parts(genotype: Genotype, price: Callable[[Genotype, str], Cost]) -> Callable[[str], Cost | None]:
    """The cost of what a name names; none where the net has no part of that name, or it begins other names too."""

    def cost(under: str) -> Cost | None:
        begun = [name for name in genotype if name.startswith(under)]
        if under in genotype and len(begun) > 1:
            return None
        try:
            return price(genotype, under)
        except ValueError:
            return None

    return cost


def training(told: Told) -> str:
    """The supernet's loss, and the validation values of all models trained alone."""
    content = "<h3>Supernet</h3>"
    if told.losses:
        last = told.losses[-1]
        content += lead(
            f"{last['step']:,} steps in {duration(last['seconds'])}; the loss is that of each step's own path."
        )
        content += pictures.losses(told.losses)
    else:
        content += lead("This was not measured: the run holds no supernet.")
    content += "<h3>Models trained alone</h3>"
    if not told.results:
        return content + lead("This was not measured: no model of this run was retrained.")
    kinds = {method.name: method.stop.kind for method in told.run.methods}
    found = {model["model_id"] for model in told.found}
    order = list(dict.fromkeys(model["model_id"] for model in told.models))
    results = sorted(told.results, key=lambda one: (_place(order, one["model_id"]), one["model_id"], one["seed"]))
    panels: dict[str, dict[str, tuple[bool, list[Row]]]] = {}
    for one in results:
        groups = panels.setdefault(kinds[one["name"]], {})
        groups.setdefault(told.label(one["model_id"]), (one["model_id"] in found, []))[1].append(one)
    text = "Validation value after every epoch; a line is one seed. Solid: found; dashed: baselines; dotted: "
    text += "other candidates."
    figures = {kind: pictures.validation(groups, kind) for kind, groups in panels.items()}
    return content + lead(text) + views("validation", "Validation value", figures)


def _place(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def time_spent(told: Told) -> str:
    """Seconds of every finished stage."""
    folder = told.run.folder
    stages = [stage for stage in told.run.stages if stage != "report" and (folder / stage).done]
    spent: Mapping[str, float] = {stage: (folder / stage).read_json("done.json")["seconds"] for stage in stages}
    total = sum(spent.values())
    if not total:
        return lead("This was not measured: no stage of this run is done.")
    rows = []
    for stage, seconds in spent.items():
        bar = f'<span class="bar" style="width:{100 * seconds / max(spent.values()):.1f}%"></span>'
        exact = f'<data value="{seconds}" title="{seconds:,.1f} s">{duration(seconds)}</data>'
        rows.append([escape(stage) + bar, exact, f"{seconds / total:.1%}"])
    foot = ("All", duration(total), "")
    text = "Wall time of each stage; one that was interrupted and continued counts from its last start."
    return lead(text) + table("Stages", ("Stage", "Time", "Share"), rows, foot=foot)


def settings(told: Told) -> str:
    """What was asked for."""
    run = told.run
    text = json.dumps(run.to_json(), indent=2, ensure_ascii=False)
    return (
        f"<p>Run folder: <code>{escape(run.root)}</code></p>"
        f"<p>Split digest: <code>{escape(run.schema.split_digest)}</code></p>"
        + details("All settings (run.json)", f"<pre>{escape(text)}</pre>")
    )
