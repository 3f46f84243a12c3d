"""The gate before S3, without a server: what is tried again, what is refused at once, what is read whole."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from components.folder import Folder
from nascore import s3
from nascore.datasets.movielens import Movielens
from nascore.files import connect
from nascore.storage import StorageError

Answer = dict[str, Any] | Exception
EMPTY = {"Contents": [], "KeyCount": 0}


def refused(code: str, status: int, message: str = "no", method: str = "GetObject") -> Exception:
    """What s3fs makes of a server's refusal."""
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error: Exception = translate_boto_error(ClientError(answer, method))
    return error


class Body:
    def __init__(self, data: bytes | Exception) -> None:
        self.data, self.closed = data, False

    async def read(self) -> bytes:
        if isinstance(self.data, Exception):
            raise self.data
        return self.data

    def close(self) -> None:
        self.closed = True


def found(data: bytes | Exception, length: int | None = None, told: str = "") -> dict[str, Any]:
    known = length if length is not None or isinstance(data, Exception) else len(data)
    return {"Body": Body(data), "ContentLength": known, **({"ContentRange": told} if told else {})}


class Server:
    """Answers by method, one after the other, the last one again and again; `asked` is what was asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.waits: list[float] = []

    async def __call__(self, method: str, *options: Any, **request: Any) -> Any:
        self.asked.append((method, request))
        left = self.answers[method]
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def count(self, method: str) -> int:
        return sum(name == method for name, _ in self.asked)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    one = Server()

    async def call(self: Any, method: str, *options: Any, **request: Any) -> Any:
        return await one(method, *options, **request)

    async def sleep(seconds: float) -> None:
        one.waits.append(seconds)

    monkeypatch.setattr(S3FileSystem, "_call_s3", call)
    monkeypatch.setattr(s3.asyncio, "sleep", sleep)
    s3.S3.clear_instance_cache()
    yield one
    s3.S3.clear_instance_cache()


PASSING: list[Callable[[], Exception]] = [
    lambda: refused("SlowDown", 503),
    lambda: refused("503", 503, method="HeadObject"),
    lambda: refused("InternalError", 500),
    lambda: refused("RequestTimeout", 400),
    lambda: refused("XAmzContentSHA256Mismatch", 400),
    lambda: EndpointConnectionError(endpoint_url="http://x"),
    lambda: ReadTimeoutError(endpoint_url="http://x"),
    lambda: aiohttp.ClientPayloadError("not enough data"),
    lambda: TimeoutError(),
    lambda: ConnectionResetError(104, "reset"),
]


@pytest.mark.parametrize("error", PASSING)
def test_what_passes_is_tried_again_with_longer_and_longer_waits(
    server: Server, error: Callable[[], Exception]
) -> None:
    folder = Folder("s3://bucket/run")
    server.answers = {
        "head_object": [error(), error(), {"ContentLength": 2}],
        "get_object": [error(), found(b"{}")],
        "list_objects_v2": [error()],
    }
    assert folder.read_json("a.json") == {} and folder.exists("a.json")
    first, second, third = server.waits
    assert 0.5 <= first <= 1 <= second <= 2 and 0.5 <= third <= 1
    server.asked.clear()
    with pytest.raises(StorageError, match=r"s3://bucket/run/: list_objects_v2: .*; given up after 6 tries"):
        folder.names("*")
    assert server.count("list_objects_v2") == s3.TRIES, "a listing that fails is never an empty one"


@pytest.mark.parametrize(
    "error, told",
    [
        (refused("NoSuchBucket", 404), "NoSuchBucket: no; there is no such bucket, and none is ever created"),
        (refused("AccessDenied", 403), "AccessDenied: no; the credentials must be allowed to list, read, write"),
        (refused("403", 403, "Forbidden"), "403: Forbidden; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (refused("SignatureDoesNotMatch", 403), "SignatureDoesNotMatch: no; check AWS_ACCESS_KEY_ID"),
        (refused("InvalidAccessKeyId", 403), "check AWS_ACCESS_KEY_ID"),
        (refused("ExpiredToken", 400), "renew the credentials"),
        (refused("PermanentRedirect", 301), "set AWS_REGION to the region of the bucket"),
        (refused("XMinioStorageFull", 507), "the storage is full; free some space"),
        (refused("QuotaExceeded", 403), "the storage is full"),
        (NoCredentialsError(), "Unable to locate credentials; check AWS_ACCESS_KEY_ID"),
    ],
)
def test_a_refusal_is_told_at_once(server: Server, error: Exception, told: str) -> None:
    folder = Folder("s3://bucket/run")
    server.answers = {name: [error] for name in ("head_object", "get_object", "list_objects_v2", "put_object")}
    for attempt in (
        lambda: folder.read_text("a"),
        lambda: folder.exists("a"),
        lambda: folder.names("*/done.json"),
        lambda: folder.write_text("a", "x"),
        folder.clear,
    ):
        server.asked.clear()
        with pytest.raises(StorageError) as raised:
            attempt()
        assert told in str(raised.value) and str(raised.value).startswith("s3://bucket/run")
        assert len(server.asked) == 1 and "\n" not in str(raised.value)


def test_what_is_not_there_is_no_trouble(server: Server) -> None:
    folder = Folder("s3://bucket/run")
    server.answers = {"head_object": [refused("404", 404)], "list_objects_v2": [EMPTY]}
    server.answers["get_object"] = [refused("NoSuchKey", 404)]
    assert not folder.exists("a") and folder.names("*") == []
    with pytest.raises(FileNotFoundError):
        folder.read_text("a")


def test_an_error_of_ours_stays_as_it_is(server: Server) -> None:
    server.answers = {"head_object": [TypeError("ours")]}
    with pytest.raises(TypeError, match="ours"):
        Folder("s3://bucket/run").exists("a")


def test_no_bucket_is_created(server: Server) -> None:
    server.answers = {"put_object": [{}]}
    Folder("s3://bucket/run").write_text("deep/er/a", "x")
    fs, path = connect("s3://bucket/run")
    fs.mkdir("elsewhere")
    fs.makedirs(path, exist_ok=True)
    assert [name for name, _ in server.asked] == ["put_object"]


# Bodies


@pytest.mark.parametrize(
    "broken",
    [
        found(b'{"a": 1', 8),
        found(aiohttp.ClientPayloadError("Response payload is not completed")),
        found(b'{"a": 1'[:3], 3, "bytes 0-2/8"),
    ],
)
def test_a_body_that_ends_early_is_read_again(server: Server, broken: dict[str, Any]) -> None:
    whole = found(b'{"a": 1}', told="bytes 0-7/8")
    server.answers = {"head_object": [{"ContentLength": 8}], "get_object": [broken, whole]}
    fs, path = connect("s3://bucket/run/a.json")
    assert fs.cat_file(path, start=0, end=8) == b'{"a": 1}' and broken["Body"].closed
    server.answers["get_object"] = [broken, whole]
    if "ContentRange" not in broken:
        assert Folder("s3://bucket/run").read_json("a.json") == {"a": 1}
    server.answers["get_object"] = [broken]
    with pytest.raises(StorageError, match="given up after 6 tries"):
        fs.cat_file(path, start=0, end=8)


def test_a_range_beyond_the_end_is_whole(server: Server) -> None:
    server.answers = {"get_object": [found(b"678", told="bytes 5-7/8")]}
    fs, path = connect("s3://bucket/run/a")
    assert fs.cat_file(path, start=5, end=100) == b"678" and server.count("get_object") == 1


def test_a_large_file_comes_by_ranges_each_read_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytes(range(256)) * 4
    fs, path = connect("s3://bucket/run/a")
    monkeypatch.setattr(S3FileSystem, "default_block_size", 400)

    async def by_range(self: Any, method: str, *options: Any, **request: Any) -> Any:
        server.asked.append((method, request))
        if "Range" not in request:
            return found(AssertionError("is closed, not read"), len(data))
        first, last = (int(part) for part in request["Range"].removeprefix("bytes=").split("-"))
        part = data[first : last + 1]
        told = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
        return found(part[:100] if server.count("get_object") == 3 else part, len(part), told)

    monkeypatch.setattr(S3FileSystem, "_call_s3", by_range)
    fs.get_file(path, str(tmp_path / "a"), chunksize=400, max_concurrency=1)
    assert (tmp_path / "a").read_bytes() == data and server.count("get_object") == 1 + 3 + 1


def test_parquet_is_never_read_ahead(server: Server) -> None:
    server.answers = {"head_object": [{"ContentLength": 8, "ETag": "x"}]}
    fs, path = connect("s3://bucket/run")
    assert fs.open(f"{path}/a.parquet").cache.name == "none"
    assert fs.open(f"{path}/a.csv").cache.name == "readahead"
    assert fs.open(f"{path}/a.parquet", cache_type="bytes").cache.name == "bytes"


# Writes


def test_a_bulk_delete_that_leaves_files_is_told(server: Server) -> None:
    listed = {"Contents": [{"Key": "run/a", "Size": 1}], "KeyCount": 1}
    failed = {"Errors": [{"Key": "run/a", "Code": "InternalError", "Message": "try later"}]}
    server.answers = {
        "head_object": [refused("404", 404)],
        "list_objects_v2": [listed],
        "delete_objects": [failed, {"Errors": [{"Key": "run/a", "Code": "NoSuchKey", "Message": "gone"}]}],
    }
    Folder("s3://bucket/run").clear()
    assert server.count("delete_objects") == 2
    server.answers["delete_objects"] = [{"Errors": [{"Key": "run/a", "Code": "AccessDenied", "Message": "no"}]}]
    with pytest.raises(StorageError, match="delete_objects: AccessDenied: run/a: no; the credentials must"):
        Folder("s3://bucket/run").clear()


def test_an_upload_whose_completion_was_lost_is_sent_anew(server: Server, tmp_path: Path) -> None:
    local = tmp_path / "large"
    local.write_bytes(bytes(30))
    fs, path = connect("s3://bucket/run/large")
    server.answers = {
        "create_multipart_upload": [{"UploadId": "1"}, {"UploadId": "2"}],
        "upload_part": [refused("SlowDown", 503), {"ETag": "e"}],
        "complete_multipart_upload": [ReadTimeoutError(endpoint_url="x"), refused("NoSuchUpload", 404), {}],
        "abort_multipart_upload": [{}],
    }
    fs.put_file(str(local), path, chunksize=10)
    done = [name for name, _ in server.asked if name != "upload_part"]
    assert done == [
        "create_multipart_upload",
        "complete_multipart_upload",
        "complete_multipart_upload",
        "abort_multipart_upload",
        "create_multipart_upload",
        "complete_multipart_upload",
    ]
    assert server.asked[-1][1]["UploadId"] == "2"


# Settings


def test_the_region_and_options_of_the_environment_are_used(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setitem(s3.fsspec.config.conf, "s3", {"config_kwargs": {"s3": {"addressing_style": "virtual"}}})
    fs, path = connect("s3://bucket/a/b")
    assert path == "bucket/a/b" and fs.client_kwargs == {"region_name": "eu-central-1"}
    assert fs.config_kwargs == {"s3": {"addressing_style": "virtual"}} and not fs.dircache.use_listings_cache
    assert connect("s3a://bucket/a")[0] is fs, "one for the whole process"
    monkeypatch.setitem(s3.fsspec.config.conf, "s3", {"client_kwargs": {"region_name": "here"}})
    assert connect("s3://bucket/a")[0].client_kwargs == {"region_name": "here"}


def test_other_urls_are_those_of_fsspec(tmp_path: Path) -> None:
    assert connect(str(tmp_path))[1] == str(tmp_path) and connect("memory://a/b")[1] == "/a/b"


def test_raw_data_pass_the_same_gate(server: Server) -> None:
    server.answers = {"head_object": [refused("NoSuchBucket", 404)], "list_objects_v2": [refused("NoSuchBucket", 404)]}
    with pytest.raises(StorageError, match="there is no such bucket"):
        Movielens("s3://bucket/raw").layout()
