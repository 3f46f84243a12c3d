"""The commands of README.md and docs/: each is understood, and its data, methods and budgets go together."""

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import prepare
from components.run import Run
from pipelines import __main__ as command
from tests.conftest import Shop

HOME = Path(__file__).parent.parent
PAGES = (HOME / "README.md", *sorted((HOME / "docs").glob("*.md")))
SEARCHED = ("autotower", "nasrec", "ihas", "dnsrec")
SHORTENED = ("…", "SMALL")
COMMAND = re.compile(r"^python -m pipelines (?:[^'\n\\]|'[^']*'|\\\n)*$", re.MULTILINE)
CLICKS = """\
rows: log.parquet
label: clicked
features: [{name: site}, {name: device, fewest: 5, most: 1000000}, {name: price, kind: number}]
"""
INSTEAD = {"movielens": "ml-100k"}  # the largest file takes seconds to prepare, and says nothing more here
PROTOCOLS = {"PROTOCOL": "global_temporal"}


def commands() -> Iterator[tuple[str, list[str]]]:
    """The words of each command that takes a run through its stages, and where it stands; not of those cut short."""
    for page in PAGES:
        for lines in COMMAND.findall(page.read_text()):
            words = shlex.split(lines.replace("\\\n", " "), comments=True)[3:]
            if words[0] in SEARCHED and not any(word in lines for word in SHORTENED):
                yield f"{page.name}: {words[0]} {words[2]}", words


FOUND = dict(commands())


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory, shop: Shop) -> Callable[[Run], Run]:
    """A run over small data in place of what is not at hand, prepared once for all runs that split it alike."""
    clicks, rows = tmp_path_factory.mktemp("clicks"), 20_000
    log = {
        "site": [f"s{row % 7}" for row in range(rows)],
        "device": [row % 3 for row in range(rows)],
        "price": range(rows),
    }
    pq.write_table(pa.table({**log, "clicked": [row % 2 for row in range(rows)]}), clicks / "log.parquet")
    (clicks / "schema.yaml").write_text(CLICKS)
    known: dict[tuple[str, str, str], str] = {}

    def made(run: Run) -> Run:
        if Path(run.raw).name == "FOLDER":
            run = replace(run, raw=str(clicks) if run.method.apart else shop.raw)
        if run.dataset in INSTEAD:
            run = replace(run, raw=str(Path(run.raw).parent / INSTEAD[run.dataset]))
        split = run.dataset, run.raw, run.protocol
        run = replace(run, root=known.setdefault(split, str(tmp_path_factory.mktemp("run"))))
        run.check()
        if not (run.folder / "prepare").done:
            prepare.main(run)
        return run

    return made


def test_they_are_found() -> None:
    assert {words[0] for words in FOUND.values()} == set(SEARCHED) and len(FOUND) >= 15


@pytest.mark.parametrize("words", FOUND.values(), ids=FOUND)
def test_it_would_start(words: list[str], ready: Callable[[Run], Run], request: pytest.FixtureRequest) -> None:
    folder = str(request.getfixturevalue("data_folder")) if any("$NASCORE_DATA" in word for word in words) else ""
    words = [PROTOCOLS.get(word, word.replace("$NASCORE_DATA", folder)) for word in words]
    ready(command.parse(words[0], words[1:])).check_prepared()
