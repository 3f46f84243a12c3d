"""Galleries are folders and the folder is the registry: a file's name is its room's name.

A file whose name begins with `_` is no room, but what several rooms of its gallery share.

A room is asked for by a spec: its name, then, after a colon, one leading value and any `key=value` settings:
`mlp:64`, `self_attention_pool:positions=true`, `evolution:population=20,mutation=0.2`.
"""

import inspect
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

FOLDER = Path(__file__).parent


def names(gallery: str) -> tuple[str, ...]:
    """The rooms of a gallery, read from its folder; nothing is imported."""
    return tuple(sorted(file.stem for file in (FOLDER / gallery).glob("*.py") if not file.stem.startswith("_")))


@cache
def load(gallery: str, name: str) -> type[Any]:
    """The one class that the room `nascore/<gallery>/<name>.py` shows: the one written there that is its contract's."""
    if name not in names(gallery):
        raise ValueError(f"no {name!r} in {gallery}; there are: {', '.join(names(gallery))}")
    contract = import_module(f"nascore.{gallery}")
    module = import_module(f"nascore.{gallery}.{name}")
    shown = [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and member.__module__ == module.__name__
        and issubclass(member, contract.CONTRACT)
        and not member.__name__.startswith("_")
    ]
    if len(shown) != 1:
        raise TypeError(f"nascore/{gallery}/{name}.py must show one {contract.CONTRACT.__name__}, not {len(shown)}")
    room: type[Any] = shown[0]
    return room


def build(gallery: str, spec: str, *given: Any, **also: Any) -> Any:
    """Build the room that `spec` names; values in the spec are read by the constructor's annotations."""
    name, _, rest = spec.partition(":")
    room = load(gallery, name)
    parameters = list(inspect.signature(room).parameters.values())[len(given) :]
    accepted = {parameter.name: parameter for parameter in parameters if parameter.name not in also}
    settings: dict[str, Any] = {}
    for position, part in enumerate(filter(None, rest.split(","))):
        setting, sign, value = part.partition("=")
        if not sign and position == 0:
            setting, value = next(iter(accepted), ""), setting
        if setting not in accepted:
            raise ValueError(f"{spec!r}: {name} has no setting {setting!r}; it has: {', '.join(accepted) or 'none'}")
        settings[setting] = _read(spec, value, accepted[setting].annotation)
    missing = [one for one in accepted if accepted[one].default is inspect.Parameter.empty and one not in settings]
    if missing:
        raise ValueError(f"{spec!r}: {name} also needs {', '.join(missing)}, as in {name}:{missing[0]}=...")
    return room(*given, **settings, **also)


def bounded(settings: Any, **least: float) -> None:
    """Raise if a setting is below its least allowed value, or is no number at all."""
    for name, bound in least.items():
        if not getattr(settings, name) >= bound:
            raise ValueError(f"{type(settings).__name__}: {name} is at least {bound}, not {getattr(settings, name)}")


def _read(spec: str, value: str, annotation: Any) -> Any:
    if annotation is bool:
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{spec!r}: {value!r} is neither true nor false")
        return value.lower() == "true"
    if annotation in (int, float):
        try:
            return annotation(value)
        except ValueError:
            raise ValueError(f"{spec!r}: {value!r} is not of type {annotation.__name__}") from None
    if get_origin(annotation) is Literal and value not in get_args(annotation):
        raise ValueError(f"{spec!r}: {value!r} is none of {', '.join(get_args(annotation))}")
    if annotation is not str and get_origin(annotation) is not Literal:
        raise ValueError(f"{spec!r}: {value!r} stands for a {annotation}, which cannot be written in a spec")
    return value
