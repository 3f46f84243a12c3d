"""What the tests share: one thread for torch, a local Ray cluster, the folder of real data, and a small shop."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from components import prepare
from components.run import Run
from nascore.methods import Method
from nascore.methods.dnn import Dnn
from nascore.methods.popularity import Popularity
from tests import swift

torch.set_num_threads(1)

USERS, ITEMS, ROWS = 60, 80, 1_500
DESCRIBED = """\
rows: log-*.parquet
user: buyer
item: article
timestamp: at
label: bought
history: {features: [article, category, tags], length: 6}
features:
  - {name: buyer, side: user}
  - {name: country, side: user}
  - {name: article, side: item}
  - {name: category, side: item}
  - {name: shelf, side: item}
  - {name: tags, side: item, kind: set}
  - {name: weight, side: item, kind: number, bins: 4}
  - {name: hour, side: row}
  - {name: price, side: row, kind: number}
tables: {item: "articles.parquet"}
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray cluster of two CPUs on this machine for all tests marked `ray`, without its dashboard."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_worker_niceness="0", OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1")
    import ray

    scratch = tempfile.mkdtemp(prefix="ray-")  # pytest's own folders are too deep for Ray's sockets
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=scratch)
    yield
    ray.shutdown()
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[swift.Server]:
    """A real S3 server on this machine; tests that need one are skipped where it cannot be had."""
    try:
        with swift.serving(tmp_path_factory.mktemp("swift")) as server:
            yield server
    except swift.Unavailable as why:
        pytest.skip(str(why))


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data, for tests marked `data`."""
    if "NASCORE_DATA" not in os.environ:
        pytest.skip("NASCORE_DATA is unset; it names the folder of real data sets")
    return Path(os.environ["NASCORE_DATA"])


@dataclass(frozen=True)
class Shop:
    """A log for the `parquet` dataset under `raw`, with its rows in file order and its articles as plain Python."""

    raw: str
    rows: list[dict[str, Any]]
    articles: list[dict[str, Any]]

    def bought(self) -> list[dict[str, Any]]:
        """The rows with a positive label, in file order."""
        return [row for row in self.rows if row["bought"] > 0]


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """60 users, 80 items, 1,500 rows in two files; equal timestamps, features that change, nulls, some not bought.

    Buyers return to their favourites; the last five have two rows or one, and so none to train on.
    """
    rng, raw = Random(7), tmp_path_factory.mktemp("shop")
    rows = []
    for place in range(ROWS):
        user = place % USERS if place < USERS else rng.randrange(USERS - 5)
        article = 100 + (user * 7 + int(rng.expovariate(0.15))) % ITEMS
        rows.append(
            {
                "buyer": f"u{user}",
                "article": article,
                "at": 1_600_000_000 + rng.randrange(25) * 3_600 - user * 10,
                "bought": 0 if rng.random() < 0.05 else rng.choice([1, 5]),
                "country": rng.choice(["FR", "BR", "DE", None]),
                "shelf": article % 7 + rng.randrange(2),
                "hour": rng.choice([None, *range(5)]),
                "price": rng.choice([None, rng.random() * 10]),
            }
        )
    rng.shuffle(rows)
    articles = [
        {
            "article": article,
            "category": rng.choice(["food", "tool", "toy", None]),
            "tags": rng.sample(["a", "b", "c", "d", "e"], rng.randrange(4)),
            "weight": rng.choice([None, rng.random(), 0.5]),
        }
        for article in range(103, 100 + ITEMS + 4)  # the first are missing, the last never occur in the log
    ]
    half = len(rows) // 2
    for name, part in (("log-0", rows[:half]), ("log-1", rows[half:]), ("articles", articles)):
        pq.write_table(pa.Table.from_pylist(part), raw / f"{name}.parquet", row_group_size=200)
    (raw / "schema.yaml").write_text(DESCRIBED)
    return Shop(str(raw), rows, articles)


@pytest.fixture(scope="session")
def prepared(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """A run over the shop whose `prepare` stage is done: one for each protocol, only to be read."""
    runs: dict[str, Run] = {}

    def run_of(protocol: str = "user_temporal") -> Run:
        if protocol not in runs:
            root = str(tmp_path_factory.mktemp("runs") / protocol)
            methods = (Popularity(),)
            runs[protocol] = Run(root=root, dataset="parquet", raw=shop.raw, methods=methods, protocol=protocol)
            prepare.main(runs[protocol])
        return runs[protocol]

    return run_of


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over planted clicks, 1,600 rows to train on, whose `prepare` stage is done: only to be read."""
    root = str(tmp_path_factory.mktemp("runs") / "clicks")
    run = Run(root=root, dataset="planted_clicks:rows=2000", raw="", methods=(Dnn(),), protocol="stratified")
    prepare.main(run)
    return run


@pytest.fixture
def run_with(prepared: Callable[..., Run], tmp_path: Path) -> Callable[..., Run]:
    """A saved run of a test's own, in a new folder, over prepared data; `changes` are fields of `Run`."""

    def run_of(*methods: Method, protocol: str = "user_temporal", **changes: Any) -> Run:
        known, root = prepared(protocol), tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(f"{known.root}/prepare", root / "prepare")
        run = replace(known, root=str(root), methods=methods or known.methods, **changes)
        run.save()
        return run

    return run_of
