"""Where files stand: any fsspec URL. S3 is read and written by a client that outlasts what passes, see `nascore.s3`."""

from typing import Any

import fsspec


def connect(url: str) -> tuple[Any, str]:
    """The file system of an fsspec URL, and the path in it."""
    if url.startswith(("s3://", "s3a://")):
        from nascore import s3

        return s3.connect(url)
    fs, path = fsspec.core.url_to_fs(url)
    return fs, str(path)
