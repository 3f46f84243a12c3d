"""Criteo, Avazu and KDD Cup 2012: values of their official formats, malformed lines, packed files, settings."""

import bz2
import gzip
import io
import lzma
import re
import zipfile
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from nascore import datasets, plugins
from nascore.datasets import CHUNK, DataError, Dataset, Feature, Layout
from nascore.datasets.avazu import Avazu
from nascore.datasets.criteo import Criteo
from nascore.datasets.kdd12 import Kdd12

Files = dict[str, bytes]
Put = Callable[[Files], str]
ROOMS: tuple[type[Dataset], ...] = (Criteo, Avazu, Kdd12)


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Writes files to a folder on the disk and returns it."""

    def written(files: Files) -> str:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        return str(tmp_path)

    return written


def sound(room: type[Dataset]) -> Files:
    """The specimen without its broken row."""
    log, *_ = files = room.specimen()
    rows = files[log].splitlines(keepends=True)
    return {**files, log: b"".join([*rows[:-2], rows[-1]])}


def read(dataset: Dataset) -> pa.Table:
    return pa.concat_tables(dataset.rows())


def ad(label: str = "0", numbers: str = "", categories: str = "") -> bytes:
    """A line of Criteo's; the fields that are not given are missing."""
    fields = [label, *(numbers.split(",") + [""] * 13)[:13], *(categories.split(",") + [""] * 26)[:26]]
    return "\t".join(fields).encode() + b"\n"


def impression(**changes: str) -> bytes:
    """A line of Avazu's."""
    header, first = Avazu.specimen()["train"].decode().splitlines()[:2]
    return (
        ",".join({**dict(zip(header.split(","), first.split(","), strict=True)), **changes}.values()).encode() + b"\n"
    )


def search(user: str = "2000", **changes: str) -> bytes:
    """A line of KDD Cup 2012's log."""
    fields = {"click": "0", "impression": "1", "url": "10000000000000000001", "ad": "7", "advertiser": "6"}
    fields |= {"depth": "3", "position": "2", "query": "5", "keyword": "4", "title": "3", "description": "2"}
    return "\t".join({**fields, "user": user, **changes}.values()).encode() + b"\n"


def test_layouts(put: Put) -> None:
    criteo = Criteo(put(Criteo.specimen()), fewest=5, most=1_000).layout()
    numbers = tuple(Feature(f"I{place}", "row", "number") for place in range(1, 14))
    assert criteo.features[:13] == numbers
    assert criteo.features[13:] == tuple(Feature(f"C{place}", fewest=5, most=1_000) for place in range(1, 27))
    assert (criteo.user, criteo.item, criteo.timestamp, criteo.label) == ("", "", "", "label")

    avazu = Avazu(put(Avazu.specimen())).layout()
    assert [feature.name for feature in avazu.features][:3] == ["hour", "C1", "banner_pos"] and len(
        avazu.features
    ) == 22
    assert {(feature.kind, feature.fewest, feature.most) for feature in avazu.features} == {("category", 2, 10_000_000)}
    assert (avazu.user, avazu.item, avazu.timestamp, avazu.label) == ("", "", "day", "click")
    told = Avazu(put({}), ids=True).layout()
    assert [feature.name for feature in told.features][:3] == ["hour", "id", "C1"] and len(told.features) == 23

    limits = {"fewest": 3, "most": 0}
    names = "DisplayURL AdID AdvertiserID QueryID KeywordID TitleID DescriptionID UserID gender age".split()
    features = (
        *(Feature(name, "row", "number") for name in ("impression", "depth", "position")),
        *(Feature(name, **limits) for name in names),
    )
    assert Kdd12(put(Kdd12.specimen()), **limits).layout() == Layout("", "", "", features, label="click")


@pytest.mark.parametrize("room", ROOMS)
def test_settings_come_from_the_command_line(room: type[Dataset], put: Put) -> None:
    name, raw = room.__module__.rpartition(".")[2], put(room.specimen())
    limited = plugins.build("datasets", f"{name}:fewest=4,most=9", raw, "error").layout()
    assert {(f.fewest, f.most) for f in limited.features if f.kind == "category"} == {(4, 9)}
    assert {(f.fewest, f.most) for f in limited.features if f.kind != "category"} <= {(1, 0)}
    for setting, least in (("fewest", 1), ("most", 0)):
        with pytest.raises(ValueError, match=f"{room.__name__}: {setting} is at least {least}"):
            plugins.build("datasets", f"{name}:{setting}={least - 1}", raw, "error")


@pytest.mark.parametrize("block_bytes", [1, 100, datasets.BLOCK_BYTES])
def test_values_of_criteo(block_bytes: int, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "BLOCK_BYTES", block_bytes)
    rows = [ad("1", "0,-1,,4,-2," + "9" * 18, "a0000001,,0A1b,0,ffffffff"), ad(), ad("0", ",,,,,,,,,,,,12", ",,5")]
    first, second, third = read(Criteo(put({"train.txt": b"".join(rows)}))).to_pylist()
    numbers = {"I1": 0, "I2": -1, "I4": 4, "I5": -2, "I6": 10**18 - 1}
    categories = {"C1": "a0000001", "C3": "0A1b", "C4": "0", "C5": "ffffffff"}
    assert {name: value for name, value in first.items() if value is not None} == {"label": 1, **numbers, **categories}
    assert {name: value for name, value in second.items() if value is not None} == {"label": 0}
    assert {name: value for name, value in third.items() if value is not None} == {"label": 0, "I13": 12, "C3": "5"}
    assert list(first) == ["label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]


@pytest.mark.parametrize("ids", [False, True])
@pytest.mark.parametrize("block_bytes", [1, 100, datasets.BLOCK_BYTES])
def test_values_of_avazu(block_bytes: int, ids: bool, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "BLOCK_BYTES", block_bytes)
    rows = read(Avazu(put(sound(Avazu)), ids=ids)).to_pylist()
    texts = [line.split(",") for line in sound(Avazu)["train"].decode().splitlines()]
    for row, fields in zip(rows, texts[1:], strict=True):
        text = dict(zip(texts[0], fields, strict=True))
        when = datetime.strptime(f"20{text['hour']}", "%Y%m%d%H").replace(tzinfo=UTC)
        expected = {name: value or None for name, value in text.items() if ids or name != "id"}
        expected |= {"click": int(text["click"]), "day": int(when.timestamp()) // 86_400, "hour": when.hour}
        assert row == expected
    assert [row["site_id"] for row in rows] == ["5173000a", "5173000a", None, "5173000b"]
    assert [(row["day"], row["hour"]) for row in rows] == [(16364, 0), (16364, 23), (16365, 6), (16366, 0)]


@pytest.mark.parametrize("text", ["14102100", "14123123", "16022912", "15022800", "00010100", "99123123", "24022905"])
def test_days_and_hours_of_avazu(text: str, put: Put) -> None:
    header = Avazu.specimen()["train"].partition(b"\n")[0] + b"\n"
    (row,) = read(Avazu(put({"train": header + impression(hour=text)}))).to_pylist()
    when = datetime.strptime(f"20{text}", "%Y%m%d%H").replace(tzinfo=UTC)
    assert (row["day"], row["hour"]) == (int(when.timestamp()) // 86_400, when.hour)


@pytest.mark.parametrize("block_bytes", [1, 100, datasets.BLOCK_BYTES])
def test_values_of_kdd12(block_bytes: int, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "BLOCK_BYTES", block_bytes)
    first, second, third, fourth = read(Kdd12(put(sound(Kdd12)))).to_pylist()
    assert first == {
        "click": 0, "impression": 1, "DisplayURL": "10000000000000000001", "AdID": 101, "AdvertiserID": 11,
        "depth": 3, "position": 3, "QueryID": 21, "KeywordID": 31, "TitleID": 41, "DescriptionID": 51,
        "UserID": 2000, "gender": 2, "age": 3,
    }  # fmt: skip
    assert (second["click"], second["impression"]) == (1, 5), "any click makes a positive"
    assert (third["UserID"], third["gender"], third["age"]) == (0, None, None)
    assert (fourth["UserID"], fourth["gender"], fourth["age"]) == (7, 1, 5)


def test_profiles_of_kdd12_in_any_order_and_number(put: Put) -> None:
    rng = np.random.default_rng(5)
    known = {int(user): (int(rng.integers(3)), int(rng.integers(7))) for user in rng.integers(10**7, size=5_000)}
    known |= {10**16 - 1: (2, 6), 0: (0, 0)}
    asked = [*rng.permutation([*known]).tolist(), *rng.integers(10**7, size=3_000).tolist(), 10**16, -1, 10**17]
    profiles = "".join(f"{user}\t{gender}\t{age}\n" for user, (gender, age) in known.items()).encode()
    files = {"training.txt": b"".join(search(str(user)) for user in asked), "userid_profile.txt": profiles}
    table = read(Kdd12(put(files)))
    found = list(zip(table["gender"].to_pylist(), table["age"].to_pylist(), strict=True))
    assert found == [known.get(user, (None, None)) for user in asked]


@pytest.mark.parametrize(
    "profiles, about", [(b"", (None, None)), (b"5\t2\t6\n5\t2\t1\n5\t1\t4\n", (1, 4)), (b"4\t1\t1\n", (None, None))]
)
def test_users_without_a_profile_or_with_many(profiles: bytes, about: tuple[Any, Any], put: Put) -> None:
    (row,) = read(Kdd12(put({"training.txt": search("5"), "userid_profile.txt": profiles}))).to_pylist()
    assert (row["gender"], row["age"]) == about


def test_a_missing_url_of_kdd12_is_null(put: Put) -> None:
    assert read(Kdd12(put({**sound(Kdd12), "training.txt": search(url="")})))["DisplayURL"].to_pylist() == [None]


NOT_FORTY = r"is not 40 fields \(label, I1, I2, .*, C26\) separated by '\\t'"
LOG, PROFILES = "training.txt", "userid_profile.txt"


@pytest.mark.parametrize(
    "room, file, line, why",
    [
        (Criteo, "train.txt", ad()[:-2] + b"\n", NOT_FORTY),
        (Criteo, "train.txt", ad()[:-1] + b"\t\n", NOT_FORTY),
        (Criteo, "train.txt", b"\n", NOT_FORTY),
        (Criteo, "train.txt", ad("2"), "label is neither 0 nor 1"),
        (Criteo, "train.txt", ad(""), "label is neither 0 nor 1"),
        (Criteo, "train.txt", ad("-1"), "label is neither 0 nor 1"),
        (Criteo, "train.txt", ad("1.0"), "label is neither 0 nor 1"),
        (Criteo, "train.txt", ad(numbers="1,2,x"), "I3 is not an integer"),
        (Criteo, "train.txt", ad(numbers="1.5"), "I1 is not an integer"),
        (Criteo, "train.txt", ad(numbers="0x1f"), "I1 is not an integer"),
        (Criteo, "train.txt", ad(numbers="-"), "I1 is not an integer"),
        (Criteo, "train.txt", ad(numbers="1 "), "I1 is not an integer"),
        (Criteo, "train.txt", ad(numbers=",,,,,,,,,,,," + "9" * 19), "I13 is not an integer"),
        (Criteo, "train.txt", ad(categories="a000000g"), "C1 is not 1 to 8 hexadecimal digits"),
        (Criteo, "train.txt", ad(categories="a-b"), "C1 is not 1 to 8 hexadecimal digits"),
        (Criteo, "train.txt", ad(categories=",123456789"), "C2 is not 1 to 8 hexadecimal digits"),
        (Criteo, "train.txt", ad(categories="," * 25 + " "), "C26 is not 1 to 8 hexadecimal digits"),
        (Criteo, "train.txt", ad(categories="é"), "C1 is not 1 to 8 hexadecimal digits"),
        (Criteo, "train.txt", ad(categories="~").replace(b"~", b"\xe9"), "is not utf-8 text"),
        (Avazu, "train", impression()[:-1] + b",\n", r"is not 24 fields \(id, click, hour, C1, .*\) separated by ','"),
        (Avazu, "train", b"\n", "is not 24 fields"),
        (Avazu, "train", impression(click=""), "click is neither 0 nor 1"),
        (Avazu, "train", impression(click="2"), "click is neither 0 nor 1"),
        (Avazu, "train", impression(hour=""), "hour is not YYMMDDHH"),
        (Avazu, "train", impression(hour="2014102100"), "hour is not YYMMDDHH"),
        (Avazu, "train", impression(hour="1410210"), "hour is not YYMMDDHH"),
        (Avazu, "train", impression(hour="14102124"), "hour is not YYMMDDHH"),
        (Avazu, "train", impression(hour="14003100"), "hour is not YYMMDDHH"),
        (Avazu, "train", impression(hour="14133100"), "hour is not YYMMDDHH"),
        (Avazu, "train", impression(hour="14100000"), "hour is not YYMMDDHH"),
        (Avazu, "train", impression(hour="15022900"), "hour is not YYMMDDHH"),
        (Avazu, "train", impression(hour="14-02-10"), "hour is not YYMMDDHH"),
        (Kdd12, LOG, search()[:-1] + b"\t1\n", "is not 12 fields"),
        (Kdd12, LOG, search(click="yes"), "click is not an integer"),
        (Kdd12, LOG, search(click="-1"), "click is below 0"),
        (Kdd12, LOG, search(depth=""), "depth is not an integer"),
        (Kdd12, LOG, search(title="1.0"), "TitleID is not an integer"),
        (Kdd12, LOG, search("9" * 19), "UserID is not an integer"),
        (Kdd12, PROFILES, b"8\t1\n", "is not 3 fields"),
        (Kdd12, PROFILES, b"eight\t1\t1\n", "UserID is not an integer"),
        (Kdd12, PROFILES, b"8\tmale\t1\n", "gender is not an integer"),
        (Kdd12, PROFILES, b"8\t10\t1\n", "gender is not from 0 to 9"),
        (Kdd12, PROFILES, b"8\t1\t-1\n", "age is not from 0 to 9"),
        (Kdd12, PROFILES, b"10000000000000000\t1\t1\n", "UserID is not from 0 to 9999999999999999"),
        (Kdd12, PROFILES, b"-8\t1\t1\n", "UserID is not from 0 to"),
    ],
)
def test_malformed_lines(room: type[Dataset], file: str, line: bytes, why: str, put: Put) -> None:
    files = sound(room)
    expected = read(room(put(files)))
    rows = files[file].splitlines(keepends=True)
    for place in range(1 if room is Avazu else 0, len(rows) + 1):
        raw = put({file: b"".join([*rows[:place], line, *rows[place:]])})
        with pytest.raises(DataError, match=rf"^{re.escape(f'{raw}/{file}')}, row {place + 1}: {why}"):
            read(room(raw))
        lenient = room(raw, "skip")
        assert read(lenient).equals(expected)
        assert lenient.bad == Counter({file: 1})


def test_every_broken_line_is_counted_with_its_number(put: Put) -> None:
    rows = [ad("0", str(i)) if i % 1000 else ad("?") for i in range(1, 20_001)]
    dataset = Criteo(put({"train.txt": b"".join(rows)}), "skip")
    for _ in range(2):
        assert read(dataset)["I1"].to_pylist() == [i for i in range(1, 20_001) if i % 1000]
        assert dataset.bad == Counter({"train.txt": 20})
    rows[999::1000] = [ad()] * 20
    rows[17_000] = ad(numbers="?")
    with pytest.raises(DataError, match=r"train\.txt, row 17001: I1 is not an integer"):
        read(Criteo(put({"train.txt": b"".join(rows)})))


def zipped(content: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("train", content)
    return sink.getvalue()


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zip": zipped}


@pytest.mark.parametrize("ending", PACKERS)
@pytest.mark.parametrize("room", ROOMS)
def test_files_may_be_packed(room: type[Dataset], ending: str, put: Put, tmp_path: Path) -> None:
    expected = read(room(put(sound(room))))
    packed = tmp_path / "packed"
    packed.mkdir()
    for name, content in sound(room).items():
        (packed / f"{name}.{ending}").write_bytes(PACKERS[ending](content))
    dataset = room(str(packed))
    assert dataset.layout().label and read(dataset).equals(expected)


@pytest.mark.parametrize("room", ROOMS)
def test_windows_lines_and_a_last_line_without_its_end(room: type[Dataset], put: Put) -> None:
    expected = read(room(put(sound(room))))
    files = {name: content.rstrip(b"\n").replace(b"\n", b"\r\n") for name, content in sound(room).items()}
    assert read(room(put(files))).equals(expected)


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz", "train.gz"])
def test_names_of_avazu(name: str, put: Put) -> None:
    content = sound(Avazu)["train"]
    dataset = Avazu(put({name: gzip.compress(content) if name.endswith(".gz") else content}))
    assert dataset.layout().label == "click" and len(read(dataset)) == 4


@pytest.mark.parametrize("room", ROOMS)
def test_missing_files_and_choices(room: type[Dataset], put: Put) -> None:
    raw = put({"README": b""})
    missing = rf"{re.escape(raw)}: there is no .*, plain or packed; the files there: README"
    with pytest.raises(DataError, match=missing):
        room(raw).layout()
    with pytest.raises(DataError, match=missing):
        read(room(raw))
    files = room.specimen()
    for name, content in files.items():
        raw = put({**files, f"{name}.gz": gzip.compress(content)})
        with pytest.raises(DataError, match=rf"{re.escape(name)} and {re.escape(name)}\.gz are there; keep one"):
            room(raw).layout()
        (Path(raw) / f"{name}.gz").unlink()


def test_columns_of_avazu_that_are_not_there(put: Put) -> None:
    content = sound(Avazu)["train"]
    for name in (b"click", b"hour", b"device_ip", b"C21"):
        with pytest.raises(DataError, match=rf"train: no column '{name.decode()}'; there are: id, "):
            Avazu(put({"train": content.replace(name, b"other", 1)})).layout()
    unnamed = put({"train": content.replace(b"id,", b"row,", 1)})
    Avazu(unnamed).layout()
    with pytest.raises(DataError, match="train: no column 'id'"):
        Avazu(unnamed, ids=True).layout()


@pytest.mark.data
def test_the_real_sample_of_criteo(data_folder: Path) -> None:
    """All 80,000 rows, compared with what plain Python reads."""
    raw = data_folder / "criteo"
    dataset = Criteo(str(raw))
    assert dataset.layout().label == "label"
    tables = list(dataset.rows())
    table = pa.concat_tables(tables)
    assert len(table) == 80_000 and max(map(len, tables)) <= CHUNK and not dataset.bad
    assert pc.mean(table["label"]).as_py() == pytest.approx(0.2245, abs=5e-5)
    columns = list(zip(*(line.split("\t") for line in (raw / "train.txt").read_text().splitlines()), strict=True))
    for name, texts in zip(table.column_names, columns, strict=True):
        values: list[Any] = [text or None for text in texts]
        if not name.startswith("C"):
            values = [None if text is None else int(text) for text in values]
        assert table[name].to_pylist() == values
