"""Versions of click models: what a finished run found, made into a folder that scores raw rows by itself.

`weights-<part>.safetensors`, `schema.json`, `vocabulary/<feature>.parquet`, `profile.json` (what the training rows were
like, see `nascore.drift`), `router.safetensors` where kinds of rows have models of their own, and from what a later
search begins: `supernet.safetensors`, if one was trained, and `front.json`.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from components.finalists import Finalist, contenders, trained
from components.folder import Folder
from components.run import Run
from components.score import Vocabulary
from components.trainings import settled
from components.vocabularies import VOCABULARY, path
from nascore import metrics
from nascore.datasets import Dataset, Layout
from nascore.methods import Method, from_json
from nascore.net import Supernet
from nascore.routing import Routed
from nascore.schema import Batch, Schema
from nascore.space import Space, parse
from nascore.tasks import Model
from nascore.training import load

SUPERNET, ROUTER, FRONT, PROFILE = "supernet.safetensors", "router.safetensors", "front.json", "profile.json"
ROWS = 8_192
Values = NDArray[np.float64]


def vocabulary(folder: Folder, name: str) -> Vocabulary:
    """That of a feature, of a prepared run or of a version."""
    return Vocabulary(folder.read_table(path(name)))


class Foreign(ValueError):
    """A version was made by another version of nascore, which knew other settings or built other nets."""


@contextmanager
def understood(about: Mapping[str, Any]) -> Iterator[None]:
    """Around what makes something of a version's settings, schema or weights: what does not fit raises `Foreign`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        why = f"{type(error).__name__}, {str(error).splitlines()[0]}"
        raise Foreign(f"version {about['version']} is of another version of nascore: {why}") from error


def method_of(about: Mapping[str, Any], name: str = "method") -> Method:
    """A method of a version; raises `Foreign`.

    name: "method" as it was trained, "base" as it was asked for.
    """
    with understood(about):
        return from_json(about[name])


class Version:
    """A version as it scores raw rows; raises `Foreign`.

    folder: where it stands. about: what it was sealed with.
    """

    def __init__(self, folder: Folder, about: dict[str, Any]) -> None:
        self.folder, self.about = folder, about
        self.method = method_of(about)
        described = folder.read_text("schema.json")
        with understood(about):
            self.schema = Schema.from_json(described)
        named = [column.name for column in self.schema.columns if column.kind == "category"]
        self.vocabularies = {name: vocabulary(folder, name) for name in named}
        self.model = self._model()

    def _model(self) -> Model:
        task = self.method.task(self.schema).eval()
        parts = []
        for place, part in enumerate(self.about["parts"]):
            kept, whole = self.about["kept"], self.method.space(self.schema)
            weights = self.folder.read_tensors(f"weights-{place}.safetensors")
            with understood(self.about):
                space = whole if kept else whole.narrow(parse(part))
                supernet = self._net(self.method, space, searching=kept)
                load(supernet, task, weights)
            parts.append(supernet.eval())
        if len(parts) == 1:
            return parts[0].steadily
        source = self._net(self.method, self.method.space(self.schema), searching=True)
        router = self.method.router(source, len(parts))
        weights = self.folder.read_tensors(ROUTER)
        with understood(self.about):
            router.load_state_dict(weights)
        return Routed(router.eval(), [part.steadily for part in parts])

    def _net(self, method: Method, space: Space, searching: bool) -> Supernet:
        return method.supernet(self.schema, space, 0, searching)

    def logits(self, table: pa.Table) -> torch.Tensor:
        """The logit of a click for each raw row. Shape (rows,)."""
        columns = {}
        for column in self.schema.columns:
            raw = table[column.name]
            if column.kind == "category":
                columns[column.name] = torch.from_numpy(self.vocabularies[column.name].ids(raw.combine_chunks()))
            else:
                value = np.asarray(raw.cast(pa.float32(), safe=False).fill_null(float("nan")))
                columns[column.name] = torch.from_numpy(np.where(np.isfinite(value), value, np.float32("nan")))
        batch = Batch(columns, {}, torch.arange(len(table)))
        with torch.inference_mode():
            found: torch.Tensor = torch.cat([self.model(batch.take(part)) for part in batch.rows.split(ROWS)])
        return found

    def losses(self, dataset: Dataset) -> Values:
        """The log loss of each raw row, in nats, in the order of the files. Shape (rows,)."""
        found = [
            metrics.log_loss(self.logits(table), torch.from_numpy(np.array(label))).numpy()
            for table, label in labelled(dataset)
        ]
        return np.concatenate(found)


def labelled(dataset: Dataset) -> Iterator[tuple[pa.Table, NDArray[np.int8]]]:
    """The raw rows of a log, some at a time, with their labels."""
    label = dataset.layout().label
    for table in dataset.rows():
        yield table, np.asarray(table[label])


def differs(schema: Schema, layout: Layout) -> list[str]:
    """The features that the raw rows do not have as a version's schema does, or have besides."""
    there = {one.name: one.kind for one in layout.features}
    known = {column.name: column.kind for column in schema.columns}
    return sorted(name for name in there | known if there.get(name) != known.get(name))


def best(run: Run) -> tuple[Finalist, int]:
    """Of all that a finished run compares what is best on validation rows in the mean over seeds, and its best seed."""

    def value(one: Finalist, seed: int) -> float:
        results = [(run.folder / trained(one, seed, part)).read_json("result.json") for part in range(len(one.parts))]
        rows = sum(result["judged"] for result in results)
        return float(sum(result["value"] * result["judged"] for result in results) / rows)

    compared = [one for one in contenders(run) if not one.kept]
    if not compared:
        (kept, *_) = contenders(run)
        return kept, run.seeds[0]
    one = max(compared, key=lambda one: sum(value(one, seed) for seed in run.seeds))
    return one, max(run.seeds, key=lambda seed: value(one, seed))


def write(run: Run, target: Folder, profile: Any, base: Method) -> dict[str, Any]:
    """Copy the best model of a finished run into a version's folder; what to seal it with.

    base: the method as it was asked for, before anything of it was tuned or shortened.
    """
    one, seed = best(run)
    prepared = run.folder / "prepare"
    target.write_text("schema.json", prepared.read_text("schema.json"))
    target.write_json(PROFILE, profile)
    for name in prepared.names(f"{VOCABULARY}/*.parquet"):
        copied(prepared, name, target, name)
    if one.kept:
        target.write_tensors("weights-0.safetensors", settled(run, one.method, one.of))
    for part in range(0 if one.kept else len(one.parts)):
        copied(run.folder / trained(one, seed, part), "weights.safetensors", target, f"weights-{part}.safetensors")
    if one.routed:
        copied(run.folder / "derive", ROUTER, target, ROUTER)
    if (run.folder / "supernet").done:
        copied(run.checkpoint(), "weights.safetensors", target, SUPERNET)
    searched = (run.folder / "search").exists(FRONT)
    target.write_json(FRONT, (run.folder / "search").read_json(FRONT) if searched else [])
    return {
        "label": one.label,
        "method": one.method.to_json(),
        "base": base.to_json(),
        "parts": [{name: list(chosen) for name, chosen in part.items()} for part in one.parts],
        "kept": one.kept,
        "refreshable": not (one.routed or one.kept or one.method.decides or one.method.inherits),
        "seed": seed,
        "run": run.root,
    }


def copied(source: Folder, name: str, target: Folder, as_name: str) -> None:
    """Copy a file from one folder into another, whole or not at all."""
    with target.writing(as_name) as local:
        source.fs.get_file(f"{source.path}/{name}", local)
