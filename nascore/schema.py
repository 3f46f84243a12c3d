"""The one description between data and models: columns, the schema of a prepared data set, and a batch of it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from torch import Tensor

from nascore.storage import StorageError

Side = Literal["user", "item", "row"]
Kind = Literal["category", "set", "number"]
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Column:
    """One feature. `side` says what it describes: a user, an item, or the row (one event) itself.

    kind: category, one id a value; set, up to `width` ids a value; number, a float. `size` counts the ids with 0, which
    stands for "missing or unknown" and for the padding of sets and histories.
    """

    name: str
    side: Side = "row"
    kind: Kind = "category"
    size: int = 0
    width: int = 1

    def __post_init__(self) -> None:
        if not self.name or "." in self.name or "/" in self.name:
            raise ValueError(f"column {self.name!r}: a name is not empty and holds neither '.' nor '/'")


@dataclass(frozen=True)
class Schema:
    """What a prepared data set holds.

    user, item: the names of the two keys; users, items: their numbers of ids with 0.
    columns: the features; a key is a feature only if it is among them.
    history: the item columns by which a past event is shown to the model; of a set, its first member.
    history_length: how many past events a model sees at most.
    protocol: the id of the protocol by which the rows were split.
    history_from, seen_in: for each split, the splits its histories are made of and those whose items are no candidates.
    split_digest: sha256 over (user, item, timestamp, split) of all rows, so that results of different splits never mix.

    Where rows stand by themselves, user and item are "", all columns are of the row, and batches have labels.
    """

    user: str
    item: str
    users: int
    items: int
    columns: tuple[Column, ...]
    protocol: str
    rows: Mapping[str, int] = field(default_factory=dict)
    history: tuple[str, ...] = ()
    history_length: int = 0
    history_from: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seen_in: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split_digest: str = ""
    vocabulary_digests: Mapping[str, str] = field(default_factory=dict)

    def of(self, side: Side) -> tuple[Column, ...]:
        """The features of one side, in order."""
        return tuple(column for column in self.columns if column.side == side)

    def check_rows(self, url: str, splits: Sequence[str], held: int) -> None:
        """Raise `StorageError` unless the files of some splits hold the rows that were prepared."""
        known = sum(self.rows.get(split, 0) for split in splits)
        if held != known:
            there = f"{url}: of {known:,} rows of {' and '.join(splits)} {held:,} are there"
            raise StorageError(f"{there}; files are missing or another run writes them: remove the folder, start anew")

    @property
    def blank(self) -> tuple[str, ...]:
        """The features that are unknown in every row."""
        return tuple(column.name for column in self.columns if column.kind != "number" and column.size == 1)

    def __getitem__(self, name: str) -> Column:
        for column in self.columns:
            if column.name == name:
                return column
        raise KeyError(f"no column {name!r}; there are: {', '.join(column.name for column in self.columns)}")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str) -> "Schema":
        known = json.loads(text)
        known["columns"] = tuple(Column(**column) for column in known["columns"])
        known["history"] = tuple(known["history"])
        for name in ("history_from", "seen_in"):
            known[name] = {split: tuple(sources) for split, sources in known[name].items()}
        return Schema(**known)


@dataclass(frozen=True)
class Batch:
    """Columns by name: (B,) ids or floats, (B, width) sets, and "history/<column>" (B, T), oldest first, padded left.

    keys holds the ids of the two keys, whether or not they are features; rows the global index of each row (B,); label
    0 or 1 for each row (B,), where rows stand by themselves.
    """

    columns: Mapping[str, Tensor]
    keys: Mapping[str, Tensor]
    rows: Tensor
    label: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        return self.columns[name]

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, place_R: Tensor) -> "Batch":
        """The rows at some places."""
        columns = {name: column[place_R] for name, column in self.columns.items()}
        keys = {name: column[place_R] for name, column in self.keys.items()}
        return Batch(columns, keys, self.rows[place_R], None if self.label is None else self.label[place_R])

    def to(self, device: str) -> "Batch":
        """The same batch on another device."""
        columns = {name: column.to(device, non_blocking=True) for name, column in self.columns.items()}
        keys = {name: column.to(device, non_blocking=True) for name, column in self.keys.items()}
        label = None if self.label is None else self.label.to(device, non_blocking=True)
        return Batch(columns, keys, self.rows.to(device, non_blocking=True), label)
