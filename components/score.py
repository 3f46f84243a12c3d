"""Scores raw rows by the model of this folder. It needs torch, pyarrow and safetensors, and none of the code that
trained the model.

    python score.py --check                    are the golden rows scored as they were when this was made?
    python score.py ROWS [--to FILE]           ROWS: parquet or CSV of raw features, by the names in schema.json
    python score.py USERS --top 10 [--unseen]  vectors: the best items for each row of users and their pasts
    python score.py ITEMS --side item          two towers: the vectors of items, new ones among them

A raw value is looked up in vocabulary/; null, and what was never met in training, has id 0. A past stands in a column
`history`, the raw item ids, oldest first. Lists are lists in parquet; in CSV they are texts with | between the values.
"""

import argparse
import csv
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-5
ROWS = 4_096


WHOLE, NUMBER = r"^-?[0-9]{1,18}$", r"^-?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?$"


class Vocabulary:
    """Raw values to ids.

    table: a value and its id a row. Whole numbers are alike whatever their type is, and so are others; text that reads
    as one is one where numbers are known. Anything else is compared as text.
    """

    def __init__(self, table: pa.Table) -> None:
        self.unknown = (table.schema.metadata or {})[b"unknown"].decode()
        values = table.column(0).combine_chunks()
        self.kind = values.type
        if pa.types.is_integer(self.kind):
            self.kind = pa.int64()
        elif pa.types.is_floating(self.kind):
            self.kind = pa.float64()
        elif not pa.types.is_null(self.kind):
            self.kind = pa.string()
        self.values, self.id_V = values.cast(self.kind), table["id"].to_numpy()

    def ids(self, column: pa.Array) -> np.ndarray:
        """The id of each value, 0 for null and for what is unknown. Shape (values,)."""
        if not len(self.id_V):
            return np.zeros(len(column), np.int32)
        if self.unknown == "bins":
            number = np.asarray(_typed(column, pa.float64()).fill_null(float("nan")))
            place = np.searchsorted(self.values.to_numpy(), number, side="right") - 1
            return np.where(np.isfinite(number), self.id_V[place.clip(0)], 0).astype(np.int32)
        coded = _plain(column).dictionary_encode()
        place = self.places(coded.dictionary)
        id_V = np.where(place >= 0, self.id_V[place], 0)
        if self.unknown == "crc32":
            alike = coded.dictionary if self.kind == pa.string() else _typed(coded.dictionary, self.kind)
            for at in np.flatnonzero(place < 0):
                value = alike[int(at)].as_py()
                value = coded.dictionary[int(at)].as_py() if value is None else value
                id_V[at] = self.id_V[zlib.crc32(repr(value).encode()) % len(self.id_V)]
        known = np.asarray(pc.fill_null(coded.indices.cast(pa.int64()), -1))
        return np.append(id_V, 0)[known].astype(np.int32)

    def places(self, column: pa.Array) -> np.ndarray:
        """The row of each value in the table, -1 for null and for what is unknown. Shape (values,)."""
        found = pc.index_in(_typed(column, self.kind), value_set=self.values, skip_nulls=True)
        return np.asarray(pc.fill_null(found, -1))


def _plain(column: pa.Array) -> pa.Array:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _typed(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Values as whole numbers, numbers or text; null where one is none of it."""
    column = _plain(column)
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if text and kind != pa.string():
        reads = pc.match_substring_regex(column, WHOLE if kind == pa.int64() else NUMBER)
        column = pc.if_else(reads, column, pa.scalar(None, column.type))
    if pa.types.is_floating(column.type) and kind == pa.int64():
        whole = pc.and_(pc.less(pc.abs(column), 2.0**63), pc.equal(column, pc.trunc(column)))
        column = pc.if_else(whole, column, pa.scalar(None, column.type))
    return column.cast(kind, safe=kind != pa.float64())


class Bundle:
    """The model and what it needs to read raw rows."""

    def __init__(self, folder: Path = HERE) -> None:
        self.folder = folder
        self.schema = json.loads((folder / "schema.json").read_text(encoding="utf-8"))
        self.vocabularies: dict[str, Vocabulary] = {}
        self.loaded: dict[str, Any] = {}
        self.items = pq.read_table(folder / "items.parquet") if (folder / "items.parquet").exists() else None

    def program(self, name: str) -> Any:
        """A function from tensors by name to tensors by name."""
        if name not in self.loaded:
            self.loaded[name] = torch.export.load(self.folder / self.schema["programs"][name]["file"]).module()
        return self.loaded[name]

    def run(self, name: str, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs of a program for any number of rows."""
        rows = len(next(iter(inputs.values())))
        parts = []
        for first in range(0, rows, ROWS):
            with torch.no_grad():
                parts.append(self.program(name)({key: value[first : first + ROWS] for key, value in inputs.items()}))
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def ids(self, feature: str, column: pa.Array) -> np.ndarray:
        """The ids of a feature's raw values."""
        if feature not in self.vocabularies:
            self.vocabularies[feature] = Vocabulary(pq.read_table(self.folder / self.schema["vocabulary"][feature]))
        return self.vocabularies[feature].ids(column)

    def inputs(self, name: str, rows: pa.Table) -> dict[str, torch.Tensor]:
        """What a program reads of raw rows."""
        wanted = self.schema["programs"][name]["inputs"]
        past = self._past(rows, wanted) if any(one["kind"] == "history" for one in wanted) else np.zeros((0, 0))
        found = {}
        for one in wanted:
            column = _column(rows, "history" if one["kind"] == "history" else one["name"])
            if one["kind"] == "number":
                value = np.asarray(column.cast(pa.float64(), safe=False).fill_null(float("nan"))).astype(np.float32)
                found[one["name"]] = torch.from_numpy(np.where(np.isfinite(value), value, np.float32("nan")))
            elif one["kind"] == "set":
                value = _padded(self._members(one["name"], column), one["shape"][1], right=True)
                found[one["name"]] = torch.from_numpy(value)
            elif one["kind"] == "history":
                found[one["name"]] = torch.from_numpy(self._shown(one, past))
            else:
                found[one["name"]] = torch.from_numpy(self.ids(one["name"], column))
        return found

    def _members(self, feature: str, column: pa.Array) -> list[np.ndarray]:
        lists = _lists(column)
        flat = self.ids(feature, lists.flatten())
        ends = np.cumsum(np.asarray(pc.fill_null(pc.list_value_length(lists), 0)))
        return np.split(flat, ends[:-1]) if len(ends) else []

    def _past(self, rows: pa.Table, wanted: list[dict[str, Any]]) -> np.ndarray:
        """The ids of past events, oldest first, padded left; unknown items are left out. Shape (rows, T)."""
        members = self._members(self.schema["item"], _column(rows, "history"))
        known = [ids[ids > 0] for ids in members]
        lengths = [one["shape"][1] for one in wanted if one["kind"] == "history"]
        longest = lengths[0] or max(2, *map(len, known), 0) if known else 2
        return _padded(known, longest, right=False)

    def _shown(self, one: dict[str, Any], past: np.ndarray) -> np.ndarray:
        """Past events by one of their features."""
        if one["of"] == self.schema["item"]:
            return past
        assert self.items is not None
        column = self.items[f"feature/{one['of']}"].combine_chunks()
        flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
        table = flat.to_numpy().reshape(len(column), -1)
        table = np.concatenate([np.zeros((1, table.shape[1]), np.int32), table])[past]
        return table if len(one["shape"]) == 3 else np.ascontiguousarray(table[:, :, 0])

    def best(self, rows: pa.Table, top: int, unseen: bool = False, index: bool = False) -> pa.Table:
        """The best items of each row with their scores, best first. unseen: without those of its past."""
        assert self.items is not None
        name = "user" if "user" in self.schema["programs"] else "model"
        user = self.run(name, self.inputs(name, rows))["user"]
        user = user[:, None] if user.dim() == 2 else user
        seen = [np.zeros(0, np.int32)] * len(user)
        if unseen:
            seen = self._members(self.schema["item"], _column(rows, "history"))
        raw, items, scores = self.items["item"].to_pylist(), [], []
        if index:
            import faiss

            searcher = faiss.read_index(str(self.folder / "items.faiss"))
        else:
            vector_IO = load_file(self.folder / "items.safetensors")["vector"]
        for own_KO, met in zip(user, seen, strict=True):
            deep = min(len(raw), top + len(met))
            if index:
                score, place = searcher.search(own_KO.numpy(), deep)
                best: dict[int, float] = {}
                for number, value in zip(place.ravel().tolist(), score.ravel().tolist(), strict=True):
                    best[number] = max(value, best.get(number, -np.inf)) if number > 0 else -np.inf
                ranked = sorted(best.items(), key=lambda one: -one[1])
            else:
                value_I = (own_KO @ vector_IO.T).amax(0)[1:]
                value, place = value_I.topk(deep)
                ranked = list(zip((place + 1).tolist(), value.tolist(), strict=True))
            kept = [(number, value) for number, value in ranked if number > 0 and number not in set(met.tolist())][:top]
            items.append([raw[number - 1] for number, _ in kept])
            scores.append([value for _, value in kept])
        return rows.append_column("items", pa.array(items)).append_column("scores", pa.array(scores))

    def scored(self, rows: pa.Table) -> pa.Table:
        """Click models: the rows with their logits and probabilities."""
        found = self.run("model", self.inputs("model", rows))
        logit = found["logit"]
        rows = rows.append_column("logit", pa.array(logit.numpy()))
        return rows.append_column("score", pa.array(logit.sigmoid().numpy()))

    def vectors(self, rows: pa.Table, side: str) -> pa.Table:
        """The rows with the vectors of users or items."""
        name = side if side in self.schema["programs"] else "model"
        return rows.append_column("vector", pa.array(self.run(name, self.inputs(name, rows))[side].flatten(1).tolist()))

    def check(self) -> float:
        """The largest difference from the golden outputs, over batches of several sizes."""
        golden, worst = load_file(self.folder / "golden.safetensors"), 0.0
        for name in self.schema["programs"]:
            kept = {kind: f"{name}/{kind}/" for kind in ("in", "out")}
            inputs, outputs = (
                {key.removeprefix(own): value for key, value in golden.items() if key.startswith(own)}
                for own in kept.values()
            )
            rows = len(next(iter(inputs.values())))
            for size in {rows, 1, min(rows, 7)}:
                for first in range(0, rows if size > 1 else 3, size):
                    part = {key: value[first : first + size] for key, value in inputs.items()}
                    with torch.no_grad():
                        found = self.program(name)(part)
                    for key, value in outputs.items():
                        worst = max(worst, _apart(found[key], value[first : first + size]))
        return worst


def _apart(found: torch.Tensor, golden: torch.Tensor) -> float:
    if found.shape != golden.shape:
        return float("inf")
    apart = (found.double() - golden.double()).abs() / golden.double().abs().clamp(min=1)
    return float(apart.nan_to_num(float("inf"), float("inf")).max()) if apart.numel() else 0.0


def _column(rows: pa.Table, name: str) -> pa.Array:
    if name not in rows.column_names:
        raise SystemExit(f"error: no column {name!r}; there are: {', '.join(rows.column_names)}")
    return rows[name].combine_chunks()


def _lists(column: pa.Array) -> pa.ListArray:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return pa.array([[one for one in text.split("|") if one] if text else [] for text in column.to_pylist()])
    if pa.types.is_null(column.type):
        return pa.array([[]] * len(column), pa.list_(pa.string()))
    return pc.if_else(column.is_valid(), column, pa.array([[]], column.type)[0])


def _padded(lists: list[np.ndarray], width: int, right: bool) -> np.ndarray:
    found = np.zeros((len(lists), width), np.int32)
    for row, ids in enumerate(lists):
        if right:
            found[row, : min(width, len(ids))] = ids[:width]
        elif len(ids):
            found[row, -min(width, len(ids)) :] = ids[-width:]
    return found


def read(path: str) -> pa.Table:
    """A parquet file, or a CSV file whose columns are text; empty fields are null."""
    if not path.endswith(".csv"):
        return pq.read_table(path)
    with open(path, encoding="utf-8", newline="") as file:
        names = next(csv.reader(file), [])
    options = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    return pyarrow.csv.read_csv(path, convert_options=options)


def main() -> int:
    """0 when done; 1 where the golden rows are scored otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", help="parquet or CSV of raw features")
    parser.add_argument("--to", default="scores.parquet", help="the file to write; .parquet or .csv")
    parser.add_argument("--check", action="store_true", help="score the golden rows")
    parser.add_argument("--top", type=int, default=0, help="how many items to name for each row")
    parser.add_argument("--unseen", action="store_true", help="without the items of the row's past")
    parser.add_argument("--index", action="store_true", help="search by items.faiss instead of exactly")
    parser.add_argument("--side", choices=("user", "item"), default="user", help="whose vectors")
    asked = parser.parse_args()
    bundle = Bundle()
    if asked.check:
        worst = bundle.check()
        print(f"largest difference from the golden outputs: {worst:.2g} ({TOLERANCE:.0g} is allowed)")
        return 0 if worst <= TOLERANCE else 1
    if not asked.rows:
        parser.error("name a file of rows, or --check")
    rows = read(asked.rows)
    if bundle.schema["kind"] == "click":
        scored = bundle.scored(rows)
    elif asked.top:
        scored = bundle.best(rows, asked.top, asked.unseen, asked.index)
    else:
        scored = bundle.vectors(rows, asked.side)
    if asked.to.endswith(".csv"):
        lists = [name for name in scored.column_names if pa.types.is_list(scored[name].type)]
        for name in lists:
            text = ["|".join(map(str, one or [])) for one in scored[name].to_pylist()]
            scored = scored.set_column(scored.column_names.index(name), name, pa.array(text))
        pyarrow.csv.write_csv(scored, asked.to)
    else:
        pq.write_table(scored, asked.to)
    print(f"{len(scored)} rows: {asked.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
