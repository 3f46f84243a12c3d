"""A registry of models: versions that never change, the champion among them, and a record of each decision.

- `versions/<n>/`: what scores, compares and warms up, `version.json` last: it holds the digest of every other file.
- `aliases/<sequence>.json`: every champion there was, one file each, created only where there is none: that is what
  makes a promotion a compare-and-set. `champion.json` holds the bytes of the newest of them.
- `decisions/<night>.json` and `reports/<night>.html`: what was decided, from which numbers, and what came of it.
- `lease/`: who works, see `components.lease`.

Whoever is killed in between: a version without `version.json` is none, and a newest alias that `champion.json` does not
show yet is shown by the next command.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from components.folder import Folder
from components.lease import Lease, create, process
from nascore.storage import StorageError

CLAIM, SEALED = "claim.json", "version.json"
CHAMPION = "champion.json"
BLOCK = 1 << 22


class Moved(StorageError):
    """The champion is no longer the one that was decided against."""


class Damaged(StorageError):
    """Files of a version are not those that it was sealed with."""


@dataclass(frozen=True)
class Alias:
    """A champion: its place in the order of all champions, its version, and the bytes of `champion.json`."""

    sequence: int
    version: int
    text: bytes

    @property
    def previous(self) -> int | None:
        known: int | None = json.loads(self.text)["previous"]
        return known


class Registry:
    """A registry under an fsspec URL."""

    def __init__(self, url: str) -> None:
        self.folder = Folder(url)

    # Versions

    def claim(self) -> int:
        """A number for a new version that nobody else has or will have."""
        mine = {**process(), "token": secrets.token_hex(8)}
        text = (json.dumps(mine) + "\n").encode()
        number = max((int(name.split("/")[0]) for name in self._named("versions", f"*/{CLAIM}")), default=0) + 1
        while not create(self.folder, f"versions/{number}/{CLAIM}", text):
            number += 1
        return number

    def version(self, number: int) -> Folder:
        """The folder of a version."""
        return self.folder / f"versions/{number}"

    def seal(self, number: int, about: Mapping[str, Any]) -> None:
        """Make a version of all that was written into its folder; it must not change afterwards."""
        files = {name: self._digest(number, name) for name in self._files(number)}
        text = json.dumps({"version": number, **about, "files": files}, indent=1, allow_nan=False) + "\n"
        if not create(self.folder, f"versions/{number}/{SEALED}", text.encode()):
            raise StorageError(f"{self.version(number).url} is a version already")

    def versions(self) -> list[int]:
        """The numbers of all versions, rising."""
        return sorted(int(name.split("/")[0]) for name in self._named("versions", f"*/{SEALED}"))

    def about(self, number: int) -> dict[str, Any]:
        """What a version was sealed with; raises ValueError if there is no such version."""
        if not self.folder.exists(f"versions/{number}/{SEALED}"):
            raise ValueError(f"{self.folder.url} has no version {number}; it has: {self.versions()}")
        known: dict[str, Any] = self.version(number).read_json(SEALED)
        return known

    def verify(self, number: int, digest: str = "") -> str:
        """The digest of a version; raises `Damaged` if it is another than `digest`, or if any file is not as sealed."""
        sealed = self._digest(number, SEALED)
        if digest and sealed != digest:
            raise Damaged(f"{self.version(number).url}/{SEALED} is not the one that became champion")
        files = self.about(number)["files"]
        found = {name: self._digest(number, name) for name in self._files(number)}
        wrong = sorted(name for name in files | found if files.get(name) != found.get(name))
        if wrong:
            raise Damaged(f"{self.version(number).url} is not as it was made: {', '.join(wrong[:6])}")
        return sealed

    def _files(self, number: int) -> list[str]:
        folder = self.version(number)
        names = (str(path).removeprefix(folder.path).strip("/") for path in folder.fs.find(folder.path))
        return sorted(name for name in names if name not in (CLAIM, SEALED) and not name.startswith("."))

    def _digest(self, number: int, name: str) -> str:
        digest, folder = hashlib.sha256(), self.version(number)
        with folder.fs.open(f"{folder.path}/{name}", "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        return digest.hexdigest()

    # The champion

    def champion(self) -> Alias | None:
        """The newest champion, None if there never was one."""
        return next(iter(self.aliases()[-1:]), None)

    def aliases(self) -> list[Alias]:
        """All champions in their order."""
        self.folder.fs.invalidate_cache()
        found = []
        for name in self._named("aliases", "*.json"):
            text = bytes(self.folder.fs.cat_file(f"{self.folder.path}/aliases/{name}"))
            found.append(Alias(int(name.partition(".")[0]), json.loads(text)["version"], text))
        return found

    def left(self) -> set[int]:
        """The versions that were champion until a rollback, and are not again."""
        aliases, seen, found = self.aliases(), set[bytes](), set[int]()
        for before, after in pairwise(aliases):
            seen.add(before.text)
            if after.text in seen:
                found.add(before.version)
            found.discard(after.version)
        return found

    def promote(self, number: int, against: Alias | None, lease: Lease) -> Alias:
        """Make a version the champion, if the champion is still the one it was compared with.

        Raises `Moved` if not, `Lost` where the lease is, `Damaged` where the version's files are not as they were made.
        """
        known = {"version": number, "previous": against and against.version, "digest": self.verify(number)}
        lease.check()
        return self._follow(against, number, (json.dumps(known, indent=1) + "\n").encode())

    def roll_back(self, number: int = 0) -> tuple[Alias, Alias]:
        """Make an earlier champion the champion again, byte for byte: version `number`, or the one before; from, to.

        Needs no lease: a night that is at work finds the champion moved and promotes nothing.
        """
        aliases = self.aliases()
        if not aliases:
            raise ValueError(f"{self.folder.url} has no champion; there is nothing to roll back")
        now = aliases[-1]
        wanted = number or now.previous
        earlier = [alias for alias in aliases[:-1] if alias.version == wanted]
        if wanted == now.version or not earlier:
            known = sorted({alias.version for alias in aliases[:-1]} - {now.version})
            what = f"version {number}" if number else "an earlier version"
            raise ValueError(f"{what} is not to be gone back to from version {now.version}; earlier champions: {known}")
        self.verify(earlier[-1].version, json.loads(earlier[-1].text)["digest"])
        restored = self._follow(now, earlier[-1].version, earlier[-1].text)
        told = {"at": instant(), "rollback": {"from": now.version, "to": restored.version, "by": process()}}
        self.folder.write_json(f"decisions/rollback-{restored.sequence:08d}.json", told)
        return now, restored

    def _follow(self, now: Alias | None, number: int, text: bytes) -> Alias:
        """Write the next alias and show it; raises `Moved` if there is one already."""
        sequence = (now.sequence if now else 0) + 1
        newest = self.champion()
        if newest != now or not create(self.folder, f"aliases/{sequence:08d}.json", text):
            raise Moved(f"{self.folder.url}: the champion has changed meanwhile; nothing was promoted")
        self.show()
        return Alias(sequence, number, text)

    def show(self) -> None:
        """Let `champion.json` hold what the newest alias says; until both agree, should others do the same."""
        while (newest := self.champion()) is not None:
            shown = self.folder.exists(CHAMPION) and self.folder.fs.cat_file(f"{self.folder.path}/{CHAMPION}")
            if shown != newest.text:
                self.folder.write_text(CHAMPION, newest.text.decode())
            if self.champion() == newest:
                return

    # Decisions

    def decision(self, night: str) -> dict[str, Any] | None:
        """The record of a night, if there is one."""
        known = self.folder.exists(f"decisions/{night}.json")
        return self.folder.read_json(f"decisions/{night}.json") if known else None

    def decisions(self) -> list[dict[str, Any]]:
        """The records of all nights in their order, rollbacks apart."""
        names = [name for name in self._named("decisions", "*.json") if not name.startswith("rollback")]
        return [self.folder.read_json(f"decisions/{name}") for name in names]

    def record(self, night: str, known: Mapping[str, Any]) -> None:
        """Write a night's record, whole."""
        self.folder.write_json(f"decisions/{night}.json", known)

    def _named(self, where: str, pattern: str) -> list[str]:
        return (self.folder / where).names(pattern)


def instant() -> str:
    """Now, to the second, UTC."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
