"""The models that are trained anew and tested: the candidates of each budget and strategy, and the rivals, as tuned."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from components.folder import Folder
from components.job import Job
from components.run import Run
from nascore import plugins
from nascore.methods import Method
from nascore.methods._gated import GatedMethod
from nascore.space import Genotype, parse

LIKE = ("embedding", "layers", "steps", "pretrained", "learner")


@dataclass(frozen=True)
class Finalist:
    """One model of the comparison.

    parts: what each kind of rows has of it, or the one model of all rows. strategy: what found it. candidate: the id
    under which the search knows it, before it was tuned. kept: whether it is the supernet itself, trained no further.
    of: the folder of the supernet it comes from.
    """

    label: str
    role: str
    method: Method
    parts: tuple[Genotype, ...]
    model_id: str
    budget: str = ""
    strategy: str = ""
    candidate: str = ""
    kept: bool = False
    of: str = "supernet"

    @property
    def routed(self) -> bool:
        """Whether a router sends each row to its part."""
        return len(self.parts) > 1

    @property
    def genotype(self) -> Genotype:
        """That of the only part."""
        (genotype,) = self.parts
        return genotype

    def jobs(self, seed: int, folder: str, refit: bool = False) -> list[Job]:
        """What has to be trained from a seed, a part each; `folder` is that of all seeds of a part but for `{part}`."""
        if self.kept:
            return []
        return [
            Job.make(
                f"{folder.format(part=part)}/seed={seed}",
                self.method,
                genotype,
                seed,
                refit,
                part if self.routed else -1,
                self.of,
            )
            for part, genotype in enumerate(self.parts)
        ]


def finalists(run: Run) -> list[Finalist]:
    """What the search found, of each budget and strategy the best score first, what was derived, then the rivals."""
    return _tuned(run, settings(run))


def untuned(run: Run) -> list[Finalist]:
    """The same before anything was tuned."""
    return _tuned(run, {})


def _tuned(run: Run, tuned: Mapping[str, Mapping[str, str]]) -> list[Finalist]:
    derived, digest, found = decided(run), run.schema.split_digest, list[Finalist]()
    candidates = (run.folder / "search").read_json("candidates.json") if not run.method.routes else []
    for one in candidates:
        method, genotype = run.method.tuned(tuned.get(one["budget"], {})), parse(one["genotype"])
        label = f"{method.label} {one['budget']}, {one['as']}"
        model_id = method.model_id(genotype, digest)
        found.append(Finalist(label, "found", method, (genotype,), model_id, one["budget"], one["as"], one["model_id"]))
    for one in derived.get("", []):
        method, parts = run.method.tuned(tuned.get(one["budget"], {})), tuple(map(parse, one["parts"]))
        label = f"{method.label} {one['budget']}, {one['as']}"
        method = method.wearing(one["wearer"], one["gated"]) if one["wearer"] else method
        also = [one["as"]] if one["kept"] else []
        model_id = method.model_id(parts[0], digest, *parts[1:], *also)
        known = (label, "found", method, parts, model_id, one["budget"], one["as"], model_id, one["kept"])
        found.append(Finalist(*known))
    for rival, label in zip(run.methods[1:], labels(run.methods[1:]), strict=True):
        own = known_as(run, rival)
        (member,) = (
            [parse(one["parts"][0]) for one in derived[own]] if rival.decides else rival.space(run.schema).members()
        )
        method = rival.tuned(tuned.get(own, {}))
        model_id, of = method.model_id(member, digest), f"derive/{own}" if rival.decides else "supernet"
        found.append(Finalist(label, "baseline", method, (member,), model_id, of=of))
    return found


def labels(rivals: Sequence[Method]) -> list[str]:
    """What each rival is called: those of one label are told apart by the settings in which they differ."""
    told, known = [], [_dotted(rival.to_json()) for rival in rivals]
    for rival, settings in zip(rivals, known, strict=True):
        alike = [other for one, other in zip(rivals, known, strict=True) if one.label == rival.label]
        own = [f"{name}={value}" for name, value in settings.items() if any(one.get(name) != value for one in alike)]
        told.append(f"{rival.label} ({', '.join(own)})" if own else rival.label)
    return told


def _dotted(settings: Mapping[str, Any], outer: str = "") -> dict[str, Any]:
    """Settings and those inside them by their dotted names."""
    flat = dict[str, Any]()
    for name, value in settings.items():
        flat |= _dotted(value, f"{outer}{name}.") if isinstance(value, Mapping) else {f"{outer}{name}": value}
    return flat


def known_as(run: Run, rival: Method) -> str:
    """What a rival goes by before it is tuned and has decided."""
    if rival.decides:
        return rival.model_id({}, run.schema.split_digest)
    (member,) = rival.space(run.schema).members()
    return rival.model_id(member, run.schema.split_digest)


def decided(run: Run) -> Mapping[str, list[dict[str, Any]]]:
    """What methods have decided by themselves: ours as "", rivals by what they go by."""
    if "derive" not in run.planned:
        return {}
    found: dict[str, list[dict[str, Any]]] = (run.folder / "derive").read_json("candidates.json")
    return found


def contenders(run: Run) -> list[Finalist]:
    """What is tested: of each budget and strategy the candidate that is best on validation rows, then the rivals.

    The mean over seeds counts. Where a method has a `final` form, that is what is trained and tested of the best.
    """
    groups: dict[tuple[str, str], list[Finalist]] = {}
    everyone = finalists(run)
    for one in everyone:
        if one.role == "found":
            groups.setdefault((one.budget, one.strategy), []).append(one)
    chosen = []
    for group in groups.values():
        one = group[0] if len(group) == 1 else max(group, key=lambda one: _value(run, one))
        final = one.method if one.kept or one.routed else one.method.final(run.schema)
        known = one.model_id if final == one.method else final.model_id(one.genotype, run.schema.split_digest)
        chosen.append(replace(one, method=final, model_id=known))
    return [*chosen, *(one for one in everyone if one.role != "found")]


def _value(run: Run, one: Finalist) -> float:
    values: list[float] = [(run.folder / trained(one, seed)).read_json("result.json")["value"] for seed in run.seeds]
    return sum(values) / len(values)


def trained(one: Finalist, seed: int, part: int = 0) -> str:
    """The folder of a finalist's training, below the run's."""
    return f"retrain/{one.model_id}/part={part}/seed={seed}"


def settings(run: Run) -> Mapping[str, Mapping[str, str]]:
    """What `tune` chose: settings by dotted name, for each budget of ours and for each rival by its model id."""
    folder = run.folder / "tune"
    if "tune" not in run.stages or not folder.done:
        return {}
    chosen: dict[str, Any] = {one["of"]: one["settings"] for one in folder.read_json("tuned.json")["methods"]}
    return chosen


def of_specs(rivals: Iterable[str], training: Any, like: Method | None = None) -> list[Method]:
    """Rivals by their specs; those that are trained by the same kind of settings as ours are given ours.

    like: the method whose size and steps those take that gates or weigh vectors, too, unless their spec says otherwise.
    A dotted name in a spec is a setting of a setting, as in autofield:learner.every=10.
    """
    methods: list[Method] = []
    for spec in rivals:
        name, _, rest = spec.partition(":")
        parts = [part.partition("=") for part in rest.split(",") if part]
        inner = {setting: value for setting, sign, value in parts if sign and "." in setting}
        kind = plugins.load("methods", name)
        known = {one.name: one.default for one in fields(kind)}
        shared = {"training": training} if isinstance(known.get("training"), type(training)) else {}
        if like is not None and issubclass(kind, GatedMethod):
            said = {setting for setting, _, _ in parts}
            shared |= {one: getattr(like, one) for one in LIKE if one in known and one not in said}
        plain = ",".join("".join(part) for part in parts if part[0] not in inner)
        method = plugins.build("methods", f"{name}:{plain}", **shared)
        try:
            methods.append(method.tuned(inner))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{spec!r}: {error}") from error
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
    return [parse(part) for model in models if model["candidate"] for part in model["parts"]]
