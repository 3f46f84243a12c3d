"""Globo.com's news clicks as days of a click log: what was clicked, and what else of that hour was not.

`python -m benchmarks.globo_days FOLDER` reads `$NASCORE_DATA/globo/clicks.parquet` (`--raw` another) and writes day
partitions (UTC) and their schema.yaml, to be replayed by `python -m benchmarks.replay`. The log holds clicks alone, so
each row of a user in so many gets three more: articles drawn evenly from the others that anybody clicked in the same
clock hour. New articles come every hour, so the columns in `ENDLESS` drift each night: `--ignore` them.
"""

import argparse
import os
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

FIRST, DAYS = date(2017, 10, 1), 16
LABEL, NEGATIVES, HOUR, DAY = "clicked", 3, 3_600_000, 86_400_000
CONTEXTS = {
    "environment": "click_environment",
    "device": "click_deviceGroup",
    "os": "click_os",
    "country": "click_country",
    "region": "click_region",
    "referrer": "click_referrer_type",
}
ENDLESS = ("article", "previous")
NUMBERS = ("age", "clicks", "position")
NONE = -1


def columns(table: pa.Table, one_in: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of one user in so many, in order of time, each click before its negatives; `time` in ms.

    age: log(1 + hours since the article's first click); clicks: log(1 + its clicks in the clock hour before), both by
    all users; position: log(1 + clicks before it in the session); previous: the article of the last of these.
    """
    order = np.lexsort((table["click_article_id"].to_numpy(), table["click_timestamp"].to_numpy()))
    raw = {name: table[name].to_numpy()[order] for name in table.column_names}
    time, article = raw["click_timestamp"], raw["click_article_id"].astype(np.int64)
    position, previous = _session(raw["session_id"], article)
    hour = time // HOUR
    width = int(article.max()) + 1
    shown, counts = np.unique(hour * width + article, return_counts=True)  # each hour's articles, hour by hour
    first = np.full(width, np.iinfo(np.int64).max)
    np.minimum.at(first, article, time)

    kept = np.flatnonzero(raw["user_id"] % one_in == 0)
    low, high = (np.searchsorted(shown, (hour[kept] + step) * width) for step in (0, 1))
    kept, low, high = (each[high - low > 1] for each in (kept, low, high))
    own = np.searchsorted(shown, hour[kept] * width + article[kept])
    drawn = np.random.default_rng(seed).integers(low[:, None], high[:, None] - 1, (len(kept), NEGATIVES))
    places = np.concatenate([own[:, None], drawn + (drawn >= own[:, None])], axis=1)

    rows = np.repeat(kept, 1 + NEGATIVES)
    of = (shown % width)[places.ravel()]
    before = shown[places.ravel()] - width
    found = np.minimum(np.searchsorted(shown, before), len(shown) - 1)
    log: dict[str, np.ndarray] = {LABEL: np.tile([1] + [0] * NEGATIVES, len(kept)), "time": time[rows]}
    log["article"], log["previous"], log["hour"] = of, previous[rows], time[rows] % DAY // HOUR
    log |= {name: raw[column][rows] for name, column in CONTEXTS.items()}
    log["age"] = np.log1p(np.maximum(time[rows] - first[of], 0) / HOUR)
    log["clicks"] = np.log1p(np.where(shown[found] == before, counts[found], 0))
    log["position"] = np.log1p(position[rows])
    return log


def _session(session: np.ndarray, article: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each click, in order of time: how many its session had before, and the article of the last one."""
    order = np.argsort(session, kind="stable")
    begins = np.concatenate([[True], session[order][1:] != session[order][:-1]])
    starts = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    position, previous = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    position[order] = np.arange(len(order)) - starts
    previous[order] = np.where(begins, NONE, np.concatenate([[NONE], article[order][:-1]]))
    return position, previous


def write(folder: str | Path, raw: str | Path, one_in: int, days: int = DAYS, seed: int = 0) -> list[str]:
    """Write the log's first days; their dates."""
    log = columns(pq.read_table(raw), one_in, seed)
    categories = (*ENDLESS, "hour", *CONTEXTS)
    described = {
        "label": LABEL,
        "features": [{"name": name, "kind": "number"} for name in NUMBERS] + [{"name": name} for name in categories],
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "schema.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    day, dates = log.pop("time") // DAY - (FIRST - date(1970, 1, 1)).days, []
    for number in range(days):
        place = Path(folder) / f"day={FIRST + timedelta(days=number)}"
        place.mkdir(exist_ok=True)
        own = day == number
        pq.write_table(pa.table({name: column[own] for name, column in log.items()}), place / "part-0.parquet")
        (place / "_SUCCESS").touch()
        dates.append(place.name.partition("=")[2])
    return dates


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--raw", default=os.path.join(os.environ.get("NASCORE_DATA", ""), "globo/clicks.parquet"))
    parser.add_argument("--one-in", type=int, default=25, help="users of which one is taken")
    parser.add_argument("--days", type=int, default=DAYS)
    parser.add_argument("--seed", type=int, default=0)
    known = parser.parse_args()
    if not Path(known.raw).is_file():
        parser.error(f"--raw: there is no {known.raw}; name Globo.com's clicks.parquet, or set NASCORE_DATA")
    if known.one_in < 1:
        parser.error(f"--one-in {known.one_in}: 1 or more")
    print(*write(known.folder, known.raw, known.one_in, known.days, known.seed))
