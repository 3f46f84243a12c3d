"""Made-up clicks by day, with values that come and go and a day from which on other fields tell.

`python -m benchmarks.planted_days FOLDER --days 14 --drift 9` writes day partitions and their schema.yaml. The clicks
are those of `nascore.datasets.planted_clicks`. Each day a few values of the fields in `CHURNING` get new names, so that
the vocabulary grows. From the day of the drift on, other fields and pairs of fields tell than before; how often each
value occurs stays as it was, so only the champion's loss shows it.
"""

import argparse
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nascore.datasets.planted_clicks import CATEGORIES, LABEL, NUMBERS, PlantedClicks

FIRST = date(2026, 1, 1)
CHURNING, RENAMED = ("category_1", "category_6"), 2


class Shifted(PlantedClicks):
    """The same rows, of which another field tells by itself, and other pairs do."""

    mains: ClassVar[tuple[str, ...]] = ("category_0", "category_7")
    pairs: ClassVar[tuple[tuple[str, str], ...]] = (("category_2", "category_5"), ("category_3", "category_4"))
    noise: ClassVar[tuple[str, ...]] = ("category_1", "category_6", "number_1")


def write(folder: str | Path, days: int, rows: int, drift: int = 0, seed: int = 0, first: date = FIRST) -> list[str]:
    """Write so many days of so many rows; the dates. drift: the number of the first day that differs, 0 for none."""
    before, after = (kind(rows=days * rows, seed=seed) for kind in (PlantedClicks, Shifted))
    after.values, after.numbers = before.values, before.numbers
    for fields, table in before.tables.items():
        if fields in after.tables and len(fields) == 1:
            after.tables[fields] = table
    clicks = (before.clicks(), after.clicks())
    rng = np.random.default_rng((seed, 2))
    names = {name: [f"{slot}" for slot in range(size)] for name, size in zip(CATEGORIES, _sizes(before), strict=True)}
    described = {
        "label": LABEL,
        "features": [{"name": name, "kind": "number"} for name in NUMBERS] + [{"name": name} for name in CATEGORIES],
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "schema.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    dates = []
    for number in range(days):
        day = (first + timedelta(days=number)).isoformat()
        for name in CHURNING:
            for slot in rng.choice(len(names[name]), RENAMED, replace=False):
                names[name][slot] = f"{slot}, new on {day}"
        own = slice(number * rows, (number + 1) * rows)
        columns = {LABEL: clicks[bool(drift) and number + 1 >= drift][own]}
        columns |= dict(zip(NUMBERS, before.numbers[own].T, strict=True))
        for name, value in zip(CATEGORIES, before.values[own].T, strict=True):
            columns[name] = np.array(names[name])[value]
        place = Path(folder) / f"day={day}"
        place.mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), place / "part-0.parquet")
        (place / "_SUCCESS").touch()
        dates.append(day)
    return dates


def _sizes(planted: PlantedClicks) -> Sequence[int]:
    return [int(size) + 1 for size in planted.values.max(0)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    for option, value in {"days": 14, "rows": 4_000, "drift": 9, "seed": 0}.items():
        parser.add_argument(f"--{option}", type=int, default=value)
    known = parser.parse_args()
    print(*write(known.folder, known.days, known.rows, known.drift, known.seed))
