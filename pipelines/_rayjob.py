"""A step that has KubeRay run the stages: create a RayJob from the suspended one of k8s/, and wait until it ends.

Its name hangs on our run and on Kubeflow's, so a step that is tried again waits for the RayJob that is there.
"""

import hashlib
import shlex
import sys
import time
from http.client import HTTPException
from typing import Any

from k8s import create_rayjob
from k8s.create_rayjob import API, LONGEST, Refused, call

POLL, PATIENCE = 15.0, 600.0
"""Seconds between two looks at the RayJob, and for how long the cluster's API may not answer."""
FAILED = ("Failed", "ValidationFailed")
PASSING = (401, 408, 429)
"""Answers of the API that another try may change, as all from 500 on."""


def run(
    root: str, attempt: str, template: str, namespace: str = "", timeout: float = 86_400.0, labels: str = ""
) -> str:
    """Create the RayJob that takes the run saved at `root` through its stages, unless it is there; wait for its end.

    Returns the RayJob's name. Exits with 1 where it failed, was stopped or removed, or did not end within `timeout`
    seconds; it is not stopped then.

    Args:
        root: The run's folder, which holds `run.json`.
        attempt: What tells two runs of the pipeline apart.
        template: The suspended RayJob to copy.
        namespace: Where the template is and the copy is to be; that of this pod where it is "".
        timeout: The most seconds to wait, and those after which KubeRay ends the RayJob.
        labels: More of them for the copy, KEY=VALUE with commas between.
    """
    try:
        path = API.format(namespace or (create_rayjob.ACCOUNT / "namespace").read_text(encoding="utf-8").strip())
        name = name_of(template, root, attempt)
        print(f"RayJob {name}: {create(path, template, name, root, timeout, labels)}", flush=True)
        wait(path, name, time.monotonic() + timeout)
    except (Refused, OSError, HTTPException, KeyError) as error:
        print(f"error: {error if isinstance(error, Refused) else f'{type(error).__name__}: {error}'}", file=sys.stderr)
        sys.exit(1)
    return name


def name_of(template: str, root: str, attempt: str) -> str:
    """A name that is the same whenever the same step is tried again."""
    digest = hashlib.sha256(f"{root}\n{attempt}".encode()).hexdigest()[:10]
    return f"{template[: LONGEST - len(digest) - 1].rstrip('-')}-{digest}"


def copy_of(template: dict[str, Any], name: str, root: str, timeout: float, labels: str) -> dict[str, Any]:
    """The template's spec, no longer suspended, with a command that runs the stages of a saved run."""
    entrypoint = shlex.join(["python", "-m", "pipelines._steps", root])
    more = dict(one.split("=") for one in labels.split(",") if one)
    own = {"suspend": False, "entrypoint": entrypoint, "activeDeadlineSeconds": max(1, round(timeout))}
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {"name": name, "labels": {**template["metadata"].get("labels", {}), **more}},
        "spec": {**template["spec"], **own},
    }


def create(path: str, template: str, name: str, root: str, timeout: float, labels: str) -> str:
    """What was done, in a word or two."""
    status, known = call("GET", f"{path}/{template}")
    if status != 200:
        raise Refused(f"RayJob {template}: {status}, {known.get('message', 'no reason given')}")
    status, answer = call("POST", path, copy_of(known, name, root, timeout, labels))
    if status == 409:
        return "there already"
    if status not in (200, 201, 202):
        raise Refused(f"RayJob {name}: {status}, {answer.get('message', 'no reason given')}")
    return f"created, {shlex.join(['python', '-m', 'pipelines._steps', root])}"


def wait(path: str, name: str, until: float) -> None:
    """Return when a RayJob has succeeded; raise `Refused` if it ends otherwise, or not by `until`, a monotonic time."""
    last, lost = "", 0.0
    while True:
        status, why = _status(path, name)
        if status is None:
            lost = lost or time.monotonic()
            if time.monotonic() - lost > PATIENCE:
                raise Refused(f"RayJob {name}: the cluster's API did not answer for {PATIENCE:.0f} s, {why}")
        else:
            lost = 0.0
            known = f"{status.get('jobDeploymentStatus') or 'New'} {status.get('jobStatus', '')}".strip()
            if known != last:
                print(f"RayJob {name}: {known}", flush=True)
                last = known
            if _over(name, status):
                return
        if time.monotonic() > until:
            raise Refused(f"RayJob {name}: still {last or 'unknown'} when the time was over; it goes on")
        time.sleep(POLL)


def _status(path: str, name: str) -> tuple[dict[str, Any] | None, str]:
    """The RayJob's status, or None and why, where the API may answer later."""
    try:
        code, job = call("GET", f"{path}/{name}")
    except (OSError, HTTPException) as error:
        return None, f"{type(error).__name__}: {error}"
    why = f"{code}, {job.get('message', 'no reason given')}"
    if code in PASSING or code >= 500:
        return None, why
    if code != 200:
        raise Refused(f"RayJob {name}: {why}")
    return dict(job.get("status") or {}), ""


def _over(name: str, status: dict[str, Any]) -> bool:
    """Whether a RayJob has succeeded; raises if it ended otherwise."""
    deployed, job = status.get("jobDeploymentStatus"), status.get("jobStatus")
    if deployed == "Complete" and job == "SUCCEEDED":
        return True
    if deployed == "Complete" or deployed in FAILED:
        said = ", ".join(str(status[one]) for one in ("reason", "message") if status.get(one))
        raise Refused(f"RayJob {name}: {deployed} {job or ''}".rstrip() + (f", {said}" if said else ""))
    return False
