"""Day partitions and drift: which days are whole, which files are read, when rows happened, and how far days differ."""

from datetime import UTC, date, datetime
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components import prepare
from components.run import Run
from nascore import days, drift
from nascore.datasets import DataError, Feature, Layout
from nascore.datasets.parquet import Parquet
from nascore.methods.dnn import Dnn
from nascore.protocols.newest_day import NewestDay

DAYS = ("2026-01-29", "2026-01-30", "2026-01-31")
START = {day: int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) for day in DAYS}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three days of twelve rows in two files each, beside a schema."""
    described = {"label": "click", "features": [{"name": "site"}, {"name": "price", "kind": "number"}]}
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(described))
    for number, day in enumerate(DAYS):
        for part, rows in enumerate((8, 4)):
            written(tmp_path, day, part, rows, number)
    return tmp_path


def written(folder: Path, day: str, part: int, rows: int, site: int, **more: Any) -> None:
    place = folder / f"day={day}"
    place.mkdir(exist_ok=True)
    columns = {"click": [row % 2 for row in range(rows)], "site": [f"s{site}"] * rows, "price": [1.0] * rows, **more}
    pq.write_table(pa.table(columns), place / f"part-{part}.parquet")


# Which days


def test_whole_days_are_those_before_the_night_or_those_marked() -> None:
    files = [f"day={day}/part-0.parquet" for day in DAYS] + [
        "schema.yaml",
        "day=soon/part-0.parquet",
        "day=2026-01-28/x",
    ]
    assert days.complete(files, "2026-01-31") == (DAYS[:2], ()) and days.complete(files, "2026-02-09") == (DAYS, ())
    marked = [*files, "day=2026-01-29/_SUCCESS", "day=2026-01-31/_SUCCESS", "day=2026-01-27/_SUCCESS"]
    assert days.complete(marked, "2026-02-01") == ((DAYS[0], DAYS[2]), ("2026-01-27",))
    assert days.latest(DAYS, 2) == DAYS[1:]


def test_dates_are_read_in_order() -> None:
    assert days.dates("2026-01-31+2026-01-29") == (DAYS[0], DAYS[2]) and days.dates("") == ()
    for wrong in ("2026-1-1", "x", "2026-01-31+2026-01-31", "2026-01-31+"):
        with pytest.raises(ValueError):
            days.dates(wrong)


# Which rows


def test_only_the_days_asked_for_are_read(folder: Path) -> None:
    (folder / f"day={DAYS[0]}/part-0.parquet").write_bytes(b"no parquet at all")
    found = Parquet(str(folder), days="+".join(DAYS[1:]))
    assert set(pa.concat_tables(found.rows())["site"].to_pylist()) == {"s1", "s2"}
    with pytest.raises(DataError, match="there is no file for rows: 'day=2026-02-01"):
        Parquet(str(folder), days="2026-02-01").layout()
    with pytest.raises(DataError, match=rf"name those to read: --dataset parquet:days={DAYS[1]}\+{DAYS[2]}$"):
        Parquet(str(folder)).layout()


def test_rows_without_a_time_are_spread_over_their_day(folder: Path) -> None:
    found = Parquet(str(folder), days="+".join(DAYS))
    assert found.layout().timestamp == "day"
    stamps = pa.concat_tables(found.rows())["day"].to_numpy()
    assert stamps.tolist() == [START[day] + row * 7_200 for day in DAYS for row in range(12)]


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.date32()])
def test_times_are_seconds_and_never_of_another_day(folder: Path, kind: pa.DataType) -> None:
    times = [datetime(2026, 1, 30, 0, 0, 5), datetime(2026, 1, 31, 9), datetime(2026, 1, 29, 9)]
    written(folder, DAYS[1], 0, 3, 1, at=pa.array(times, pa.timestamp("us")).cast(kind, safe=False))
    (folder / f"day={DAYS[1]}/part-1.parquet").unlink()
    described = yaml.safe_load((folder / "schema.yaml").read_text())
    (folder / "schema.yaml").write_text(yaml.safe_dump({**described, "timestamp": "at"}))
    found = pa.concat_tables(Parquet(str(folder), days=DAYS[1]).rows())["at"].to_numpy() - START[DAYS[1]]
    assert found.tolist() == [0 if pa.types.is_date(kind) else 5, 86_399, 0]


def test_the_newest_day_tests_and_the_end_of_the_one_before_selects(folder: Path, tmp_path: Path) -> None:
    spec = f"parquet:days={'+'.join(DAYS)}"
    run = Run(root=f"{tmp_path}/run", dataset=spec, raw=str(folder), methods=(Dnn(),), protocol="newest_day")
    prepare.main(run)
    assert dict(run.schema.rows) == {"train": 18, "valid": 6, "test": 12}
    vocabulary = (run.folder / "prepare").read_table("vocabulary/site.parquet")
    assert vocabulary["value"].to_pylist() == ["s0", "s1"], "the newest day's values are not known"


def test_gaps_between_days_do_not_matter() -> None:
    protocol, day = NewestDay(), 86_400
    stamps = np.array([0, 1, 5 * day, 5 * day + 9, 30 * day, 30 * day + 1], np.int64)
    protocol.survey(lambda: iter([(np.zeros(6, np.int32), stamps)]))
    assert protocol.split(np.zeros(6, np.int32), stamps).tolist() == [0, 0, 0, 1, 2, 2]
    protocol.survey(lambda: iter([(np.zeros(2, np.int32), stamps[4:])]))
    assert protocol.split(np.zeros(2, np.int32), stamps[4:]).tolist() == [2, 2], "one day alone"


# Drift

LAYOUT = Layout("", "", "", (Feature("site"), Feature("price", kind="number")), label="click")


def table(rng: np.random.Generator, rows: int, sites: int = 100, shift: float = 0.0, first: int = 0) -> pa.Table:
    price = rng.normal(shift, 1, rows)
    price[rng.random(rows) < 0.1] = np.nan
    site = pa.array((first + rng.integers(0, sites, rows)).astype(str))
    return pa.table({"site": site, "price": price, "click": (rng.random(rows) < 0.3).astype(np.int8)})


def test_the_index_of_two_counts() -> None:
    found, chance = drift.index(np.array([999, 0, 999]), np.array([499, 0, 1499]))
    p, q = np.array([0.5, 0.5]), np.array([0.25, 0.75])
    assert found == pytest.approx(float(((q - p) * np.log(q / p)).sum()), abs=1e-3)
    assert chance == pytest.approx(1 / 1998 + 1 / 1998)
    assert drift.index(np.array([5, 5]), np.array([5, 5]))[0] == 0.0


def test_rows_alike_are_as_far_apart_as_chance_says() -> None:
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        known = drift.profile([table(rng, 3_000)], LAYOUT)
        found.append(drift.drift(known, drift.alike([table(rng, 1_000)], LAYOUT, known)))
    for name in ("site", "price", "label"):
        psi, chance = (np.mean([one[name][what] for one in found]) for what in ("psi", "chance"))
        assert psi == pytest.approx(chance, rel=0.6), name
        assert max(one[name]["excess"] for one in found) < 0.06


@pytest.mark.parametrize("change", [{"sites": 50}, {"first": 50}, {"shift": 1.0}])
def test_rows_that_differ_are_told(change: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    known = drift.profile([table(rng, 2_000), table(rng, 1_000)], LAYOUT)
    found = drift.drift(known, drift.alike([table(rng, 500, **change), table(rng, 500, **change)], LAYOUT, known))
    moved = "price" if "shift" in change else "site"
    assert found[moved]["excess"] > 0.2
    assert all(one["excess"] < 0.06 for name, one in found.items() if name != moved)


def test_a_profile_counts_every_row_once_and_knows_what_is_missing() -> None:
    rows = pa.table({"site": ["a", None, "b", "a"], "price": [1.0, None, np.inf, 2.0], "click": pa.array([1, 0, 0, 0])})
    known = drift.profile([rows], LAYOUT)
    assert known["site"]["values"] == ["a", "b"] and known["label"]["counts"] == [3, 1]
    assert [known[name]["counts"][-1] for name in ("site", "price")] == [1, 2]
    assert all(sum(one["counts"]) == 4 for one in known.values())
    counted = drift.alike([rows], LAYOUT, known)
    assert {name: one.tolist() for name, one in counted.items()} == {name: one["counts"] for name, one in known.items()}
    assert drift.alike([rows], Layout("", "", "", (), label="click"), known).keys() == {"label"}


def test_the_loss_of_a_click_rate() -> None:
    assert drift.entropy(0.5) == pytest.approx(log(2)) and drift.entropy(0.0) == 0.0
    assert date.fromisoformat(DAYS[0]).isoformat() == DAYS[0]
