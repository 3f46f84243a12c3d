"""The examples in nascore's docstrings, run as they stand."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHOWN = [file.relative_to(ROOT) for file in sorted((ROOT / "nascore").rglob("*.py")) if ">>> " in file.read_text()]


@pytest.mark.parametrize("file", SHOWN, ids=str)
def test_the_examples_hold(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    failed, attempted = doctest.testmod(import_module(name))
    assert attempted and not failed, capsys.readouterr().out
