"""The report's section on what a run cost, and where its budget ended it."""

from html import escape

from components.page import NONE, duration, lead, table
from components.told import Row, Told


def cost(told: Told) -> str:
    """Seconds of every stage, of a genotype scored, and of every model of the comparison trained alone."""
    if not told.stages:
        return lead("This was not measured: no stage of this run is done.")
    gpus = any(one["gpu_seconds"] for one in told.stages)
    total = {unit: sum(one[unit] for one in told.stages) for unit in ("seconds", "cpu_seconds", "gpu_seconds")}
    longest, rows = max(one["seconds"] for one in told.stages), []
    for one in told.stages:
        bar = f'<span class="bar" style="width:{100 * one["seconds"] / max(longest, 1e-3):.1f}%"></span>'
        rows.append([escape(one["stage"]) + bar, *_seconds(one, gpus), str(one["attempts"])])
    text = (
        "Wall time, and the time of all CPUs" + (" and GPUs" if gpus else "") + " that worked for it, of every stage; "
    )
    text += "all its attempts count, also those that were interrupted."
    head = ("Stage", "Wall", "CPU", *(["GPU"] if gpus else []), "Attempts")
    content = lead(text) + table("Stages", head, rows, foot=("All", *_seconds(total, gpus), ""))
    scored = [trial for trial in told.trials if trial.get("cpu_seconds")]
    if scored:
        mean = sum(trial["cpu_seconds"] for trial in scored) / len(scored)
        content += lead(f"A genotype took {duration(mean)} of CPU time to score, on average over {len(scored):,}.")
    alone = [_alone(told, model, gpus) for model in told.models]
    if alone:
        head = ("Model", "Trainings", "CPU of one", *(["GPU of one"] if gpus else []))
        content += table("Models trained alone", head, alone)
    return content


def _seconds(one: Row, gpus: bool) -> list[str]:
    return [_exact(one[unit]) for unit in ("seconds", "cpu_seconds", *(["gpu_seconds"] if gpus else []))]


def _exact(seconds: float) -> str:
    return f'<data value="{seconds}" title="{seconds:,.1f} s">{duration(seconds)}</data>'


def _alone(told: Told, model: Row, gpus: bool) -> list[str]:
    own = [one for one in told.results if one["model_id"] == model["model_id"] and "cpu_seconds" in one]
    units = ("cpu_seconds", *(["gpu_seconds"] if gpus else []))
    means = [_exact(sum(one[unit] for one in own) / len(own)) if own else NONE for unit in units]
    return [escape(model["model"]), str(len(own)), *means]


def stopped(told: Told) -> str:
    """A warning where the run's budget ended a stage before its time."""
    ended = [one for one in told.stages if one["stopped"]]
    if not ended:
        return ""
    names = ", ".join(escape(one["stage"]) for one in ended)
    why = escape(ended[0]["stopped"])
    return (
        f'<p class="warning"><strong>Stopped early:</strong> {why} was used up; {names} ended with what there was.</p>'
    )
