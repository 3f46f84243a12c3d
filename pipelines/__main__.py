"""`python -m pipelines <name> --root FOLDER …`: build a run from the command line and take it through its stages."""

import sys
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from components.run import Run

FOLDER = Path(__file__).parent


def main(arguments: list[str]) -> int:
    """The exit code: 0 when the run is done, 1 when a stage failed, 2 for a wrong command line."""
    names = sorted(file.stem for file in FOLDER.glob("*.py") if not file.stem.startswith("_"))
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m pipelines <name> --root FOLDER --dataset NAME [--raw FOLDER] [options]\n")
        for name in names:
            print(f"  {name:12} {_headline(name)}")
        print("\nThe options of one: python -m pipelines <name> --help")
        return 0 if arguments else 2
    if arguments[0] not in names:
        print(f"error: no pipeline {arguments[0]!r}; there are: {', '.join(names)}", file=sys.stderr)
        return 2
    return execute(parse(arguments[0], arguments[1:]))


def _headline(name: str) -> str:
    with open(FOLDER / f"{name}.py", encoding="utf-8") as file:
        return file.readline().strip().strip('"')


def parse(name: str, arguments: list[str]) -> "Run":
    """The run that a command line describes; `--preset` changes the method's defaults before anything else is read."""
    from jsonargparse import ArgumentParser

    function = getattr(import_module(f"pipelines.{name}"), name)
    parser = ArgumentParser(prog=f"python -m pipelines {name}", description=function.__doc__.split("\n")[0])
    parser.add_argument("--config", action="config", help="A YAML file with any of these options.")
    method = type(function.__kwdefaults__["method"])
    parser.add_argument(
        "--preset", choices=["paper", *method.presets], default="paper", help="Named settings of --method."
    )
    parser.add_function_arguments(function, as_group=False)
    arguments = [_underscored(argument) for argument in arguments]
    chosen = _preset(arguments)
    if chosen in method.presets:
        parser.set_defaults(_flat("method", method.presets[chosen]))
    known = parser.instantiate(parser.parse_args(arguments)).as_dict()
    run: Run = function(**{name: value for name, value in known.items() if name not in ("config", "preset")})
    return run


def _underscored(argument: str) -> str:
    """`--on-bad-row` as `--on_bad_row`."""
    name, sign, value = argument.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + sign + value if argument.startswith("--") else argument


def _preset(arguments: list[str]) -> str:
    for place, argument in enumerate(arguments):
        if argument == "--preset" and place + 1 < len(arguments):
            return arguments[place + 1]
        if argument.startswith("--preset="):
            return argument.partition("=")[2]
    return "paper"


def _flat(prefix: str, settings: Any) -> dict[str, Any]:
    flat = {}
    for name, value in settings.items():
        flat |= _flat(f"{prefix}.{name}", value) if isinstance(value, dict) else {f"{prefix}.{name}": value}
    return flat


def execute(run: "Run") -> int:
    """Take a run through its stages; finished ones are skipped, so the same command continues or does nothing."""
    import_module("components.run").environment()
    try:
        run.raw_data().layout()
        run.save()
        for stage in run.stages:
            if (run.folder / stage).done:
                print(f"{stage}: done before", flush=True)
                continue
            print(f"{stage} …", flush=True)
            started = time.monotonic()
            import_module(f"components.{stage}").main(run)
            print(f"{stage}: done in {time.monotonic() - started:.1f} s", flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {getattr(error, 'cause', None) or error}", file=sys.stderr)
        print("What is finished stays; the same command continues.", file=sys.stderr)
        return 1
    if (run.folder / "report").done:
        print(f"Report: {run.folder.url}/report/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
