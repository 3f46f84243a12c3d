"""The report's section about kinds of rows: what a model keeps of each field, and whether telling kinds apart helps."""

from collections.abc import Mapping, Sequence
from html import escape

from components import pictures
from components.page import count, lead, table
from components.told import Told


def kinds(told: Told) -> str:
    """How many dimensions of each field every found model keeps that leaves out any, a column a part."""
    if not told.kinds or not told.found:
        return lead("This was not measured: the run told no kinds of rows apart.")
    rows, content = told.kinds["rows"], ""
    about = told.report.get("kinds") or "The models that could tell were not compared."
    content += f'<p class="verdict">{escape(about)}</p>'
    parts, costs = dict[str, Mapping[str, Sequence[str]]](), list[list[str]]()
    options = {
        name: len(decision.options) for name, decision in told.run.method.space(told.run.schema).decisions.items()
    }
    for model in told.found:
        known = told.report["models"][model["model_id"]]
        chosen = [{name: len(choice) for name, choice in part.items()} for part in known["parts"]]
        if known["kept"] or not any(chosen) or chosen == [options]:
            continue
        for place, part in enumerate(known["parts"]):
            many = len(known["parts"]) > 1
            name = f"kind {place + 1}" if many else known["strategy"]
            name = f"{name} ({known['budget']})" if len(told.run.budgets) > 1 else name
            parts[name] = part
            if many:
                costs.append([name, f"{rows[place]:,}", f"{rows[place] / sum(rows):.1%}", _kept(part)])
    if not parts:
        return content + lead("No model that was trained alone leaves out a dimension.")
    content += lead("How many dimensions of each field a model keeps; 0 leaves the field out.")
    content += pictures.kept(parts, options)
    if costs:
        content += table("Kinds of rows", ("Kind", "Training rows", "Share", "Dimensions kept"), costs)
    return content


def _kept(part: Mapping[str, Sequence[str]]) -> str:
    dims, fields = sum(map(len, part.values())), sum(bool(choice) for choice in part.values())
    return f"{count(dims)} of {fields} fields"
