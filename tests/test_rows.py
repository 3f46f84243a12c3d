"""Rows to batches: against plain loops over the prepared files, resident and streamed, for one rank and for several."""

import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from components.run import Run
from nascore import plugins
from nascore.ragged import Ragged
from nascore.rows import Data, permutation, seed_of
from nascore.schema import SPLITS, Batch
from nascore.storage import StorageError

PROTOCOLS = [name for name in plugins.names("protocols") if not plugins.load("protocols", name).apart]
Prepared = Callable[..., Run]
Row = dict[str, Any]


def url(run: Run) -> str:
    return f"{run.root}/prepare"


@pytest.fixture(scope="module")
def grouped(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The prepared data with the rows of each split in two files of row groups of 16."""
    folder = tmp_path_factory.mktemp("grouped")
    for file in Path(url(prepared())).rglob("*"):
        target = folder / file.relative_to(url(prepared()))
        if file.is_dir():
            target.mkdir(exist_ok=True)
        elif file.parent.name.startswith("split=") and file.parent.parent.name != "history":
            table = pq.read_table(file)
            for number, part in enumerate((table[:300], table[300:])):
                pq.write_table(part, target.parent / f"part-{number:05d}.parquet", row_group_size=16)
        else:
            target.write_bytes(file.read_bytes())
    return str(folder)


def stored(data: Data) -> list[Row]:
    """The rows of a split by global index: in the order of files and row groups."""
    parts = sorted(Path(data.folder, f"split={data.split}").glob("part-*.parquet"))
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def past(data: Data, splits: tuple[str, ...]) -> dict[int, list[int]]:
    """Each user's items in some splits, in order."""
    events = []
    for split in splits:
        for part in Path(data.folder, f"history/split={split}").iterdir():
            events += [(row["user"], row["order"], row["item"]) for row in pq.read_table(part).to_pylist()]
    users: dict[int, list[int]] = {}
    for user, _, item in sorted(events):
        users.setdefault(user, []).append(item)
    return users


def assert_batch(data: Data, batch: Batch) -> None:
    """Every column of a batch, against a loop over what is stored for its global rows."""
    rows, schema = stored(data), data.schema
    tables = {side: pq.read_table(f"{data.folder}/entities/{side}.parquet").to_pylist() for side in ("user", "item")}
    history = past(data, schema.history_from[data.split])
    for place, index in enumerate(batch.rows.tolist()):
        row = rows[index]
        user, item = row["user"], row["item"]
        assert (batch.keys["user"][place], batch.keys["item"][place]) == (user, item)
        for name in ("hour", "price"):
            np.testing.assert_equal(batch[name][place].item(), row[name])
        for name in ("buyer", "country"):
            assert batch[name][place] == tables["user"][user][name]
        for name in ("article", "category", "shelf", "weight"):
            assert batch[name][place] == tables["item"][item][name]
        assert batch["tags"][place].tolist() == tables["item"][item]["tags"]
        shown = history.get(user, [])[: row["before"]][-schema.history_length :]
        padded = [0] * (schema.history_length - len(shown)) + shown
        assert batch["history"][place].tolist() == padded == batch["history/article"][place].tolist()
        assert batch["history/category"][place].tolist() == [tables["item"][one]["category"] for one in padded]
        assert batch["history/tags"][place].tolist() == [tables["item"][one]["tags"][0] for one in padded]


@pytest.mark.parametrize("mode", ["resident", "streaming"])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_batch_equals_a_loop_over_what_is_stored(prepared: Prepared, protocol: str, split: str, mode: Any) -> None:
    data = Data(url(prepared(protocol)), split, mode=mode)
    assert data.rows == len(stored(data))
    batch = next(data.batches(data.rows, seed=1))
    assert len(batch) == data.rows and batch["price"].dtype == torch.float32
    assert_batch(data, batch)
    rows = torch.tensor([3, 0, 3])
    assert_batch(data, data.batch(rows))
    user, item, before = data.keys(rows)
    assert [user.tolist(), item.tolist(), before.tolist()] == [
        [stored(data)[index][name] for index in (3, 0, 3)] for name in ("user", "item", "before")
    ]


def test_users_and_items_apart_equal_those_of_a_row(prepared: Prepared) -> None:
    data = prepared().rows("valid")
    rows = torch.arange(50)
    whole, (user, item, before) = data.batch(rows), data.keys(rows)
    users, items = data.user_batch(user, before), data.item_batch(item)
    assert "article" not in users and "buyer" not in items and "history" not in items
    for part in (users, items):
        assert all(torch.equal(column, whole[name]) for name, column in part.columns.items())
    shown = data.user_batch(user, torch.zeros_like(before))
    assert not shown["history"].any() and not shown["history/category"].any(), "nothing before, nothing shown"


def taken(data: Data, size: int, steps: int, start: int = 0, seed: int = 5) -> list[list[int]]:
    return [batch.rows.tolist() for batch in islice(data.batches(size, seed, start), steps)]


def flat(lists: list[list[int]]) -> list[int]:
    return [row for rows in lists for row in rows]


@pytest.fixture(params=["resident", "streaming"])
def opened(request: pytest.FixtureRequest, grouped: str) -> Callable[..., Data]:
    """The train split in a mode; streamed in windows of three row groups."""
    return lambda **settings: Data(grouped, "train", mode=request.param, window=48, **settings)


def test_an_epoch_visits_distinct_rows_and_the_next_one_others(opened: Callable[..., Data]) -> None:
    data = opened()
    steps = data.steps_per_epoch(64)
    assert steps == data.rows // 64 > 5
    epochs = [flat(taken(data, 64, steps, start)) for start in (0, steps)]
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch) == 64 * steps
        assert set(epoch) <= set(range(data.rows))
    assert epochs[0] != epochs[1] and set(epochs[0]) != set(epochs[1]), "the remainder is another one each time"
    assert taken(data, 64, steps) == taken(opened(), 64, steps), "the order hangs on the seed alone"
    assert taken(data, 64, steps) != taken(data, 64, steps, seed=6)


def test_a_start_is_skipping(opened: Callable[..., Data]) -> None:
    steps = 2 * opened().steps_per_epoch(64) + 3
    whole = taken(opened(), 64, steps)
    for start in range(0, steps, 2):
        assert taken(opened(), 64, min(4, steps - start), start) == whole[start : start + 4]


def test_rows_are_shuffled(opened: Callable[..., Data]) -> None:
    rows = np.array(flat(taken(opened(), 32, opened().steps_per_epoch(32))))
    assert abs(np.corrcoef(rows, np.arange(len(rows)))[0, 1]) < 0.25
    assert (np.diff(rows) == 1).mean() < 0.05, "rows of a row group must not stay together"


def test_row_groups_are_read_in_another_order_each_epoch(grouped: str) -> None:
    data = Data(grouped, "train", mode="streaming", window=48)
    steps = data.steps_per_epoch(48)
    windows = [frozenset(row // 16 for row in taken(data, 48, 1, epoch * steps)[0]) for epoch in range(4)]
    assert len(set(windows)) == 4


def test_fewer_rows_than_a_batch_make_one_smaller_batch(opened: Callable[..., Data]) -> None:
    data = opened()
    assert data.steps_per_epoch(10_000) == 1
    first, second = taken(data, 10_000, 2)
    assert sorted(first) == sorted(second) == list(range(data.rows)) and first != second


def test_resident_shares_are_slices_of_the_joined_batch(grouped: str) -> None:
    alone = taken(Data(grouped, "train"), 60, 30)
    for world in (2, 3):
        shares = [taken(Data(grouped, "train", rank=rank, world=world), 60, 30) for rank in range(world)]
        assert {len(rows) for share in shares for rows in share} == {60 // world}
        steps = alone[: Data(grouped, "train").steps_per_epoch(60)]
        joined = [flat(list(parts)) for parts in zip(*shares, strict=True)]
        assert joined[: len(steps)] == steps


def test_streamed_shares_are_disjoint_and_equally_many(grouped: str) -> None:
    ranks = [Data(grouped, "train", mode="streaming", rank=rank, world=2, window=48) for rank in range(2)]
    steps = ranks[0].steps_per_epoch(64)
    assert steps == ranks[1].steps_per_epoch(64) == min(ranks[0].rows // 2 // 32, steps)
    seen = [flat(taken(data, 64, steps)) for data in ranks]
    assert len(seen[0]) == len(seen[1]) == 32 * steps
    assert not set(seen[0]) & set(seen[1]) and len(set(seen[0] + seen[1])) == 64 * steps
    assert taken(ranks[1], 64, 3, steps + 2) == taken(ranks[1], 64, steps + 5)[steps + 2 :]


def test_a_batch_must_be_shared_equally(grouped: str) -> None:
    with pytest.raises(ValueError, match="64 rows cannot be shared equally by 3 workers"):
        Data(grouped, "train", world=3).steps_per_epoch(64)
    groups = len(Data(grouped, "train").groups)
    with pytest.raises(ValueError, match=f"{groups + 1} workers are too many for {groups} row groups"):
        Data(grouped, "train", mode="streaming", world=groups + 1).steps_per_epoch(10 * (groups + 1))


def test_streaming_holds_two_windows_and_a_batch(grouped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(grouped, "train", mode="streaming", window=48)
    counts = {"read": 0, "yielded": 0}
    held, reads = [], []
    read = Data._read

    def counted(self: Data, groups: Any) -> Tensor:
        held.append(counts["read"] + self._rows_in(groups) - counts["yielded"])
        reads.append(self._rows_in(groups))
        counts["read"] += reads[-1]
        return read(self, groups)

    monkeypatch.setattr(Data, "_read", counted)
    for _ in islice(data.batches(40, seed=3), data.steps_per_epoch(40)):
        counts["yielded"] += 40
    assert len(reads) > 10 and max(reads) == 48, "row groups of 16 in windows of 48"
    assert max(held) <= 2 * 48 + 40
    assert sum(reads) == data.rows


def test_a_resumed_stream_reads_no_window_before_its_own(grouped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, reads = Data(grouped, "train", mode="streaming", window=48), []
    read = Data._read
    monkeypatch.setattr(Data, "_read", lambda self, groups: (reads.append(groups), read(self, groups))[1])
    next(data.batches(16, seed=3, start=data.steps_per_epoch(16) - 1))
    assert len(reads) <= 2


@pytest.fixture
def files_opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of all files that are opened through pyarrow and fsspec from here on."""
    paths: list[str] = []

    def recorded(plain: Callable[..., Any], place: int) -> Callable[..., Any]:
        def call(*given: Any, **also: Any) -> Any:
            paths.append(given[place])
            return plain(*given, **also)

        return call

    for owner, name, place in (
        (pq, "read_table", 0),
        (pq, "read_metadata", 0),
        (LocalFileSystem, "open", 1),
        (LocalFileSystem, "cat_file", 1),
    ):
        monkeypatch.setattr(owner, name, recorded(getattr(owner, name), place))
    return paths


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_nothing_of_a_later_split_is_opened(prepared: Prepared, files_opened: list[str], mode: Any) -> None:
    for split, allowed in (("train", {"train"}), ("valid", {"train", "valid"})):
        files_opened.clear()
        data = Data(url(prepared()), split, mode=mode)
        next(data.batches(64, seed=1))
        data.keys(torch.arange(3))
        for known in (data.seen, data.relevant, data.ranked_users(), data.trained):
            assert known is not None
        splits = {part.removeprefix("split=") for path in files_opened for part in Path(path).parts if "split=" in part}
        assert splits == allowed
        assert any("entities" in path for path in files_opened), "the instrument sees what is read"


def test_joined_splits_are_one_after_the_other_with_the_histories_of_the_first(prepared: Prepared) -> None:
    train, valid, both = (Data(url(prepared()), split) for split in ("train", "valid", "train+valid"))
    assert torch.equal(both.packed, torch.cat([train.packed, valid.packed]))
    assert torch.equal(both.history.item, train.history.item) and torch.equal(both.seen.at, train.seen.at)
    assert torch.equal(both.relevant.counts(torch.arange(9)), sum(d.relevant.at.diff()[:9] for d in (train, valid)))
    last = both.batch(torch.arange(train.rows, both.rows))
    assert torch.equal(last["history"], valid.batch(torch.arange(valid.rows))["history"])


def test_the_first_rows_are_read_without_the_others(grouped: str) -> None:
    whole, some = Data(grouped, "train"), Data(grouped, "train", first=40)
    assert some.rows == 48 and torch.equal(some.packed, whole.packed[:48]), "whole row groups of 16"
    assert Data(grouped, "train", first=10**6).rows == whole.rows == Data(grouped, "train", first=0).rows


def test_an_empty_split_is_an_error(prepared: Prepared) -> None:
    with pytest.raises(ValueError, match="/prepare: the holiday split is empty; another protocol"):
        Data(url(prepared()), "holiday")


@pytest.mark.parametrize("protocol", ["user_temporal", "global_temporal"])
@pytest.mark.parametrize("split", ["valid", "test"])
def test_ranked_users_are_shown_all_that_came_before_the_split(prepared: Prepared, protocol: str, split: str) -> None:
    data = prepared(protocol).rows(split)
    users, before = data.ranked_users()
    assert users.tolist() == sorted({row["user"] for row in stored(data)})
    history = past(data, data.schema.history_from[split])
    assert before.tolist() == [len(history.get(user, [])) for user in users.tolist()]


def test_ranked_users_of_authors_are_shown_what_came_before_one_of_their_rows(prepared: Prepared) -> None:
    data = prepared("authors").rows("test")
    users, before = data.ranked_users()
    rows = stored(data)
    assert users.tolist() == sorted({row["user"] for row in rows})
    own = [{row["before"] for row in rows if row["user"] == user} for user in users.tolist()]
    assert all(shown in rows for shown, rows in zip(before.tolist(), own, strict=True))
    several = [(shown, rows) for shown, rows in zip(before.tolist(), own, strict=True) if len(rows) > 2]
    assert 0 < sum(shown == max(rows) for shown, rows in several) < len(several), "a random row, not the last"
    assert torch.equal(before, prepared("authors").rows("test").ranked_users()[1])


def test_seen_relevant_and_trained_equal_loops(prepared: Prepared) -> None:
    for protocol in PROTOCOLS:
        data = prepared(protocol).rows("test")
        for found, splits in ((data.seen, data.schema.seen_in["test"]), (data.relevant, ("test",))):
            golden = past(data, splits)
            lists = [found.item[found.at[user] : found.at[user + 1]].tolist() for user in range(data.schema.users)]
            assert lists == [golden.get(user, []) for user in range(data.schema.users)]
        train = past(data, ("train",))
        assert data.trained.tolist() == [user in train for user in range(data.schema.users)]
        assert not data.trained.all() and data.trained.any()


def test_nothing_is_seen_before_training(prepared: Prepared) -> None:
    seen = prepared().rows("train").seen
    assert not seen.at.any() and not seen.counts(torch.arange(5)).any()


def test_ragged_lists_are_gathered_in_order() -> None:
    lists = [[], [5, 6], [], [7], [8, 9, 8]]
    at = torch.tensor([0, *np.cumsum([len(one) for one in lists])])
    ragged = Ragged(at, torch.tensor([item for one in lists for item in one], dtype=torch.int32))
    for keys in ([4, 1, 0, 4], [2], [0, 2], [3, 1]):
        position, item = ragged.gather(torch.tensor(keys, dtype=torch.int32))
        golden = [(place, one) for place, key in enumerate(keys) for one in lists[key]]
        assert list(zip(position.tolist(), item.tolist(), strict=True)) == golden
        assert ragged.counts(torch.tensor(keys)).tolist() == [len(lists[key]) for key in keys]


def test_seeds_hang_on_every_name() -> None:
    seeds = {seed_of(*names) for names in (("a", 1), ("a", 2), ("a", "1"), ("a",), ("a", 1, None), (("a", 1),))}
    assert len(seeds) == 6 and all(0 <= seed < 1 << 63 for seed in seeds)
    assert seed_of("rows", 3) == 4_220_613_014_474_090_948, "runs of other versions must go on as they were"
    assert permutation(100, "a").tolist() == permutation(100, "a").tolist() != permutation(100, "b").tolist()
    assert sorted(permutation(100, "a").tolist()) == list(range(100))


def test_rows_that_are_missing_are_an_error(prepared: Prepared, tmp_path: Path) -> None:
    copied = tmp_path / "prepare"
    shutil.copytree(url(prepared()), copied)
    part = next(iter(sorted((copied / "split=train").glob("*.parquet"))))
    table = pq.read_table(part)
    pq.write_table(table.slice(0, len(table) - 1), part)
    with pytest.raises(StorageError, match=r"/prepare: of [\d,]+ rows of train [\d,]+ are there; files are missing or"):
        Data(str(copied), "train")
    assert Data(str(copied), "valid").rows
