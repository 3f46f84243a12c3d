"""Plumbing of the report: one HTML page that works alone, its tables, numbers and frames for figures.

Colours are CSS variables, also inside figures: a script fills them in when it draws and draws anew when the reader's
colour scheme changes. The page's content policy forbids it to load anything.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from plotly.offline import get_plotlyjs

NONE = "–"
SIGNS = {
    **{"solid": "━━", "dash": "╍╍", "dot": "┅┅", "circle": "●", "diamond-open": "◇"},
    **{"star": "★", "square": "■", "triangle-up": "▲", "hexagon": "⬢", "cross": "✚"},
}

CSS = """
:root { color-scheme: light dark; --bg: #fbfbf9; --panel: #ffffff; --ink: #1d2429; --muted: #5a656e; --line: #e2e4e0;
  --soft: #f1f2ee; --accent: #1f6aa5; --good: #1b7a4b; --bad: #b3382c; --warn: #fbf0d4; --warn-ink: #6b4a00;
  --c1: #1f6aa5; --c2: #c2571a; --c3: #22804f; --c4: #8a4bbf; --c5: #94700d; --c6: #0f7c86; --c7: #b83a6b;
  --c8: #68707a; }
@media (prefers-color-scheme: dark) { :root { --bg: #14181b; --panel: #1b2024; --ink: #e6e9ea; --muted: #9fabb4;
  --line: #2d343a; --soft: #20262b; --accent: #71b7ee; --good: #6fd09b; --bad: #f28b7d; --warn: #3a2f12;
  --warn-ink: #f3d789; --c1: #71b7ee; --c2: #f2a36b; --c3: #6fd09b; --c4: #c8a1f2; --c5: #dcb94f; --c6: #5fcbd6;
  --c7: #f08fb4; --c8: #a3adb6; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
  overflow-wrap: anywhere; }
header, main { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 48px; }
h1 { font-size: clamp(1.7rem, 4vw, 2.5rem); line-height: 1.15; letter-spacing: -.02em; margin: 0 0 20px; }
h2 { font-size: 1.35rem; letter-spacing: -.01em; margin: 0 0 4px; }
h3 { font-size: 1rem; margin: 28px 0 4px; }
p { margin: 0 0 12px; max-width: 72ch; }
a { color: var(--accent); }
code, pre { font: .86em/1.5 ui-monospace, monospace; }
section { border-top: 1px solid var(--line); padding: 32px 0 28px; }
.eyebrow, .lead, .note, caption { color: var(--muted); }
.eyebrow { font-size: .85rem; margin-bottom: 8px; }
.verdict { border-left: 4px solid var(--accent); padding-left: 16px; font-size: 1.16rem; line-height: 1.5; }
.warning { background: var(--warn); color: var(--warn-ink); border-radius: 8px; padding: 10px 14px; max-width: none; }
.note { font-size: .88rem; }
nav { margin: 24px 0 32px; display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: .92rem; }
nav a { text-decoration: none; padding: 4px 0; }
nav a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; margin: 24px 0; }
.tiles div { background: var(--panel); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px; }
.tiles b { display: block; font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.tiles span { display: block; font-size: .85rem; color: var(--muted); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 10px 32px; margin: 0;
  font-size: .92rem; }
.numbers { grid-template-columns: repeat(auto-fit, minmax(120px, 1fr)); }
dt { color: var(--muted); font-size: .82rem; }
dd { margin: 0; }
.scroll { overflow-x: auto; margin: 12px 0; position: relative; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: 6px; font-size: .88rem; }
caption span { display: inline-block; max-width: min(calc(100vw - 32px), 72ch); }
th, td { padding: 7px 8px; text-align: right; white-space: nowrap; vertical-align: top;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--muted); font-weight: 600; font-size: .82rem; vertical-align: bottom; white-space: normal;
  overflow-wrap: normal; }
tbody th { font-weight: 500; white-space: normal; min-width: 130px; position: sticky; left: 0; background: var(--bg); }
.text, th:first-child { text-align: left; }
th:first-child { padding-left: 0; }
tr > :last-child { padding-right: 6px; }
tr.found th, tr.found .text { font-weight: 650; color: var(--accent); }
tfoot td, tfoot th { font-weight: 650; border-bottom: 0; }
small { display: block; color: var(--muted); font-size: .8rem; }
.best { background: color-mix(in srgb, var(--good) 16%, transparent); border-radius: 4px; padding: 1px 5px;
  margin: 0 -5px; }
.good { color: var(--good); } .bad { color: var(--bad); } .no { color: var(--muted); }
.bar { display: block; height: 6px; min-width: 2px; margin-top: 3px; border-radius: 3px; background: var(--accent); }
details { margin: 12px 0; }
summary { cursor: pointer; color: var(--accent); font-size: .92rem; padding: 4px 0; }
pre { background: var(--soft); border-radius: 8px; padding: 14px 16px; margin: 8px 0; white-space: pre-wrap; }
.figure { margin: 8px 0; } .plot { width: 100%; }
.legend { display: flex; flex-wrap: wrap; gap: 0 16px; margin: 4px 0; }
.legend button { border: 0; background: none; color: inherit; font: inherit; font-size: .86rem; padding: 3px 0;
  cursor: pointer; text-align: left; padding-left: 1.7em; text-indent: -1.7em; }
.legend button span { display: inline-block; width: 1.7em; text-indent: 0; }
.legend button[aria-pressed=false] { color: var(--muted); text-decoration: line-through; }
.views { border: 0; margin: 8px 0; padding: 0; min-width: 0; position: relative; }
.views legend { font-size: .85rem; color: var(--muted); padding: 0; margin-bottom: 4px; }
.views > label { display: inline-block; margin: 0 6px 6px 0; border: 1px solid var(--line); border-radius: 999px;
  padding: 3px 14px; font-size: .88rem; cursor: pointer; }
.views input { position: absolute; left: 0; opacity: 0; }
.views input:checked + label { background: var(--accent); border-color: var(--accent); color: var(--bg); }
.views input:focus-visible + label { outline: 2px solid var(--ink); outline-offset: 2px; }
.drawings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 347px), 1fr)); gap: 8px 32px; }
.drawings article { min-width: 0; } .drawings .wide { grid-column: 1 / -1; } .drawings .scroll { margin: 8px 0 0; }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink); }
svg .part { font-weight: 650; font-size: 14px; } svg .option { font-weight: 600; font-size: 12.5px; }
svg .fine { font-size: 11.5px; fill: var(--muted); } svg .end { text-anchor: end; } svg .middle { text-anchor: middle; }
svg .box { fill: var(--panel); stroke: var(--line); } svg .wire { fill: none; stroke: var(--c8); stroke-width: 1.5; }
svg .goal { fill: var(--accent); } svg .goal-text { fill: var(--bg); font-weight: 650; } svg .head { fill: var(--c8); }
@media (max-width: 640px) { header, main { padding-left: 16px; padding-right: 16px; } header { padding-top: 28px; }
  .tiles { grid-template-columns: 1fr 1fr; } .tiles div { padding: 12px; } .tiles b { font-size: 1.35rem; }
  dl { grid-template-columns: 1fr; } .numbers { grid-template-columns: 1fr 1fr; } }
@media (pointer: coarse) { .js-plotly-plot .drag { touch-action: pan-y !important; } }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
"""

SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)"), finger = matchMedia("(pointer: coarse)").matches;
function coloured(value, style) {
  const name = typeof value === "string" && /^var\\((--\\w+)\\)$/.exec(value);
  if (name) return style.getPropertyValue(name[1]).trim();
  if (Array.isArray(value)) return value.map(one => coloured(one, style));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, coloured(one, style)]));
}
function draw(root) {
  for (const figure of root.querySelectorAll(".figure")) {
    const plot = figure.querySelector(".plot"), source = figure.querySelector("script");
    if (!plot.offsetParent) continue;
    const off = [...figure.querySelectorAll("[aria-pressed=false]")].map(button => button.value);
    const { data, layout } = coloured(JSON.parse(source.textContent), getComputedStyle(document.documentElement));
    for (const trace of data) trace.visible = !off.includes(trace.name);
    layout.dragmode = finger ? false : "zoom";
    Plotly.react(plot, data, layout, { responsive: true, displayModeBar: false });
  }
}
for (const views of document.querySelectorAll(".views"))
  views.addEventListener("change", event => {
    for (const view of views.querySelectorAll(".view")) view.hidden = view.dataset.of !== event.target.id;
    draw(views);
  });
for (const button of document.querySelectorAll(".legend button"))
  button.addEventListener("click", () => {
    button.ariaPressed = button.ariaPressed === "false";
    draw(button.closest("section"));
  });
dark.addEventListener("change", () => draw(document));
draw(document);
"""

AXIS = {
    "gridcolor": "var(--line)",
    "linecolor": "var(--line)",
    "zeroline": False,
    "automargin": True,
    "title": {"font": {"color": "var(--muted)", "size": 13}, "standoff": 10},
    "tickfont": {"color": "var(--muted)"},
}
LAYOUT = {
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "var(--ink)"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 0, "r": 4, "t": 8, "b": 8},
    "showlegend": False,
    "hovermode": "closest",
    "hoverlabel": {"bgcolor": "var(--panel)", "bordercolor": "var(--line)", "font": {"color": "var(--ink)"}},
    "xaxis": AXIS,
    "yaxis": AXIS,
}


def page(title: str, body: str) -> str:
    """The whole page; `body` is HTML."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
{body}
<script>{get_plotlyjs()}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def plot(alt: str, traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], height: int = 380) -> str:
    """A figure that Plotly draws; `alt` says in words what it shows; several traces get a legend."""
    figure = {"data": traces, "layout": {"template": {"layout": LAYOUT}, **layout}}
    source = json.dumps(figure, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    named = {trace["name"]: _sign(trace) for trace in reversed(traces) if "name" in trace}
    legend = "".join(
        f'<button type="button" aria-pressed="true" value="{escape(name)}">{sign}{name}</button>'
        for name, sign in reversed(named.items())
    )
    shown = f'<div class="legend">{legend}</div>' if len(named) > 1 else ""
    drawn = f'<div class="plot" role="img" aria-label="{escape(alt)}" style="height:{height}px"></div>'
    return f'<div class="figure">{shown}{drawn}<script type="application/json">{source}</script></div>'


def _sign(trace: Mapping[str, Any]) -> str:
    """How a legend shows a trace."""
    look = trace["marker"] if trace["mode"] == "markers" else trace["line"]
    sign = SIGNS[look.get("symbol", "circle") if trace["mode"] == "markers" else look.get("dash", "solid")]
    return f'<span aria-hidden="true" style="color:{look["color"]}">{sign}</span>'


def views(name: str, legend: str, panels: Mapping[str, str]) -> str:
    """Panels of which one is shown at a time, chosen by their titles; a single one stands alone."""
    if len(panels) == 1:
        return next(iter(panels.values()))
    buttons, shown = "", ""
    for n, (title, panel) in enumerate(panels.items()):
        checked, hidden = (" checked", "") if n == 0 else ("", " hidden")
        buttons += f'<input type="radio" name="{name}" id="{name}-{n}"{checked}>'
        buttons += f'<label for="{name}-{n}">{escape(title)}</label>'
        shown += f'<div class="view" data-of="{name}-{n}"{hidden}>{panel}</div>'
    return f'<fieldset class="views"><legend>{escape(legend)}</legend>{buttons}{shown}</fieldset>'


def table(
    caption: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    text: int = 1,
    found: int = 0,
    foot: Sequence[str] = (),
) -> str:
    """A table of HTML cells: the first `text` columns are words, the first `found` rows are of found models."""

    def cells(row: Sequence[str], scope: str) -> str:
        kinds = ['class="text"' if place < text else "" for place in range(len(row))]
        first = f'<th scope="{scope}">{row[0]}</th>'
        tag = 'th scope="col"' if scope == "col" else "td"
        rest = "".join(f"<{tag} {k}>{c}</{tag[:2]}>" for k, c in zip(kinds[1:], row[1:], strict=True))
        return first + rest

    body = "".join(f"<tr{' class=found' if n < found else ''}>{cells(row, 'row')}</tr>" for n, row in enumerate(rows))
    end = f"<tfoot><tr>{cells(foot, 'row')}</tr></tfoot>" if foot else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption><span>{escape(caption)}</span></caption>"
        f"<thead><tr>{cells([escape(title) for title in head], 'col')}</tr></thead>"
        f"<tbody>{body}</tbody>{end}</table></div>"
    )


def lead(text: str) -> str:
    """The sentences below a section's title, as text."""
    return f'<p class="lead">{escape(text)}</p>'


def details(summary: str, content: str) -> str:
    """HTML that is shown on demand."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def number(value: float | None, sign: str = "", places: int = 4) -> str:
    """A decimal number; `sign` is "+" where a sign is always wanted."""
    return NONE if value is None else f"{value:{sign}.{places}f}".replace("-", "−")


def interval(low: float | None, high: float | None, sign: str = "", places: int = 4) -> str:
    """[low, high], or nothing where it was not measured."""
    if low is None or high is None:
        return ""
    return f"[{number(low, sign, places)}, {number(high, sign, places)}]"


def short(value: float) -> str:
    """Three digits and a unit: 1.23 M."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}\u00a0{unit}"
    return f"{value:,.0f}"


def count(value: float | None) -> str:
    """The same as HTML that also holds the exact number."""
    return NONE if value is None else f'<data value="{value:.0f}" title="{value:,.0f}">{short(value)}</data>'


def duration(seconds: float) -> str:
    """Seconds as 0.5 s, 42 s, 3 min 20 s or 2 h 5 min."""
    if seconds < 59.5:
        return f"{seconds:.2g}\u00a0s" if seconds < 10 else f"{seconds:.0f}\u00a0s"
    minutes, rest = divmod(round(seconds), 60)
    told = f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    return told.replace(" ", "\u00a0")
