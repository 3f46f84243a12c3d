"""`--submit URL`: a pipeline or a night as a job of a Ray cluster elsewhere, with this code, its log shown here.

The command line is read here first; what is wrong with it is told before anything is sent. The job's command is the
same without the options below. Its environment is readable on the cluster's dashboard, so secrets are sent only where
`--submit-env` names them.
"""

import asyncio
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PROJECT = Path(__file__).parent.parent
SHIPPED = ("nascore", "components", "pipelines")
BESIDE = ("pyproject.toml", "demo.yaml")
MOST_BYTES = 64 << 20
SENT = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
)
"""Environment variables that a job is given where they are set here."""
FILES = (".yaml", ".yml", ".json")
OPTIONS = ("--submit", "--detach", "--status", "--stop", "--follow", "--submission-id", "--submit-env", "--no-ship")
USAGE, CLUSTER, INTERRUPTED = 2, 5, 130
POLL, PATIENCE = 1.0, 60.0
HERE = ("127.0.0.1", "localhost", "::1")
CHATTY = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")
CONTINUES = "What is finished stays; the same command continues."
Settings = Callable[[str, list[str]], dict[str, Any]]


class Refused(ValueError):
    """What the user must change before anything is sent."""


def asked(arguments: Sequence[str]) -> bool:
    """Whether a command line holds one of the options of this file."""
    return any(argument.partition("=")[0] in OPTIONS for argument in arguments)


def main(arguments: list[str], settings: Settings) -> int:
    """The job's own exit code, or that of `--detach`, `--status` and `--stop`; 2 for what is refused, 5 where the
    cluster does not answer, 130 where the job or this command was stopped.

    `settings` gives the options of a pipeline as they are written; raises for those that are wrong.
    """
    known, rest = _parser().parse_known_args(arguments)
    try:
        if not known.submit:
            raise Refused("--detach, --status, --stop and the like need --submit URL, such as http://127.0.0.1:8265")
        if known.status or known.stop or known.follow:
            if rest:
                raise Refused(f"--status, --stop and --follow take no further options: {' '.join(rest)}")
            return _answered(known, lambda client: _of_one(client, known))
        name, *options = rest or [""]
        if not name or name.startswith("-"):
            raise Refused("the pipeline's name comes first: python -m pipelines <name> … --submit URL")
        root = checked(settings(name, options), known.submit)
        environment = variables(known.submit_env)
        identity = known.submission_id or named(name, root)
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", identity):
            raise Refused(f"--submission-id {identity}: letters, digits, dots, dashes and underscores only")
        about = {"pipeline": name, "root": root}
        return _answered(known, lambda client: _send(client, known, identity, about, rest, environment))
    except Refused as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m pipelines", add_help=False, allow_abbrev=False)
    parser.add_argument("--submit", metavar="URL", help="The cluster's dashboard, such as http://127.0.0.1:8265.")
    parser.add_argument("--detach", action="store_true", help="Return as soon as the job is sent.")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--status", metavar="ID", help="How a job is doing.")
    one.add_argument("--stop", metavar="ID", help="Stop a job.")
    one.add_argument("--follow", metavar="ID", help="Show a job's log until its end.")
    parser.add_argument("--submission-id", metavar="ID", help="The job's name on the cluster.")
    parser.add_argument("--submit-env", metavar="NAME", action="append", default=[], help="A variable to send along.")
    parser.add_argument("--no-ship", action="store_true", help="Run the code that the cluster's image holds.")
    return parser


# What is sent


def checked(given: dict[str, Any], url: str) -> str:
    """The run's root, or a night's registry; raises where a folder is named that is another one where the job runs."""
    needed = ("registry", "raw") if "registry" in given else ("root",)
    folders = {name: given.get(name) or "" for name in (*needed, "raw", "runs")}
    folders |= {f"given ({n + 1})": one for n, one in enumerate(given.get("given") or ()) if not one.startswith("{")}
    for name in needed:
        if not folders[name]:
            raise Refused(f"--{name} is empty; it names a folder, such as s3://bucket/mine")
    local = {name: folder for name, folder in folders.items() if folder and "://" not in folder}
    for name, folder in local.items():
        if not os.path.isabs(folder):
            raise Refused(
                f"--{name} {folder} is relative, and the job runs elsewhere: give a URL, such as "
                f"s3://bucket/{folder.lstrip('./')}, or the absolute path of a disk that all nodes share"
            )
    if local and urlsplit(url).hostname not in HERE:
        print(f"note: {', '.join(local.values())}: all nodes of the cluster must share that disk", file=sys.stderr)
    return str(folders[needed[0]]).rstrip("/")


def variables(names: Sequence[str]) -> dict[str, str]:
    """The job's environment: what workers run under, where the storage is, and what the user named."""
    from components.run import ENVIRONMENT

    missing = [name for name in names if name not in os.environ]
    if missing:
        raise Refused(f"--submit-env: {', '.join(missing)} is not set here")
    return {**ENVIRONMENT, **{name: os.environ[name] for name in (*SENT, *names) if name in os.environ}}


def named(name: str, root: str) -> str:
    """A submission id that tells pipeline, run and time, such as autotower-mine-20260131-235959."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", root.rpartition("/")[2]).strip("-.")
    return "-".join(filter(None, (name, plain[:40], f"{datetime.now(UTC):%Y%m%d-%H%M%S}")))


def staged(folder: Path, command: Sequence[str]) -> list[str]:
    """Copy into `folder` all that the job needs of this machine; the command with its files named as they lie there."""
    for package in SHIPPED:
        ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
        shutil.copytree(PROJECT / package, folder / package, ignore=ignored)
    for name in BESIDE:
        if (PROJECT / name).is_file():
            shutil.copy(PROJECT / name, folder / name)
    shipped = []
    for place, argument in enumerate(command):
        option, sign, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
        if value.endswith(FILES) and "://" not in value and Path(value).is_file():
            (folder / f"files/{place}").mkdir(parents=True)
            shutil.copy(value, folder / f"files/{place}")
            value = f"files/{place}/{Path(value).name}"
        shipped.append(f"{option}{sign}{value}")
    size = sum(file.stat().st_size for file in folder.rglob("*"))
    if size > MOST_BYTES:
        raise Refused(f"{PROJECT}: the code is {size >> 20} MiB, more than the {MOST_BYTES >> 20} that are sent")
    return shipped


def _send(
    client: Any,
    known: Namespace,
    identity: str,
    about: dict[str, str],
    command: Sequence[str],
    environment: dict[str, str],
) -> int:
    for job in client.list_jobs():
        if job.submission_id == identity:
            raise Refused(f"there is a job {identity} already ({job.status}); choose another --submission-id")
        if (job.metadata or {}).get("root") == about["root"] and not job.status.is_terminal():
            raise Refused(f"{about['root']} has a job already ({job.status}).\n{_ways(known, job.submission_id)}")
    runtime: dict[str, Any] = {"env_vars": environment}
    with tempfile.TemporaryDirectory(prefix="nascore-submit-") as scratch:
        if not known.no_ship:
            command = staged(Path(scratch), command)
            runtime["working_dir"] = scratch
        entrypoint = shlex.join(["python", "-m", "pipelines", *command])
        client.submit_job(entrypoint=entrypoint, submission_id=identity, runtime_env=runtime, metadata=about)
    print(f"{identity}: submitted", flush=True)
    if known.detach:
        print(_ways(known, identity))
        return 0
    return _watched(client, known, identity)


def _ways(known: Namespace, identity: str) -> str:
    ways = (("see how it does", "--status"), ("follow its log", "--follow"), ("stop it", "--stop"))
    return "\n".join(f"  to {what}: python -m pipelines --submit {known.submit} {how} {identity}" for what, how in ways)


# A job that was sent


def _answered(known: Namespace, act: Callable[[Any], int]) -> int:
    """Act on the cluster's job client; what can go wrong between here and there is one line."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    for name in CHATTY:
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray prefers them to the address that it is given
        os.environ.pop(name, None)
    try:
        return act(JobSubmissionClient(known.submit))
    except AuthenticationError:
        told = "does not accept the token that is set here" if _token() else "wants a token"
        way = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        print(f"error: {known.submit} {told}: {way}", file=sys.stderr)
        return USAGE
    except (RuntimeError, OSError) as error:
        print(f"error: {known.submit}: {str(error) or type(error).__name__}", file=sys.stderr)
        return CLUSTER


def _token() -> bool:
    known = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return os.environ.get("RAY_AUTH_MODE") == "token" and bool(known)


def _of_one(client: Any, known: Namespace) -> int:
    """`--status`, `--stop` and `--follow`."""
    identity = known.status or known.stop or known.follow
    if identity not in [job.submission_id for job in client.list_jobs()]:
        raise Refused(f"{known.submit} knows no job {identity}")
    if known.follow:
        return _watched(client, known, identity)
    if known.stop:
        client.stop_job(identity)
        while not client.get_job_info(identity).status.is_terminal():
            time.sleep(POLL)
    job = client.get_job_info(identity)
    code = "" if job.driver_exit_code is None else f", exit code {job.driver_exit_code}"
    print(f"{identity}: {job.status}{code}; {(job.metadata or {}).get('root', '')}")
    last = client.get_job_logs(identity).rstrip().rpartition("\n")[2]
    if known.status and last:
        print(f"  {last.strip()}")
    if known.stop and str(job.status) == "STOPPED":
        print(CONTINUES)
    return 0


def _watched(client: Any, known: Namespace, identity: str) -> int:
    """Show the log until the job ends; its exit code. Ctrl-C ends the showing, not the job."""
    from aiohttp import ClientError

    log, lost = _Log(client, identity), 0.0
    try:
        while True:
            try:
                asyncio.run(log.show())
                job, lost = client.get_job_info(identity), 0.0
                if job.status.is_terminal():
                    break
            except (RuntimeError, OSError, ClientError) as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > PATIENCE:
                    print(f"error: {known.submit} does not answer ({error}). The job may go on:", file=sys.stderr)
                    print(_ways(known, identity), file=sys.stderr)
                    return CLUSTER
            time.sleep(POLL)
    except KeyboardInterrupt:
        print(f"\nThe job goes on:\n{_ways(known, identity)}", file=sys.stderr)
        return INTERRUPTED
    if str(job.status) == "STOPPED":
        print(f"{identity} was stopped. {CONTINUES}", file=sys.stderr)
        return INTERRUPTED
    if job.driver_exit_code is None:
        print(f"error: {identity} {job.status}: {job.message}", file=sys.stderr)
        return CLUSTER
    return int(job.driver_exit_code)


class _Log:
    """A job's log on this terminal; what was shown before a connection broke is not shown again."""

    def __init__(self, client: Any, identity: str) -> None:
        self.client, self.identity, self.shown = client, identity, 0

    async def show(self) -> None:
        """Show it until it ends or the connection does."""
        seen = 0
        async for text in self.client.tail_job_logs(self.identity):
            seen += len(text)
            if seen > self.shown:
                print(text[self.shown - seen :], end="", flush=True)
                self.shown = seen
