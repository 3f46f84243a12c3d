"""Drift of raw features: what the rows of one time were like, and how far those of another are from it.

The distance is the population stability index, Σ (q - p)·ln(q / p) over bins (Siddiqi, 2006), customarily called
moderate from 0.1 and large from 0.25 on. Samples of one distribution are (bins - 1)·(1/rows + 1/rows) apart in the
mean, so that much is taken off.
"""

import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from math import log
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nascore.datasets import Layout

FREQUENT, SHARED, BINS = 32, 16, 10
"""A category has a bin for each of its most frequent values, further values share some; a number has quantiles."""
SAMPLE = 65_536
LABEL = "label"
Counts = NDArray[np.int64]
Profile = Mapping[str, Mapping[str, Any]]


def profile(tables: Iterable[pa.Table], layout: Layout) -> dict[str, dict[str, Any]]:
    """What rows are like, as JSON: for each feature its bins and how many rows are in each, `missing` last.

    Memory is that of the values of categories; of numbers, a random sample is kept. The label's bins are 0 and 1.
    """
    categories = {one.name: Counter[Any]() for one in layout.features if one.kind == "category"}
    numbers = {one.name: np.zeros((2, 0)) for one in layout.features if one.kind == "number"}
    labels, rng = np.zeros(2, np.int64), np.random.default_rng(0)
    for table in tables:
        for name, counter in categories.items():
            for counted in pc.value_counts(_whole(table[name])).to_pylist():
                counter[counted["values"]] += counted["counts"]
        for name, kept in numbers.items():
            drawn = np.stack([rng.random(len(table)), _floats(table[name])])
            joined = np.concatenate([kept, drawn], 1)
            numbers[name] = joined[:, np.argsort(joined[0], kind="stable")[:SAMPLE]]
        if layout.label:
            labels += np.bincount(np.asarray(table[layout.label]), minlength=2)
    found: dict[str, dict[str, Any]] = {}
    for name, counter in categories.items():
        values = [value for value, _ in _ranked(counter)[:FREQUENT]]
        bins = {"values": values}
        counts = _placed(pa.array(list(counter)), bins, np.array(list(counter.values()), np.int64))
        found[name] = {**bins, "counts": counts.tolist()}
    for name, (_, value) in numbers.items():
        known = value[np.isfinite(value)]
        edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)).tolist() if len(known) else []
        found[name] = {"edges": edges, "counts": _binned(value, edges).tolist()}
    return found | ({LABEL: {"counts": labels.tolist()}} if layout.label else {})


def alike(tables: Iterable[pa.Table], layout: Layout, known: Profile) -> dict[str, Counts]:
    """How many rows are in each bin of a known profile, by feature; those that the layout lacks are left out."""
    names = [one.name for one in layout.features if one.name in known]
    counted = [*names, *([LABEL] if layout.label else [])]
    found = {name: np.zeros(len(known[name]["counts"]), np.int64) for name in counted}
    for table in tables:
        for name in names:
            if "edges" in known[name]:
                found[name] += _binned(_floats(table[name]), known[name]["edges"])
            else:
                counts = pc.value_counts(_whole(table[name]))
                found[name] += _placed(counts.field(0), known[name], np.asarray(counts.field(1)))
        if layout.label:
            found[LABEL] += np.bincount(np.asarray(table[layout.label]), minlength=2)
    return found


def index(before: Counts, now: Counts) -> tuple[float, float]:
    """The population stability index of two counts over the same bins, and what it is in the mean without drift.

    Counts are raised by one half; bins that neither fills count for nothing.
    """
    filled = (before + now) > 0
    p, q = (counts[filled] + 0.5 for counts in (before, now))
    p, q = p / p.sum(), q / q.sum()
    chance = (filled.sum() - 1) * (1 / max(1, before.sum()) + 1 / max(1, now.sum()))
    return float(((q - p) * np.log(q / p)).sum()), float(max(0.0, chance))


def drift(known: Profile, counts: Mapping[str, Counts]) -> dict[str, dict[str, float]]:
    """For each feature, and the label: "psi", what of it is `chance`, and `excess`, the rest of it."""
    found = {}
    for name, now in counts.items():
        psi, chance = index(np.array(known[name]["counts"], np.int64), now)
        found[name] = {"psi": psi, "chance": chance, "excess": max(0.0, psi - chance)}
    return found


def entropy(rate: float) -> float:
    """The log loss of always saying a click rate, in nats: what a loss is divided by to be comparable across days."""
    return -sum(p * log(p) for p in (rate, 1 - rate) if p > 0)


def _ranked(counter: Counter[Any]) -> list[tuple[Any, int]]:
    """Values but null, the most frequent first."""
    known = [(value, count) for value, count in counter.items() if value is not None]
    return sorted(known, key=lambda one: (-one[1], repr(one[0])))


def _placed(values: pa.Array, bins: Mapping[str, Any], counts: Counts) -> Counts:
    """Counted values by bins: the frequent ones, those that share bins by a hash, null."""
    frequent = {value: place for place, value in enumerate(bins["values"])}
    found = np.zeros(len(frequent) + SHARED + 1, np.int64)
    for value, count in zip(values.to_pylist(), counts.tolist(), strict=True):
        if value is None:
            found[-1] += count
        else:
            shared = len(frequent) + zlib.crc32(repr(value).encode()) % SHARED
            found[frequent.get(value, shared)] += count
    return found


def _binned(value: NDArray[np.float64], edges: list[float]) -> Counts:
    """Numbers by bins between edges; those that are none in the last."""
    known = value[np.isfinite(value)]
    counts = np.bincount(np.searchsorted(edges, known, side="right"), minlength=len(edges) + 2)
    counts[-1] = len(value) - len(known)
    return counts.astype(np.int64)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.asarray(column.cast(pa.float64(), safe=False).fill_null(float("nan")))
    return found


def _whole(column: Any) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
