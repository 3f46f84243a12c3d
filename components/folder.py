"""A folder in object storage whose files appear whole or not at all."""

import glob
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import load_file, save_file
from torch import Tensor

from nascore.files import connect
from nascore.storage import room


class Folder:
    """A folder under an fsspec URL, whose files appear whole or not at all."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.fs, self.path = connect(self.url)

    def __truediv__(self, name: str) -> "Folder":
        return Folder(f"{self.url}/{name}")

    def exists(self, name: str) -> bool:
        return bool(self.fs.exists(f"{self.path}/{name}"))

    def names(self, pattern: str) -> list[str]:
        """Names below this folder that match a pattern, sorted."""
        found = self.fs.glob(f"{glob.escape(self.path)}/{pattern}")
        return sorted(str(path).removeprefix(self.path).strip("/") for path in found)

    def clear(self) -> None:
        """Remove the folder and all in it."""
        if self.fs.exists(self.path):
            self.fs.rm(self.path, recursive=True)
        self.fs.invalidate_cache()

    def reopen(self) -> None:
        """Let what stands here be done anew; until then it stays."""
        if self.done:
            self.fs.rm(f"{self.path}/done.json")
            self.fs.invalidate_cache()

    def publish(self, local: str, name: str) -> None:
        """Put a finished local file in place under its name."""
        target = f"{self.path}/{name}"
        with room(f"{self.url}/{name}"):
            self.fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            if "file" not in self.fs.protocol:
                self.fs.put_file(local, target)
                return
            partial = f"{target}.{os.getpid()}.partial"
            try:
                self.fs.put_file(local, partial)
                os.replace(partial, target)
            finally:
                Path(partial).unlink(missing_ok=True)

    @contextmanager
    def writing(self, name: str) -> Iterator[str]:
        """A local path to write to, published under `name` if nothing was raised."""
        with room(f"{self.url}/{name}"), tempfile.TemporaryDirectory(prefix="nascore-") as scratch:
            local = f"{scratch}/file"
            yield local
            self.publish(local, name)

    def write_text(self, name: str, text: str) -> None:
        with self.writing(name) as local:
            Path(local).write_text(text, encoding="utf-8")

    def read_text(self, name: str) -> str:
        return str(self.fs.cat_file(f"{self.path}/{name}").decode())

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=1, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_text(name))

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        with self.writing(name) as local:
            save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, local)

    def read_tensors(self, name: str) -> dict[str, Tensor]:
        """Tensors of this process's own memory."""
        with tempfile.TemporaryDirectory(prefix="nascore-") as scratch:
            self.fs.get_file(f"{self.path}/{name}", f"{scratch}/file")
            return {key: value.clone() for key, value in load_file(f"{scratch}/file").items()}

    def write_table(self, name: str, table: pa.Table) -> None:
        with self.writing(name) as local:
            pq.write_table(table, local, compression="zstd")

    def read_table(self, name: str) -> pa.Table:
        return pq.read_table(f"{self.path}/{name}", filesystem=self.fs)

    @property
    def done(self) -> bool:
        return self.exists("done.json")
