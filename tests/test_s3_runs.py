"""Whole runs by the command line in a bucket, while one request in twenty goes wrong: the same report as on disk."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.folder import Folder
from tests import swift
from tests.commands import SMALL, finish, outside, report, same
from tests.faults import Proxy

RATE, READ_SECONDS = 0.05, 10
BUCKET = "runs"
FEWER = {
    "autotower": (
        "--method.steps=40",
        "--method.candidates=16",
        "--strategies=[evolution:population=8]",
        "--rivals=[popularity]",
        "--diagnosis.genotypes=0",
    ),
    "nasrec": (
        "--dataset=planted_clicks:rows=2000",
        "--method.steps=40",
        "--method.candidates=14",
        "--method.fitness.calibration=300",
        "--rivals=[logistic_regression]",
        "--keep=1",
        "--diagnosis.genotypes=3",
        "--diagnosis.seeds=1",
    ),
    "dnsrec": ("--dataset=parquet", "--method.training.batch=128", '--rivals=["gru4rec:hidden=8,embedding=8"]'),
    "ihas": ("--dataset=planted_populations:rows=2000", "--method.steps=40", "--rivals=[fm,autofield]"),
}
"""What the small runs do less of here, beside seeds and tuning."""
WITH_RAW = ("autotower", "dnsrec")
Client = Callable[[str], dict[str, str]]


def client(url: str) -> dict[str, str]:
    """The environment of a process whose S3 is at `url`, without this process's cluster."""
    own = {name: value for name, value in outside().items() if not name.startswith(("AWS_", "FSSPEC_"))}
    return own | {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": swift.KEY,
        "AWS_SECRET_ACCESS_KEY": swift.SECRET,
        "AWS_REGION": "us-east-1",
        "FSSPEC_S3_CONFIG_KWARGS": json.dumps({"read_timeout": READ_SECONDS}),
    }


def run(name: str, root: str, raw: str, environment: dict[str, str], *more: str) -> str:
    """What the pipeline said that ran to its end."""
    fewer = ("--seeds=[0]", "--tuning.configurations=0", "--workers.checkpoint=20", *FEWER[name])
    options = (*([f"--raw={raw}"] if name in WITH_RAW else []), *SMALL[name], *fewer, *more)
    return finish(name, root, *options, environment=environment)


IN_A_BUCKET = """
import json, sys
from pathlib import Path
from components.folder import Folder
bucket, raw = sys.argv[1:]
folder = Folder(f"s3://{bucket}/raw")
if bucket not in {one["Name"] for one in folder.fs.call_s3("list_buckets")["Buckets"]}:
    folder.fs.call_s3("create_bucket", Bucket=bucket)
for file in Path(raw).iterdir():
    folder.publish(str(file), file.name)
"""
READ = """
import json, sys
from components.folder import Folder
folder = Folder(sys.argv[1])
print(json.dumps([folder.read_json("evaluate/report.json"), folder.names("**/done.json")]))
"""


def asked(script: str, environment: dict[str, str], *arguments: str) -> str:
    """What a process with another environment says."""
    program = [sys.executable, "-c", script, *arguments]
    return subprocess.run(program, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


@pytest.fixture
def raw(s3_server: swift.Server, shop: Any) -> str:
    """The shop's raw files in a bucket."""
    asked(IN_A_BUCKET, client(s3_server.url), BUCKET, shop.raw)
    return f"s3://{BUCKET}/raw"


@pytest.mark.long
@pytest.mark.ray
def test_a_run_in_a_bucket_is_finished_whatever_breaks(s3_server: swift.Server, raw: str) -> None:
    root = f"s3://{BUCKET}/short"
    with Proxy(s3_server.url, RATE, READ_SECONDS + 1).serving() as proxy:
        proxy.kinds = tuple(kind for kind in proxy.kinds if kind != "late")
        said = run("dnsrec", root, raw, client(proxy.url), "--rivals=[popular_next]", "--method.training.epochs=1")
        assert said.strip().endswith(f"Report: {root}/report/index.html")
        told, done = json.loads(asked(READ, client(s3_server.url), root))
        assert {"prepare/done.json", "supernet/done.json", "report/done.json"} <= {*done} and told["rows"]
        assert sum(proxy.injected.values()) > 5


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize("name", SMALL)
def test_a_run_in_a_bucket_gives_the_same_report_as_on_disk(
    s3_server: swift.Server, raw: str, shop: Any, tmp_path: Path, name: str
) -> None:
    run(name, str(tmp_path), shop.raw, client("http://127.0.0.1:1"))
    golden = report(tmp_path)
    with Proxy(s3_server.url, RATE, READ_SECONDS + 1, seed=len(name)).serving() as proxy:
        run(name, f"s3://{BUCKET}/{name}", raw, client(proxy.url))
        print(f"{name}: {proxy.requests} requests, {sum(proxy.injected.values())} broken: {dict(proxy.injected)}")
        assert sum(proxy.injected.values()) > 0.5 * RATE * proxy.requests > 10
        said = run(name, f"s3://{BUCKET}/{name}", raw, client(proxy.url)).splitlines()
        assert all("done before" in line for line in said[:-1]) and len(said) > 5
    told, done = json.loads(asked(READ, client(s3_server.url), f"s3://{BUCKET}/{name}"))
    assert same(told) == golden
    assert done == Folder(str(tmp_path)).names("**/done.json")
