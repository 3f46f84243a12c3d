"""The registry: versions as sealed, champions by compare-and-set, rollback byte for byte, kills in between."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from components import lease as leases
from components import registry as registries
from components.folder import Folder
from components.lease import Lease, Lost, leased
from components.registry import Alias, Damaged, Moved, Registry
from nascore.storage import StorageError
from tests import swift


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    monkeypatch.setattr(leases, "SETTLING", 0.0)
    if request.param == "disk":
        yield Folder(f"{tmp_path}/registry")
    else:
        yield Folder(f"memory://{tmp_path.name}/registry")
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


@pytest.fixture
def registry(folder: Folder) -> Registry:
    return Registry(folder.url)


def version(registry: Registry, text: str = "weights", **about: Any) -> int:
    number = registry.claim()
    registry.version(number).write_text("weights", text)
    registry.version(number).write_text("vocabulary/a", text)
    registry.seal(number, about)
    return number


def champions(registry: Registry, *texts: str) -> list[bytes]:
    """A version for each text, each the champion after the one before; what `champion.json` was."""
    found = []
    with leased(registry.folder / "lease", 60) as lease:
        for text in texts:
            registry.promote(version(registry, text), registry.champion(), lease)
            found.append(shown(registry))
    return found


def shown(registry: Registry) -> bytes:
    return bytes(registry.folder.fs.cat_file(f"{registry.folder.path}/champion.json"))


# Versions


def test_a_version_is_what_it_was_sealed_with(registry: Registry) -> None:
    first, second = version(registry, "one", night="n"), version(registry, "two")
    assert registry.versions() == [1, 2] == [first, second]
    assert registry.about(1)["night"] == "n"
    assert registry.about(1)["files"] == {
        name: hashlib.sha256(b"one").hexdigest() for name in ("vocabulary/a", "weights")
    }
    sealed = bytes(registry.folder.fs.cat_file(f"{registry.folder.path}/versions/1/version.json"))
    assert registry.verify(1) == hashlib.sha256(sealed).hexdigest()
    with pytest.raises(StorageError, match="is a version already"):
        registry.seal(1, {})
    with pytest.raises(ValueError, match=r"has no version 3; it has: \[1, 2\]"):
        registry.about(3)


def test_a_version_that_was_not_sealed_is_none_and_its_number_is_not_used_again(registry: Registry) -> None:
    dead = registry.claim()
    registry.version(dead).write_text("weights", "half")
    assert registry.versions() == [] and version(registry) == 2


def test_a_seal_that_was_killed_before_it_tidied_up_is_one(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    version(registry)
    (tmp_path / "versions/1/.849e1c05.partial").write_text("the seal, under its first name")
    assert registry.verify(1)


@pytest.mark.parametrize("change", ["changed", "missing", "new"])
def test_a_damaged_version_does_not_become_champion(registry: Registry, change: str) -> None:
    champions(registry, "one")
    number, folder = version(registry, "two"), registry.version(2)
    if change == "missing":
        folder.fs.rm(f"{folder.path}/vocabulary/a")
    else:
        folder.write_text("weights" if change == "changed" else "vocabulary/b", "other")
    with leased(registry.folder / "lease", 60) as lease, pytest.raises(Damaged, match="is not as it was made: "):
        registry.promote(number, registry.champion(), lease)
    assert json.loads(shown(registry))["version"] == 1


# The champion


def test_a_promotion_is_shown_and_remembered(registry: Registry) -> None:
    assert registry.champion() is None
    first, second = champions(registry, "one", "two")
    assert json.loads(first) == {"version": 1, "previous": None, "digest": registry.verify(1)}
    assert json.loads(second) == {"version": 2, "previous": 1, "digest": registry.verify(2)}
    assert [(one.sequence, one.version, one.text) for one in registry.aliases()] == [(1, 1, first), (2, 2, second)]


def test_a_promotion_against_another_champion_is_refused(registry: Registry) -> None:
    first, _ = champions(registry, "one", "two")
    old, number = registry.aliases()[0], version(registry, "three")
    with leased(registry.folder / "lease", 60) as lease:
        for against in (old, None):
            with pytest.raises(Moved, match="nothing was promoted"):
                registry.promote(number, against, lease)
    assert json.loads(shown(registry))["version"] == 2


def test_of_two_promotions_at_once_one_is_made(registry: Registry) -> None:
    """Even where both believe to hold the lease: the next alias can be created only once."""
    champions(registry, "one")
    against, numbers = registry.champion(), [version(registry, text) for text in ("two", "three")]
    start, told = threading.Barrier(2), list[Any]()

    class Held(Lease):
        def check(self) -> None:
            start.wait()

    def race(number: int) -> None:
        try:
            told.append(registry.promote(number, against, Held(registry.folder / "lease", 60)))
        except Moved as error:
            told.append(error)

    threads = [threading.Thread(target=race, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (made,) = [one for one in told if isinstance(one, Alias)]
    assert len(registry.aliases()) == 2 and shown(registry) == made.text


def test_no_promotion_without_the_lease(registry: Registry) -> None:
    champions(registry, "one")
    number = version(registry, "two")
    with leased(registry.folder / "lease", 60) as lost:
        pass
    with leased(registry.folder / "lease", 60), pytest.raises(Lost):
        registry.promote(number, registry.champion(), lost)
    assert json.loads(shown(registry))["version"] == 1


def test_a_rollback_restores_the_alias_byte_for_byte(registry: Registry) -> None:
    first, second, third = champions(registry, "one", "two", "three")
    names = ("weights", "vocabulary/a", "version.json")
    files = {name: registry.folder.read_text(f"versions/2/{name}") for name in names}
    assert registry.left() == set()
    registry.roll_back()
    assert shown(registry) == second and registry.left() == {3}
    assert files == {name: registry.folder.read_text(f"versions/2/{name}") for name in files}
    registry.roll_back()
    assert shown(registry) == first
    registry.roll_back(3)
    assert shown(registry) == third
    assert registry.left() == {1, 2}, "version 3 was left, but is champion again"
    champions(registry, "four")
    assert registry.left() == {1, 2}, "nor later"
    told = [registry.folder.read_json(f"decisions/rollback-{n:08d}.json")["rollback"] for n in (4, 5, 6)]
    assert [(one["from"], one["to"]) for one in told] == [(3, 2), (2, 1), (1, 3)]
    assert [one.version for one in registry.aliases()] == [1, 2, 3, 2, 1, 3, 4] and registry.decisions() == []


def test_a_rollback_needs_no_lease_and_stops_a_promotion(registry: Registry) -> None:
    champions(registry, "one", "two")
    with leased(registry.folder / "lease", 60) as lease:
        against, number = registry.champion(), version(registry, "three")
        registry.roll_back()
        with pytest.raises(Moved):
            registry.promote(number, against, lease)
    assert json.loads(shown(registry))["version"] == 1


@pytest.mark.parametrize(
    "number, told", [(2, "version 2 is not to be gone back to"), (3, "version 3"), (9, "earlier champions: \\[1\\]")]
)
def test_only_an_earlier_champion_is_gone_back_to(registry: Registry, number: int, told: str) -> None:
    with pytest.raises(ValueError, match="has no champion"):
        registry.roll_back()
    champions(registry, "one", "two")
    version(registry, "three")
    with pytest.raises(ValueError, match=told):
        registry.roll_back(number)


def test_there_is_no_rollback_to_a_damaged_version(registry: Registry) -> None:
    champions(registry, "one", "two")
    registry.version(1).write_text("weights", "other")
    with pytest.raises(Damaged):
        registry.roll_back()
    assert json.loads(shown(registry))["version"] == 2


# Kills


class Killed(BaseException):
    """What stands for kill -9: nothing of ours catches it."""


def killing(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, at: int, before: bool) -> None:
    """Have the `at`-th call of a function, from 0 on, killed before or after it has done its work."""
    usual, calls = getattr(place, name), iter(range(1_000))

    def dying(*given: Any, **named: Any) -> Any:
        number = next(calls)
        if number == at and before:
            raise Killed
        done = usual(*given, **named)
        if number == at:
            raise Killed
        return done

    monkeypatch.setattr(place, name, dying)


POINTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "before the alias": lambda patch: killing(patch, registries, "create", 0, True),
    "after the alias": lambda patch: killing(patch, registries, "create", 0, False),
    "before it is shown": lambda patch: killing(patch, Folder, "write_text", 0, True),
    "after it is shown": lambda patch: killing(patch, Folder, "write_text", 0, False),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_promotion_leaves_one_champion_or_the_other(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    (first,) = champions(registry, "one")
    number = version(registry, "two")
    lease = Lease(registry.folder / "lease", 60)
    lease.take()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        POINTS[point](patch)
        registry.promote(number, registry.champion(), lease)
    assert json.loads(shown(registry))["version"] in (1, 2)
    registry.show()
    newest = registry.champion()
    assert newest is not None and shown(registry) == newest.text
    assert newest.version == (1 if point == "before the alias" else 2)
    if newest.version == 1:
        assert shown(registry) == first
        registry.promote(number, newest, lease)
    assert json.loads(shown(registry))["version"] == 2 and [one.version for one in registry.aliases()] == [1, 2]


# A bucket

IN_A_BUCKET = """
import threading
from components.folder import Folder
from components.lease import Busy, Lease, create, leased
from components.registry import Registry
Folder("s3://registry").fs.call_s3("create_bucket", Bucket="registry")
folder = Folder("s3://registry/here")
assert create(folder, "a", b"1") and not create(folder, "a", b"2") and folder.read_text("a") == "1"
for lease in range(3):
    taken = []
    def race():
        one = Lease(folder / f"lease-{lease}", 60)
        try:
            one.take()
            taken.append(one)
        except Busy:
            pass
    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1, taken
    taken[0].check()
registry, texts = Registry(folder.url), []
with leased(registry.folder / "lease", 60) as lease:
    for _ in range(2):
        number = registry.claim()
        registry.version(number).write_text("vocabulary/a", "b")
        registry.seal(number, {})
        registry.promote(number, registry.champion(), lease)
        texts.append(registry.folder.read_text("champion.json"))
registry.roll_back()
assert registry.folder.read_text("champion.json") == texts[0] and registry.versions() == [1, 2]
print("done")
"""


@pytest.mark.slow
def test_in_a_bucket_it_is_the_same(s3_server: swift.Server) -> None:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}
    own |= {"AWS_ENDPOINT_URL": s3_server.url, "AWS_REGION": "us-east-1"}
    own |= {"AWS_ACCESS_KEY_ID": swift.KEY, "AWS_SECRET_ACCESS_KEY": swift.SECRET}
    program = [sys.executable, "-c", IN_A_BUCKET]
    done = subprocess.run(program, env=own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    assert done.stdout == "done\n", done.stdout
