"""`python k8s/create_rayjob.py --template NAME --prefix NAME`: create the night's RayJob from a suspended one.

The CronJob's pod runs this: the image has no kubectl. The template is a RayJob of the same namespace that stays
suspended; its copy is named by the date, so a second attempt of the same night finds it there and is done. In its
entrypoint the date is written out, so a retry after midnight continues the same night. The copy belongs to the Job that
created it and is removed with it, which makes the CronJob's history limits hold for RayJobs too.
"""

import argparse
import json
import os
import re
import ssl
import sys
from datetime import UTC, date, datetime
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from typing import Any

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
NIGHT = "$(date -u +%F)"
SECONDS = 30
LONGEST = 47
API = "/apis/ray.io/v1/namespaces/{}/rayjobs"


class Refused(Exception):
    """The cluster's API answered something else than what was asked of it."""


def arguments_of(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line; exits with 2 for a wrong one."""
    parser = argparse.ArgumentParser(prog="python k8s/create_rayjob.py", allow_abbrev=False)
    parser.add_argument("--template", required=True, help="The suspended RayJob to copy.")
    parser.add_argument("--prefix", required=True, help="What the name of the copy begins with; the date follows.")
    parser.add_argument("--label", action="append", default=[], help="KEY=VALUE, a label more for the copy.")
    parser.add_argument("--night", type=date.fromisoformat, help="The date, as 2026-01-31; today in UTC if left out.")
    known = parser.parse_args(arguments)
    if wrong := [label for label in known.label if not re.fullmatch(r"[^=]+=[^=]*", label)]:
        parser.error(f"--label {wrong[0]}: not KEY=VALUE")
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", known.prefix) or len(known.prefix) > LONGEST - len("-20260131"):
        parser.error(f"--prefix {known.prefix}: not the beginning of a RayJob's name")
    return known


def copy_of(template: dict[str, Any], prefix: str, night: date, labels: dict[str, str]) -> dict[str, Any]:
    """The RayJob of a night: the template's spec, no longer suspended, under its own name."""
    spec = {**template["spec"], "suspend": False}
    spec["entrypoint"] = spec["entrypoint"].replace(NIGHT, night.isoformat())
    metadata: dict[str, Any] = {
        "name": f"{prefix}-{night:%Y%m%d}",
        "labels": {**template["metadata"].get("labels", {}), **labels},
    }
    if os.environ.get("JOB_NAME") and os.environ.get("JOB_UID"):
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": os.environ["JOB_NAME"], "uid": os.environ["JOB_UID"]}
        metadata["ownerReferences"] = [owner]
    return {"apiVersion": template["apiVersion"], "kind": template["kind"], "metadata": metadata, "spec": spec}


def call(method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    """Ask the cluster's API as this pod's service account; the status and the answer."""
    token = (ACCOUNT / "token").read_text(encoding="utf-8").strip()
    trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ.get("KUBERNETES_SERVICE_PORT", "443"))
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json", "Content-Type": "application/json"}
    connection = HTTPSConnection(host, port, timeout=SECONDS, context=trusted)
    try:
        connection.request(method, path, json.dumps(body) if body else None, headers)
        answer = connection.getresponse()
        text = answer.read().decode("utf-8", "replace")
    finally:
        connection.close()
    try:
        known = json.loads(text)
    except ValueError:
        known = {"message": text[:200]}
    return answer.status, known if isinstance(known, dict) else {"message": text[:200]}


def create(options: argparse.Namespace) -> str:
    """Create the RayJob of the night unless it is there; what was done, in a line."""
    path = API.format((ACCOUNT / "namespace").read_text(encoding="utf-8").strip())
    status, template = call("GET", f"{path}/{options.template}")
    if status != 200:
        raise Refused(f"RayJob {options.template}: {status}, {template.get('message', 'no reason given')}")
    night = options.night or datetime.now(UTC).date()
    wanted = copy_of(template, options.prefix, night, dict(label.split("=") for label in options.label))
    name = wanted["metadata"]["name"]
    status, answer = call("POST", path, wanted)
    if status == 409:
        return f"RayJob {name}: there already"
    if status not in (200, 201, 202):
        raise Refused(f"RayJob {name}: {status}, {answer.get('message', 'no reason given')}")
    return f"RayJob {name}: created, {wanted['spec']['entrypoint']}"


def main(arguments: list[str]) -> int:
    """The exit code: 0 when the RayJob is there, 1 when it is not, 2 for a wrong command line."""
    options = arguments_of(arguments)
    try:
        print(create(options), flush=True)
    except (Refused, OSError, HTTPException, KeyError, ValueError) as error:
        print(f"error: {error if isinstance(error, Refused) else f'{type(error).__name__}: {error}'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
