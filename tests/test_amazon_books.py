"""Amazon Books: two official forms, their values, the filter, prices, and malformed lines and records."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from nascore import datasets
from nascore.datasets import CHUNK, DataError, Feature, Layout
from nascore.datasets.amazon_books import AmazonBooks

Files = dict[str, bytes]
Write = Callable[[Files], str]


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def review(user: str, book: str, time: Any = 1442000000) -> dict[str, Any]:
    return {"overall": 5.0, "reviewerID": user, "asin": book, "reviewText": "Good.", "unixReviewTime": time}


def record(user: str, book: str, time: Any = 1181952000, price: str = "15.99", text: str = "Good.") -> bytes:
    return (
        f"product/productId: {book}\nproduct/title: A: B\nproduct/price: {price}\nreview/userId: {user}\n"
        f'review/profileName: N "n" N\nreview/helpfulness: 0/0\nreview/score: 5.0\nreview/time: {time}\n'
        f"review/summary: Good: really\nreview/text: {text}\n\n"
    ).encode()


JSON: Files = {
    "Books.json": lines(review("u", "10", 300), review("v", "2X", 100), review("u", "2X", 200), review("v", "10", 300)),
    "meta_Books.json": lines({"asin": "10", "price": "$12.99"}, {"asin": "2X", "price": ""}),
}
SNAP: Files = {
    "Books.txt": record("u", "10", 300) + record("v", "2X", 100, "unknown")
    + record("u", "2X", 200, "unknown") + record("v", "10", 300)
}  # fmt: skip
FORMS = {"2018": JSON, "SNAP": SNAP}


@pytest.fixture
def put(tmp_path: Path) -> Write:
    """Writes files to a new folder on the disk and returns it."""

    def written(files: Files) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return str(folder)

    return written


def small(raw: str, on_bad_row: datasets.OnBadRow = "error") -> AmazonBooks:
    """A reader that leaves nobody out."""
    return AmazonBooks(raw, on_bad_row, user_rows=1, item_rows=1)


def read(dataset: AmazonBooks) -> dict[str, pa.Table]:
    """Everything a dataset holds, by table."""
    tables = {"log": list(dataset.rows()), **{side: list(dataset.entities(side)) for side in ("user", "item")}}
    return {name: pa.concat_tables(parts) for name, parts in tables.items() if parts}


def values(tables: dict[str, pa.Table]) -> dict[str, list[tuple[Any, ...]]]:
    return {part: list(zip(*table.to_pydict().values(), strict=True)) for part, table in tables.items()}


VALUES: dict[str, dict[str, list[tuple[Any, ...]]]] = {
    "2018": {
        "log": [("u", "10", 300), ("v", "2X", 100), ("u", "2X", 200), ("v", "10", 300)],
        "item": [("10", 12.99), ("2X", None)],
    },
    "SNAP": {"log": [("u", "10", 300, 15.99), ("v", "2X", 100, None), ("u", "2X", 200, None), ("v", "10", 300, 15.99)]},
}


@pytest.mark.parametrize("form", FORMS)
def test_layout(form: str, put: Write) -> None:
    features = (Feature("reviewer_id", "user"), Feature("asin", "item"), Feature("price", "item", "number", 50))
    expected = Layout("reviewer_id", "asin", "timestamp", features, history=("asin", "price"), history_length=50)
    assert AmazonBooks(put(FORMS[form])).layout() == expected


@pytest.mark.parametrize("block_bytes", [1, 100, datasets.BLOCK_BYTES])
@pytest.mark.parametrize("form", FORMS)
def test_values(form: str, block_bytes: int, put: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "BLOCK_BYTES", block_bytes)
    assert values(read(small(put(FORMS[form])))) == VALUES[form]


@pytest.mark.parametrize("form", FORMS)
def test_files_may_be_packed(form: str, put: Write) -> None:
    dataset = small(put({f"{name}.gz": gzip.compress(content) for name, content in FORMS[form].items()}))
    dataset.layout()
    assert values(read(dataset)) == VALUES[form]


def test_the_five_core_is_read_as_the_whole(put: Write) -> None:
    files = {"Books_5.json": JSON["Books.json"], "meta_Books.json": JSON["meta_Books.json"]}
    assert values(read(small(put(files)))) == VALUES["2018"]


def test_the_specimen_without_its_broken_row(put: Write) -> None:
    tables = read(AmazonBooks(put(AmazonBooks.specimen()), "skip"))
    assert len(tables["log"]) == 40
    assert values(tables)["log"][4] == ("A1", "0000000010", 1442086400)
    assert values(tables)["item"] == [("0000000010", 12.99), ("000000002X", None)]


@pytest.mark.parametrize(
    "price, expected",
    [
        ("$12.99", 12.99), ("$1,234.56", 1234.56), ("$12,345,678", 12345678.0), ("15.99", 15.99), (" $7 ", 7.0),
        ("$0.00", 0.0), ("", None), ("unknown", None), ("$5.00 - $10.00", None), ("$1,2", None), ("$12.", None),
        ("nan", None), ("1e3", None), ("-1", None), ("EUR 3", None), (".a-box-inner{background-color:#fff}", None),
    ],
)  # fmt: skip
def test_prices(price: str, expected: float | None, put: Write) -> None:
    meta = {**JSON, "meta_Books.json": lines({"asin": "10", "price": price})}
    assert values(read(small(put(meta))))["item"] == [("10", expected)]
    (log,) = small(put({"Books.txt": record("u", "10", price=price)})).rows()
    assert log["price"].to_pylist() == [expected]


def test_a_price_that_is_not_there_is_missing(put: Write) -> None:
    meta = lines({"asin": "2X"}, {"asin": "10", "price": "$1.00"}, {"asin": "2X", "price": "$2.00"})
    assert values(read(small(put({**JSON, "meta_Books.json": meta}))))["item"] == [("2X", None), ("10", 1.0)]
    bare = record("u", "10").replace(b"product/price: 15.99\n", b"")
    (log,) = small(put({"Books.txt": record("u", "2X") + bare})).rows()
    assert log["price"].to_pylist() == [15.99, None]


@pytest.mark.parametrize("form", FORMS)
def test_the_filter_and_that_of_the_authors_code(form: str, put: Write) -> None:
    pairs = [("u", "10")] * 15 + [("u", "2X")] * 5 + [("v", "10")] * 5 + [("v", "2X")] * 14
    make = (lambda u, b: lines(review(u, b))) if form == "2018" else record
    log = next(iter(FORMS[form]))
    raw = put({**FORMS[form], log: b"".join(make(u, b) for u, b in pairs)})
    kept = read(AmazonBooks(raw))["log"]
    assert kept["asin"].to_pylist() == ["10"] * 15 and set(kept["reviewer_id"].to_pylist()) == {"u"}
    kept = read(AmazonBooks(raw, item_rows=10))["log"]
    assert Counter(kept["asin"].to_pylist()) == {"10": 15, "2X": 5}


def test_reviews_of_nobody_known_count_for_no_book(put: Write) -> None:
    raw = put({"Books.txt": record("unknown", "10") * 19 + record("u", "10") * 19 + record("u", "2X")})
    dataset = AmazonBooks(raw, user_rows=20, item_rows=19)
    assert read(dataset)["log"]["reviewer_id"].to_pylist() == ["u"] * 19
    with pytest.raises(DataError, match="no row is left: .*reviewer_id 20 and asin 20"):
        list(AmazonBooks(raw).rows())


@pytest.mark.parametrize(
    "file, line, why",
    [
        ("Books.json", b"null", "is not a JSON object"),
        ("Books.json", b"", "is not a JSON object"),
        ("Books.json", lines(review("", "10")), "reviewerID is missing"),
        ("Books.json", lines({"reviewerID": "u", "unixReviewTime": 5}), "asin is missing"),
        ("Books.json", lines(review("u", "10", None)), "unixReviewTime is missing"),
        ("Books.json", lines(review("u", "10", "09 11, 2015")), "unixReviewTime is not of type int64"),
        ("meta_Books.json", lines({"price": "$1.00"}), "asin is missing"),
        ("meta_Books.json", lines({"asin": "30", "price": 1.5}), "price is not of type string"),
    ],
)
def test_malformed_lines(file: str, line: bytes, why: str, put: Write) -> None:
    rows = JSON[file].splitlines(keepends=True)
    for place in range(len(rows) + 1):
        text = b"".join([*rows[:place], line.removesuffix(b"\n") + b"\n", *rows[place:]])
        raw = put({**JSON, file: text})
        with pytest.raises(DataError, match=re.escape(f"{raw}/{file}, row {place + 1}: {why}")):
            read(small(raw))
        lenient = small(raw, "skip")
        assert values(read(lenient)) == VALUES["2018"] and lenient.bad == Counter({file: 1})


WHOLE = record("w", "30")


@pytest.mark.parametrize(
    "broken, why",
    [
        (WHOLE.replace(b"review/userId: w\n", b""), "the record that begins here has review/userId not once"),
        (WHOLE.replace(b"product/productId: 30\n", b""), "the record that begins here has product/productId not once"),
        (WHOLE.replace(b"review/time: 1181952000\n", b""), "the record that begins here has review/time not once"),
        (WHOLE.replace(b"review/time:", b"review/time: 5\nreview/time:"), "begins here has review/time not once"),
        (WHOLE.replace(b"\n\n", b"\n") + WHOLE, "the record that begins here has review/userId not once"),
        (b"the end of a text\n\n", "the record that begins here has review/userId not once"),
        (record("w", "30", "soon"), "review/time of the record that begins here is not an integer"),
        (record("w", "30", "9" * 19), "review/time of the record that begins here is not an integer"),
    ],
)
@pytest.mark.parametrize("block_bytes", [1, 100, datasets.BLOCK_BYTES])
def test_malformed_records(
    broken: bytes, why: str, block_bytes: int, put: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "BLOCK_BYTES", block_bytes)
    records = [part + b"\n\n" for part in SNAP["Books.txt"].split(b"\n\n")[:-1]]
    for place in range(len(records) + 1):
        raw = put({"Books.txt": b"".join([*records[:place], broken, *records[place:]]).rstrip(b"\n") + b"\n"})
        row = 1 + 11 * place
        with pytest.raises(DataError, match=re.escape(f"{raw}/Books.txt, row {row}: ") + ".*" + re.escape(why)):
            list(small(raw).rows())
        lenient = small(raw, "skip")
        assert values(read(lenient)) == VALUES["SNAP"] and lenient.bad == Counter({"Books.txt": 1})


@pytest.mark.parametrize(
    "text",
    [
        b"\n" + SNAP["Books.txt"],
        SNAP["Books.txt"].rstrip(b"\n"),
        SNAP["Books.txt"].replace(b"\n\n", b"\n\n\n"),
        SNAP["Books.txt"].replace(b"\n", b"\r\n"),
        SNAP["Books.txt"].replace(b"A: B", "Café".encode("latin-1")),
        SNAP["Books.txt"].replace(b"A: B", "Café \u2028 §".encode()),
        SNAP["Books.txt"].replace(b"A: B", b"A\nB about review/userId: x"),
    ],
    ids=["empty first", "no empty last", "more empty", "CRLF", "latin-1", "utf-8", "a title of two lines"],
)
@pytest.mark.parametrize("block_bytes", [1, 100, datasets.BLOCK_BYTES])
def test_records_however_they_are_set(
    text: bytes, block_bytes: int, put: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "BLOCK_BYTES", block_bytes)
    assert values(read(small(put({"Books.txt": text})))) == VALUES["SNAP"]


def test_records_across_many_blocks(put: Write) -> None:
    records = [record(f"u{i % 7}", str(i % 5), i) if i % 1000 else b"review/time: 0\n\n" for i in range(1, 30_001)]
    dataset = small(put({"Books.txt": b"".join(records)}), "skip")
    tables = list(dataset.rows())
    assert max(map(len, tables)) <= CHUNK
    assert pa.concat_tables(tables)["timestamp"].to_pylist() == [i for i in range(1, 30_001) if i % 1000]
    assert dataset.bad == Counter({"Books.txt": 30})


@pytest.mark.parametrize("form", FORMS)
def test_every_file_is_needed(form: str, put: Write) -> None:
    for file in FORMS[form]:
        raw = put({name: content for name, content in FORMS[form].items() if name != file})
        with pytest.raises(DataError, match=rf"there is no .*{re.escape(file)}.*, plain or packed; the files there"):
            AmazonBooks(raw).layout()


def test_every_field_is_needed(put: Write) -> None:
    for file, fields in {
        "Books.json": ("reviewerID", "asin", "unixReviewTime"),
        "meta_Books.json": ("asin", "price"),
    }.items():
        for field in fields:
            raw = put({**JSON, file: JSON[file].replace(field.encode(), b"other")})
            with pytest.raises(DataError, match=rf"{file}: no column '{field}'; there are: .*other"):
                AmazonBooks(raw).layout()
    for field in ("product/productId", "product/price", "review/userId", "review/time"):
        raw = put({"Books.txt": SNAP["Books.txt"].replace(field.encode(), b"other")})
        with pytest.raises(DataError, match=rf"Books.txt: no column '{field}'; there are: .*other"):
            AmazonBooks(raw).layout()


def test_two_forms_in_one_folder_are_an_error(put: Write) -> None:
    with pytest.raises(DataError, match=r"Books\.json and Books\.txt are there; keep one"):
        AmazonBooks(put({**JSON, **SNAP})).layout()
    with pytest.raises(DataError, match=r"Books\.json and Books_5\.json\.gz are there; keep one"):
        AmazonBooks(put({**JSON, "Books_5.json.gz": b""})).layout()


def test_an_empty_file_is_an_error(put: Write) -> None:
    for files in ({**JSON, "Books.json": b""}, {"Books.txt": b""}):
        raw = put(files)
        with pytest.raises(DataError, match="no column"):
            AmazonBooks(raw).layout()
        with pytest.raises(DataError, match="no row is left"):
            list(AmazonBooks(raw).rows())
