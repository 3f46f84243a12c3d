"""The run as one page, `report/index.html`: what was found, whether it is better, and how far to trust the search."""

import json
from collections.abc import Callable, Sequence
from html import escape
from itertools import groupby

from components import pictures
from components.cost_section import cost, stopped
from components.kinds_section import kinds
from components.ledger import UNITS
from components.page import NONE, count, details, duration, interval, lead, number, page, short, table, views
from components.run import Run
from components.search_sections import front, ranking, search, tuning
from components.told import Row, Told, loss
from components.tracking import trackers
from nascore.cost import Cost
from nascore.space import Genotype, parse

SIDES = 3  # lanes that a narrow drawing can hold
CUTOFFS = ("", "10", "50")
MADE_BY = {"Search": "search", "Front": "search", "Ranking": "diagnose", "Tuning": "tune"}


def main(run: Run) -> None:
    """Write `index.html`."""
    with run.stage("report") as folder:
        told = Told(run)
        sections: dict[str, tuple[str, str]] = {
            "Comparison": ("Is it better?", comparison(told)),
            "Search": ("How the search went", search(told)),
            "Front": ("Score against cost", front(told)),
            "Ranking": ("Can the supernet's ranking be trusted?", ranking(told)),
            "Tuning": ("What was tuned", tuning(told)),
            "Kinds": ("What does each kind of rows need?", kinds(told) if run.method.routes else ""),
            "Architecture": ("What was found", "" if run.method.routes else architecture(told)),
            "Training": ("Training", training(told)),
            "Cost": ("What it cost", cost(told)),
            "Settings": ("How this was made", settings(told)),
        }
        without = {title for title, stage in MADE_BY.items() if stage not in run.stages}
        sections = {title: one for title, one in sections.items() if one[1] and title not in without}
        body = f"<header>\n{heading(told, list(sections))}\n</header>\n<main>\n"
        for title, (question, content) in sections.items():
            body += f'<section id="{title.lower()}" aria-labelledby="{title.lower()}-title">\n'
            body += f'<h2 id="{title.lower()}-title">{question}</h2>\n{content}\n</section>\n'
        text = page(f"{run.method.label} on {run.dataset}", f"{body}</main>")
        folder.write_text("index.html", text)
        with trackers(run, "report") as watching:
            for one in watching:
                one.results(values(told), text)


def values(told: Told) -> dict[str, float]:
    """The figures that trackers take: each metric of each model on test rows, and the seconds of each stage."""
    tested = {f"tested/{row['metric']}/{row['model']}": float(row["value"]) for row in told.report.get("rows", [])}
    return tested | {f"cost/{one['stage']}/{unit}": one[unit] for one in told.stages for unit in UNITS}


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
        "Seen of the future": told.report.get("sees", ""),
        "Rows": " · ".join(f"{split} {rows:,}" for split, rows in schema.rows.items()),
        "Users": " · ".join(users) if schema.user else "",
        "Items": f"{schema.items - 1:,}" if schema.item else "",
        "Click rate": " · ".join(
            f"{split} {positive / schema.rows[split]:.4f}" for split, positive in about.get("positive_in", {}).items()
        ),
        "Features": "" if schema.user else f"{len(schema.columns)}, of {sum(c.size for c in schema.columns):,} ids",
        "Features not read": ", ".join(run.unread),
        "Features of which nothing is known": ", ".join(schema.blank),
        "Not in their table": ", ".join(f"{n:,} {side}s" for side, n in about.get("not_in_table", {}).items() if n),
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
        f'<p class="verdict">{escape(verdict)}</p>\n{warning}{stopped(told)}{_tiles(told)}\n<dl>{listed}</dl>\n'
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
    warm = sorted((one for one in metrics if not one.endswith("/cold")), key=lambda metric: metric != told.headline)
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
    text = f"Each of the {len(told.report['paired'])} comparisons stands by itself: of twenty between equal models one "
    return lead(f"{text}leaves zero out by chance.") + views("paired", "Paired comparisons of", panels)


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


def architecture(told: Told) -> str:
    """A drawing of each found model."""
    if not told.found:
        return lead("This was not measured: the run holds no found model.")
    run = told.run
    space, price = run.method.space(run.schema), run.method.price(run.schema)
    options = (option for decision in space.decisions.values() for option in decision.options)
    families = list(dict.fromkeys(option.partition(":")[0] for option in options))
    drawings = []
    for model_id, model in {model["model_id"]: model for model in told.found}.items():
        about = told.report["models"][model_id]
        (chosen,) = map(parse, about["parts"])
        genotype = {name: chosen[name] for name in sorted(chosen, key=list(space.decisions).index)}
        line = f"{count(model['macs'])} MACs per example · {count(model['params'])} parameters · "
        line += f"{count(model['table_params'])} in tables<br><code>{escape(model_id)}</code>"
        drawn = (
            pictures.drawing(genotype, families, _parts(genotype, price)) if genotype else lead("Nothing to decide.")
        )
        title = escape(told.label(model_id))
        wide = ' class="wide"' if len({name.partition("/")[0] for name in genotype}) > SIDES else ""
        drawings.append(f'<article{wide}><h3>{title}</h3><p class="note">{line}</p>{drawn}</article>')
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
            f"{last['step']:,} steps in {duration(last['seconds'])}; the loss is that of each step's own paths."
        )
        content += pictures.losses(told.losses)
        learned = dict.fromkeys(name.split("/")[1] for name in last if name.startswith("share/"))
        if learned:
            content += "<h3>What the supernet learned to prefer</h3>"
            content += views("shares", "Shares of", {name: pictures.shares(told.losses, name) for name in learned})
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
        groups = panels.setdefault(kinds.get(one["name"], told.run.method.stop.kind), {})
        groups.setdefault(told.label(one["model_id"]), (one["model_id"] in found, []))[1].append(one)
    text = "Validation value after every epoch; a line is one seed. Solid: found; dashed: baselines; dotted: "
    text += "other candidates."
    figures = {kind: pictures.validation(groups, kind) for kind, groups in panels.items()}
    return content + lead(text) + views("validation", "Validation value", figures)


def _place(order: Sequence[str], name: str) -> int:
    return order.index(name) if name in order else len(order)


def settings(told: Told) -> str:
    """What was asked for."""
    run = told.run
    text = json.dumps(run.to_json(), indent=2, ensure_ascii=False)
    return (
        f"<p>Run folder: <code>{escape(run.root)}</code></p>"
        f"<p>Split digest: <code>{escape(run.schema.split_digest)}</code></p>"
        + details("All settings (run.json)", f"<pre>{escape(text)}</pre>")
    )
