"""Prepared parquet to batches: the rows of a split, the tables of users and items, histories and seen items.

A row is packed into int32 words (a float is a view of the same bits), so a batch is gathered by one `index_select`;
what belongs to a user or an item, histories included, is looked up by key and never copied into a row. Resident mode
keeps all on the training device. Streaming mode reads a window of row groups at a time and keeps histories in a
memory-mapped file, so memory does not grow with the rows. What a batch holds hangs on (seed, step) alone: a step is
the whole position.
"""

import glob
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from nascore.files import connect
from nascore.ragged import Ragged
from nascore.schema import Batch, Schema
from nascore.storage import room

KEYS = ("user", "item", "before")
Mode = Literal["resident", "streaming"]


def seed_of(*names: object) -> int:
    """A 63-bit seed that hangs on all of `names`, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "big") >> 1


def permutation(count: int, *names: object) -> Tensor:
    """A random order of `count` things that hangs on all of `names`."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed_of(*names)))


@dataclass(frozen=True)
class Shown:
    """What of a past a model is shown, and which rows train it.

    length: the events at most; 0 for as many as the data says. sets: whether the sets of past events are shown whole.
    ends: whether of a user's rows only the last one counts and every `length`-th before it, which is what a model needs
    that learns from every event of a past: together those pasts hold each event once, where equal times are ordered.
    """

    length: int = 0
    sets: bool = False
    ends: bool = False


class Data:
    """One split of the prepared data under an fsspec URL, or several as "train+valid", as one rank of `world` sees it.

    A training batch is shared equally by the ranks: in resident mode each takes its slice of the joined batch, in
    streaming mode each reads row groups of its own. `window` bounds the rows held in streaming mode: two windows and a
    batch. `first`, unless 0, bounds the rows to about so many, the first; rows lie in random order. `only` (rows,) says
    which there are at all. Nothing is opened but these splits and those that histories and seen items come from.
    """

    def __init__(
        self,
        url: str,
        split: str,
        *,
        device: str = "cpu",
        mode: Mode = "resident",
        rank: int = 0,
        world: int = 1,
        window: int = 1 << 19,
        first: int = 0,
        shown: Shown = Shown(),  # noqa: B008
        only: NDArray[np.bool_] | None = None,
    ) -> None:
        self.fs, self.folder = connect(url)
        self.schema = Schema.from_json(self.fs.cat_file(f"{self.folder}/schema.json").decode())
        self.split, self.splits = split, tuple(split.split("+"))
        self.device, self.mode, self.rank, self.world, self.window = device, mode, rank, world, window
        self.home, self.shown = device if mode == "resident" else "cpu", shown
        self.names = (*(KEYS if self.schema.user else ("label",)), *(column.name for column in self.schema.of("row")))
        self.groups: list[tuple[str, int, int]] = []
        for file in (file for name in self.splits for file in self._parts(f"split={name}")):
            footer = pq.read_metadata(file, filesystem=self.fs)
            self.groups += [(file, group, footer.row_group(group).num_rows) for group in range(footer.num_row_groups)]
        self.schema.check_rows(url, self.splits, sum(rows for _, _, rows in self.groups))
        self.only: dict[tuple[str, int], NDArray[np.bool_]] | None = None
        if only is not None:
            self._select(only)
        ends = list(accumulate(rows for _, _, rows in self.groups))
        if first:
            self.groups = self.groups[: sum(end < first for end in ends) + 1]
        self.last = self._last_rows() if shown.ends else None
        if self.last is not None:
            self.groups = [(file, group, int(self._ends(keys).sum())) for file, group, keys in self._keys()]
        self.rows = sum(rows for _, _, rows in self.groups)
        if not self.rows:
            raise ValueError(f"{url}: the {split} split is empty; another protocol or more data may fill it")

    def _select(self, only: NDArray[np.bool_]) -> None:
        """Leave only some rows of the splits, told for all of them."""
        counts = [rows for _, _, rows in self.groups]
        if len(only) != sum(counts):
            raise ValueError(f"{len(only)} rows are told of, but the {self.split} split holds {sum(counts)}")
        apart = np.split(only, np.cumsum(counts)[:-1])
        self.only = {(file, group): own for (file, group, _), own in zip(self.groups, apart, strict=True)}
        self.groups = [(*key, int(own.sum())) for key, own in self.only.items() if own.any()]

    def showing(self, shown: Shown) -> "Data":
        """The same rows as another model sees them; what is in memory is shared."""
        view = copy(self)
        view.shown = shown
        return view

    # Rows

    @cached_property
    def packed(self) -> Tensor:
        """All rows, (rows, columns) int32."""
        return self._read(range(len(self.groups))).to(self.home)

    def batch(self, row_B: Tensor) -> Batch:
        """The rows of the given global indices."""
        return self._unpacked(self.packed.index_select(0, row_B), row_B)

    def keys(self, row_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """User, item and number of earlier events of the rows of the given indices. Each (B,)."""
        user_B, item_B, before_B = self.packed.index_select(0, row_B)[:, :3].unbind(1)
        return user_B, item_B, before_B

    def steps_per_epoch(self, size: int) -> int:
        """Whole batches in one pass; the remainder of each pass, another one each time, is left out."""
        return self._own_rows() // self._share(size)

    def batches(self, size: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """This rank's shares of training batches, without end, from step `start` on.

        Fewer rows than `size` make one smaller batch an epoch.
        """
        share, steps = self._share(size), self.steps_per_epoch(size)
        while True:
            epoch, done = divmod(start, steps)
            walk = self._resident if self.mode == "resident" else self._streamed
            yield from walk(share, steps, done, seed, epoch)
            start += steps - done

    def sweep(self, size: int) -> Iterator[Batch]:
        """All rows in their order, at most `size` at a time; no more than a row group is held."""
        start = 0
        for index in range(len(self.groups)):
            packed = self._read([index])
            for first in range(0, len(packed), size):
                part = packed[first : first + size].to(self.home)
                yield self._unpacked(part, torch.arange(start + first, start + first + len(part), device=self.home))
            start += len(packed)

    def _own_rows(self) -> int:
        if self.mode == "resident":
            return self.rows // self.world
        return min(sum(rows for _, _, rows in self.groups[rank :: self.world]) for rank in range(self.world))

    def _share(self, size: int) -> int:
        if size % self.world:
            raise ValueError(f"a batch of {size} rows cannot be shared equally by {self.world} workers")
        if not self._own_rows():
            there = f"{len(self.groups)} row groups of {self.rows} rows in the {self.split} split"
            raise ValueError(f"{self.world} workers are too many for {there}")
        return min(size // self.world, self._own_rows())

    def _resident(self, share: int, steps: int, done: int, seed: int, epoch: int) -> Iterator[Batch]:
        order = permutation(self.rows, "rows", seed, epoch).to(self.home)
        for step in range(done, steps):
            first = (step * self.world + self.rank) * share
            yield self.batch(order[first : first + share])

    def _streamed(self, share: int, steps: int, done: int, seed: int, epoch: int) -> Iterator[Batch]:
        """Batches over shuffled windows of shuffled row groups; what fills no batch waits for the next window."""
        mine = range(self.rank, len(self.groups), self.world)
        windows: list[list[int]] = [[]]
        for place in permutation(len(mine), "groups", seed, epoch).tolist():
            if windows[-1] and self._rows_in([*windows[-1], mine[place]]) > self.window:
                windows.append([])
            windows[-1].append(mine[place])
        ends = list(accumulate(self._rows_in(window) for window in windows))
        current = next(number for number, end in enumerate(ends) if done * share < end)
        skip = done * share - (ends[current - 1] if current else 0)
        starts = [0, *accumulate(rows for _, _, rows in self.groups)]

        def load(number: int) -> tuple[Tensor, Tensor]:
            shuffled = permutation(self._rows_in(windows[number]), "window", seed, epoch, self.rank, number)
            row = torch.cat([torch.arange(starts[index], starts[index + 1]) for index in windows[number]])
            return self._read(windows[number])[shuffled], row[shuffled]

        waiting: tuple[Tensor, Tensor] | None = None
        with ThreadPoolExecutor(1, thread_name_prefix="rows") as reader:
            coming = reader.submit(load, current)
            for number in range(current, len(windows)):
                packed, row = coming.result()
                if number + 1 < len(windows):
                    coming = reader.submit(load, number + 1)
                packed, row, skip = packed[skip:], row[skip:], 0
                if waiting is not None:
                    packed, row = torch.cat([waiting[0], packed]), torch.cat([waiting[1], row])
                whole = min(len(row) // share, steps - done) * share
                for first in range(0, whole, share):
                    yield self._unpacked(packed[first : first + share], row[first : first + share])
                done += whole // share
                waiting = packed[whole:].clone(), row[whole:].clone()

    def _rows_in(self, groups: Sequence[int]) -> int:
        return sum(self.groups[index][2] for index in groups)

    def _read(self, groups: Sequence[int]) -> Tensor:
        """The packed rows of some row groups, in the order given."""
        packed = np.empty((self._rows_in(groups), len(self.names)), np.int32)
        filled, opened = 0, {file: self.fs.open(file) for file in {self.groups[index][0] for index in groups}}
        try:
            readers = {file: pq.ParquetFile(handle) for file, handle in opened.items()}
            for index in groups:
                file, group, rows = self.groups[index]
                table = readers[file].read_row_group(group, columns=list(self.names))
                if self.last is not None:
                    table = table.filter(pa.array(self._ends(table)))
                if self.only is not None:
                    table = table.filter(pa.array(self.only[file, group]))
                for place, name in enumerate(self.names):
                    column = table[name].to_numpy()
                    packed[filled : filled + rows, place] = (
                        column.view(np.int32) if column.dtype == np.float32 else column
                    )
                filled += rows
        finally:
            for handle in opened.values():
                handle.close()
        return torch.from_numpy(packed)

    def _keys(self) -> Iterator[tuple[str, int, pa.Table]]:
        """Whose rows each row group holds, and how much of the past lies before each."""
        for file, group, _ in self.groups:
            with self.fs.open(file) as handle:
                yield file, group, pq.ParquetFile(handle).read_row_group(group, columns=["user", "before"])

    def _last_rows(self) -> NDArray[np.int32]:
        """How much lies before each user's last row. Shape (users,)."""
        last = np.zeros(self.schema.users, np.int32)
        for _, _, keys in self._keys():
            np.maximum.at(last, keys["user"].to_numpy(), keys["before"].to_numpy())
        return last

    def _ends(self, keys: pa.Table) -> NDArray[np.bool_]:
        """Which rows are ends, see `Shown`."""
        assert self.last is not None
        ends: NDArray[np.bool_] = (self.last[keys["user"].to_numpy()] - keys["before"].to_numpy()) % self.length == 0
        return ends

    def _unpacked(self, packed: Tensor, row_B: Tensor) -> Batch:
        words = dict(zip(self.names, packed.unbind(1), strict=True))
        own = {
            column.name: words[column.name].view(torch.float32) if column.kind == "number" else words[column.name]
            for column in self.schema.of("row")
        }
        if not self.schema.user:
            alone = Batch(own, {}, row_B, words["label"])
            return alone if self.home == self.device else alone.to(self.device)
        users = self.user_batch(words["user"], words["before"])
        items = self.item_batch(words["item"])
        batch = Batch(own | {**users.columns, **items.columns}, {**users.keys, **items.keys}, row_B)
        return batch if self.home == self.device else batch.to(self.device)

    # Users and items

    def user_batch(self, user_B: Tensor, before_B: Tensor, whole: bool = False) -> Batch:
        """Users, shown the first `before_B` events of their histories; no items.

        Of those events a batch holds the last `length`, or if `whole`, all: T is then the longest past in it.
        """
        columns = self._features("user", user_B)
        length = int(before_B.max()) if whole else self.length
        if whole or length:
            back_T = torch.arange(length, 0, -1, device=before_B.device)
            place_BT = before_B.long()[:, None] - back_T
            event_BT = self.history.item[(self.history.at[user_B.long()][:, None] + place_BT).clamp(min=0)]
            item_BT = torch.where(place_BT >= 0, event_BT, 0)
            columns["history"] = item_BT
            table, places = self._table("item")
            for name in self.schema.history:
                if name == self.schema.item:
                    columns[f"history/{name}"] = item_BT
                elif self.shown.sets and self.schema[name].kind == "set":
                    columns[f"history/{name}"] = table[item_BT.long()][:, :, places[name]]
                else:
                    columns[f"history/{name}"] = table[item_BT.long(), places[name].start]
        return Batch(columns, {"user": user_B}, user_B)

    @property
    def length(self) -> int:
        """How many past events a batch holds of each user."""
        return self.shown.length or self.schema.history_length

    def item_batch(self, item_B: Tensor) -> Batch:
        """Items, without users."""
        return Batch(self._features("item", item_B), {"item": item_B}, item_B)

    def ranked_users(self) -> tuple[Tensor, Tensor]:
        """The users with an item to find in this split, and how many events of its history each is shown.

        All events, if the histories end before the split; else those before one of the user's rows in the split, drawn
        at random, as AutoTower's public code does.
        """
        user_B = torch.nonzero(self.relevant.at.diff() > 0).squeeze(1).to(torch.int32)
        if not set(self.splits) & set(self.sources):
            return user_B, self.history.counts(user_B).to(torch.int32)
        drawn = self.packed[permutation(self.rows, "ranked row").to(self.home)]
        order = torch.argsort(drawn[:, 0], stable=True)
        return user_B, drawn[order[torch.searchsorted(drawn[order, 0].contiguous(), user_B)], 2]

    @cached_property
    def history(self) -> Ragged:
        """What this split may show of each user's past, oldest first."""
        return self._events(self.sources)

    @property
    def sources(self) -> tuple[str, ...]:
        """The splits that histories are made of: those of the first split, where several are joined."""
        return self.schema.history_from[self.splits[0]]

    @cached_property
    def seen(self) -> Ragged:
        """Items that are no candidates for a user when this split is ranked."""
        sources = self.schema.seen_in[self.splits[0]]
        return self.history if sources == self.sources else self._events(sources)

    @cached_property
    def relevant(self) -> Ragged:
        """Each user's items in this split."""
        return self._events(self.splits)

    @cached_property
    def trained(self) -> Tensor:
        """Which users have a row to train on. Shape (users,)."""
        return self._events(("train",)).at.diff() > 0

    def _features(self, side: Literal["user", "item"], key_B: Tensor) -> dict[str, Tensor]:
        table, places = self._table(side)
        known = table.index_select(0, key_B)
        return {
            column.name: known[:, places[column.name]] if column.kind == "set" else known[:, places[column.name].start]
            for column in self.schema.of(side)
        }

    def _table(self, side: Literal["user", "item"]) -> tuple[Tensor, dict[str, slice]]:
        return self._tables[side]

    @cached_property
    def _tables(self) -> dict[str, tuple[Tensor, dict[str, slice]]]:
        """For each side its features by key, packed (keys, words), and where each column stands."""
        tables = {}
        for side, count in (("user", self.schema.users), ("item", self.schema.items)):
            columns = self.schema.of("user" if side == "user" else "item")
            ends = list(accumulate(column.width for column in columns))
            places = {c.name: slice(end - c.width, end) for c, end in zip(columns, ends, strict=True)}
            packed = np.zeros((count, ends[-1] if ends else 0), np.int32)
            table = pq.read_table(f"{self.folder}/entities/{side}.parquet", filesystem=self.fs)
            for column in columns:
                values = table[column.name].combine_chunks()
                flat = values.flatten() if column.kind == "set" else values
                packed[:, places[column.name]] = flat.to_numpy().reshape(count, column.width)
            tables[side] = torch.from_numpy(packed).to(self.home), places
        return tables

    def _events(self, splits: Sequence[str]) -> Ragged:
        """Each user's events of some splits in time order, merged part by part: a part holds a range of users."""
        count = np.zeros(self.schema.users + 1, np.int64)
        with room("histories"), tempfile.NamedTemporaryFile(prefix="nascore-history-") as scratch:
            for parts in zip(*(self._parts(f"history/split={split}") for split in splits), strict=True):
                tables = [pq.read_table(part, filesystem=self.fs) for part in parts]
                user, order, item = (
                    np.concatenate([table[name].to_numpy() for table in tables]) for name in ("user", "order", "item")
                )
                scratch.write(item[np.lexsort((order, user))].data)
                users, counts = np.unique(user, return_counts=True)
                count[users + 1] = counts
            at = torch.from_numpy(count.cumsum())
            size = max(1, int(at[-1]))
            scratch.write(bytes(0 if at[-1] else 4))
            scratch.flush()
            item_E = torch.from_file(scratch.name, shared=False, size=size, dtype=torch.int32)
            return Ragged(at.to(self.home), item_E.clone().to(self.home) if self.mode == "resident" else item_E)

    def _parts(self, folder: str) -> list[str]:
        return sorted(self.fs.glob(f"{glob.escape(self.folder)}/{folder}/part-*.parquet"))
