"""Runs as Kubeflow pipelines: what is compiled, and pipelines that `kfp.local` really runs.

Where a pipeline is meant to have changed, the file that a test of the golden ones names is copied into tests/golden.
"""

import json
import os
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from components.run import Run
from pipelines import __main__ as command
from tests.commands import SMALL
from tests.manifests import K8S, containers, sources

GOLDEN = Path(__file__).parent / "golden"
ROOT = "s3://nascore/nightly/$(date -u +%F)"
runs_locally = pytest.mark.filterwarnings("ignore:Task .* have no effect", "ignore:You may be attem.?ping")


def compiled(folder: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pipeline that a command line compiles, and what is Kubernetes' of it: the settings of each step by name."""
    assert command.main(["kubeflow", *arguments, "-o", str(folder / "pipeline.yaml")]) == 0
    pipeline, *platform = yaml.safe_load_all((folder / "pipeline.yaml").read_text())
    return pipeline, platform[0]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def shared(value: Any, seen: dict[str, Any]) -> Any:
    """The same value with equal parts as one object, which YAML writes once."""
    if isinstance(value, dict):
        value = {name: shared(inner, seen) for name, inner in value.items()}
    elif isinstance(value, list):
        value = [shared(inner, seen) for inner in value]
    text = json.dumps(value)
    return seen.setdefault(text, value) if len(text) > 60 else value


# What is compiled


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("autotower", ["autotower", "--dataset=planted", "--cron=0 2 * * *"]),
        ("ihas", ["ihas", "--dataset=planted_populations", "--image=registry.example/nascore:2", "--workers.gpus=0.5"]),
        ("autotower_rayjob", ["autotower", "--dataset=planted", "--rayjob", "--namespace=nascore", "--labels=a=b,c=d"]),
    ],
)
def test_the_ir_is_the_golden_one(name: str, arguments: list[str], tmp_path: Path) -> None:
    document, platform = compiled(tmp_path, *arguments, f"--root={ROOT}")
    settings = document["root"]["inputDefinitions"]["parameters"]["settings"]
    assert json.loads(settings.pop("defaultValue"))["dataset"] == arguments[1].partition("=")[2]
    assert document.pop("sdkVersion").startswith("kfp-")
    known = json.loads(json.dumps({"pipeline": document, "kubernetes": platform}))
    text = yaml.safe_dump(shared(known, {}), width=120)
    (tmp_path / f"{name}.yaml").write_text(text)
    golden = GOLDEN / f"{name}.yaml"
    same = golden.exists() and yaml.safe_load(golden.read_text()) == known
    assert same, f"if this is meant: cp {tmp_path}/{name}.yaml {golden}"


def test_a_pipeline_has_a_container_for_each_stage(tmp_path: Path) -> None:
    arguments = ["nasrec", "--root=s3://b/r", "--dataset=planted_clicks", "--workers.train=2", "--workers.cpus=3"]
    document, platform = compiled(tmp_path, *arguments, "--workers.evaluators=4", "--workers.memory=1.5")
    stages = command.parse("nasrec", arguments[1:]).planned
    steps = {name.removeprefix("exec-"): one for name, one in document["deploymentSpec"]["executors"].items()}
    made = {name: one["container"] for name, one in steps.items() if "container" in one}
    assert made.keys() == {"save", *stages, "results"} and len(steps) == len(made) + 2
    tasks = document["root"]["dag"]["tasks"]
    order = ["save", *stages, "results"]
    assert all(before in tasks[after]["dependentTasks"] for before, after in zip(order, order[1:], strict=False))
    for name, one in made.items():
        assert one["image"] == "nascore:0.1.0" and "pip install" not in json.dumps(one), "nothing is installed"
        assert tasks[name]["retryPolicy"]["maxRetryCount"] == 2
        assert tasks[name]["cachingOptions"] == ({"enableCache": True} if name in stages else {})
    asked = {
        name: (one["resources"]["resourceCpuLimit"], one["resources"]["resourceMemoryLimit"])
        for name, one in made.items()
    }
    assert (asked["supernet"], asked["search"], asked["retrain"]) == (("6", "7Gi"), ("12", "10Gi"), ("12", "10Gi"))
    assert (asked["prepare"], asked["evaluate"]) == (("3", "16Gi"), ("12", "10Gi"))
    secrets = {name: {one["secretName"] for one in known["secretAsEnv"]} for name, known in platform.items()}
    stored = {f"exec-{name}": {"nascore-storage"} for name in ("save", "results")}
    assert secrets == stored | {f"exec-{name}": {"nascore-storage", "nascore-ray-token"} for name in stages}
    known = "\n".join(file.read_text() for file in sorted((K8S / "base").glob("*.yaml")))
    for name in {"nascore-storage", "nascore-ray-token", "auth_token", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}:
        assert name in known, "as k8s/ has it"
    assert "nascore:0.1.0" in {one["image"] for one in containers(sources()["base/rayjob.yaml"][0])}


def test_gpus_and_caching_are_as_asked(tmp_path: Path) -> None:
    arguments = ["ihas", "--root=s3://b/r", "--dataset=planted_populations", "--workers.gpus=0.5", "--workers.train=3"]
    document, _ = compiled(tmp_path, *arguments, "--no-caching")
    gpus = {
        name: one["container"]["resources"].get("accelerator", {}).get("resourceCount")
        for name, one in document["deploymentSpec"]["executors"].items()
        if "container" in one
    }
    assert gpus["exec-supernet"] == "2" and gpus["exec-prepare"] is gpus["exec-report"] is None
    assert not any(task["cachingOptions"] for task in document["root"]["dag"]["tasks"].values())
    untested, _ = compiled(tmp_path, *arguments, "--stages=[prepare,supernet,derive]")
    assert [name for name in untested["components"] if "importer" in name] == ["comp-importer"], (
        "no model without a test"
    )


# Recurring runs


class Client:
    """What the recurring run's file asks of Kubeflow."""

    asked: list[tuple[str, dict[str, Any]]] = []

    def __init__(self, **given: Any) -> None:
        self.asked.append(("client", given))

    def create_experiment(self, name: str, namespace: str | None = None) -> Any:
        self.asked.append(("experiment", {"name": name, "namespace": namespace}))
        return SimpleNamespace(experiment_id="e1")

    def list_recurring_runs(self, experiment_id: str, page_size: int) -> Any:
        assert experiment_id == "e1" and page_size == 100
        names = {"r1": "nascore-autotower", "r2": "another"}
        return SimpleNamespace(
            recurring_runs=[SimpleNamespace(recurring_run_id=one, display_name=name) for one, name in names.items()]
        )

    def create_recurring_run(self, **given: Any) -> Any:
        self.asked.append(("create", given))
        return SimpleNamespace(recurring_run_id="r3")

    def delete_recurring_run(self, recurring_run_id: str) -> None:
        self.asked.append(("delete", {"id": recurring_run_id}))


def test_the_recurring_run_does_not_meet_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiled(tmp_path, "autotower", f"--root={ROOT}", "--dataset=planted", "--cron", "0 2 * * *")
    script = tmp_path / "pipeline_recurring.py"
    assert f"{script}: creates the recurring run" in capsys.readouterr().out
    fake = ModuleType("kfp")
    fake.Client = Client  # type: ignore[attr-defined]
    monkeypatch.setattr(Client, "asked", [])
    monkeypatch.setitem(sys.modules, "kfp", fake)
    monkeypatch.setattr(sys, "argv", [str(script), "--host=http://kubeflow.example", "--namespace=team"])
    runpy.run_path(str(script), run_name="__main__")
    created = {
        "experiment_id": "e1",
        "job_name": "nascore-autotower",
        "cron_expression": "0 0 2 * * *",
        "max_concurrency": 1,
        "no_catchup": True,
        "enable_caching": False,
        "pipeline_package_path": str(tmp_path / "pipeline.yaml"),
    }
    assert Client.asked == [
        ("client", {"host": "http://kubeflow.example"}),
        ("experiment", {"name": "nascore-autotower", "namespace": "team"}),
        ("create", created),
        ("delete", {"id": "r1"}),
    ]
    assert capsys.readouterr().out == "nascore-autotower: recurring run r3\n"


def test_the_recurring_run_asks_for_what_kfp_knows(tmp_path: Path) -> None:
    from inspect import signature

    from kfp import Client as Real

    compiled(tmp_path, "autotower", f"--root={ROOT}", "--dataset=planted", "--cron=30 0 2 * * MON")
    assert 'cron_expression="30 0 2 * * MON"' in (tmp_path / "pipeline_recurring.py").read_text()
    for name in ("create_experiment", "list_recurring_runs", "create_recurring_run", "delete_recurring_run"):
        fake = signature(getattr(Client, name)).parameters
        known = signature(getattr(Real, name)).parameters
        assert {one for one in fake if one not in ("self", "given")} <= known.keys()
    asked = {"job_name", "cron_expression", "max_concurrency", "no_catchup", "enable_caching", "pipeline_package_path"}
    assert asked < signature(Real.create_recurring_run).parameters.keys()


# What is refused


def test_without_kfp_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "kfp", None)
    monkeypatch.delitem(sys.modules, "pipelines.kubeflow", raising=False)
    assert command.main(["kubeflow", "autotower", "--root=s3://b/r", "--dataset=planted", "-o", "p.yaml"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.endswith(": pip install 'nascore[kubeflow]'\n") and said.count("\n") == 1


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["autotowr"], "no pipeline 'autotowr'; there are: autotower"),
        (["kubeflow"], "no pipeline 'kubeflow'"),
        (["--no-caching", "--keep=1", "autotower"], "the pipeline's name comes first"),
        (["autotower", "-o", "p.json"], "-o FILE is missing, or is no .yaml file"),
        (["autotower", "-o", "/nowhere/p.yaml"], "there is no folder /nowhere"),
        (["autotower", "--root=runs/mine"], "--root runs/mine is relative, and the job runs elsewhere"),
        (["autotower", "--cron=0 2 * * *"], "each night needs a folder of its own"),
        (["autotower", f"--root={ROOT}", "--cron=daily"], "--cron 'daily': five fields"),
        (["autotower", f"--root={ROOT}", '--cron=0 2 * * ")'], "five fields"),
        (["autotower", "--timeout=0"], "--timeout is above 0"),
        (["autotower", "--labels=a=b,c"], "--labels a=b,c: not KEY=VALUE"),
        (["autotower", "--labels=a=b,"], "--labels a=b,: not KEY=VALUE"),
        (["autotower", "--image="], "--image is not empty"),
        (["autotower", "--rivals=[nothing]"], "no 'nothing' in methods"),
        (["autotower", "--stages=[serch]"], "no stage 'serch'"),
    ],
)
def test_a_wrong_command_line_writes_nothing(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--dataset=planted", *([] if any(one.startswith("--root") for one in arguments) else ["--root=s3://b/r"])]
    output = [] if "-o" in arguments else ["-o", "p.yaml"]
    assert command.main(["kubeflow", *arguments, *given, *output]) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["kubeflow", "--help"]) == 0 and "--no-caching" in capsys.readouterr().out
    assert command.main(["kubeflow"]) == 2
    with pytest.raises(SystemExit) as ended:
        command.main(["kubeflow", "autotower", "--help"])
    assert ended.value.code in (None, 0) and "--method.blocks" in capsys.readouterr().out


# Pipelines that really run


def locally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """Compile a command line and run the file as it is, each step in a process of its own; each step's outputs."""
    from kfp import components, local

    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    compiled(tmp_path, *arguments)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "out"), raise_on_error=True)
    components.load_component_from_file(str(tmp_path / "pipeline.yaml"))()
    written = (tmp_path / "out").glob("*/*/executor_output.json")
    return {file.parent.name: json.loads(file.read_text()) for file in written}


@runs_locally
@pytest.mark.long
def test_a_pipeline_runs_locally(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    options = ["nasrec", f"--root={root}", *SMALL["nasrec"], "--stages=[prepare]"]
    known = locally(tmp_path, monkeypatch, *options)
    said = capfd.readouterr()
    assert known["save"]["parameterValues"]["root"] == str(root)
    told = known["results"]["parameterValues"]
    assert told["data"] == f"{root}/prepare" and told["model"] == ""
    assert told["split_digest"] == Run.load(str(root)).schema.split_digest and "Dataset(" in said.err + said.out
    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr("pipelines.kubeflow.RETRIES", 1)
    monkeypatch.setattr("pipelines.kubeflow.PAUSE", "1s")
    with pytest.raises(RuntimeError):
        locally(tmp_path, monkeypatch, *options, "--dataset=planted_clicks:rows=3000")
    said = capfd.readouterr()
    assert (said.err + said.out).count("holds another run") == 2, "it is tried once more"
    assert not list((tmp_path / "out").glob("*/prepare"))


@runs_locally
@pytest.mark.long
@pytest.mark.ray
def test_a_whole_pipeline_runs_locally(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    root, changed = tmp_path / "run", ["--seeds=[0]", "--keep=1", "--tuning.configurations=0"]
    known = locally(tmp_path, monkeypatch, "nasrec", f"--root={root}", *SMALL["nasrec"], *changed)
    said = "".join(capfd.readouterr())
    report = json.loads((root / "evaluate/report.json").read_text())
    told, metrics = known["results"]["parameterValues"], known["results"]["artifacts"]["metrics"]["artifacts"][0]
    assert told["verdict"] == report["verdict"] and told["model"] == f"{root}/retrain/{told['model_id']}"
    assert Path(told["model"]).is_dir() and told["split_digest"] == report["split_digest"]
    first = next(row for row in report["rows"] if row["metric"] == report["headline"])
    assert metrics["metadata"]["log_loss"] == first["value"] and first["model_id"] == told["model_id"]
    (page,) = (tmp_path / "out").glob("*/results/page")
    assert page.read_bytes() == (root / "report/index.html").read_bytes()
    assert f"uri='{told['model']}'" in said and f"uri='{root}/prepare'" in said, "imported as artifacts"
