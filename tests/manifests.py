"""What is held against the manifests of k8s/: schemas, the operator's own rules and ours. No cluster is asked.

KubeRay's kinds are held against the schemas that it publishes, in the folder named by NASCORE_SCHEMAS.
"""

import copy
import os
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

ROOT = Path(__file__).parent.parent
K8S = ROOT / "k8s"
KUBERNETES = "1.33"
LONGEST = {"RayCluster": 53, "RayJob": 47, "RayCronJob": 36}
SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|ACCESS_KEY|PRIVATE", re.IGNORECASE)

Document = dict[str, Any]


# What stands there


def documents(text: str) -> list[Document]:
    return [document for document in yaml.safe_load_all(text) if document]


def sources() -> dict[str, list[Document]]:
    """The documents of every manifest, by its path; stubs that a kustomization fills are filled from the RayJob."""
    found = {
        str(file.relative_to(K8S)): documents(file.read_text(encoding="utf-8"))
        for file in sorted(K8S.rglob("*.yaml"))
        if file.name not in ("kustomization.yaml", "search.yaml")
    }
    job = found["base/rayjob.yaml"][0]["spec"]
    for document in (one for file in found.values() for one in file):
        if document["kind"] == "RayCluster" and not document["spec"]:
            document["spec"] = copy.deepcopy(job["rayClusterSpec"])
        elif document["kind"] == "RayCronJob" and not document["spec"]["jobTemplate"]:
            document["spec"]["jobTemplate"] = copy.deepcopy(job) | {"suspend": False}
    return found


def builder() -> list[str]:
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            return command
    pytest.skip("neither kubectl nor kustomize is on the PATH: no kustomization is built")


def of_kind(found: list[Document], kind: str) -> list[Document]:
    return [document for document in found if document["kind"] == kind]


def nodes(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


def pods(document: Document) -> list[Document]:
    """The pod specs inside a document."""
    return [node for node in nodes(document) if isinstance(node, dict) and isinstance(node.get("containers"), list)]


def containers(document: Document) -> list[Document]:
    return [one for pod in pods(document) for one in (*pod["containers"], *pod.get("initContainers", ()))]


# Schemas


@cache
def ray_schemas() -> dict[str, Any]:
    """A validator for each of KubeRay's kinds, without room for fields that its schema does not name."""
    if "NASCORE_SCHEMAS" not in os.environ:
        pytest.skip("NASCORE_SCHEMAS is unset; it names the folder of KubeRay's published schemas")
    found = {}
    for file in sorted(Path(os.environ["NASCORE_SCHEMAS"]).rglob("ray*.yaml")):
        crd = yaml.load(file.read_text(encoding="utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        version = next(one for one in crd["spec"]["versions"] if one["name"] == "v1")
        schema = closed(version["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object", "required": ["name"]}
        jsonschema.Draft202012Validator.check_schema(schema)
        found[crd["spec"]["names"]["kind"]] = jsonschema.Draft202012Validator(schema)
    return found


def closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(value) for name, value in schema.items()}
    if inner.pop("x-kubernetes-int-or-string", False):
        inner["type"] = ["integer", "string"]
    free = inner.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in inner
    if inner.get("type") == "object" and "properties" in inner and not free:
        inner["additionalProperties"] = False
    return inner


def invalid(document: Document) -> str:
    """What a schema has against a document; nothing for a kind that has no published schema here."""
    try:
        if document["apiVersion"].startswith("ray.io/"):
            ray_schemas()[document["kind"]].validate(document)
        elif not document["apiVersion"].startswith("kueue.x-k8s.io/"):
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except jsonschema.ValidationError as error:
        return f"{document['kind']} {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
    return ""


# The operator's rules, which no schema holds


def clusters(document: Document) -> Iterator[Document]:
    job = jobs(document)
    if document["kind"] == "RayCluster":
        yield document["spec"]
    elif job is not None and job.get("rayClusterSpec"):
        yield job["rayClusterSpec"]


def jobs(document: Document) -> Document | None:
    """The RayJob's spec inside a RayJob or a RayCronJob."""
    if document["kind"] == "RayCronJob":
        return dict(document["spec"].get("jobTemplate", {}))
    return dict(document["spec"]) if document["kind"] == "RayJob" else None


def broken_names(document: Document) -> Iterator[str]:
    name = document["metadata"]["name"]
    if len(name) > LONGEST[document["kind"]]:
        yield f"a name of more than {LONGEST[document['kind']]} letters"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield "a name that is no DNS label"


def broken_jobs(document: Document) -> Iterator[str]:
    if (job := jobs(document)) is None:
        return
    mode, selector, shutdown = (
        job.get("submissionMode"),
        job.get("clusterSelector"),
        job.get("shutdownAfterJobFinishes"),
    )
    if not selector and not job.get("rayClusterSpec"):
        yield "neither rayClusterSpec nor clusterSelector"
    if not shutdown and (job.get("suspend") or job.get("ttlSecondsAfterFinished")):
        yield "suspend or a TTL without shutdownAfterJobFinishes"
    if selector and job.get("suspend"):
        yield "suspend with clusterSelector"
    if job.get("backoffLimit") and (selector or mode == "InteractiveMode"):
        yield "backoffLimit with clusterSelector or InteractiveMode"
    if mode == "SidecarMode" and {"submitterPodTemplate", "submitterConfig", "clusterSelector"} & job.keys():
        yield "SidecarMode with a submitter of its own or clusterSelector"
    if any(job.get(name, 1) <= 0 for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds")):
        yield "a deadline that is not positive"
    if job.get("backoffLimit", 0) < 0 or job.get("ttlSecondsAfterFinished", 0) < 0:
        yield "a negative limit"
    if not isinstance(yaml.safe_load(job.get("runtimeEnvYAML", "{}")), dict):
        yield "runtimeEnvYAML that is no mapping"
    if "deletionStrategy" in job and shutdown and "deletionRules" in job["deletionStrategy"]:
        yield "deletionRules with shutdownAfterJobFinishes"


def broken_schedules(document: Document) -> Iterator[str]:
    if document["kind"] != "RayCronJob":
        return
    if "TZ" in document["spec"]["schedule"]:
        yield "a time zone in the schedule"
    elif len(document["spec"]["schedule"].split()) != 5:
        yield "a schedule that is not five fields"
    if document["spec"].get("timeZone", "Etc/UTC") == "":
        yield "an empty timeZone"


def broken_clusters(document: Document) -> Iterator[str]:
    for spec in clusters(document):
        head, workers = spec["headGroupSpec"], spec.get("workerGroupSpecs", [])
        for group in (head, *workers):
            name, start = group.get("groupName", "head"), group.get("rayStartParams", {})
            if not group["template"]["spec"].get("containers"):
                yield f"{name}: no container"
            if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & start.keys():
                yield f"{name}: resources twice"
            if "labels" in start:
                yield f"{name}: labels in rayStartParams"
        for group in workers:
            least, most = group.get("minReplicas"), group.get("maxReplicas")
            if not spec.get("enableInTreeAutoscaling") and (least is None or most is None):
                yield f"{group['groupName']}: no minReplicas or maxReplicas, and no autoscaler"
            elif not 0 <= (least or 0) <= (most if most is not None else 1 << 31):
                yield f"{group['groupName']}: minReplicas above maxReplicas, or negative"
        if any(one["name"] == "RAY_REDIS_ADDRESS" for one in head["template"]["spec"]["containers"][0].get("env", ())):
            yield "RAY_REDIS_ADDRESS without gcsFaultToleranceOptions"
        if {"networkPolicy", "tlsOptions", "historyServerOptions"} & spec.keys():
            yield "a field whose feature gate is off by default"


def broken_tokens(document: Document) -> Iterator[str]:
    for spec in clusters(document):
        known = spec.get("authOptions", {})
        version = tuple(int(part) for part in spec.get("rayVersion", "0.0").split(".")[:2])
        if known.get("mode") == "token" and version < (2, 52):
            yield "authOptions.mode token without a rayVersion of 2.52 or newer"
        if known.get("enableK8sTokenAuth") and jobs(document) is not None:
            yield "Kubernetes token authentication in a RayJob"
        if known.get("enableK8sTokenAuth") and (known.get("mode") != "token" or known.get("secretName")):
            yield "Kubernetes token authentication without mode token, or with a Secret"


def broken(document: Document) -> list[str]:
    """What the operator would refuse in a document of its kinds."""
    if not document["apiVersion"].startswith("ray.io/"):
        return []
    rules = (broken_names, broken_jobs, broken_schedules, broken_clusters, broken_tokens)
    return [f"{document['kind']}: {what}" for rule in rules for what in rule(document)]


# Our own rules


def unsafe_pods(document: Document) -> Iterator[str]:
    for pod in pods(document):
        known = pod.get("securityContext", {})
        if known.get("runAsNonRoot") is not True or not known.get("runAsUser"):
            yield "a pod that may run as root"
        if known.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield "a pod without a seccomp profile"
        if {"hostNetwork", "hostPID", "hostIPC"} & pod.keys() or any(
            "hostPath" in one for one in pod.get("volumes", ())
        ):
            yield "a pod that reaches its node"
        if pod.get("automountServiceAccountToken") is not (pod.get("serviceAccountName") == "nascore-nightly"):
            yield "a token of the cluster's API where none is used, or none where it is"
        there = {one["name"] for one in pod.get("volumes", ())}
        if missing := {one["name"] for c in pod["containers"] for one in c.get("volumeMounts", ())} - there:
            yield f"mounts without a volume: {', '.join(sorted(missing))}"


def unsafe_containers(document: Document) -> Iterator[str]:
    for one in containers(document):
        known, resources = one.get("securityContext", {}), one.get("resources", {})
        if known.get("allowPrivilegeEscalation") is not False or known.get("privileged"):
            yield f"{one['name']}: may gain privileges"
        if known.get("capabilities", {}).get("drop") != ["ALL"] or known["capabilities"].get("add"):
            yield f"{one['name']}: has capabilities"
        if known.get("readOnlyRootFilesystem") is not True or known.get("runAsUser", 1) == 0:
            yield f"{one['name']}: may write to its image, or is root"
        for kind in ("requests", "limits"):
            if not {"cpu", "memory"} <= resources.get(kind, {}).keys():
                yield f"{one['name']}: no {kind} of cpu and memory"
        if not re.search(r":[^:/]+$|@sha256:", one["image"]) or one["image"].endswith(":latest"):
            yield f"{one['name']}: an image without a version"


def unsafe_secrets(document: Document) -> Iterator[str]:
    if document["kind"] == "Secret" and {"data", "stringData"} & document.keys():
        yield "a Secret with its values"
    if document["kind"] == "ConfigMap" and any(SECRET.search(name) for name in document.get("data", ())):
        yield "a secret in a ConfigMap"
    for node in nodes(document):
        if isinstance(node, dict) and "value" in node and SECRET.search(str(node.get("name", ""))):
            yield f"{node['name']}: a secret as plain text"


def unsafe_clusters(document: Document) -> Iterator[str]:
    for spec in clusters(document):
        if spec.get("authOptions") != {"mode": "token", "secretName": "nascore-ray-token"}:
            yield "a Ray that asks for no token, or for one of the operator's making"
        if spec["headGroupSpec"].get("rayStartParams", {}).get("num-cpus") != "0":
            yield "a head that workers run on"
        if spec["rayVersion"] != pinned()["ray"]:
            yield "another Ray than that of constraints.txt"
    for one in containers(document) if document["apiVersion"].startswith("ray.io/") else ():
        env = {
            known["name"]: known.get("value") or known["valueFrom"].get("secretKeyRef") for known in one.get("env", ())
        }
        wanted = {"name": "nascore-ray-token", "key": "auth_token"}
        if env.get("RAY_AUTH_MODE") != "token" or env.get("RAY_AUTH_TOKEN") != wanted:
            yield f"{one['name']}: no token of its own"
    if (job := jobs(document)) is not None:
        if (1 + job.get("backoffLimit", 0)) * job.get("activeDeadlineSeconds", 1 << 31) >= 24 * 3600:
            yield "attempts that may last until the next night"


def unsafe(document: Document) -> list[str]:
    """What we ourselves refuse in a document."""
    rules = (unsafe_pods, unsafe_containers, unsafe_secrets, unsafe_clusters)
    return [f"{document['kind']} {document['metadata']['name']}: {what}" for rule in rules for what in rule(document)]


@cache
def pinned() -> dict[str, str]:
    """The versions of constraints.txt."""
    lines = [line.split("==") for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()]
    return {re.sub(r"[-_.]+", "-", name.lower()): version for name, version in lines}
