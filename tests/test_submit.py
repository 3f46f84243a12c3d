"""`--submit`: what is refused, what is sent, what is told; and a real job on a cluster that asks for a token."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import ray.job_submission
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus

from benchmarks import planted_days
from components.folder import Folder
from components.lease import Lease
from components.registry import Registry
from components.run import ENVIRONMENT
from pipelines import __main__ as command
from pipelines import _submit
from tests.jobs import Client, Job
from tests.nights import OPTIONS as NIGHTS

URL = "http://127.0.0.1:8265"
RUN = ("autotower", "--dataset=planted")
NIGHT = ("nightly", "--registry=s3://bucket/registry", "--raw=s3://bucket/clicks")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    made = Client()
    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", made)
    monkeypatch.setattr(_submit, "POLL", 0.0)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", *_submit.SENT):
        monkeypatch.delenv(name, raising=False)
    return made


def submit(*options: str, root: str = "s3://bucket/runs/mine") -> int:
    return command.main([*RUN, f"--root={root}", *options, "--submit", URL])


def test_a_job_is_sent_followed_and_gives_its_exit_code(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit("--seeds", "7", "--strategies=[random:batch=5]") == 0
    told = capsys.readouterr()
    identity = client.sent["submission_id"]
    assert told.out == f"{identity}: submitted\none\ntwo\n" and not told.err
    assert identity.startswith("autotower-mine-20") and client.address == URL
    ran = "python -m pipelines autotower --dataset=planted --root=s3://bucket/runs/mine --seeds 7"
    assert client.sent["entrypoint"] == f"{ran} '--strategies=[random:batch=5]'"
    assert client.sent["metadata"] == {"pipeline": "autotower", "root": "s3://bucket/runs/mine"}
    assert client.sent["runtime_env"]["env_vars"] == ENVIRONMENT
    assert {"nascore/space.py", "components/run.py", "pipelines/__main__.py", "pyproject.toml"} <= client.files
    packages = {file.partition("/")[0] for file in client.files}
    assert packages == {"nascore", "components", "pipelines", "pyproject.toml", "demo.yaml"}
    assert not [file for file in client.files if not file.endswith((".py", ".toml", ".yaml"))]


@pytest.mark.parametrize(
    "ends, code, told",
    [
        ((JobStatus.FAILED, 3), 3, ""),
        ((JobStatus.FAILED, None), 5, "error: mine FAILED"),
        ((JobStatus.STOPPED, None), 130, "mine was stopped. What is finished stays"),
    ],
)
def test_a_failed_job_gives_its_own_code(
    client: Client, capsys: pytest.CaptureFixture[str], ends: Any, code: int, told: str
) -> None:
    client.ends = ends
    assert submit("--submission-id=mine") == code
    assert told in capsys.readouterr().err


def test_a_broken_connection_is_taken_up_again(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.log = ["one\n", "tw", OSError("reset"), "one\n", "two\n", "three\n"]
    assert submit() == 0
    assert capsys.readouterr().out.endswith("submitted\none\ntwo\nthree\n")


def test_a_cluster_that_stays_away_is_told(
    client: Client, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_submit, "PATIENCE", -1.0)
    client.log = [OSError("reset")]
    assert submit("--submission-id=mine") == 5
    told = capsys.readouterr().err
    assert "does not answer (reset). The job may go on:" in told and f"--submit {URL} --follow mine" in told


def test_ctrl_c_leaves_the_job_alone(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    client.log = ["one\n", KeyboardInterrupt()]
    assert submit("--submission-id=mine") == 130
    told = capsys.readouterr().err
    assert "The job goes on:" in told and f"to stop it: python -m pipelines --submit {URL} --stop mine" in told
    assert client.jobs[0].status == JobStatus.RUNNING


def test_a_detached_job_is_asked_and_stopped(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit("--submission-id=mine", "--detach") == 0
    assert f"python -m pipelines --submit {URL} --status mine" in capsys.readouterr().out
    assert command.main(["--submit", URL, "--status", "mine"]) == 0
    assert capsys.readouterr().out == "mine: RUNNING; s3://bucket/runs/mine\n  search: 3/20\n"
    assert command.main([f"--submit={URL}", "--stop", "mine"]) == 0
    assert "mine: STOPPED" in capsys.readouterr().out
    client.jobs.append(Job("other", JobStatus.RUNNING))
    assert command.main(["--submit", URL, "--follow", "other"]) == 0
    assert capsys.readouterr().out == "one\ntwo\n"


@pytest.mark.parametrize(
    "arguments, told",
    [
        ([*RUN, "--root=runs/mine"], "--root runs/mine is relative, and the job runs elsewhere: give a URL, such as"),
        ([*RUN, "--root=s3://b/r", "--raw=./data"], "--raw ./data is relative"),
        ([*RUN, "--root=s3://b/r", "--given=[runs/other]"], "--given (1) runs/other is relative"),
        ([*RUN, "--root="], "--root is empty"),
        ([*RUN, "--root=s3://b/r", "--keep=0"], "keep is at least 1, not 0"),
        ([*RUN, "--root=s3://b/r", "--strategies=[evolutoin]"], "no 'evolutoin' in strategies"),
        ([*RUN, "--root=s3://b/r", "--submission-id=a b"], "--submission-id a b: letters"),
        ([*RUN, "--root=s3://b/r", "--submit-env=NOWHERE_SET"], "--submit-env: NOWHERE_SET is not set here"),
        ([*NIGHT, "--registry=registry"], "--registry registry is relative, and the job runs elsewhere"),
        ([*NIGHT, "--raw=clicks"], "--raw clicks is relative"),
        ([*NIGHT, "--runs=runs"], "--runs runs is relative"),
        ([*NIGHT, "--options={given: [runs/other]}"], "--given (1) runs/other is relative"),
        ([*NIGHT, "--raw="], "--raw is empty"),
        ([*NIGHT, "--options={strategies: [randum]}"], "no 'randum' in strategies"),
        ([*NIGHT, "--warm={protocol: temporal}"], "options: protocol: the night itself sets that"),
        ([*NIGHT, "--rollback"], "--rollback needs no cluster: leave --submit out"),
        (["autotowr", "--root=s3://b/r"], "no pipeline 'autotowr'; there are: autotower"),
        ([], "the pipeline's name comes first"),
        (["--root=s3://b/r"], "the pipeline's name comes first"),
        (["--status=nobody"], f"{URL} knows no job nobody"),
        (["--stop=nobody", "--keep=3"], "take no further options: --keep=3"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(
    client: Client, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert command.main([*arguments, f"--submit={URL}"]) == 2
    said = capsys.readouterr()
    assert told in said.err and said.err.startswith("error: ") and not client.sent


def test_a_wrong_option_is_an_error(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        submit("--method.blockz=3")
    assert ended.value.code == 2 and "blockz" in capsys.readouterr().err and not client.address
    assert command.main(["--status", "mine"]) == 2
    assert "need --submit URL" in capsys.readouterr().err


def test_a_run_is_sent_once(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit("--submission-id=first", "--detach") == 0
    assert submit("--detach", root="s3://bucket/runs/mine/") == 2
    told = capsys.readouterr().err
    assert "s3://bucket/runs/mine has a job already (RUNNING)" in told and "--follow first" in told
    assert submit("--submission-id=first", root="s3://bucket/runs/other") == 2
    assert "there is a job first already (RUNNING); choose another --submission-id" in capsys.readouterr().err
    client.jobs[0].status = JobStatus.FAILED
    assert submit("--submission-id=second", "--detach") == 0, "what is over may be continued"


def test_a_night_is_sent_once(client: Client, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text("options: {method.steps: 7}\n")
    night = [*NIGHT, f"--config={tmp_path}/mine.yaml", "--night=2026-01-31", "--submit", URL]
    client.ends = (JobStatus.FAILED, 5)
    assert command.main(night) == 5
    identity = client.sent["submission_id"]
    assert capsys.readouterr().out == f"{identity}: submitted\none\ntwo\n" and identity.startswith("nightly-registry-")
    ran = f"python -m pipelines {' '.join(NIGHT)} --config=files/3/mine.yaml --night=2026-01-31"
    assert client.sent["entrypoint"] == ran and {"files/3/mine.yaml", "pipelines/_nights.py"} <= client.files
    assert client.sent["metadata"] == {"pipeline": "nightly", "root": "s3://bucket/registry"}
    assert command.main([*night, "--detach", "--submission-id=second"]) == 0, "what is over may be continued"
    assert command.main(["--submit", URL, "--status", identity]) == 0
    assert f"{identity}: FAILED, exit code 5; s3://bucket/registry" in capsys.readouterr().out
    assert command.main([*NIGHT, "--submit", URL, "--submission-id=third"]) == 2
    assert "s3://bucket/registry has a job already (RUNNING)" in capsys.readouterr().err


def test_only_what_is_named_travels(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"AWS_REGION": "eu", "AWS_SECRET_ACCESS_KEY": "s", "HF_TOKEN": "t", "OMP_NUM_THREADS": "4"}
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    submit("--detach")
    assert client.sent["runtime_env"]["env_vars"] == {**ENVIRONMENT, "AWS_REGION": "eu"}
    submit("--detach", "--submit-env=AWS_SECRET_ACCESS_KEY", "--submit-env=OMP_NUM_THREADS", "--no-ship", root="/r")
    named = {"AWS_REGION": "eu", "AWS_SECRET_ACCESS_KEY": "s", "OMP_NUM_THREADS": "4"}
    assert client.sent["runtime_env"] == {"env_vars": {**ENVIRONMENT, **named}}


def test_files_with_options_travel(client: Client, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("keep: 2\n")
    for options in (["--config", f"{tmp_path}/mine.yaml"], [f"--config={tmp_path}/mine.yaml"]):
        assert submit("--detach", *options, root=f"/{len(client.jobs)}") == 0
        assert "files/" in client.sent["entrypoint"] and str(tmp_path) not in client.sent["entrypoint"]
        (sent,) = [file for file in client.files if file.startswith("files/")]
        assert sent in client.sent["entrypoint"] and sent.endswith("/mine.yaml")


def test_a_disk_of_this_machine_is_noted(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    command.main([*RUN, "--root=/disk/mine", "--detach", "--submit=https://ray.example.org"])
    assert capsys.readouterr().err == "note: /disk/mine: all nodes of the cluster must share that disk\n"
    submit("--detach", root="/disk/other")
    assert not capsys.readouterr().err


def test_the_address_that_is_named_counts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    submit("--detach")
    assert "RAY_ADDRESS" not in client.environment


@pytest.mark.parametrize(
    "error, token, code, told",
    [
        (AuthenticationError("401"), "", 2, f"{URL} wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"),
        (AuthenticationError("403"), "abc", 2, "does not accept the token that is set here"),
        (ConnectionError("Failed to connect"), "", 5, f"{URL}: Failed to connect"),
        (RuntimeError("Request failed with status code 500"), "", 5, "status code 500"),
    ],
)
def test_a_cluster_that_refuses_is_one_line(
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    token: str,
    code: int,
    told: str,
) -> None:
    if token:
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    client.error = error
    assert submit() == code
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1


# A real cluster

OPTIONS = (
    "--dataset=planted_clicks:rows=4000",
    "--method.blocks=1",
    "--method.embedding=4",
    "--method.dense_sizes=[4,8]",
    "--method.sparse_sizes=[2,4]",
    "--method.tokens=2",
    "--method.cap=20",
    "--method.steps=20",
    "--method.batch=64",
    "--method.candidates=8",
    "--method.fitness.rows=300",
    "--method.fitness.calibration=128",
    "--method.head.batch=64",
    "--strategies=random",
    "--rivals=logistic_regression",
    "--keep=1",
    "--seeds=0",
    "--diagnosis.genotypes=0",
    "--tuning.configurations=0",
)
Cli = Callable[..., subprocess.CompletedProcess[str]]


def free(stack: ExitStack) -> str:
    """A port below those that Ray gives to workers, free until now."""
    for port in range(7100 + os.getpid() % 1000, 9900):
        try:
            stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
        except OSError:
            continue
        return str(port)
    raise OSError("no free port")


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """The command line beside a `ray start --head` of two CPUs that asks for a token."""
    scratch = Path(tempfile.mkdtemp(prefix="ray-"))
    token = scratch / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32))
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_worker_niceness": "0"}
    own["PATH"] = f"{Path(sys.executable).parent}:{own['PATH']}"
    with ExitStack() as stack:
        gcs, dashboard, clients, agent = (free(stack) for _ in range(4))
    ports = ["--port", gcs, "--dashboard-port", dashboard, "--ray-client-server-port", clients]
    ports += ["--dashboard-agent-listen-port", agent, "--node-ip-address", "127.0.0.1"]
    begin = ["ray", "start", "--head", "--block", "--num-cpus", "2", "--temp-dir", str(scratch), *ports]
    begin += ["--disable-usage-stats"]
    head = subprocess.Popen(begin, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{dashboard}"
    root = str(tmp_path_factory.mktemp("submitted"))

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        arguments = tuple(one.replace("{root}", root) for one in arguments)
        whole = [sys.executable, "-m", "pipelines", *arguments, "--submit", url]
        return subprocess.run(whole, env=own, capture_output=True, text=True, timeout=300)

    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{url}/api/version", timeout=5)
            except urllib.error.HTTPError:
                break
            except OSError:
                assert head.poll() is None, "ray start ended"
                time.sleep(0.5)
        yield call
    finally:
        head.send_signal(signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(scratch, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.long
def test_a_run_on_a_cluster_elsewhere(cli: Cli) -> None:
    done = cli("nasrec", "--root={root}/done", *OPTIONS, "--workers.evaluators=3")
    assert "3 workers of 1 CPUs each need more than the cluster's 2; waiting for more" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    report = done.stdout.strip().rpartition("Report: ")[2]
    assert Path(report).exists() and "search: done in" in done.stdout

    failing = cli("nasrec", "--root={root}/failing", *OPTIONS, "--protocol=user_temporal", "--submission-id=failing")
    assert failing.returncode not in (0, 2), failing.stdout + failing.stderr
    assert "has no protocol" in failing.stdout or "holds rows" in failing.stdout

    slow = ("nasrec", "--root={root}/slow", *OPTIONS, "--method.steps=1000000", "--submission-id=slow", "--detach")
    assert cli(*slow).returncode == 0
    again = cli(*slow[:-2])
    assert again.returncode == 2 and "has a job already" in again.stderr
    while "supernet" not in (status := cli("--status=slow").stdout):
        assert "slow: RUNNING" in status or "slow: PENDING" in status
    stopped = cli("--stop=slow")
    assert stopped.returncode == 0 and stopped.stdout.startswith("slow: STOPPED")
    assert cli("--follow=slow").returncode == 130
    assert "slow: STOPPED" in cli("--status=slow").stdout


@pytest.mark.ray
@pytest.mark.long
def test_a_night_on_a_cluster_elsewhere(cli: Cli, tmp_path: Path) -> None:
    planted_days.write(tmp_path / "days", 3, 400)
    known = {"registry": f"{tmp_path}/registry", "raw": f"{tmp_path}/days", "night": "2026-01-04", "options": NIGHTS}
    (tmp_path / "night.yaml").write_text(yaml.safe_dump(known))
    night = ("nightly", f"--config={tmp_path}/night.yaml")
    done = cli(*night)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    assert "2026-01-04: cold: there is no champion" in done.stdout and "2026-01-04: version 1 is" in done.stdout
    assert Registry(f"{tmp_path}/registry").versions() == [1]
    again = cli(*night)
    assert again.returncode == 0 and "2026-01-04: done before: cold" in again.stdout
    lease = Lease(Folder(f"{tmp_path}/registry/lease"), 300)
    lease.take()
    busy = cli(*night)
    assert busy.returncode == 5 and "holds the lease" in busy.stdout, busy.stdout + busy.stderr
