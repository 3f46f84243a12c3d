"""MovieLens (Harper and Konstan, 2015): the 100K and 1M releases and the later ones in csv, in their original files.

Every rating is a positive. The features are those of AutoTower's experiments: the age of a 100K user in eight buckets,
the decade of the year that ends a film's title, its genres in the order of the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nascore.datasets import DataError, Dataset, Feature, Layout
from nascore.schema import Side

USER, ITEM, TIME = "user_id", "movie_id", "timestamp"
OFFICIAL = {"userId": USER, "movieId": ITEM}
ABOUT_USERS = ("age", "gender", "occupation")
AGES = ("<1", "1-7", "8-16", "17-29", "30-39", "40-49", "50-59", "60+")
AGE_STARTS = (1, 8, 17, 30, 40, 50, 60)
YEAR = r"^.*\((?P<year>\d{4})[)–-]"
NO_GENRES = ("", "(no genres listed)")


@dataclass(frozen=True)
class _Text:
    """A text file: all its fields in order, or, if `headed`, those that its first line must name."""

    file: str
    delimiter: str
    fields: tuple[str, ...]
    integers: tuple[str, ...]
    encoding: str = "utf-8"
    headed: bool = False


@dataclass(frozen=True)
class _Release:
    """How one release is written. `genres`: the file that names a film's last fields, one flag a genre."""

    log: _Text
    items: _Text
    users: _Text | None = None
    genres: str = ""

    def files(self) -> tuple[str, ...]:
        others = (self.users.file if self.users else "", self.genres)
        return (self.log.file, self.items.file, *filter(None, others))


RELEASES = {
    "100K": _Release(
        log=_Text("u.data", "\t", (USER, ITEM, "rating", TIME), (USER, ITEM, TIME)),
        items=_Text("u.item", "|", (ITEM, "title", "released", "released on video", "url"), (ITEM,), "latin-1"),
        users=_Text("u.user", "|", (USER, "age", "gender", "occupation", "zip code"), (USER, "age")),
        genres="u.genre",
    ),
    "1M": _Release(
        log=_Text("ratings.dat", "::", (USER, ITEM, "rating", TIME), (USER, ITEM, TIME)),
        items=_Text("movies.dat", "::", (ITEM, "title", "genres"), (ITEM,), "latin-1"),
        users=_Text("users.dat", "::", (USER, "gender", "age", "occupation", "zip code"), (USER,)),
    ),
    "csv": _Release(
        log=_Text("ratings.csv", ",", ("userId", "movieId", TIME), ("userId", "movieId", TIME), headed=True),
        items=_Text("movies.csv", ",", ("movieId", "title", "genres"), ("movieId",), headed=True),
    ),
}


class Movielens(Dataset):
    """One release a folder, told by its ratings: u.data, ratings.dat or ratings.csv; the csv releases know no users."""

    protocols: ClassVar[tuple[str, ...]] = ("user_temporal", "global_temporal", "authors", "leave_one_out")

    def layout(self) -> Layout:
        release = self._release()
        about_users = ABOUT_USERS if release.users else ()
        features = (
            *(Feature(name, "user") for name in (USER, *about_users)),
            Feature(ITEM, "item"),
            Feature("decade", "item"),
            Feature("genres", "item", "set"),
        )
        return Layout(USER, ITEM, TIME, features, history=(ITEM, "decade", "genres"), history_length=20)

    def rows(self) -> Iterator[pa.Table]:
        for table in self._read(self._release().log):
            yield table.select([USER, ITEM, TIME])

    def entities(self, side: Side) -> Iterator[pa.Table]:
        release = self._release()
        if side == "user" and release.users:
            yield from self._users(release.users)
        if side == "item":
            yield from self._items(release.items, self._genres(release.genres) if release.genres else ())

    def _release(self) -> _Release:
        """The release whose files are all there, with their columns where a header names them."""
        found = [name for name, release in RELEASES.items() if self.fs.exists(self.path(release.log.file))]
        if not found:
            raise self.missing(" or ".join(f"{release.log.file} ({name})" for name, release in RELEASES.items()))
        if len(found) > 1:
            logs = " and ".join(RELEASES[name].log.file for name in found)
            raise DataError(f"{self.raw}: {logs} are of different releases; keep one release in the folder")
        release = RELEASES[found[0]]
        for file in release.files():
            if not self.fs.exists(self.path(file)):
                raise self.missing(f"{file}, which {found[0]} needs")
        for text in (release.log, release.items):
            if text.headed:
                self.require(text.file, text.fields, self.header(text.file, text.delimiter))
        return release

    def _read(self, text: _Text, flags: tuple[str, ...] = ()) -> Iterator[pa.Table]:
        names = () if text.headed else (*text.fields, *flags)
        quoted = text.headed and "title" in text.fields
        integers = (*text.integers, *flags)
        for table in self.delimited(text.file, text.delimiter, names, integers, quoted, text.encoding):
            yield table.rename_columns([OFFICIAL.get(name, name) for name in table.column_names])

    def _users(self, text: _Text) -> Iterator[pa.Table]:
        for table in self._read(text):
            columns = {USER: table[USER]}
            for name in ABOUT_USERS:
                if name in text.integers:
                    bucket = np.searchsorted(AGE_STARTS, table[name].to_numpy(), side="right")
                    columns[name] = pa.array(AGES).take(pa.array(bucket))
                else:
                    columns[name] = pc.if_else(pc.equal(table[name], ""), None, table[name])
            yield pa.table(columns)

    def _items(self, text: _Text, flags: tuple[str, ...]) -> Iterator[pa.Table]:
        for table in self._read(text, flags):
            year = pc.struct_field(pc.extract_regex(table["title"], YEAR), "year").cast(pa.int64())
            decade = pc.multiply(pc.divide(year, 10), 10)
            genres = _of_flags(table, flags) if flags else _of_text(table["genres"])
            yield pa.table({ITEM: table[ITEM], "decade": decade, "genres": genres})

    def _genres(self, file: str) -> tuple[str, ...]:
        """The names of the flags in their order; the official file ends with an empty line."""
        rows = [line.rpartition("|") for _, lines in self.lines(file) for line in lines.to_pylist() if line]
        for place, (name, _, number) in enumerate(rows):
            if not name or number != str(place):
                raise DataError(f"{self.raw}/{file}, row {place + 1}: not a genre and its number: <name>|{place}")
        return tuple(name for name, _, _ in rows)

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        return {
            "u.data": (
                b"1\t10\t5\t880000300\n"
                b"2\t30\t3\t880000100\n"
                b"1\t20\t4\t880000100\n"
                b"1\tten\t2\t880000500\n"
                b"2\t10\t1\t880000400\n"
            ),
            "u.user": b"1|7|F|student|00000\n2|60|M|writer|T8H1N\n",
            "u.item": (
                "10|First Film (1995)|01-Jan-1995||http://films/10|0|1|1\n"
                "20|Café (1969) (V)|01-Jan-1969||http://films/20|0|0|1\n"
                "30|unknown||||1|0|0\n"
            ).encode("latin-1"),
            "u.genre": b"unknown|0\nComedy|1\nDrama|2\n\n",
        }


def _of_flags(table: pa.Table, flags: tuple[str, ...]) -> pa.ListArray:
    """The names of each row's flags that are set."""
    row, flag = np.nonzero(np.stack([table[name].to_numpy() for name in flags], axis=1))
    offsets = np.searchsorted(row, np.arange(len(table) + 1)).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flags).take(pa.array(flag)))


def _of_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The names between "|"."""
    none = pc.is_in(column, pa.array(NO_GENRES))
    return pc.if_else(none, pa.scalar([], pa.list_(pa.string())), pc.split_pattern(column, "|"))
