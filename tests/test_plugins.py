"""Galleries: folders of rooms, asked for by name and built from specs."""

from collections.abc import Iterator

import pytest

import nascore
from nascore import plugins
from nascore.plugins import build, load, names

CONTRACT = """
class Tool:
    pass
CONTRACT = Tool
"""
HAMMER = """
from typing import Literal
from nascore.tools import Tool
class Hammer(Tool):
    def __init__(self, where, weight: float, claw: bool = False, blows: int = 1,
                 face: Literal["flat", "round"] = "flat", name: str = "", maker: list = (), *, D: int):
        self.seen = (where, weight, claw, blows, face, name, D)
class _Handle(Tool):
    pass
"""


@pytest.fixture(scope="module", autouse=True)
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gallery of its own beside the real ones, found by imports for as long as this file runs."""
    folder = tmp_path_factory.mktemp("galleries")
    (folder / "tools").mkdir()
    rooms = {
        "__init__": CONTRACT,
        "hammer": HAMMER,
        "empty": "from nascore.tools.hammer import Hammer",
        "two": "from nascore.tools import Tool\nclass A(Tool): pass\nclass B(Tool): pass",
    }
    for name, text in rooms.items():
        (folder / "tools" / f"{name}.py").write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "FOLDER", folder)
        patch.setattr(nascore, "__path__", [*nascore.__path__, str(folder)])
        yield


def test_the_folder_is_the_registry() -> None:
    assert names("tools") == ("empty", "hammer", "two")
    assert names("nothing") == ()


def test_a_room_is_the_class_written_there() -> None:
    assert load("tools", "hammer").__name__ == "Hammer"
    assert load("tools", "hammer") is load("tools", "hammer")


@pytest.mark.parametrize("name, shown", [("empty", 0), ("two", 2)])
def test_a_room_that_shows_none_or_two_is_an_error(name: str, shown: int) -> None:
    with pytest.raises(TypeError, match=rf"nascore/tools/{name}.py must show one Tool, not {shown}"):
        load("tools", name)


@pytest.mark.parametrize("name", ["saw", "__init__", "../plugins"])
def test_a_room_that_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match="in tools; there are: empty, hammer, two"):
        load("tools", name)


def test_a_spec_sets_what_annotations_say() -> None:
    assert build("tools", "hammer:2", "here", D=3).seen == ("here", 2.0, False, 1, "flat", "", 3)
    spec = "hammer:2.5,claw=True,blows=7,face=round,name=a=b"
    assert build("tools", spec, "here", D=3).seen == ("here", 2.5, True, 7, "round", "a=b", 3)
    assert build("tools", "hammer:blows=7,weight=1", "here", D=3).seen[1:4] == (1.0, False, 7)
    assert type(build("tools", "hammer:weight=3", "here", D=3).seen[1]) is float


@pytest.mark.parametrize(
    "spec, message",
    [
        ("saw", "no 'saw' in tools"),
        ("hammer:1,teeth=3", "no setting 'teeth'; it has: weight, claw, blows, face, name, maker"),
        ("hammer:1,2", "no setting '2'"),
        ("hammer:1,D=4", "no setting 'D'"),
        ("hammer:1,where=there", "no setting 'where'"),
        ("hammer:heavy", "'heavy' is not of type float"),
        ("hammer:1,blows=1.5", "'1.5' is not of type int"),
        ("hammer:1,claw=1", "'1' is neither true nor false"),
        ("hammer:1,face=square", "'square' is none of flat, round"),
        ("hammer:1,maker=me", "'me' stands for a .*list"),
        ("hammer", "also needs weight"),
    ],
)
def test_a_wrong_spec_says_what_is_allowed(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("tools", spec, "here", D=3)
