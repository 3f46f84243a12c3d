"""Nightly re-search: decide from drift what to do, promote on evidence, roll back; a command, not a run."""

import sys
from argparse import SUPPRESS, ArgumentParser
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from components.registry import Registry
from components.run import Run, environment
from pipelines import __main__ as command
from pipelines._asked import Nightly

ROLLBACK = "--rollback"


def staged(run: Run, stage: str) -> None:
    """A stage on the cluster."""
    import_module(f"components.{stage}").main(run)


def parsed(arguments: Sequence[str]) -> Nightly:
    """The night that a command line describes."""
    import jsonargparse

    parser = jsonargparse.ArgumentParser(prog="python -m pipelines nightly", description=__doc__)
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    parser.add_class_arguments(Nightly, as_group=False)
    known = parser.instantiate(parser.parse_args([command._underscored(argument) for argument in arguments])).as_dict()
    return Nightly(**{name: value for name, value in known.items() if name != "config"})


def described(arguments: Sequence[str]) -> dict[str, Any]:
    """The folders that a command line names; raises for what can be known to be wrong without its data."""
    if any(argument.partition("=")[0] == ROLLBACK for argument in arguments):
        raise ValueError(f"{ROLLBACK} needs no cluster: leave --submit out")
    settings = parsed(arguments)
    given = [one for options in (settings.options, settings.warm) for one in options.get("given", ())]
    if all(one.startswith("{") for one in given):
        settings.check()
    return {"registry": settings.registry, "raw": settings.raw, "runs": settings.runs, "given": given}


def main(arguments: list[str]) -> int:
    """Do a night, or roll back; the exit code, see `pipelines.__main__.EXITS`."""
    errors = import_module("components.errors")
    early = ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument(ROLLBACK, nargs="?", type=int, const=0, default=SUPPRESS)
    try:
        known, rest = early.parse_known_args(arguments)
        settings = parsed(rest)
        if hasattr(known, "rollback"):
            return roll_back(settings, known.rollback)
        environment()
        settings.check()
        nights = import_module("pipelines._nights")
        return int(nights.work(settings, staged))
    except (Exception, KeyboardInterrupt) as error:
        if (why := errors.told(error)) is None:
            raise
        print(f"error: {why}", file=sys.stderr)
        return int(errors.exit_code(error))


def roll_back(settings: Nightly, number: int) -> int:
    """Restore an earlier champion; 0."""
    registry = Registry(settings.registry)
    registry.show()
    now, restored = registry.roll_back(number)
    print(f"champion: version {restored.version} again, was version {now.version}")
    return 0
