"""`python -m pipelines <name> --root FOLDER …`: build a run from the command line and take it through its stages."""

import json
import sys
import time
from argparse import ArgumentParser
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_origin, get_type_hints

from pipelines import _submit

if TYPE_CHECKING:
    from components.run import Run

FOLDER = Path(__file__).parent
EXITS = """\
Exit codes: 0 done, 1 a bug of ours, 2 a wrong command line or settings, 3 data that cannot be used, 4 a budget that no
architecture keeps, 5 storage or cluster, where the same command continues, 130 interrupted"""
COMPILER = "kubeflow"
"""A file here that is no pipeline: it compiles one."""

NIGHT = "nightly"
"""The file here whose runs are made night by night."""

EXPORT = "export"


def main(arguments: list[str]) -> int:
    """The exit code: 0 when the run is done, otherwise by the class of what went wrong, see `EXITS`."""
    names = sorted(file.stem for file in FOLDER.glob("*.py") if not file.stem.startswith("_"))
    names = [name for name in names if name not in (COMPILER, NIGHT)]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m pipelines <name> --root FOLDER --dataset NAME [--raw FOLDER] [options]\n")
        for name in names:
            print(f"  {name:12} {_headline(name)}")
        print("\nThe options of one: python -m pipelines <name> --help")
        print("Each night, as far as needed: python -m pipelines nightly --registry URL --raw URL [options]")
        print("Either on a Ray cluster elsewhere: python -m pipelines … --submit http://HOST:8265 [--detach]")
        print("A job that runs there: python -m pipelines --submit http://HOST:8265 --status | --follow | --stop ID")
        print("As a Kubeflow pipeline: python -m pipelines kubeflow <name> … -o pipeline.yaml")
        print("A model of a finished run as files that need no nascore: python -m pipelines export RUN [--model LABEL]")
        print(f"\n{EXITS}")
        return 0 if arguments else 2
    if arguments[0] == EXPORT:
        return int(import_module("components.export").main(arguments[1:]))
    sent = _submit.asked(arguments)
    if arguments[0] == NIGHT and not sent:
        return int(import_module(f"pipelines.{NIGHT}").main(arguments[1:]))
    if arguments[0] not in (*names, COMPILER, NIGHT) and not (sent and arguments[0].startswith("-")):
        print(f"error: no pipeline {arguments[0]!r}; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    try:
        if arguments[0] == COMPILER:
            return _compiled(arguments[1:], names)
        if sent:
            return _submit.main(arguments, described)
        run = parse(arguments[0], arguments[1:])
    except Exception as error:
        errors = import_module("components.errors")
        if (why := errors.told(error)) is None:
            raise
        print(f"error: {why}", file=sys.stderr)
        return int(errors.exit_code(error))
    return execute(run)


def _headline(name: str) -> str:
    with open(FOLDER / f"{name}.py", encoding="utf-8") as file:
        return file.readline().strip().strip('"')


def _compiled(arguments: list[str], names: list[str]) -> int:
    """What `kubeflow` asks for; kfp is an extra."""
    try:
        kubeflow = import_module("pipelines.kubeflow")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("kfp"):
            raise
        raise ValueError(f"{error}: pip install 'nascore[kubeflow]'") from error
    return int(kubeflow.main(arguments, names, parse, described))


def parse(name: str, arguments: list[str]) -> "Run":
    """The run that a command line describes."""
    run: Run = _function(name)(**_options(name, arguments))
    return run


def described(name: str, arguments: list[str]) -> dict[str, Any]:
    """The options of a command line as they are written; raises for what can be known to be wrong without its data.

    Of a night only those that name folders.
    """
    if name == NIGHT:
        return dict(import_module(f"pipelines.{NIGHT}").described(arguments))
    known = _options(name, arguments)
    if all(one.startswith("{") for one in known.get("given", ())):
        _function(name)(**known).check_options()
    return known


def _function(name: str) -> Any:
    return getattr(import_module(f"pipelines.{name}"), name)


def _options(name: str, arguments: list[str]) -> dict[str, Any]:
    """All options of a pipeline; `--preset` changes the method's defaults before anything else is read."""
    import jsonargparse

    function = _function(name)
    about = function.__doc__.split("\n")[0]
    parser = jsonargparse.ArgumentParser(prog=f"python -m pipelines {name}", description=about)
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    method = type(function.__kwdefaults__["method"])
    parser.add_argument(
        "--preset", choices=["paper", *method.presets], default="paper", help="Named settings of --method."
    )
    parser.add_function_arguments(function, as_group=False)
    arguments = _listed([_underscored(argument) for argument in arguments], function)
    chosen = _preset(arguments)
    if chosen in method.presets:
        parser.set_defaults(_flat("method", method.presets[chosen]))
    known = parser.instantiate(parser.parse_args(arguments)).as_dict()
    return {name: value for name, value in known.items() if name not in ("config", "preset")}


def _underscored(argument: str) -> str:
    """`--on-bad-row` as `--on_bad_row`."""
    name, sign, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + sign + value if argument.startswith("--") else argument


def _listed(arguments: list[str], function: Any) -> list[str]:
    """`--budgets M` and `--seeds 3` as the lists of one that they stand for."""
    lists = {f"--{name}" for name, kind in get_type_hints(function).items() if get_origin(kind) is tuple}
    listed = list[str]()
    for argument in arguments:
        name, sign, value = argument.partition("=")
        if listed and listed[-1] in lists and not argument.startswith("--"):
            listed.append(_list_of(argument))
        else:
            listed.append(f"{name}={_list_of(value)}" if sign and name in lists else argument)
    return listed


def _list_of(value: str) -> str:
    if value.startswith("["):
        return value
    return f"[{value}]" if value.isdigit() else json.dumps([value] if value else [])


def _preset(arguments: list[str]) -> str:
    """The preset that the command line asks for, or else its `--config` file; whatever is wrong is told later."""
    early = ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    early.add_argument("--config", type=Path)
    known, _ = early.parse_known_args(arguments)
    if known.preset is None and known.config and known.config.is_file():
        import yaml

        with suppress(yaml.YAMLError, AttributeError):
            known.preset = yaml.safe_load(known.config.read_text(encoding="utf-8")).get("preset")
    return str(known.preset)


def _flat(prefix: str, settings: Any) -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        flat |= _flat(f"{prefix}.{name}", value) if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return flat


def execute(run: "Run") -> int:
    """Take a run through its stages; finished ones are skipped, so the same command continues or does nothing."""
    import_module("components.run").environment()
    begun = False
    try:
        run.check()
        import_module("components.tracking").wanted()
        run.save()
        for stage in run.planned:
            if (run.folder / stage).done:
                print(f"{stage}: done before", flush=True)
                continue
            print(f"{stage} …", flush=True)
            begun, started = True, time.monotonic()
            import_module(f"components.{stage}").main(run)
            print(f"{stage}: done in {time.monotonic() - started:.1f} s", flush=True)
    except (Exception, KeyboardInterrupt) as error:
        errors = import_module("components.errors")
        if (why := errors.told(error)) is None:
            raise
        print(f"error: {why}", file=sys.stderr)
        if begun:
            print("What is finished stays; the same command continues.", file=sys.stderr)
        return int(errors.exit_code(error))
    if (run.folder / "report").done:
        print(f"Report: {run.folder.url}/report/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
