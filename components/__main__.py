"""`python -m components <stage> <run-url>` runs one stage of a run; `python -m components check` looks at raw data."""

import sys
from importlib import import_module
from pathlib import Path

USAGE = """usage: python -m components <stage> <run-url>
       python -m components check --dataset NAME --raw FOLDER [--on-bad-row skip]

stages: {stages}
"""
STAGE = "def main(run: Run) -> None:"


def main(arguments: list[str]) -> int:
    """The exit code: 0 when done, otherwise by the class of what went wrong, see `components.errors`."""
    folder = Path(__file__).parent
    stages = sorted(file.stem for file in folder.glob("*.py") if STAGE in file.read_text(encoding="utf-8").splitlines())
    if len(arguments) < 2 or arguments[0] not in (*stages, "check"):
        print(USAGE.format(stages=", ".join(stages)))
        return 0 if arguments in (["-h"], ["--help"]) else 2
    try:
        if arguments[0] == "check":
            from components.check import main as check

            check(arguments[1:])
            return 0
        from components import order
        from components.run import Run, environment
        from components.tracking import wanted

        environment()
        wanted()
        run = Run.load(arguments[1])
        if (run.folder / arguments[0]).done:
            print(f"{arguments[0]}: done before")
        else:
            order.check(run.folder, arguments[:1], searched=not run.method.routes)
            import_module(f"components.{arguments[0]}").main(run)
            print(f"{arguments[0]}: done")
    except (Exception, KeyboardInterrupt) as error:
        from components.errors import exit_code, told

        if told(error) is None:
            raise
        print(f"error: {told(error)}", file=sys.stderr)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
