"""Globo.com's clicks as a click log by days: against the same told click by click."""

from collections import Counter
from math import log1p
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import globo_days
from benchmarks.globo_days import CONTEXTS, DAY, FIRST, HOUR, NEGATIVES, NONE
from nascore.datasets.parquet import Parquet

START = int(np.datetime64(FIRST, "ms").astype(int))
USERS = 40


@pytest.fixture(scope="module")
def clicks() -> pa.Table:
    """Two days, out of order as the original is; the last hour has one article alone."""
    rng = np.random.default_rng(0)
    count = USERS * 20
    users = rng.integers(0, USERS, count)
    time = START + rng.integers(0, 2 * DAY - HOUR, count)
    article = rng.integers(0, 9, count) + time // (DAY // 2)
    columns = {
        "user_id": np.append(users, [0, 2]),
        "session_id": np.append(users * 10 + rng.integers(0, 5, count), [9_000, 9_001]),
        "click_article_id": np.append(article - article.min(), [3, 3]),
        "click_timestamp": np.append(time, START + 2 * DAY - HOUR // 2 + np.arange(2)),
    }
    columns |= {column: np.append(users, [0, 2]) % 7 for column in CONTEXTS.values()}
    return pa.table(columns)


def test_every_row_is_as_told_click_by_click(clicks: pa.Table) -> None:
    rows = sorted(clicks.to_pylist(), key=lambda row: (row["click_timestamp"], row["click_article_id"]))
    first: dict[int, int] = {}
    last: dict[int, list[int]] = {}
    hourly: Counter[tuple[int, int]] = Counter()
    for row in rows:
        row["past"] = list(last.setdefault(row["session_id"], []))
        last[row["session_id"]].append(row["click_article_id"])
        first.setdefault(row["click_article_id"], row["click_timestamp"])
        hourly[row["click_timestamp"] // HOUR, row["click_article_id"]] += 1

    log = globo_days.columns(clicks, 2)
    told = [row for row in rows if row["user_id"] % 2 == 0][:-2]
    size = 1 + NEGATIVES
    assert {len(column) for column in log.values()} == {len(told) * size} and len(told) > 300
    for place, row in enumerate(told):
        own = slice(place * size, (place + 1) * size)
        hour, time = row["click_timestamp"] // HOUR, row["click_timestamp"]
        of = log["article"][own].tolist()
        others = {article for at, article in hourly if at == hour} - {row["click_article_id"]}
        assert log["clicked"][own].tolist() == [1, 0, 0, 0]
        assert of[0] == row["click_article_id"] and set(of[1:]) <= others
        assert set(log["previous"][own]) == {row["past"][-1] if row["past"] else NONE}
        assert set(log["time"][own]) == {time} and set(log["hour"][own]) == {hour % 24}
        assert log["position"][own] == pytest.approx(np.full(size, log1p(len(row["past"]))))
        assert log["age"][own] == pytest.approx([log1p(max(0, time - first[article]) / HOUR) for article in of])
        assert log["clicks"][own] == pytest.approx([log1p(hourly[hour - 1, article]) for article in of])
        assert all(set(log[name][own]) == {row[column]} for name, column in CONTEXTS.items())


def test_every_other_article_of_an_hour_is_as_likely(clicks: pa.Table) -> None:
    drawn: Counter[int] = Counter()
    for seed in range(400):
        log = globo_days.columns(clicks, 2, seed)
        drawn.update(log["article"][1 : 1 + NEGATIVES].tolist())
    hour = clicks["click_timestamp"].to_numpy() // HOUR
    shown = set(clicks["click_article_id"].to_numpy()[hour == log["time"][0] // HOUR].tolist())
    assert set(drawn) == shown - {log["article"][0]} and len(drawn) > 2
    counts = np.array(list(drawn.values()))
    expected = counts.sum() / len(counts)
    assert np.abs(counts - expected).max() < 4 * np.sqrt(expected)


def test_days_are_read_as_a_click_log(clicks: pa.Table, tmp_path: Path) -> None:
    pq.write_table(clicks, tmp_path / "clicks.parquet")
    assert globo_days.write(tmp_path / "days", tmp_path / "clicks.parquet", 2, 2) == ["2017-10-01", "2017-10-02"]
    log = globo_days.columns(clicks, 2)
    for number, day in enumerate(("2017-10-01", "2017-10-02")):
        folder = tmp_path / f"days/day={day}"
        kept = log["time"] // DAY == START // DAY + number
        assert (folder / "_SUCCESS").exists()
        table = pq.ParquetFile(folder / "part-0.parquet").read()
        assert table["article"].to_pylist() == log["article"][kept].tolist() and len(table) == kept.sum() > 0
    table = pa.concat_tables(Parquet(str(tmp_path / "days"), days="2017-10-01+2017-10-02").rows())
    assert len(table) == len(log["time"]) and table["clicked"].to_pylist() == log["clicked"].tolist()
