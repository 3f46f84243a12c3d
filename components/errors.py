"""Errors as a person is told them: one line, and the exit code of their class.

0 done; 1 a bug of ours, or anything that is none of the following; 2 a wrong command line, or settings that do not go
together or lead to no finite number; 3 data that cannot be used; 4 a budget that no architecture keeps; 5 storage or
cluster: mend it if need be, and the same command continues; 130 interrupted.
"""

from collections.abc import Iterator

from nascore.datasets import DataError
from nascore.space import Infeasible
from nascore.storage import StorageError

DONE, FAILED, USAGE, DATA, BUDGET, AGAIN, INTERRUPTED = *range(6), 130
OUTSIDE = ("ray", "botocore", "aiohttp")


def told(error: BaseException) -> str | None:
    """One line for an error whose cause is the settings, the data, the storage or the cluster; None for one of ours."""
    error = cause(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if _outside(error) or isinstance(error, ValueError | FloatingPointError | OSError | StorageError):
        return str(error) or type(error).__name__
    return None


def exit_code(error: BaseException) -> int:
    """The exit code of a command that this error ended."""
    error = cause(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, DataError) or type(error).__module__.startswith("pyarrow"):
        return DATA
    if isinstance(error, Infeasible):
        return BUDGET
    if isinstance(error, ValueError | FloatingPointError | FileNotFoundError):
        return USAGE
    if isinstance(error, OSError | StorageError) or _outside(error):
        return AGAIN
    return FAILED


def cause(error: BaseException) -> BaseException:
    """The error that was raised first: Ray hands on what its tasks and workers raised in errors of its own."""
    for inner in _inside(error):
        return cause(inner)
    return error


def _inside(error: BaseException) -> Iterator[BaseException]:
    """What an error of Ray carries."""
    failures = getattr(error, "worker_failures", None)
    carried = [getattr(error, name, None) for name in ("cause", "_base_exc", "controller_failure")]
    for inner in (*(failures.values() if isinstance(failures, dict) else ()), *carried):
        if isinstance(inner, Exception):
            yield inner


def _outside(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in OUTSIDE
