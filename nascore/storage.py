"""What storage that does not serve is told as, and records on their way through local disk."""

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StorageError(Exception):
    """Storage that refuses, is full, or failed at every try: which file, what failed, what to do next.

    No OSError: fsspec takes one that is raised while it lists a folder for an empty folder.
    """


@contextmanager
def room(where: str) -> Iterator[None]:
    """A full disk is an error of the storage, whoever met it. where: what was being written."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) not in FULL and not any(f"os error {code})" in str(error) for code in FULL):
            raise
        raise StorageError(f"{where}: {error}; free some space there or in {tempfile.gettempdir()}") from error


def spill(path: Path, records: NDArray[Any]) -> None:
    """Append packed records to a local file, all or an error: `ndarray.tofile` loses the end of them on a full disk."""
    with room(str(path)), open(path, "ab") as file:
        file.write(np.ascontiguousarray(records).data)
