"""Run files and raw data on a real S3 server, through a proxy that breaks requests; what is refused; deaths."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
import torch

from components import prepare
from components.folder import Folder
from components.run import Run
from nascore import s3
from nascore.datasets import DataError
from nascore.files import connect
from nascore.methods.popularity import Popularity
from nascore.rows import Data, Mode
from nascore.storage import StorageError
from pipelines import __main__ as command
from tests import swift
from tests.faults import KINDS, Proxy

READ_SECONDS = 2


def settings(url: str, key: str = swift.KEY, secret: str = swift.SECRET) -> dict[str, str]:
    """The environment of a client, as any AWS client knows it."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "3",
    }


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Mapping[str, str]], None]]:
    """Makes this process a client with the given settings."""

    def become(known: Mapping[str, str]) -> None:
        for name, value in known.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setitem(s3.fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": READ_SECONDS}})
        s3.S3.clear_instance_cache()

    yield become
    s3.S3.clear_instance_cache()


@pytest.fixture
def proxy(s3_server: swift.Server, client: Any) -> Iterator[Proxy]:
    """A proxy before the server, so far without faults, whose client this process is."""
    with Proxy(s3_server.url, 0.0, READ_SECONDS + 1).serving() as one:
        client(settings(one.url))
        yield one


@pytest.fixture
def url(proxy: Proxy) -> str:
    """A folder in a new bucket."""
    name = f"b{uuid4().hex[:12]}"
    connect(f"s3://{name}")[0].call_s3("create_bucket", Bucket=name)
    return f"s3://{name}/runs/mine"


# Files


def test_files_are_read_as_they_were_written_whatever_breaks(
    proxy: Proxy, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(url)
    monkeypatch.setattr(s3, "FIRST_WAIT", 0.05)
    for rate, kinds in ((0.3, [kind for kind in KINDS if kind != "late"]), (0.2, ["late"])):
        proxy.kinds, proxy.rate = tuple(kinds), rate
        while not all(proxy.injected[kind] for kind in kinds):
            tensors, table = {"a": torch.rand(500)}, pa.table({"x": torch.rand(300).numpy()})
            folder.write_json("d/a.json", {"a": [1, None]})
            folder.write_tensors("d/a.safetensors", tensors)
            folder.write_table("d/a.parquet", table)
            assert folder.read_json("d/a.json") == {"a": [1, None]}
            assert torch.equal(folder.read_tensors("d/a.safetensors")["a"], tensors["a"])
            assert folder.read_table("d/a.parquet") == table
            assert folder.names("d/*") == ["d/a.json", "d/a.parquet", "d/a.safetensors"]
            assert folder.exists("d/a.json") and not folder.exists("d/b.json")
            (folder / "d").clear()
            assert folder.names("d/*") == []


def test_a_file_is_seen_at_once_by_who_looked_before(url: str) -> None:
    one, other = Folder(url), Folder(url)
    assert one.names("*") == [] and not one.exists("a")
    other.write_text("a", "x")
    assert one.names("*") == ["a"] and one.exists("a")
    other.write_text("a", "longer")
    assert one.read_text("a") == "longer"


WRITER = """
import sys, torch
from components.folder import Folder
folder = Folder(sys.argv[1])
folder.write_tensors("step-1/weights.safetensors", {"a": torch.arange(float(sys.argv[2]))})
folder.write_json("step-1/done.json", {})
"""


@pytest.mark.parametrize("values", [1_000_000, pytest.param(30_000_000, marks=pytest.mark.long)])
def test_a_kill_while_a_file_is_sent_leaves_nothing_that_is_taken_for_whole(
    proxy: Proxy, url: str, values: int
) -> None:
    """The larger file goes in parts."""
    proxy.hold = "PUT"
    program = [sys.executable, "-c", WRITER, url, str(values)]
    process = subprocess.Popen(program, env={**os.environ, **settings(proxy.url)})
    assert proxy.held.wait(60)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    proxy.hold = ""
    folder = Folder(url)
    assert folder.names("step-*/*") == [] and not folder.exists("step-1/weights.safetensors")
    subprocess.run(program, env={**os.environ, **settings(proxy.url)}, check=True)
    assert folder.names("step-*/*") == ["step-1/done.json", "step-1/weights.safetensors"]
    assert len(folder.read_tensors("step-1/weights.safetensors")["a"]) == values


# Refusals


def refused(url: str) -> str:
    """The one error that every use of a folder raises."""
    folder, told = Folder(url), set()
    for attempt in (lambda: folder.exists("a"), lambda: folder.names("*"), lambda: folder.write_text("a", "x")):
        with pytest.raises(StorageError) as raised:
            attempt()
        told.add(str(raised.value).partition(": ")[2].partition(": ")[2])
    return " | ".join(sorted(told))


def test_a_bucket_that_is_not_there_is_an_error_and_is_not_made(proxy: Proxy) -> None:
    assert "NoSuchBucket" in refused("s3://not-there/run") and "and none is ever created" in refused(
        "s3://not-there/run"
    )
    listed = connect("s3://not-there")[0].call_s3("list_buckets")["Buckets"]
    assert "not-there" not in {bucket["Name"] for bucket in listed}
    with pytest.raises(StorageError, match="NoSuchBucket"):
        Run(root="/tmp/x", dataset="parquet", raw="s3://not-there/raw", methods=(Popularity(),)).check_data()


def test_wrong_credentials_are_an_error(proxy: Proxy, url: str, client: Any) -> None:
    client(settings(proxy.url, secret="wrong"))
    before = proxy.requests
    told = refused(url)
    assert "403: Forbidden; check AWS_ACCESS_KEY_ID" in told and "SignatureDoesNotMatch" in told
    assert proxy.requests == before + 3, "nothing is tried twice"
    client(settings(proxy.url, swift.OTHER_KEY, swift.OTHER_SECRET))
    assert "AccessDenied" in refused(url) and "must be allowed to list, read, write and delete" in refused(url)


def test_a_server_that_is_not_there_is_tried_for_a_while(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client(settings(f"http://127.0.0.1:{swift.free_ports(1)[0]}") | {"AWS_MAX_ATTEMPTS": "1"})
    monkeypatch.setattr(s3, "FIRST_WAIT", 0.01)
    with pytest.raises(StorageError, match="Could not connect to the endpoint .* given up after 6 tries"):
        Folder("s3://bucket/run").exists("a")


def test_a_command_ends_by_the_class_of_the_error(
    proxy: Proxy, url: str, shop: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("components.run.environment", lambda: None)
    known = ["autotower", "--dataset=parquet", "--stages=[prepare]"]
    assert command.main([*known, f"--raw={shop.raw}", "--root=s3://not-there/run"]) == 5
    said = capsys.readouterr()
    assert said.err.startswith("error: s3://not-there/run/run.json") and said.err.count("\n") == 1
    assert command.main([*known, f"--raw={url}/raw", f"--root={url}"]) == 3
    assert "there is no schema.yaml" in capsys.readouterr().err and Folder(url).names("*") == []


# Raw data


def upload(raw: str, url: str) -> None:
    folder = Folder(url)
    for file in Path(raw).iterdir():
        folder.publish(str(file), file.name)


def test_raw_parquet_in_a_bucket_is_prepared_as_on_disk(
    proxy: Proxy, url: str, shop: Any, prepared: Callable[..., Run]
) -> None:
    proxy.rate = 0.05
    upload(shop.raw, f"{url}/raw")
    run = Run(root=f"{url}/run", dataset="parquet", raw=f"{url}/raw", methods=(Popularity(),))
    run.check_data()
    run.save()
    prepare.main(run)
    golden = prepared()
    assert (run.folder / "prepare").done and run.schema == golden.schema
    names = golden.folder.names("prepare/**/*.parquet")
    assert run.folder.names("prepare/**/*.parquet") == names and len(names) > 6
    for name in names:
        ours, theirs = (one.fs.cat_file(f"{one.path}/{name}") for one in (run.folder, golden.folder))
        assert ours == theirs, name
    modes: tuple[Mode, ...] = ("resident", "streaming")
    for mode in modes:
        one, other = (next(Data(f"{at.root}/prepare", "train", mode=mode).batches(64, 3)) for at in (run, golden))
        assert all(
            torch.equal(one.columns[name].nan_to_num(), other.columns[name].nan_to_num()) for name in one.columns
        )
    assert sum(proxy.injected.values())


def test_a_raw_file_that_is_cut_off_is_an_error_of_the_data(url: str, shop: Any, tmp_path: Path) -> None:
    upload(shop.raw, f"{url}/raw")
    whole = (Path(shop.raw) / "log-1.parquet").read_bytes()
    (tmp_path / "log-1.parquet").write_bytes(whole[: len(whole) // 2])
    upload(str(tmp_path), f"{url}/raw")
    with pytest.raises(DataError, match=r"raw/log-1\.parquet: cannot be read as parquet"):
        Run(root=url, dataset="parquet", raw=f"{url}/raw", methods=(Popularity(),)).check_data()


def test_text_in_a_bucket_is_read(proxy: Proxy, url: str) -> None:
    from nascore.datasets.movielens import Movielens

    for name, text in Movielens.specimen().items():
        with Folder(f"{url}/raw").writing(name) as local:
            Path(local).write_bytes(text)
    proxy.rate = 0.2
    tables = list(Movielens(f"{url}/raw", "skip").rows())
    assert sum(len(table) for table in tables) >= 3


def test_the_addressing_style_of_the_configuration_file_is_used(
    proxy: Proxy, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("[default]\ns3 =\n    addressing_style = virtual\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url.replace("127.0.0.1", "localhost"))
    s3.S3.clear_instance_cache()
    bucket = url.split("/")[2]
    fs, _ = connect(url)
    signed = fs.url(f"{bucket}/a")
    assert signed.startswith(f"http://{bucket}.localhost:"), signed
    (tmp_path / "config").write_text("[default]\n")
    s3.S3.clear_instance_cache()
    assert f"/{bucket}/a" in connect(url)[0].url(f"{bucket}/a")
