"""What judges the manifests of k8s/ bites: each schema and rule is shown one that breaks it."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.manifests import Document, broken, invalid, of_kind, ray_schemas, sources, unsafe


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.rayClusterSpec.headGroupSpec.template.spec.containers.0.imagePolicy", "Always"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.replicas", "two"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens"),
        ("spec.rayClusterSpec.workerGroupSpecs.0.groupName", None),
        ("spec.backoffLimits", 1),
    ],
)
def test_kuberays_schemas_bite(path: str, value: Any) -> None:
    ray_schemas()
    document = json.loads(json.dumps(sources()["base/rayjob.yaml"][0]))
    assert not invalid(document)
    put(document, path, value)
    assert invalid(document)


def test_kubernetes_schemas_bite() -> None:
    cron = sources()["base/nightly.yaml"][0]
    for path, value in (
        ("spec.concurrency", "Forbid"),
        ("spec.startingDeadlineSeconds", "soon"),
        ("spec.schedule", None),
    ):
        document = copy.deepcopy(cron)
        put(document, path, value)
        assert invalid(document), path


def put(document: Document, path: str, value: Any) -> None:
    """Set what stands at a dotted path; None takes it away."""
    *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    inner: Any = document
    for part in way:
        inner = inner.setdefault(part, {}) if isinstance(inner, dict) else inner[part]
    if value is None:
        del inner[last]
    else:
        inner[last] = value


HEAD = "spec.rayClusterSpec.headGroupSpec"
GROUP = "spec.rayClusterSpec.workerGroupSpecs.0"
REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    ("RayJob", "more than 47 letters", {"metadata.name": "a" * 48}),
    ("RayCluster", "more than 53 letters", {"metadata.name": "a" * 54}),
    ("RayCronJob", "more than 36 letters", {"metadata.name": "a" * 37}),
    ("RayJob", "no DNS label", {"metadata.name": "2nascore"}),
    ("RayJob", "neither rayClusterSpec", {"spec.rayClusterSpec": None}),
    ("RayJob", "without shutdownAfterJobFinishes", {"spec.shutdownAfterJobFinishes": False}),
    ("RayJob", "suspend with clusterSelector", {"spec.clusterSelector": {"ray.io/cluster": "x"}}),
    ("RayJob", "backoffLimit with", {"spec.submissionMode": "InteractiveMode"}),
    ("RayJob", "SidecarMode with", {"spec.submissionMode": "SidecarMode"}),
    ("RayJob", "not positive", {"spec.activeDeadlineSeconds": 0}),
    ("RayJob", "negative limit", {"spec.backoffLimit": -1}),
    ("RayJob", "no mapping", {"spec.runtimeEnvYAML": "- pip"}),
    ("RayJob", "deletionRules with", {"spec.deletionStrategy": {"deletionRules": []}}),
    ("RayCronJob", "time zone in the schedule", {"spec.schedule": "CRON_TZ=UTC 0 2 * * *"}),
    ("RayCronJob", "not five fields", {"spec.schedule": "nightly"}),
    ("RayCronJob", "empty timeZone", {"spec.timeZone": ""}),
    ("RayCronJob", "neither rayClusterSpec", {"spec.jobTemplate.rayClusterSpec": None}),
    ("RayJob", "no container", {f"{GROUP}.template.spec.containers": []}),
    ("RayJob", "resources twice", {f"{HEAD}.resources": {"CPU": "1"}}),
    ("RayJob", "labels in rayStartParams", {f"{GROUP}.rayStartParams.labels": "a=b"}),
    ("RayJob", "no minReplicas", {f"{GROUP}.minReplicas": None}),
    ("RayCluster", "no minReplicas", {"spec.workerGroupSpecs.0.maxReplicas": None}),
    ("RayJob", "minReplicas above", {f"{GROUP}.minReplicas": 3}),
    ("RayJob", "gcsFaultToleranceOptions", {f"{HEAD}.template.spec.containers.0.env": [{"name": "RAY_REDIS_ADDRESS"}]}),
    ("RayJob", "feature gate", {"spec.rayClusterSpec.networkPolicy": {"mode": "DenyAll"}}),
    ("RayJob", "rayVersion of 2.52", {"spec.rayClusterSpec.rayVersion": "2.51.1"}),
    ("RayCluster", "rayVersion of 2.52", {"spec.rayVersion": None}),
    ("RayJob", "authentication in a RayJob", {"spec.rayClusterSpec.authOptions.enableK8sTokenAuth": True}),
    ("RayCluster", "or with a Secret", {"spec.authOptions.enableK8sTokenAuth": True}),
]


@pytest.mark.parametrize(("kind", "what", "change"), REFUSED, ids=[f"{kind}-{what}" for kind, what, _ in REFUSED])
def test_the_operators_rules_bite(kind: str, what: str, change: dict[str, Any]) -> None:
    assert_bites(broken, kind, what, change)


POD = f"{GROUP}.template.spec"
WORKER = f"{POD}.containers.0"
UNSAFE: list[tuple[str, str, dict[str, Any]]] = [
    ("RayJob", "may run as root", {f"{POD}.securityContext": {"runAsUser": 1000}}),
    ("CronJob", "may run as root", {"spec.jobTemplate.spec.template.spec.securityContext.runAsUser": 0}),
    ("Deployment", "seccomp", {"spec.template.spec.securityContext.seccompProfile": None}),
    ("RayJob", "reaches its node", {f"{POD}.hostNetwork": True}),
    ("RayJob", "reaches its node", {f"{POD}.volumes.0": {"name": "tmp", "hostPath": {"path": "/"}}}),
    ("RayJob", "token of the cluster's API", {f"{POD}.automountServiceAccountToken": True}),
    ("RayJob", "mounts without a volume", {f"{POD}.volumes": []}),
    ("RayJob", "may gain privileges", {f"{WORKER}.securityContext.allowPrivilegeEscalation": None}),
    ("RayJob", "has capabilities", {f"{WORKER}.securityContext.capabilities.add": ["NET_ADMIN"]}),
    ("Job", "may write", {"spec.template.spec.containers.0.securityContext.readOnlyRootFilesystem": False}),
    ("RayJob", "no limits", {f"{WORKER}.resources.limits.memory": None}),
    ("CronJob", "no requests", {"spec.jobTemplate.spec.template.spec.containers.0.resources.requests": None}),
    ("RayJob", "without a version", {f"{WORKER}.image": "nascore:latest"}),
    ("RayJob", "without a version", {f"{WORKER}.image": "registry:5000/nascore"}),
    ("ConfigMap", "secret in a ConfigMap", {"data": {"AWS_SECRET_ACCESS_KEY": "x"}}),
    ("Secret", "a Secret with", {"stringData": {"auth_token": "x"}}),
    ("RayJob", "plain text", {f"{WORKER}.env.1": {"name": "RAY_AUTH_TOKEN", "value": "x"}}),
    ("RayJob", "no token of its own", {f"{WORKER}.env": []}),
    ("RayCluster", "asks for no token", {"spec.authOptions": None}),
    ("RayCluster", "asks for no token", {"spec.authOptions.secretName": None}),
    ("RayJob", "workers run on", {f"{HEAD}.rayStartParams": {}}),
    ("RayJob", "another Ray", {"spec.rayClusterSpec.rayVersion": "2.61.0"}),
    ("RayJob", "the next night", {"spec.backoffLimit": 2}),
]


@pytest.mark.parametrize(("kind", "what", "change"), UNSAFE, ids=[f"{kind}-{what}" for kind, what, _ in UNSAFE])
def test_our_own_rules_bite(kind: str, what: str, change: dict[str, Any]) -> None:
    assert_bites(unsafe, kind, what, change)


def assert_bites(rules: Callable[[Document], list[str]], kind: str, what: str, change: dict[str, Any]) -> None:
    bare = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "bare"}}
    [good, *_] = of_kind([one for file in sources().values() for one in file], kind) or [bare]
    document = json.loads(json.dumps(good))
    assert not rules(document)
    for path, value in change.items():
        put(document, path, value)
    assert any(what in told for told in rules(document)), rules(document)
