"""What k8s/ holds: every manifest, what the overlays become, and every command line in them.

A kustomization is built with kubectl or kustomize; where neither is there, only its files are judged.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
import yaml

from components.lease import MARGIN
from components.run import STAGES
from k8s import create_rayjob
from pipelines import nightly
from tests import swift
from tests.manifests import (
    K8S,
    LONGEST,
    ROOT,
    Document,
    broken,
    builder,
    clusters,
    containers,
    documents,
    invalid,
    jobs,
    nodes,
    of_kind,
    ray_schemas,
    sources,
    unsafe,
)

OVERLAYS = ("dev", "prod", "apart")
OUTSIDE = {("Secret", "nascore-ray-token"), ("Secret", "nascore-storage")}
APART = {"nightly-raycronjob", "kubeflow"}
"""Components that no overlay lists: one is off by default in the operator, one gives rights to another namespace."""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Document]]:
    """What an overlay becomes; `apart` is one made here of the components that no other lists."""
    folder = tmp_path_factory.mktemp("k8s") / "k8s"
    shutil.copytree(K8S, folder)
    (folder / "overlays" / "apart").mkdir()
    components = [f"../../components/{name}" for name in ("large", *sorted(APART))]
    text = yaml.safe_dump({"resources": ["../../base"], "components": components})
    (folder / "overlays" / "apart" / "kustomization.yaml").write_text(text)

    @cache
    def build(overlay: str) -> list[Document]:
        command = [*builder(), str(folder / "overlays" / overlay)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not done.stderr, f"a warning: {done.stderr}"
        return documents(done.stdout)

    return build


# Manifests


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_an_overlay_becomes_is_valid(built: Callable[[str], list[Document]], overlay: str) -> None:
    found = built(overlay)
    assert not [what for document in found for what in (*broken(document), *unsafe(document))]
    assert not [what for one in found if not one["apiVersion"].startswith("ray.io/") and (what := invalid(one))]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_an_overlay_becomes_fits_kuberays_schemas(built: Callable[[str], list[Document]], overlay: str) -> None:
    found = [document for document in built(overlay) if document["apiVersion"].startswith("ray.io/")]
    ray_schemas()
    assert found and not [what for document in found if (what := invalid(document))]


def test_every_manifest_is_valid_as_it_stands() -> None:
    for path, found in sources().items():
        for document in found:
            assert not [*broken(document), *unsafe(document)], path
            assert document["apiVersion"].startswith("ray.io/") or not invalid(document), path


def test_every_ray_manifest_fits_kuberays_schemas() -> None:
    found = [
        document for file in sources().values() for document in file if document["apiVersion"].startswith("ray.io/")
    ]
    assert {document["kind"] for document in found} == ray_schemas().keys() & LONGEST.keys() == LONGEST.keys()
    for document in found:
        assert not invalid(document)


# Command lines


def commands(document: Document) -> Iterator[list[str]]:
    """Every command line of a document, as a list of words."""
    if (job := jobs(document)) is not None:
        yield shlex.split(job["entrypoint"].replace(create_rayjob.NIGHT, "2026-01-31"))
    for one in containers(document):
        if words := [*one.get("command", ()), *one.get("args", ())]:
            yield words


def understood(words: list[str], template: str, search: Path) -> None:
    """Parse a command line as the program itself would; raises where it would refuse.

    template: the RayJob that there is. search: the file that pods see as /etc/nascore/search.yaml.
    """
    if words[:2] != ["python", "-c"] and any(re.search(r"[$`;&|<>*?]", word) for word in words):
        raise ValueError(f"{shlex.join(words)}: a shell is needed")
    match words:
        case ["python", "-m", "pipelines", "nightly", *options]:
            known = nightly.parsed([word.replace("/etc/nascore/search.yaml", str(search)) for word in options])
            known.check()
            folders = (known.registry, known.raw, known.runs or known.registry)
            assert all(url.startswith("s3://") for url in folders), "pods lose what they keep on their own disks"
            assert known.night == "2026-01-31", "a second attempt continues the night of the first"
            assert known.wait > known.lease * (1 + MARGIN), "and finds the lease of one that was killed expired"
        case ["python", "-m", "components", stage, url] if stage in STAGES and "://" in url:
            pass
        case ["python", "k8s/create_rayjob.py", *options]:
            assert create_rayjob.arguments_of(options).template == template
        case ["python", "-c", code]:
            compile(code, "command", "exec")
        case ["server", "/data"]:
            pass
        case _:
            raise ValueError(f"{shlex.join(words)}: no program that is known here")


@cache
def ray_start() -> set[str]:
    """The options of `ray start`."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(re.findall(r"^  (?:-\w, )?--([\w-]+)", done.stdout, re.MULTILINE))


def test_every_command_line_is_understood_as_it_stands() -> None:
    found = [words for file in sources().values() for document in file for words in commands(document)]
    assert sum(words[:4] == ["python", "-m", "pipelines", "nightly"] for words in found) == 2, (
        "the RayJob's and the RayCronJob's"
    )
    for words in found:
        for search in K8S.rglob("search.yaml"):
            understood(words, "nascore", search)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_command_line_of_an_overlay_is_understood(
    built: Callable[[str], list[Document]], overlay: str, tmp_path: Path
) -> None:
    found = built(overlay)
    [held] = [one for one in of_kind(found, "ConfigMap") if one["metadata"]["name"] == "nascore-search"]
    (tmp_path / "search.yaml").write_text(held["data"]["search.yaml"])
    template = of_kind(found, "RayJob")[0]["metadata"]["name"]
    for document in found:
        for words in commands(document):
            understood(words, template, tmp_path / "search.yaml")


NIGHT = "python -m pipelines nightly --registry s3://b/r --raw s3://b/c --night 2026-01-31 --wait 401"


def test_what_command_lines_that_would_fail_are_made_of() -> None:
    understood(shlex.split(NIGHT), "nascore", K8S / "base" / "search.yaml")


@pytest.mark.parametrize(
    "line",
    [
        NIGHT.replace("s3://b/r", "/tmp/r"),
        f"{NIGHT} --raw /tmp/clicks",
        f"{NIGHT} --runs /tmp/runs",
        f"{NIGHT} --rots x",
        f"{NIGHT} --options '{{strategies: [randum]}}'",
        f"{NIGHT} --night ''",
        f"{NIGHT} --night '$NIGHT'",
        f"{NIGHT} --wait 399",
        NIGHT.replace("nightly", "nobody"),
        "python -m components search runs/mine",
        "python -m components train s3://b/r",
        "python k8s/create_rayjob.py --template other --prefix a",
        "python -c 'import'",
        "bash -c true",
    ],
)
def test_command_lines_that_would_fail_are_not_understood(line: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        understood(shlex.split(line), "nascore", K8S / "base" / "search.yaml")


def test_ray_start_knows_every_parameter() -> None:
    groups = [
        group
        for file in sources().values()
        for document in file
        for spec in clusters(document)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])
    ]
    used = {name for group in groups for name in group["rayStartParams"]}
    assert used and used <= ray_start() and "num-cpu" not in ray_start()


@pytest.mark.long
def test_devs_bucket_holds_days_for_the_night(s3_server: swift.Server, tmp_path: Path) -> None:
    [one] = [one for document in sources()["components/minio/bucket.yaml"] for one in containers(document)]
    code = one["command"][2].replace("/tmp/raw", str(tmp_path / "raw"))
    keys = {"AWS_ACCESS_KEY_ID": swift.KEY, "AWS_SECRET_ACCESS_KEY": swift.SECRET, "AWS_REGION": "us-east-1"}
    env = {**os.environ, **keys, "AWS_ENDPOINT_URL": s3_server.url}
    asked = "import sys\nfrom pipelines import nightly\nprint(*nightly.parsed(sys.argv[1:]).days())"
    command = [sys.executable, "-c", f"{code}\n{code}\n{asked}", f"--config={K8S}/base/search.yaml"]
    days = subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, text=True).stdout.split()
    assert len(days) == 7 and date.fromisoformat(days[-1]) >= datetime.now(UTC).date() - timedelta(days=2)


# Rights, names, networks, hours


def may(found: list[Document], account: str, verb: str, name: str) -> bool:
    """Whether a service account, "namespace/name", may do something to a RayJob of ours."""
    roles = {role["metadata"]["name"]: role["rules"] for role in of_kind(found, "Role")}
    rules = [
        rule
        for binding in of_kind(found, "RoleBinding")
        if account in [f"{one['namespace']}/{one['name']}" for one in binding["subjects"]]
        for rule in roles[binding["roleRef"]["name"]]
    ]
    assert all((rule["apiGroups"], rule["resources"]) == (["ray.io"], ["rayjobs"]) for rule in rules)
    return any(verb in rule["verbs"] and name in rule.get("resourceNames", [name]) for rule in rules)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_accounts_may_do_what_they_do_and_no_more(built: Callable[[str], list[Document]], overlay: str) -> None:
    found = built(overlay)
    assert not of_kind(found, "ClusterRole") and not of_kind(found, "ClusterRoleBinding")

    def rights(account: str, name: str) -> set[str]:
        verbs = ("get", "create", "list", "watch", "update", "patch", "delete", "*")
        return {verb for verb in verbs if may(found, account, verb, name)}

    assert rights("nascore/nascore-nightly", "nascore") == {"get", "create"}
    assert rights("nascore/nascore-nightly", "nascore-nightly-20260131") == {"create"}
    steps = {"get", "create"} if overlay == "apart" else set()
    assert rights("kubeflow/pipeline-runner", "nascore") == rights("kubeflow/pipeline-runner", "nascore-0a1b") == steps
    assert not rights("nascore/nascore", "nascore") and not rights("nascore/pipeline-runner", "nascore")


def test_kustomizations_name_what_is_there() -> None:
    names = {(one["kind"], one["metadata"]["name"]) for file in sources().values() for one in file}
    files = sorted(K8S.rglob("kustomization.yaml"))
    used = set()
    for file in files:
        [known] = documents(file.read_text(encoding="utf-8"))
        listed = [*known.get("resources", ()), *known.get("components", ())]
        listed += [name for one in known.get("configMapGenerator", ()) for name in one.get("files", ())]
        for name in listed:
            there = (file.parent / name).resolve()
            assert there.is_relative_to(K8S) and there.exists(), f"{file}: {name}"
            used.add(there)
        for patch in known.get("patches", ()):
            target = patch["target"]
            assert any(kind == target["kind"] and target.get("name", name) == name for kind, name in names), file
            assert all(step["op"] in ("add", "replace", "remove", "test") for step in yaml.safe_load(patch["patch"]))
        for one in known.get("replacements", ()):
            assert {(one["source"]["kind"], one["source"]["name"])} <= names, file
            assert all((to["select"]["kind"], to["select"]["name"]) in names for to in one["targets"]), file
    unused = {file for file in K8S.rglob("*.yaml") if file.name != "kustomization.yaml"} - used
    assert not unused, "manifests that no kustomization lists"
    apart = {file.parent for file in files} - used - {K8S / "overlays" / name for name in OVERLAYS}
    assert apart == {K8S / "components" / name for name in APART}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_holds_all_that_its_pods_name(built: Callable[[str], list[Document]], overlay: str) -> None:
    found = built(overlay)
    there = {(one["kind"], one["metadata"]["name"]) for one in found} | OUTSIDE
    for node in (node for document in found for node in nodes(document) if isinstance(node, dict)):
        wanted = {
            ("ConfigMap", node.get("configMapRef", {}).get("name")),
            ("ConfigMap", node["configMap"]["name"] if isinstance(node.get("configMap"), dict) else None),
            ("Secret", node.get("secretRef", {}).get("name")),
            ("Secret", node.get("secretKeyRef", {}).get("name")),
            ("Secret", node.get("secretName")),
            ("ServiceAccount", node.get("serviceAccountName")),
            ("PersistentVolumeClaim", node.get("persistentVolumeClaim", {}).get("claimName")),
        }
        assert {(kind, name) for kind, name in wanted if name} <= there
    assert {one["metadata"].get("namespace") for one in found if one["kind"] != "Namespace"} == {"nascore"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nothing_starts_by_being_applied_but_what_stands(built: Callable[[str], list[Document]], overlay: str) -> None:
    found = built(overlay)
    assert [job["spec"]["suspend"] for job in of_kind(found, "RayJob")] == [True]
    assert not any("kueue.x-k8s.io/queue-name" in job["metadata"]["labels"] for job in of_kind(found, "RayJob"))
    nightlies = [one["spec"].get("suspend", False) for one in found if one["kind"] in ("CronJob", "RayCronJob")]
    assert nightlies.count(False) == (overlay != "dev"), "one nightly at a time"
    assert all(one["spec"]["jobTemplate"]["suspend"] is False for one in of_kind(found, "RayCronJob"))


OPERATOR = {"app.kubernetes.io/component": "kuberay-operator"}
HEADS = {"app.kubernetes.io/name": "nascore", "ray.io/is-ray-node": "yes", "ray.io/node-type": "head"}
WORKERS = {**HEADS, "ray.io/node-type": "worker"}
SUBMITTER, NIGHTLY, BUCKET = ({"app.kubernetes.io/component": name} for name in ("submitter", "nightly", "bucket"))
MINIO = {"app.kubernetes.io/name": "minio"}
DNS = {"k8s-app": "kube-dns"}
Labels = dict[str, str]


def selects(selector: Document, labels: Labels) -> bool:
    assert selector.keys() <= {"matchLabels"}
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def passes(found: list[Document], side: str, of: Labels, peer: Labels | str, port: int) -> bool:
    """Whether the policies let `of` send ("egress") to a peer, labels or an address, or receive ("ingress") from it."""
    for policy in (one["spec"] for one in of_kind(found, "NetworkPolicy")):
        for rule in policy.get(side, ()) if selects(policy["podSelector"], of) else ():
            peers = rule["to" if side == "egress" else "from"]
            pods = [one["podSelector"] for one in peers if "podSelector" in one]
            near = isinstance(peer, dict) and any(selects(one, peer) for one in pods)
            far = isinstance(peer, str) and any(one.get("ipBlock", {}).get("cidr") == peer for one in peers)
            if (near or far) and port in {one["port"] for one in rule.get("ports", [{"port": port}])}:
                return True
    return False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_networks_are_closed_but_for_what_is_used(built: Callable[[str], list[Document]], overlay: str) -> None:
    found = built(overlay)
    assert {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} in [
        policy["spec"] for policy in of_kind(found, "NetworkPolicy")
    ]

    def talks(of: Labels, to: Labels, port: int) -> bool:
        return passes(found, "egress", of, to, port) and passes(found, "ingress", to, of, port)

    assert talks(WORKERS, HEADS, 6379) and talks(HEADS, WORKERS, 10002) and talks(SUBMITTER, HEADS, 8265)
    assert passes(found, "ingress", HEADS, OPERATOR, 8265) and not passes(found, "ingress", HEADS, OPERATOR, 6379)
    assert not talks(SUBMITTER, HEADS, 6379) and not talks(SUBMITTER, WORKERS, 8265) and not talks(NIGHTLY, HEADS, 8265)
    assert all(passes(found, "egress", of, DNS, 53) for of in (HEADS, WORKERS, SUBMITTER, NIGHTLY, BUCKET))
    assert passes(found, "egress", NIGHTLY, "0.0.0.0/0", 443)
    assert not passes(found, "egress", SUBMITTER, "0.0.0.0/0", 443)
    dev = overlay == "dev"
    assert talks(WORKERS, MINIO, 9000) == talks(BUCKET, MINIO, 9000) == dev and not talks(NIGHTLY, MINIO, 9000)
    assert passes(found, "egress", WORKERS, "0.0.0.0/0", 443) == (overlay == "prod")
    assert not any(passes(found, "egress", MINIO, to, port) for to, port in ((HEADS, 8265), ("0.0.0.0/0", 443)))


def test_the_labels_that_policies_select_are_those_of_pods() -> None:
    templates = [
        node["metadata"]["labels"]
        for file in sources().values()
        for document in file
        for node in nodes(document)
        if isinstance(node, dict) and {"metadata", "spec"} <= node.keys() and "containers" in node["spec"]
    ]
    for labels in (SUBMITTER, NIGHTLY, BUCKET, MINIO, {"app.kubernetes.io/name": "nascore"}):
        assert any(labels.items() <= known.items() for known in templates), labels


def test_schedules_name_a_zone_and_a_limit() -> None:
    for document in (one for file in sources().values() for one in file if one["kind"] in ("CronJob", "RayCronJob")):
        spec = document["spec"]
        assert ZoneInfo(spec["timeZone"]) and len(spec["schedule"].split()) == 5
        if document["kind"] == "CronJob":
            assert spec["concurrencyPolicy"] == "Forbid" and spec["startingDeadlineSeconds"] >= 60
            assert spec["successfulJobsHistoryLimit"] > 1 < spec["failedJobsHistoryLimit"]
