"""S3 that outlasts what passes: requests are tried again, bodies are read whole or not at all, refusals are told once.

Credentials, endpoint and region come from where every AWS client looks: the environment, `~/.aws`, the role of the
machine; `FSSPEC_S3` and fsspec's configuration files may add any option of s3fs. botocore tries a request again by
itself, as `AWS_RETRY_MODE` and `AWS_MAX_ATTEMPTS` say. What it cannot see, such as a body that ends early, and what
lasts longer is tried again here. No bucket is ever created.
"""

import asyncio
import os
import re
from random import Random
from typing import Any

import aiohttp
import fsspec
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
)
from botocore.exceptions import ConnectionError as NotConnected
from botocore.parsers import ResponseParserError
from s3fs import S3FileSystem

from nascore.storage import StorageError

TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 0.5, 20.0
JITTER = Random()
BROKEN = (
    aiohttp.ClientError,
    asyncio.TimeoutError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NotConnected,
    ResponseParserError,
)
BUSY = {"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted", "IncompleteBody"}
BUSY |= {"BadDigest", "XAmzContentSHA256Mismatch", "Throttling", "ThrottlingException", "TooManyRequests", "429"}
ABSENT = {"404", "NoSuchKey", "NotFound", "NoSuchUpload", "NoSuchVersion", "412", "PreconditionFailed"}
ABSENT |= {"416", "InvalidRange"}
CREDENTIALS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the role of this machine"
REGION = "set AWS_REGION to the region of the bucket"
FULL = "the storage is full; free some space or raise the quota"
NEXT = {
    "NoSuchBucket": "there is no such bucket, and none is ever created; correct the URL, or create the bucket",
    "InvalidBucketName": "correct the name of the bucket",
    "403": f"{CREDENTIALS}; they must be allowed to list, read, write and delete there",
    "AccessDenied": "the credentials must be allowed to list, read, write and delete there",
    "InvalidAccessKeyId": CREDENTIALS,
    "SignatureDoesNotMatch": CREDENTIALS,
    "InvalidToken": CREDENTIALS,
    "ExpiredToken": "renew the credentials",
    "RequestTimeTooSkewed": "set the clock of this machine",
    "301": REGION,
    "PermanentRedirect": REGION,
    "AuthorizationHeaderMalformed": REGION,
    "QuotaExceeded": FULL,
    "507": FULL,
}


def connect(url: str) -> tuple["S3", str]:
    """The file system of an `s3://` URL, the same for the whole process, and the path in it."""
    known: dict[str, Any] = dict(fsspec.config.conf.get("s3", {}))
    region = os.environ.get("AWS_REGION")  # botocore itself looks for AWS_DEFAULT_REGION only
    client = {**({"region_name": region} if region else {}), **known.get("client_kwargs", {})}
    return S3(client_kwargs=client, use_listings_cache=False), str(S3._strip_protocol(url))


class S3(S3FileSystem):  # type: ignore[misc]
    """s3fs whose every request passes through one gate, where it is tried again, checked, or refused for good."""

    retries = 1

    async def _call_s3(self, method: str, *options: Any, **request: Any) -> Any:
        where = f"s3://{request.get('Bucket', '')}/{request.get('Key', request.get('Prefix', ''))}"
        for attempt in range(1, TRIES + 1):
            try:
                return await _whole(method, request, await super()._call_s3(method, *options, **request))
            except Exception as error:
                if not _passes(error):
                    if (code := _code(error)) in ABSENT or not (code or isinstance(error, BotoCoreError)):
                        raise
                    raise StorageError(f"{where}: {method}: {_said(error)}{_next(error)}") from error
                if attempt == TRIES:
                    what = f"{_said(error)}; given up after {TRIES} tries; the same command continues later"
                    raise StorageError(f"{where}: {method}: {what}") from error
            await asyncio.sleep(JITTER.uniform(0.5, 1) * min(LONGEST_WAIT, FIRST_WAIT * 2**attempt))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        """A file, of which more is read than was asked for, but not of parquet, whose readers know what they need."""
        ahead = "none" if path.endswith(".parquet") else self.default_cache_type
        return super()._open(path, mode, **{**options, "cache_type": options.get("cache_type") or ahead})

    async def _get_file(self, rpath: str, lpath: str, *args: Any, **options: Any) -> None:
        ranges = max(2, options.pop("max_concurrency", None) or self.max_concurrency)
        await super()._get_file(rpath, lpath, *args, max_concurrency=ranges, **options)

    async def _put_file(self, lpath: str, rpath: str, *args: Any, **options: Any) -> None:
        """Of an upload in parts whose completion was answered too late, the next try finds nothing: upload anew."""
        try:
            await super()._put_file(lpath, rpath, *args, **options)
        except FileNotFoundError as error:
            if _code(error) != "NoSuchUpload":
                raise
            await super()._put_file(lpath, rpath, *args, **options)

    async def _mkdir(self, path: str, *args: Any, **options: Any) -> None:
        """Nothing: a key needs no folder."""

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: a key needs no folder."""

    def mkdir(self, path: str, *args: Any, **options: Any) -> None:
        """Nothing: a key needs no folder."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Nothing: a key needs no folder."""


class _Read:
    """A body that has arrived."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    async def read(self, size: int = -1) -> bytes:
        end = len(self.data) if size is None or size < 0 else self.at + size
        part, self.at = self.data[self.at : end], min(end, len(self.data))
        return part

    def close(self) -> None:
        """Nothing is open."""


async def _whole(method: str, request: Any, answer: Any) -> Any:
    """The answer, its body read and as long as announced; raises for files of a bulk delete that were not deleted.

    A large body that was not asked for by ranges stays unread: s3fs closes it and takes it by ranges.
    """
    if method == "delete_objects":
        for told in answer.get("Errors", []):
            if told.get("Code") not in ABSENT:
                raise ClientError({"Error": {**told, "Message": f"{told.get('Key')}: {told.get('Message')}"}}, method)
    length = answer.get("ContentLength")
    if method != "get_object" or ("Range" not in request and (length or 0) > S3FileSystem.default_block_size):
        return answer
    body = answer["Body"]
    try:
        data = await body.read()
    finally:
        body.close()
    wanted = _length(request.get("Range", ""), answer.get("ContentRange", ""))
    for expected in (length, wanted):
        if expected is not None and len(data) != expected:
            raise IncompleteReadError(actual_bytes=len(data), expected_bytes=expected)
    return {**answer, "Body": _Read(data)}


def _length(asked: str, given: str) -> int | None:
    """The bytes that a range must hold: all of it, or up to the end of the file; None where that is not told."""
    ask, give = re.fullmatch(r"bytes=(\d+)-(\d+)", asked), re.fullmatch(r"bytes \d+-\d+/(\d+)", given)
    return min(int(ask[2]) + 1, int(give[1])) - int(ask[1]) if ask and give else None


def _response(error: BaseException | None) -> dict[str, Any]:
    """What the server answered, {} where it did not; s3fs hides that behind errors of its own."""
    while error is not None:
        if isinstance(found := getattr(error, "response", None), dict):
            return found
        error = error.__cause__
    return {}


def _code(error: BaseException) -> str:
    return str(_response(error).get("Error", {}).get("Code", ""))


def _status(error: BaseException) -> int:
    return int(_response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _passes(error: BaseException) -> bool:
    """Whether another try may go well."""
    if not _response(error):
        return isinstance(error, BROKEN)
    return _code(error) in BUSY or (_status(error) >= 500 and _status(error) != 507)


def _said(error: BaseException) -> str:
    code, told = _code(error), str(_response(error).get("Error", {}).get("Message", "") or error)
    return " ".join((f"{code}: {told}" if code and code != told else told or type(error).__name__).split())


def _next(error: BaseException) -> str:
    known = NEXT.get(_code(error)) or NEXT.get(str(_status(error)))
    if isinstance(error, NoCredentialsError):
        known = f"{CREDENTIALS}, which must give some"
    return f"; {known}" if known else ""
