"""What the image holds: pinned packages, our code, and the script that creates the night's RayJob."""

import json
import re
import shlex
import ssl
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib import metadata
from ipaddress import IPv4Address
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from packaging.requirements import Requirement

from components.run import ENVIRONMENT
from k8s import create_rayjob
from tests.manifests import K8S, ROOT, broken, containers, pinned, sources, unsafe


def dockerfile() -> list[list[str]]:
    """The Dockerfile's instructions, each as its words."""
    text = re.sub(r"^\s*#.*\n", "", (K8S / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [shlex.split(line) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_image_is_pinned_and_nobodys_root() -> None:
    lines = dockerfile()
    known = {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER"}
    assert {line[0] for line in lines} == known, "Ray sets the command, so no ENTRYPOINT"
    assert lines[-1] == ["USER", "1000:1000"]
    assert [line for line in lines if line[0] == "FROM"] == [["FROM", "python:${PYTHON}"]]
    assert re.fullmatch(r"PYTHON=3\.\d+\.\d+-slim-[a-z]+", lines[0][1])
    [install] = [" ".join(line) for line in lines if line[:2] == ["RUN", "pip"]]
    assert "--constraint constraints.txt --requirement requirements.txt" in install
    assert install.index("pip uninstall --yes pip") > install.rindex("pip check")


def test_the_image_sets_what_workers_on_other_nodes_need() -> None:
    env = dict(word.split("=", 1) for line in dockerfile() if line[0] == "ENV" for word in line[1:])
    assert ENVIRONMENT.items() <= env.items() and env["PYTHONDONTWRITEBYTECODE"] == "1"
    assert env["HOME"] == "/tmp", "the only folder that pods may write to"


def test_the_image_holds_what_it_copies_and_no_more() -> None:
    copied = {source for line in dockerfile() if line[0] == "COPY" for source in line[1:-1]}
    ignored = (K8S / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied and "*" in ignored
    assert all((ROOT / source).exists() for source in copied)
    assert {"nascore", "components", "pipelines"} <= copied


def test_every_package_of_the_image_has_a_version() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = known["optional-dependencies"]
    wanted = [*known["dependencies"], *extras["kubeflow"], *extras["mlflow"]]
    left, seen = [Requirement(line) for line in wanted], set()
    while left:
        needed = left.pop()
        if (key := (needed.name.lower(), tuple(sorted(needed.extras)))) in seen:
            continue
        seen.add(key)
        for line in metadata.requires(needed.name) or ():
            further = Requirement(line)
            extras = [{"extra": extra} for extra in ("", *needed.extras)]
            if not further.marker or any(further.marker.evaluate(extra) for extra in extras):
                left.append(further)
    apart = {
        word.partition("==")[0] for line in dockerfile() for word in line if re.fullmatch(r"[a-z]+==[0-9.]+", word)
    }
    names = {re.sub(r"[-_.]+", "-", name) for name, _ in seen}
    names -= {name for name in names if re.match("nvidia-|cuda-|triton", name)}  # torch's own, by its exact version
    assert names <= pinned().keys() | apart
    assert {one["image"] for one in containers(sources()["base/rayjob.yaml"][0])} == {f"nascore:{known['version']}"}


# The night's RayJob

TEMPLATE = sources()["base/rayjob.yaml"][0]
PATH = "/apis/ray.io/v1/namespaces/nascore/rayjobs"
COMMAND = ["--template=nascore", "--prefix=nascore-nightly", "--night=2026-01-31"]


@dataclass
class Api:
    """A cluster's API that holds RayJobs: what it was asked, and what it answers instead, where that is set."""

    jobs: dict[str, Any] = field(default_factory=lambda: {"nascore": TEMPLATE})
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    instead: tuple[int, bytes] | None = None

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, bytes]:
        self.asked.append((method, path, token))
        if self.instead:
            return self.instead
        if token != "Bearer fake":
            return 401, b'{"message": "Unauthorized"}'
        if method == "GET":
            known = self.jobs.get(path.removeprefix(f"{PATH}/"))
            return (200, json.dumps(known).encode()) if known else (404, b'{"message": "not found"}')
        job = json.loads(body)
        if job["metadata"]["name"] in self.jobs:
            return 409, b'{"message": "already exists"}'
        self.jobs[job["metadata"]["name"]] = job
        return 201, body


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that signs itself for this machine, and its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    own = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    signed = (
        x509.CertificateBuilder(own, own, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    kind = serialization.PrivateFormat.PKCS8
    text = key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption())
    (folder / f"{name}.crt").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(text)
    return folder / f"{name}.crt", folder / f"{name}.key"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """A pod's view of its cluster: the API over TLS, and the files and variables of its service account."""
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, text = api.answer(self.command, self.path, self.headers["Authorization"], body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    public, private = certificate(tmp_path, "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda request, client_address: None  # type: ignore[method-assign]
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        (tmp_path / "token").write_text("fake\n")
        (tmp_path / "namespace").write_text("nascore")
        monkeypatch.setattr(create_rayjob, "ACCOUNT", tmp_path)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.server_port))
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        yield api
        server.shutdown()
        thread.join()


def test_a_night_has_one_rayjob(api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_NAME", "nascore-nightly-29")
    monkeypatch.setenv("JOB_UID", "7b1c")
    assert create_rayjob.main([*COMMAND, "--label=kueue.x-k8s.io/queue-name=nascore"]) == 0
    assert capsys.readouterr().out.startswith("RayJob nascore-nightly-20260131: created, python -m pipelines nightly")
    job = api.jobs["nascore-nightly-20260131"]
    assert job["metadata"]["labels"] == {"app.kubernetes.io/name": "nascore", "kueue.x-k8s.io/queue-name": "nascore"}
    assert job["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "nascore-nightly-29", "uid": "7b1c"}
    ]
    assert create_rayjob.main(COMMAND) == 0, "the same night once more"
    assert capsys.readouterr().out == "RayJob nascore-nightly-20260131: there already\n"
    assert api.asked == [("GET", f"{PATH}/nascore", "Bearer fake"), ("POST", PATH, "Bearer fake")] * 2
    assert create_rayjob.main([*COMMAND[:2], "--night=2026-02-01"]) == 0 and len(api.jobs) == 3


def test_the_rayjob_is_the_template_under_the_nights_name() -> None:
    there = {**TEMPLATE, "status": {"jobStatus": ""}, "metadata": {**TEMPLATE["metadata"], "uid": "1", "generation": 2}}
    job = create_rayjob.copy_of(there, "nascore-nightly", date(2026, 1, 31), {})
    assert not broken(job) and not unsafe(job)
    assert job.keys() == {"apiVersion", "kind", "metadata", "spec"} and job["metadata"].keys() == {"name", "labels"}
    assert job["spec"].pop("suspend") is False
    assert " --night 2026-01-31 " in job["spec"].pop("entrypoint")
    assert job["spec"].items() <= TEMPLATE["spec"].items() and len(job["spec"]) == len(TEMPLATE["spec"]) - 2
    assert TEMPLATE["spec"]["suspend"] is True, "the template is as it was"


def test_tonight_is_todays_date_in_utc(api: Api) -> None:
    days = [f"nascore-nightly-{datetime.now(UTC):%Y%m%d}"]
    assert create_rayjob.main(COMMAND[:2]) == 0
    assert len(api.jobs) == 2 and {*api.jobs} & {*days, f"nascore-nightly-{datetime.now(UTC):%Y%m%d}"}


@pytest.mark.parametrize(
    ("instead", "told"),
    [
        ((403, b'{"message": "rayjobs is forbidden"}'), "403, rayjobs is forbidden"),
        ((404, b"not even JSON"), "404, not even JSON"),
        ((503, b"[]"), "503, []"),
        ((302, b""), "302"),
        ((200, b"{}"), "KeyError"),
        ((409, b"{}"), "409"),
    ],
)
def test_a_refusal_is_told_and_fails(
    api: Api, capsys: pytest.CaptureFixture[str], instead: tuple[int, bytes], told: str
) -> None:
    api.instead = instead
    assert create_rayjob.main(COMMAND) == 1
    assert (error := capsys.readouterr().err).startswith("error: ") and told in error and "fake" not in error


def test_a_template_that_is_not_there_fails(api: Api, capsys: pytest.CaptureFixture[str]) -> None:
    assert create_rayjob.main(["--template=other", *COMMAND[1:]]) == 1
    assert capsys.readouterr().err == "error: RayJob other: 404, not found\n"


def test_a_refused_creation_fails(
    api: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = api.answer

    def only_reads(method: str, *rest: Any) -> tuple[int, bytes]:
        return answer(method, *rest) if method == "GET" else (422, b'{"message": "spec is invalid"}')

    monkeypatch.setattr(api, "answer", only_reads)
    assert create_rayjob.main(COMMAND) == 1
    assert capsys.readouterr().err == "error: RayJob nascore-nightly-20260131: 422, spec is invalid\n"


def test_a_cluster_of_another_authority_gets_no_token(
    api: Api, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certificate(tmp_path, "another")[0].rename(tmp_path / "ca.crt")
    assert create_rayjob.main(COMMAND) == 1
    assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().err and not api.asked


def test_outside_a_pod_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(create_rayjob, "ACCOUNT", tmp_path)
    assert create_rayjob.main(COMMAND) == 1 and "FileNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--prefix=nascore-nightly"],
        [*COMMAND, "--label=queue"],
        [*COMMAND, "--night=tonight"],
        ["--template=nascore", "--prefix=Nightly"],
        ["--template=nascore", f"--prefix={'a' * 39}"],
    ],
)
def test_a_wrong_command_line_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        create_rayjob.main(wrong)
    assert left.value.code == 2
