"""The models that are trained anew and tested: the candidates of each budget and strategy, and the rivals, as tuned."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from components.folder import Folder
from components.run import Run
from nascore import plugins
from nascore.methods import Method
from nascore.space import Genotype, parse


@dataclass(frozen=True)
class Finalist:
    """One model of the comparison.

    strategy: what found it. candidate: the id under which the search knows it, before it was tuned.
    """

    label: str
    role: str
    method: Method
    genotype: Genotype
    model_id: str
    budget: str = ""
    strategy: str = ""
    candidate: str = ""


def finalists(run: Run) -> list[Finalist]:
    """The candidates of the search, of each budget and strategy the best score first, then the rivals."""
    tuned, digest, found = settings(run), run.schema.split_digest, list[Finalist]()
    for one in (run.folder / "search").read_json("candidates.json"):
        method, genotype = run.method.tuned(tuned.get(one["budget"], {})), parse(one["genotype"])
        label = f"{method.label} {one['budget']}, {one['as']}"
        model_id = method.model_id(genotype, digest)
        found.append(Finalist(label, "found", method, genotype, model_id, one["budget"], one["as"], one["model_id"]))
    labels = Counter(rival.label for rival in run.methods[1:])
    for rival in run.methods[1:]:
        (member,) = rival.space(run.schema).members()
        own = rival.model_id(member, digest)
        method = rival.tuned(tuned.get(own, {}))
        label = rival.label if labels[rival.label] == 1 else f"{rival.label} ({own})"
        found.append(Finalist(label, "baseline", method, member, method.model_id(member, digest)))
    return found


def contenders(run: Run) -> list[Finalist]:
    """What is tested: of each budget and strategy the candidate that is best on validation rows, then the rivals.

    The mean over seeds counts. Where a method has a `final` form, that is what is trained and tested of the best.
    """
    best: dict[tuple[str, str], tuple[float, Finalist]] = {}
    everyone = finalists(run)
    for one in everyone:
        if one.role == "found":
            values = [(run.folder / trained(one, seed)).read_json("result.json")["value"] for seed in run.seeds]
            value, group = sum(values) / len(values), (one.budget, one.strategy)
            if group not in best or value > best[group][0]:
                best[group] = value, one
    chosen = []
    for _, one in best.values():
        final = one.method.final(run.schema)
        known = one.model_id if final == one.method else final.model_id(one.genotype, run.schema.split_digest)
        chosen.append(replace(one, method=final, model_id=known))
    return [*chosen, *(one for one in everyone if one.role != "found")]


def trained(one: Finalist, seed: int) -> str:
    """The folder of a finalist's training, below the run's."""
    return f"retrain/{one.model_id}/part=0/seed={seed}"


def settings(run: Run) -> Mapping[str, Mapping[str, str]]:
    """What `tune` chose: settings by dotted name, for each budget of ours and for each rival by its model id."""
    folder = run.folder / "tune"
    if "tune" not in run.stages or not folder.done:
        return {}
    chosen: dict[str, Any] = {one["of"]: one["settings"] for one in folder.read_json("tuned.json")["methods"]}
    return chosen


def of_specs(rivals: Iterable[str], training: Any) -> list[Method]:
    """Rivals by their specs; those that are trained by the same kind of settings as ours are given ours."""
    methods: list[Method] = []
    for spec in rivals:
        known = {one.name: one.default for one in fields(plugins.load("methods", spec.partition(":")[0]))}
        shared = {"training": training} if isinstance(known.get("training"), type(training)) else {}
        methods.append(plugins.build("methods", spec, **shared))
    return methods


def genotypes(text: str) -> list[Genotype]:
    """One genotype from JSON, or the found ones of the finished run in a folder."""
    if text.lstrip().startswith("{"):
        try:
            return [parse(text)]
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"not a genotype: {text}: {error}") from error
    folder = Folder(text) / "evaluate"
    if not folder.done:
        raise ValueError(f"{text} is neither a genotype as JSON nor the folder of a run that was evaluated")
    models = folder.read_json("report.json")["models"].values()
    return [parse(model["genotype"]) for model in models if model["candidate"]]
