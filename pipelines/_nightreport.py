"""A night as one page: what was decided and why, the drift, the comparison, and what it cost."""

from html import escape
from typing import Any

from components import page
from components.registry import Registry

LISTED = 20


def write(registry: Registry, night: str, known: dict[str, Any]) -> None:
    """Write `reports/<night>.html`."""
    title = f"Night of {night}: {known['decision']}"
    body = f"<header><p class='eyebrow'>Nightly re-search</p><h1>{escape(title)}</h1>"
    body += f"<p class='verdict'>{escape(known['outcome'])}</p>{page.lead(known['why'])}</header>"
    sections = [_comparison(known), _drift(known), _history(known), _cost(known)]
    body += f"<main>{''.join(f'<section>{one}</section>' for one in sections if one)}</main>"
    registry.folder.write_text(f"reports/{night}.html", page.page(title, body))


def _comparison(known: dict[str, Any]) -> str:
    compared = known.get("compared")
    if not compared:
        return ""
    rows = []
    for role in ("challenger", "champion"):
        one = compared[role]
        version = "" if one["version"] is None else f"version {one['version']}: "
        name = escape(f"{role}, {version}{one['label']}")
        values = (page.number(one["log_loss"], places=5), page.number(one["relative"], places=4))
        rows.append([name, page.count(one["rows"]), page.number(one["click_rate"]), *values])
    two = compared["difference"]
    interval = page.interval(two["low"], two["high"], "+", 5)
    rows.append(["difference, 95 % of a paired t-test", "", "", page.number(two["delta"], "+", 5), interval])
    head = ("model", "rows", "click rate", "log loss", "of the click rate's")
    return "<h2>Challenger and champion</h2>" + page.table("On the newest day, on the same rows", head, rows)


def _drift(known: dict[str, Any]) -> str:
    found = sorted(known["facts"]["drift"].items(), key=lambda one: -one[1]["excess"])[:LISTED]
    if not found:
        return ""
    rows = [[escape(name), *(page.number(one[key]) for key in ("psi", "chance", "excess"))] for name, one in found]
    head = ("feature", "stability index", "by chance", "beyond chance")
    return "<h2>Drift</h2>" + page.table("Against the rows that the champion was trained on", head, rows)


def _history(known: dict[str, Any]) -> str:
    loss = known["facts"]["loss"]
    if not loss:
        return ""
    days = [*loss["history"], {"day": known["facts"]["newest_day"], **loss}]
    rows = [[one["day"], page.number(one["relative"]), page.number(one["error"])] for one in days]
    bound = "" if loss["bound"] is None else page.lead(f"Above {loss['bound']:.4f} it does worse than before.")
    head = ("day", "loss over the click rate's", "standard error")
    return "<h2>The champion so far</h2>" + bound + page.table("By day", head, rows)


def _cost(known: dict[str, Any]) -> str:
    cost = known.get("spent")
    if not cost:
        return ""
    rows = [[escape(stage), page.duration(seconds)] for stage, seconds in cost["seconds"].items()]
    counts = {"steps of the supernet": "supernet_steps", "genotypes scored": "genotypes", "examples": "examples"}
    rows += [[title, page.count(cost[name])] for title, name in counts.items()]
    return "<h2>Cost</h2>" + page.table("By stage", ("stage", "spent"), rows)
