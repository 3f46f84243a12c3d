"""Plumbing of the report: its figures, each with its numbers, and the drawings of architectures.

A figure's colours are the page's CSS variables. Every text that comes from data is escaped, as figures read some HTML.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import cycle, groupby
from textwrap import wrap
from typing import Any

from components.page import NONE, count, details, duration, interval, number, plot, short, table
from nascore.cost import Cost
from nascore.space import Genotype

COLOURS = 8
SHOWN = 2_500
WIDE = 30
MARKS = ("star", "square", "triangle-up", "hexagon", "cross")
Row = Mapping[str, Any]


def whiskers(rows: Sequence[Row], metric: str) -> str:
    """A metric of every model with its interval, in the order of the rows."""
    traces, height = [], len(rows)
    for role, paint in (("baseline", "var(--c8)"), ("found", "var(--accent)")):
        own = [(height - place, row) for place, row in enumerate(rows, 1) if row["role"] == role]
        low = [row["value"] if row["low"] is None else row["low"] for _, row in own]
        high = [row["value"] if row["high"] is None else row["high"] for _, row in own]
        values = [row["value"] for _, row in own]
        spread = {
            "array": [top - value for top, value in zip(high, values, strict=True)],
            "arrayminus": [value - bottom for bottom, value in zip(low, values, strict=True)],
        }
        traces.append(
            {
                **_dots(values, [place for place, _ in own], paint, 11),
                "text": [_plain(_told(row)) for _, row in own],
                "hovertemplate": "%{text}<extra></extra>",
                "error_x": {"type": "data", "color": paint, "thickness": 2, "width": 5, **spread},
            }
        )
    labels, lines = [], [wrap(row["model"], 40) for row in rows]
    tallest = max(map(len, lines))
    for place, (row, broken) in enumerate(zip(rows, lines, strict=True), 1):
        for text, side, x in (("<br>".join(map(_plain, broken)), "left", 0), (number(row["value"]), "right", 1)):
            where = {"x": x, "xref": "paper", "xanchor": side, "y": height - place, "yanchor": "bottom", "yshift": 7}
            labels.append({"text": text, "align": "left", "showarrow": False, **where})
    step = 29 + 17 * tallest
    layout = {
        "xaxis": _axis(metric),
        "yaxis": {"visible": False, "range": [-0.5, height - 1 + (17 * tallest + 16) / step]},
        "annotations": labels,
    }
    said = "; ".join(map(_told, rows))
    return plot(f"{metric} of each model: {said}", traces, layout, 70 + step * height)


def _told(row: Row) -> str:
    return f"{row['model']} {number(row['value'])} {interval(row['low'], row['high'])}".strip()


def progress(trials: Sequence[Row], strategies: Sequence[str], fitness: str) -> str:
    """The best score so far against genotypes scored: a line for each trial, a colour for each strategy.

    trials: ordered by trial and number.
    """
    traces, numbers = [], []
    for _, group in groupby(trials, key=lambda trial: trial["trial"]):
        own = list(group)
        strategy, seed, best = own[0]["strategy"], own[0]["seed"], list[Row]()
        for trial in own:
            if trial["score"] is not None and (not best or trial["score"] > best[-1]["score"]):
                best.append(trial)
        failed, seconds = sum(trial["score"] is None for trial in own), sum(trial["seconds"] for trial in own)
        last = [number(best[-1]["score"]), f"{best[-1]['number'] + 1:,}"] if best else [NONE, NONE]
        numbers.append([escape(strategy), str(seed), f"{len(own):,}", f"{failed:,}", *last, duration(seconds)])
        if best:
            x, y = [trial["number"] + 1 for trial in best], [trial["score"] for trial in best]
            line = {"color": _colour(strategies.index(strategy)), "width": 1.6, "shape": "hv"}
            about = f"{_plain(strategy)}, seed {seed}<br>%{{y:.4f}} after %{{x}}<extra></extra>"
            trace = _line([*x, own[-1]["number"] + 1], [*y, y[-1]], line, strategy)
            traces.append({**trace, "hovertemplate": about})
    layout = {"xaxis": _axis("genotypes scored"), "yaxis": _axis(f"best score so far ({fitness})")}
    said = "; ".join(f"{trace['name']} {number(trace['y'][-1])}" for trace in traces)
    head = ("Strategy", "Seed", "Scored", "Failed", "Best score", "Found at", "Scoring time")
    figure = plot(f"Best score against genotypes scored, at the end: {said}", traces, layout, 400)
    return figure + details("Numbers of every search", table("Searches", head, numbers))


def front(
    rows: Sequence[Row],
    title: str,
    strategies: Sequence[str],
    limits: Sequence[tuple[str, float]],
    marked: Mapping[str, str],
) -> str:
    """Score against cost of the scored genotypes, the front of both, the limits of budgets, and the retrained ones.

    rows: best first, with "cost". limits: what to call each, and where it is. marked: label of each retrained model by
    id; "" for one that is not in the comparison.
    """
    shown = rows[:: -(-len(rows) // SHOWN)]
    traces: list[Row] = []
    for place, strategy in enumerate(strategies):
        own = [row for row in shown if row["strategy"] == strategy]
        traces.append(_scored(own, title, strategy, {"color": _colour(place), "size": 5, "opacity": 0.4}))
    best = unbeaten(rows)
    line = {"color": "var(--ink)", "width": 1.8, "shape": "hv"}
    traces.append({**_scored(best, title, "front", {}), "mode": "lines", "line": line})
    once = list({row["model_id"]: row for row in rows if row["model_id"] in marked}.values())
    if others := [row for row in once if not marked[row["model_id"]]]:
        look = {"color": "var(--ink)", "size": 10, "symbol": "diamond-open", "line": {"width": 1.6}}
        traces.append(_scored(others, title, "retrained", look))
    compared = {row["model_id"]: row for row in once if marked[row["model_id"]]}
    for row, symbol in zip((compared[one] for one in marked if one in compared), cycle(MARKS), strict=False):
        look = {"color": _colour(strategies.index(row["strategy"])), "size": 14, "symbol": symbol}
        outline = {"line": {"color": "var(--ink)", "width": 1.4}}
        traces.append(_scored([row], title, marked[row["model_id"]], {**look, **outline}))
    costs = [row["cost"] for row in rows]
    scale = {"type": "log", "dtick": "D2"} if min(costs) > 0 and max(costs) > WIDE * min(costs) else _around(costs)
    layout = {
        "xaxis": _axis(title, **scale),
        "yaxis": _axis("score", **_around([row["score"] for row in rows])),
        "shapes": [_limit(text, x) for text, x in limits],
    }
    said = ", ".join(f"{number(row['score'])} at {short(row['cost'])}" for row in best)
    figure = plot(f"Score against {title}; the front from the cheapest on: {said}", traces, layout, 440)
    numbers = [
        [escape(row["model_id"]), escape(row["strategy"]), number(row["score"]), count(row["cost"])] for row in best
    ]
    return figure + details(
        "The front in numbers", table("The front", ("Model", "Strategy", "Score", title), numbers, 2)
    )


def _around(values: Sequence[float]) -> dict[str, Any]:
    """The range of an axis on which all values are the same; else it follows from them."""
    reach = 0.1 * abs(values[0]) or 1.0
    return {"range": [values[0] - reach, values[0] + reach]} if len({*values}) == 1 else {}


def _scored(rows: Sequence[Row], title: str, name: str, marker: Row) -> dict[str, Any]:
    """Genotypes at their cost and score."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [row["cost"] for row in rows],
        "y": [row["score"] for row in rows],
        "text": [row["model_id"] for row in rows],
        "name": _plain(name),
        "marker": marker,
        "hovertemplate": f"%{{text}}<br>score %{{y:.4f}}<br>%{{x:,.0f}} {_plain(title)}",
    }


def _limit(text: str, x: float) -> Row:
    """A budget's limit as a vertical line."""
    at = {"textangle": 0, "textposition": "start", "xanchor": "right", "yanchor": "bottom", "padding": 5}
    label = {"text": _plain(text), "font": {"color": "var(--bad)", "size": 12}, **at}
    line = {"color": "var(--bad)", "width": 1.4, "dash": "dash"}
    return {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x, "line": line, "label": label}


def unbeaten(rows: Sequence[Row]) -> list[Row]:
    """The rows that no other beats in score at as little "cost", cheapest first; `rows` best first."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda row: (-row["score"], row["cost"])):
        if not kept or row["cost"] < kept[-1]["cost"]:
            kept.append(row)
    return kept[::-1]


def correlation(points: Sequence[Row], fitness: str, metric: str) -> str:
    """Stand-alone quality against the supernet's score; bars from the worst to the best seed."""
    mean = [sum(point["alone"]) / len(point["alone"]) for point in points]
    spread = {
        "array": [max(point["alone"]) - m for point, m in zip(points, mean, strict=True)],
        "arrayminus": [m - min(point["alone"]) for point, m in zip(points, mean, strict=True)],
    }
    trace = {
        **_dots([point["score"] for point in points], mean, "var(--accent)", 9),
        "error_y": {"type": "data", "color": "var(--c8)", "thickness": 1.4, "width": 4, **spread},
        "text": [f"{point['model_id']}, {short(point['macs'])} MACs" for point in points],
        "hovertemplate": "%{text}<br>supernet %{x:.4f}, alone %{y:.4f}<extra></extra>",
    }
    layout = {"xaxis": _axis(f"supernet's score ({fitness})"), "yaxis": _axis(f"{metric}, trained alone")}
    said = ", ".join(f"{number(point['score'])}: {number(m)}" for point, m in zip(points, mean, strict=True))
    numbers = [
        [escape(point["model_id"]), number(point["score"]), *map(number, point["alone"]), count(point["macs"])]
        for point in sorted(points, key=lambda point: -point["score"])
    ]
    head = ("Model", "Supernet's score", *(f"Seed {seed}" for seed in range(len(points[0]["alone"]))), "MACs")
    figure = plot(f"Supernet's score and mean {metric} of {len(points)} genotypes: {said}", [trace], layout, 400)
    return figure + details("Numbers of every genotype", table("Genotypes trained alone", head, numbers))


def losses(curve: Sequence[Row]) -> str:
    """The supernet's training loss by step."""
    line = {"color": "var(--accent)", "width": 1.6}
    trace = _line([point["step"] for point in curve], [point["loss"] for point in curve], line, "loss")
    layout = {"xaxis": _axis("step"), "yaxis": _axis("training loss")}
    first, last = curve[0], curve[-1]
    said = f"from {first['loss']:.4g} at step {first['step']} to {last['loss']:.4g} at step {last['step']}"
    return plot(f"Training loss of the supernet {said}", [trace], layout, 300)


def shares(curve: Sequence[Row], decision: str) -> str:
    """How likely each option of a decision was by step, as far as the sampler logged it."""
    start = f"share/{decision}/"
    options = [name for name in curve[-1] if name.startswith(start)]
    steps, traces = [point["step"] for point in curve], []
    for place, name in enumerate(options):
        line = {"color": _colour(place), "width": 1.8}
        traces.append(_line(steps, [point[name] for point in curve], line, name.removeprefix(start)))
    layout = {"xaxis": _axis("step"), "yaxis": _axis(f"share of each {decision}", rangemode="tozero")}
    said = ", ".join(f"{name.removeprefix(start)} {number(curve[-1][name])}" for name in options)
    figure = plot(f"Learned share of each option of {decision}, at the end: {said}", traces, layout, 300)
    logged = [name for name in ("temperature", f"entropy/{decision}", *options) if name in curve[-1]]
    every = max(1, len(curve) // 20)
    numbers = [[f"{point['step']:,}", *(number(point[name]) for name in logged)] for point in curve[::-every][::-1]]
    head = ("Step", *(escape(name.removeprefix(start)) for name in logged))
    return figure + details(
        "Numbers, with temperature and entropy in nats", table(f"Shares of {decision}", head, numbers)
    )


def kept(parts: Mapping[str, Mapping[str, Sequence[str]]], options: Mapping[str, int]) -> str:
    """How many of its options each decision keeps in each part, as a map: a row a decision, a column a part."""
    names = [*options][::-1]
    counts = [[len(part[name]) for part in parts.values()] for name in names]
    trace = {
        "type": "heatmap",
        "mode": "markers",
        "x": [_plain(part) for part in parts],
        "y": [_plain(name) for name in names],
        "z": counts,
        "zmin": 0,
        "zmax": max(options.values()),
        "colorscale": [[0, "var(--soft)"], [1, "var(--accent)"]],
        "showscale": False,
        "xgap": 2,
        "ygap": 2,
        "texttemplate": "%{z}",
        "hovertemplate": "%{y}, %{x}: %{z}<extra></extra>",
    }
    layout = {
        "xaxis": {"side": "top", "showgrid": False, "fixedrange": True},
        "yaxis": {"automargin": True, "showgrid": False, "fixedrange": True},
        "margin": {"l": 120, "r": 10, "t": 50, "b": 10},
    }
    said = "; ".join(
        f"{part}: {', '.join(f'{name} {len(chosen[name])}' for name in options)}" for part, chosen in parts.items()
    )
    return plot(f"Options kept: {said}", [trace], layout, 70 + 24 * len(names))


def validation(groups: Mapping[str, tuple[bool, Sequence[Row]]], kind: str) -> str:
    """Validation values by epoch, a line for each training; of each label whether it was found, and its trainings.

    Found models are drawn solid, the others dashed, those with the label "" dotted and grey.
    """
    traces, numbers = [], []
    for place, (label, (is_found, results)) in enumerate(groups.items()):
        line = {"color": _colour(place) if label else "var(--c8)", "width": 1.8 if is_found else 1.2}
        line["dash"] = "solid" if is_found else "dash" if label else "dot"
        look = {"marker": {"color": line["color"], "size": 7}, "opacity": 1.0 if label else 0.5}
        for result in results:
            name, seed, curve = label or f"candidate {result['model_id']}", result["seed"], result["curve"]
            cells = [escape(name), str(seed), number(result["value"]), str(result["best_epoch"])]
            numbers.append([*cells, str(len(curve)), duration(result["seconds"])])
            if curve:
                about = f"{_plain(name)}, seed {seed}<br>epoch %{{x}}: %{{y:.4f}}<extra></extra>"
                trace = _line(
                    range(1, len(curve) + 1), [value for _, value in curve], line, label or "other candidates"
                )
                mode = "lines" if len(curve) > 1 else "markers"
                traces.append({**trace, **look, "mode": mode, "hovertemplate": about})
    layout = {"xaxis": _axis("epoch", rangemode="tozero"), "yaxis": _axis(f"{kind}, validation")}
    said = "; ".join(f"{trace['name']} {number(_best(trace['y']))}" for trace in traces)
    figure = plot(f"{kind} on validation rows by epoch; the best of each training: {said}", traces, layout, 420)
    head = ("Model", "Seed", kind, "Best epoch", "Epochs", "Time")
    return figure + details("Numbers of every training", table("Models trained alone", head, numbers))


def _best(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _colour(place: int) -> str:
    return f"var(--c{place % COLOURS + 1})"


def _plain(text: str) -> str:
    return escape(text, quote=False)


def _axis(title: str, **more: Any) -> dict[str, Any]:
    return {"title": {"text": _plain(title)}, **more}


def _dots(x: Sequence[float], y: Sequence[float], colour: str, size: int) -> dict[str, Any]:
    return {"type": "scatter", "mode": "markers", "x": x, "y": y, "marker": {"color": colour, "size": size}}


def _line(x: Sequence[float], y: Sequence[float], line: Row, name: str) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "x": list(x), "y": y, "line": line, "name": _plain(name)}


# Drawings of architectures

LANE, GAP, TOP, LINE = 166, 14, 44, 16
MANY, WIDTH = 3, 20


def drawing(genotype: Genotype, families: Sequence[str], price: Callable[[str], Cost | None]) -> str:
    """An architecture as lanes of boxes that lead down to the score, as SVG.

    A lane is what shares the first component of its name, a box one decision with its open options, in the genotype's
    order. Where decisions ".../from" say what a lane reads, only the last one leads to the score. families: what stands
    before the ':' of options, in the order of their colours. price: the cost of what a name names, if it has one; the
    bar of a box is its share of all MACs.
    """
    lanes: dict[str, list[str]] = {}
    for name in genotype:
        lanes.setdefault(name.partition("/")[0], []).append(name)
    whole = price("")
    total = float(whole.macs) if whole else 0.0
    width = len(lanes) * (LANE + GAP) - GAP
    parts, ends = [], []
    for place, (lane, names) in enumerate(lanes.items()):
        x, y = place * (LANE + GAP) + 0.5, TOP
        spent = price(f"{lane}/") if names != [lane] else None
        parts.append(f'<text class="part" x="{x}" y="16">{escape(lane)}</text>')
        if spent:
            parts.append(f'<text class="fine" x="{x}" y="33">{short(float(spent.macs))} MACs</text>')
        for name in names:
            if name != names[0]:
                parts.append(f'<path class="wire" d="M{x + LANE / 2} {y - 12}v12"/>')
            box, height = _box(name, genotype[name], families, price(name), total, x, y)
            parts.append(box)
            y += height + 12
        ends.append((x + LANE / 2, y - 12))
    if any(name.endswith("/from") for name in genotype):
        ends = ends[-1:]
    goal, middle = max((y for _, y in ends), default=TOP) + 40, width / 2
    for x, y in ends:
        parts.append(
            f'<path class="wire" d="M{x} {y}V{goal - 34}C{x} {goal - 12} {middle} {goal - 26} {middle} {goal - 6}"/>'
        )
    parts.append(f'<path class="head" d="M{middle - 5} {goal - 8}h10l-5 8z"/>')
    parts.append(f'<rect class="goal" x="{middle - 46}" y="{goal}" width="92" height="28" rx="14"/>')
    parts.append(f'<text class="goal-text middle" x="{middle}" y="{goal + 19}">score</text>')
    told = "; ".join(f"{name}: {', '.join(options) or 'none'}" for name, options in genotype.items())
    size = f'viewBox="0 0 {width + 1} {goal + 29}" width="{width + 1}" height="{goal + 29}"'
    fits = ' style="max-width:100%;height:auto"' if len(lanes) < 3 else ""
    svg = f'<svg role="img" aria-label="{escape(told)}" {size}{fits}>{"".join(parts)}</svg>'
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Architecture">{svg}</div>'


def _box(
    name: str, options: Sequence[str], families: Sequence[str], cost: Cost | None, total: float, x: float, y: float
) -> tuple[str, int]:
    """One decision's box at (x, y), and its height."""
    lines: list[tuple[str, str]] = []
    for option in options if len(options) <= MANY else ():
        family, _, rest = option.partition(":")
        settings = [part for part in rest.split(",") if part]
        leading = settings.pop(0) if settings and "=" not in settings[0] else ""
        lines += [("option", line) for line in wrap(f"{family} {leading}".replace("_", " "), WIDTH)]
        lines += [("fine", line) for line in wrap(", ".join(settings), WIDTH + 4)]
    if len(options) > MANY:
        lines = [("option", f"{len(options)} open")]
        lines += [("fine", line) for line in wrap(", ".join(options), WIDTH + 4, max_lines=3, placeholder=" …")]
    lines = lines or [("option", "none")]
    height = 30 + LINE * len(lines)
    colour = _colour(families.index(options[0].partition(":")[0])) if options else "var(--line)"
    spent = float(cost.macs) if cost else 0.0
    parts = [
        f'<rect class="box" x="{x}" y="{y}" width="{LANE}" height="{height}" rx="6"/>',
        f'<rect x="{x}" y="{y}" width="4" height="{height}" rx="2" style="fill:{colour}"/>',
        f'<text class="fine" x="{x + 13}" y="{y + 17}">{escape(name.partition("/")[2] or name)}</text>',
    ]
    if spent:
        parts.append(f'<text class="fine end" x="{x + LANE - 8}" y="{y + 17}">{short(spent)}</text>')
        bar = (LANE - 21) * spent / total
        parts.append(
            f'<rect x="{x + 13}" y="{y + height - 6}" width="{bar:.1f}" height="2.5" rx="1" style="fill:{colour}"/>'
        )
    for n, (kind, line) in enumerate(lines, 1):
        parts.append(f'<text class="{kind}" x="{x + 13}" y="{y + 17 + LINE * n}">{escape(line)}</text>')
    return "".join(parts), height
