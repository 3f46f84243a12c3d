"""Amazon Books reviews, in either official form, told by the files there.

- 2018 (Ni et al., 2019): Books.json or its 5-core Books_5.json, one JSON object a line, and meta_Books.json, where a
  book may stand twice; the first counts.
- SNAP (McAuley and Leskovec, 2013): Books.txt, `key: value` lines with an empty line after each review, price included.

Every review is a positive; reviews by "unknown" are left out, repeated ones stay. Features and filter are those of
AutoTower's experiments (Section 4.1.1). A price that is not one number, such as a range, is missing here, and quantiles
are taken over books; the authors' code makes it 0 and takes them over reviews. It also keeps books of 10 reviews, which
is `item_rows=10`.
"""

import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nascore.datasets import Dataset, Feature, Frequent, Layout, OnBadRow
from nascore.schema import Side

USER, ITEM, TIME = "reviewer_id", "asin", "timestamp"
REVIEWS, META, SNAP = ("Books.json", "Books_5.json"), "meta_Books.json", "Books.txt"
REVIEW = {"reviewerID": pa.string(), "asin": pa.string(), "unixReviewTime": pa.int64()}
ABOUT = {"asin": pa.string(), "price": pa.string()}
RECORD = {USER: "review/userId", ITEM: "product/productId", TIME: "review/time"}
PRICE_IN_RECORD = "product/price"
NOBODY = "unknown"
PRICE = r"^\s*\$?(?P<price>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)\s*$"


class AmazonBooks(Dataset):
    """Users of at least `user_rows` reviews and books of at least `item_rows`, counted once over all reviews."""

    protocols: ClassVar[tuple[str, ...]] = ("user_temporal", "global_temporal", "authors", "leave_one_out")

    def __init__(self, raw: str, on_bad_row: OnBadRow = "error", user_rows: int = 20, item_rows: int = 20) -> None:
        super().__init__(raw, on_bad_row)
        self.least = {USER: user_rows, ITEM: item_rows}

    def layout(self) -> Layout:
        log = self.one_of(*REVIEWS, SNAP)
        if log.startswith(SNAP):
            self.require(log, (*RECORD.values(), PRICE_IN_RECORD), self._record_fields(log))
        else:
            meta = self.one_of(META)
            self.require(log, REVIEW, self.fields_of(log))
            self.require(meta, ABOUT, self.fields_of(meta))
        features = (Feature(USER, "user"), Feature(ITEM, "item"), Feature("price", "item", "number", bins=50))
        return Layout(USER, ITEM, TIME, features, history=(ITEM, "price"), history_length=50)

    def rows(self) -> Iterator[pa.Table]:
        yield from self._frequent.rows(self._reviews())

    def entities(self, side: Side) -> Iterator[pa.Table]:
        if side == "item" and not self.one_of(*REVIEWS, SNAP).startswith(SNAP):
            yield from self._frequent.entities(ITEM, self._books())

    @cached_property
    def _frequent(self) -> Frequent:
        return Frequent(self._reviews(), self.least)

    def _reviews(self) -> Iterator[pa.Table]:
        log = self.one_of(*REVIEWS, SNAP)
        if log.startswith(SNAP):
            for table in self._records(log):
                yield table.filter(pc.not_equal(table[USER], NOBODY))
        else:
            for table in self.objects(log, REVIEW, needed=tuple(REVIEW)):
                yield table.rename_columns([USER, ITEM, TIME])

    def _books(self) -> Iterator[pa.Table]:
        for table in self.objects(self.one_of(META), ABOUT, needed=("asin",)):
            yield pa.table({ITEM: table["asin"], "price": _price(table["price"])})

    def _record_fields(self, file: str) -> list[str]:
        """The keys of the first record."""
        lines: list[str] = next((lines.to_pylist() for _, lines in self.lines(file)), [])
        return [line.partition(": ")[0] for line in itertools.takewhile(bool, lines)]

    def _records(self, file: str) -> Iterator[pa.Table]:
        """What records say, in tables of whole records; a broken one is reported with its first line."""
        rest, last = pa.array([], pa.string()), 1
        for first, lines in self.lines(file):
            first -= len(rest)
            lines = pa.concat_arrays([rest, lines])
            ends = np.flatnonzero(np.asarray(pc.equal(lines, "")))
            whole = int(ends[-1]) + 1 if len(ends) else 0
            rest, last = lines[whole:], first + whole
            yield self._parsed(file, first, lines[:whole])
        yield self._parsed(file, last, rest)

    def _parsed(self, file: str, first: int, lines: pa.StringArray) -> pa.Table:
        """One row a record; `first` is the number of the first line."""
        empty = np.asarray(pc.equal(lines, ""), bool)
        begins = np.flatnonzero(~empty & np.append(True, empty[:-1])[: len(empty)])
        columns, broken = {}, {}
        for name, key in (*RECORD.items(), ("price", PRICE_IN_RECORD)):
            found = np.flatnonzero(np.asarray(pc.starts_with(lines, f"{key}: "), bool))
            record = np.searchsorted(begins, found, side="right") - 1
            place = np.zeros(len(begins), np.int64)
            place[record] = found
            times = np.bincount(record, minlength=len(begins))
            columns[name] = pc.utf8_slice_codeunits(lines.take(pa.array(place, mask=times != 1)), len(key) + 2)
            if name in RECORD:
                broken[f"the record that begins here has {key} not once"] = times != 1
        whole = pc.fill_null(pc.match_substring_regex(columns[TIME], r"^-?\d{1,18}$"), False)
        broken[f"{RECORD[TIME]} of the record that begins here is not an integer"] = pc.invert(whole)
        columns[TIME] = pc.if_else(whole, columns[TIME], None).cast(pa.int64())
        columns["price"] = _price(columns["price"])
        return self.sound(file, first + begins, pa.table(columns), broken)

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        reviews = [
            f'{{"overall": 5.0, "verified": true, "reviewTime": "09 1{turn}, 2015", "reviewerID": "{user}", '
            f'"asin": "{book}", "style": {{"Format:": " Paperback"}}, "reviewerName": "N", "reviewText": "Good.", '
            f'"summary": "Good", "unixReviewTime": {1442000000 + 86400 * (turn % 7)}}}\n'
            for turn in range(10)
            for user in ("A1", "A2")
            for book in ("0000000010", "000000002X")
        ]
        once = '{"reviewerID": "A1", "asin": "0000000030", "overall": 1.0, "unixReviewTime": 1442000000}\n'
        reviews[20:20] = [once]
        reviews[-1:-1] = [once.replace("1442000000", '"09 11, 2015"')]
        meta = (
            '{"category": ["Books"], "title": "First", "also_buy": [], "price": "$12.99", "asin": "0000000010"}\n'
            '{"category": ["Books"], "title": "Second", "also_buy": [], "price": "", "asin": "000000002X"}\n'
            '{"category": ["Books"], "title": "First", "also_buy": [], "price": "$9.99", "asin": "0000000010"}\n'
            '{"category": ["Books"], "title": "Third", "also_buy": [], "price": "$1.00", "asin": "0000000030"}\n'
        )
        return {REVIEWS[0]: "".join(reviews).encode(), META: meta.encode()}


def _price(text: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Dollars, where the text is one amount."""
    amount = pc.struct_field(pc.extract_regex(text, PRICE), "price")
    return pc.replace_substring(amount, ",", "").cast(pa.float64())
