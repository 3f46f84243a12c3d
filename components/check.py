"""`python -m components check`: does raw data hold what it should, and what does it look like? Writes nothing."""

from argparse import ArgumentParser
from collections import Counter
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from nascore import plugins
from nascore.datasets import DataError, Dataset, Feature, Layout
from nascore.tables import Entities, Vocabulary


def main(arguments: list[str]) -> None:
    """Read the whole log once and print its statistics; raises DataError where the data cannot be used."""
    parser = ArgumentParser(prog="python -m components check", description=__doc__)
    names = ", ".join(plugins.names("datasets"))
    parser.add_argument("--dataset", required=True, help=f"a reader, with settings after a colon if any: {names}")
    parser.add_argument("--raw", default="", help="the folder of the raw files, on any fsspec URL")
    parser.add_argument("--on-bad-row", default="error", choices=("error", "skip"))
    known = parser.parse_args(arguments)
    dataset: Dataset = plugins.build("datasets", known.dataset, known.raw, known.on_bad_row)
    facts, features = survey(dataset)
    console, table = Console(), Table("column", "of", "kind", "distinct", "missing")
    for name, value in facts.items():
        console.print(f"{name:24} {value}", highlight=False)
    for row in features:
        table.add_row(*row)
    console.print(table)


def survey(dataset: Dataset) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    """Facts of the log by name, and one row of facts for each feature."""
    layout = dataset.layout()
    users, items = Vocabulary(), Vocabulary()
    per_user, per_item = Counter[int](), Counter[int]()
    rows = positive = 0
    first, last = np.iinfo(np.int64).max, np.iinfo(np.int64).min
    per_key = {layout.user: (users, per_user), layout.item: (items, per_item)} if layout.user else {}
    columns = {feature.name: _Column(feature) for feature in layout.features}
    for table in dataset.rows():
        rows += len(table)
        positive += int((np.asarray(table[layout.label]) > 0).sum()) if layout.label else len(table)
        for name, (vocabulary, counter) in per_key.items():
            counter.update(vocabulary.encode(table[name]).tolist())
        if layout.timestamp:
            times = np.asarray(table[layout.timestamp])
            first, last = min(first, int(times.min())), max(last, int(times.max()))
        _add(columns, table)
    if not rows:
        raise DataError(f"{dataset.raw} holds no usable row")
    facts = _facts(dataset, layout, rows, positive, per_user, per_item, first, last)
    for side, key, vocabulary in (("user", layout.user, users), ("item", layout.item, items)) if layout.user else ():
        own = {f.name: columns[f.name] for f in layout.features if f.side == side and f.name != key}
        entities = Entities(side, key, vocabulary, ())
        for table in dataset.entities(side):
            entities.add_table(table)
            _add(own, table)
        entities.check_tables()
        if entities.tabled:
            covered = 1 - entities.left_out / max(1, len(vocabulary) - 1)
            facts[f"in the {side} table"] = f"{covered:.1%} of the log's {key}"
    return facts, [
        (f.name, f.side, f"{f.kind}, {f.bins} bins" if f.bins else f.kind, *columns[f.name].told())
        for f in layout.features
    ]


class _Column:
    """What was seen of one column."""

    def __init__(self, feature: Feature) -> None:
        self.values, self.rows, self.missing = Vocabulary(feature.most), 0, 0
        self.number = feature.kind == "number"

    def add(self, column: Any) -> None:
        self.rows += len(column)
        self.missing += column.null_count
        if self.number:
            self.missing += int(np.sum(~np.isfinite(np.asarray(column.drop_null(), np.float64))))
        else:
            self.values.encode(pc.list_flatten(column) if "list" in str(column.type) else column)

    def told(self) -> tuple[str, str]:
        return "" if self.number else f"{len(self.values) - 1:,}", f"{self.missing / max(1, self.rows):.1%}"


def _add(columns: dict[str, _Column], table: Any) -> None:
    for name, column in columns.items():
        if name in table.column_names:
            column.add(table[name])


def _facts(
    dataset: Dataset,
    layout: Layout,
    rows: int,
    positive: int,
    per_user: Counter[int],
    per_item: Counter[int],
    first: int,
    last: int,
) -> dict[str, str]:
    facts = {
        "rows": f"{rows:,}",
        "rows with a positive label": f"{positive:,} ({positive / rows:.2%})" if layout.label else "all (no label)",
        "malformed rows left out": f"{sum(dataset.bad.values()):,}",
        "protocols": ", ".join(p for p in dataset.protocols if plugins.load("protocols", p).apart != bool(layout.user)),
        "time": f"{layout.timestamp}, {first} to {last}" if layout.timestamp else "the order of the file",
    }
    if not layout.user:
        return facts
    by_user = np.quantile(list(per_user.values()), [0, 0.5, 1]).astype(int)
    by_item = np.quantile(list(per_item.values()), [0, 0.5, 1]).astype(int)
    return facts | {
        f"users ({layout.user})": f"{len(per_user):,}",
        f"items ({layout.item})": f"{len(per_item):,}",
        "density": f"{rows / (len(per_user) * len(per_item)):.3%}",
        "rows a user": "least {:,}, median {:,}, most {:,}".format(*by_user),
        "rows an item": "least {:,}, median {:,}, most {:,}".format(*by_item),
        "history": f"{', '.join(layout.history) or 'none'}, at most {layout.history_length} events",
    }
