"""The command line: what options become, what is refused before anything runs, and what help costs."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from components import __main__ as components
from components.folder import Folder
from components.run import STAGES, Run
from components.settings import Diagnosis, Workers
from nascore import plugins
from nascore.click_net import ClickTraining
from nascore.fitness import Fitness
from nascore.methods.autotower import AutoTower
from nascore.methods.ease import EASE
from nascore.methods.googlednn import GoogleDNN
from nascore.methods.popularity import Popularity
from nascore.two_tower import Training
from pipelines import __main__ as command
from pipelines.autotower import autotower

NEEDED = ("--root=/tmp/r", "--dataset=parquet")


def parsed(*options: str) -> Run:
    return command.parse("autotower", [*NEEDED, *options])


def started(*arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str], float]:
    """A fresh `python -m pipelines`: what it said, the top modules it imported, and its seconds of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipelines", *arguments], capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    return done, imported, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_help_is_there_at_once() -> None:
    done, imported, seconds = started("--help")
    assert done.returncode == 0 and "autotower    AutoTower: search a two-tower" in done.stdout
    assert not imported & {"torch", "numpy", "ray", "pyarrow", "jsonargparse"} and "pipelines" in imported
    assert seconds < 0.5


def test_the_help_of_a_pipeline_loads_no_cluster() -> None:
    done, imported, seconds = started("autotower", "--help")
    assert done.returncode == 0 and seconds < 4
    for option in ("--method.training.learning_rate", "--diagnosis.genotypes", "--on_bad_row", "--preset", "--seeds"):
        assert option in done.stdout
    assert "Choice blocks of the user tower" in done.stdout, "what the docstrings say"
    assert not imported & {"ray", "optuna", "kfp"} and "torch" in imported


def test_reading_a_command_line_loads_no_cluster() -> None:
    """Ray reads its environment where it is imported, so `components.run.environment` must come first."""
    options = f"'autotower', {[*NEEDED, '--strategies=[random]']}"
    script = f"import sys; from pipelines import __main__ as m; m.parse({options}); m.described({options})"
    whole = [sys.executable, "-c", f"{script}; print('ray' in sys.modules)"]
    done = subprocess.run(whole, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def test_defaults_are_those_of_the_classes() -> None:
    run = parsed()
    assert run == autotower(root="/tmp/r", dataset="parquet")
    assert run.method == AutoTower() and run.budgets == ("M",) and run.stages == STAGES
    assert run.methods[1:] == (*(GoogleDNN(size=size) for size in ("L", "M", "H")), Popularity())  # type: ignore[arg-type]


def test_every_option_reaches_the_run() -> None:
    run = parsed(
        "--raw=s3://bucket/a-b",
        "--protocol=authors",
        "--on-bad-row",
        "skip",
        "--method.blocks=3",
        "--method.item_blocks=2",
        "--method.shortcuts=false",
        "--method.fitness.kind=recall@50",
        "--method.training.learning_rate=3e-3",
        "--rivals=[googlednn:size=L]",
        "--strategies=[evolution:population=20,random]",
        "--budgets=[L,'macs=3e5,user/params=1e5']",
        "--keep=2",
        "--front=true",
        '--given={"user/0": ["mlp:64"]}',
        "--method.paths=nasp",
        "--method.nasp.every=4",
        "--seeds=[7]",
        "--diagnosis.genotypes=5",
        "--workers.train=2",
        "--workers.data=streaming",
        "--stages=[prepare,supernet]",
    )
    training = Training(learning_rate=3e-3)
    fitness = Fitness("recall@50")
    sizes: dict[str, Any] = {"blocks": 3, "item_blocks": 2, "shortcuts": False}
    ours = AutoTower(**sizes, paths="nasp", nasp=replace(AutoTower().nasp, every=4), fitness=fitness, training=training)
    assert run == Run(
        root="/tmp/r",
        dataset="parquet",
        raw="s3://bucket/a-b",
        protocol="authors",
        on_bad_row="skip",
        methods=(ours, GoogleDNN(size="L", training=training)),
        strategies=("evolution:population=20", "random"),
        budgets=("L", "macs=3e5,user/params=1e5"),
        keep=2,
        front=True,
        given=({"user/0": ("mlp:64",)},),
        seeds=(7,),
        diagnosis=Diagnosis(genotypes=5),
        workers=Workers(train=2, data="streaming"),
        stages=("prepare", "supernet"),
    )
    assert parsed("--rivals=[]").methods == (AutoTower(),)
    aligned = parsed("--method.shared_stem=false", "--method.towers=2", "--method.anchor=true").method
    assert aligned == AutoTower(shared_stem=False, towers=2, anchor=True)
    one = parsed("--budgets", "macs=3e5,params=1e5", "--strategies=random:batch=5", "--seeds", "7", "--rivals=ease")
    assert (one.budgets, one.strategies, one.seeds) == (("macs=3e5,params=1e5",), ("random:batch=5",), (7,))
    assert one.methods == (AutoTower(), EASE())


def test_rivals_are_trained_as_we_are() -> None:
    run = parsed("--method.training.batch=64", "--rivals=[popularity,googlednn:size=H]")
    assert run.methods[1:] == (Popularity(), GoogleDNN(size="H", training=Training(batch=64)))
    for name in plugins.names("methods"):
        (rival,) = parsed("--method.training.batch=64", f"--rivals=[{name}]").methods[1:]
        known = getattr(rival, "training", None)
        assert known == (Training(batch=64) if isinstance(known, Training) else known), name
    clicks = command.parse("nasrec", [*NEEDED, "--method.training.batch=64"])
    assert len(clicks.methods) == 10
    assert all(method.training == ClickTraining(batch=64) for method in clicks.methods)  # type: ignore[attr-defined]


def authors() -> AutoTower:
    return AutoTower(
        hidden_activation="identity",
        positions=True,
        pool_dropout=0.2,
        rectify=True,
        fitness=Fitness("loss@1"),
        training=Training(weight_decay=1e-6, clip=5.0, regularizer=1e-5, stop="loss@1"),
    )


@pytest.mark.parametrize("preset", [["--preset=authors"], ["--preset", "authors"]])
def test_a_preset_is_changed_by_options(preset: list[str]) -> None:
    assert parsed(*preset).method == authors()
    changed = parsed("--method.rectify=false", *preset, "--method.training.clip=1", "--method.blocks=3").method
    assert changed == replace(authors(), rectify=False, blocks=3, training=replace(authors().training, clip=1.0))
    assert parsed("--preset=paper").method == AutoTower()


def test_a_file_can_hold_options(tmp_path: Path) -> None:
    config = tmp_path / "demo.yaml"
    settings = {
        "root": "/tmp/r",
        "dataset": "parquet",
        "seeds": [1],
        "method": {"blocks": 4, "training": {"batch": 32}},
    }
    config.write_text(yaml.safe_dump(settings))
    run = command.parse("autotower", ["--config", str(config), "--keep=9", "--method.training.epochs=2"])
    assert run.method == AutoTower(blocks=4, training=Training(batch=32, epochs=2))
    assert (run.seeds, run.keep, run.root) == ((1,), 9, "/tmp/r")
    config.write_text(yaml.safe_dump({**settings, "preset": "authors"}))
    run = command.parse("autotower", ["--config", str(config)])
    assert run.method == replace(authors(), blocks=4, training=replace(authors().training, batch=32))
    assert command.parse("autotower", ["--config", str(config), "--preset=paper"]).method == AutoTower(
        blocks=4, training=Training(batch=32)
    )


def test_a_printed_configuration_gives_the_same_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--preset=authors", "--method.blocks=3", "--seeds=[3,4]", "--budgets=[L,H]", "--method.fitness.rows=77"]
    with pytest.raises(SystemExit) as ended:
        parsed(*options, "--print_config")
    assert ended.value.code in (None, 0)
    config = tmp_path / "printed.yaml"
    config.write_text(capsys.readouterr().out)
    assert yaml.safe_load(config.read_text())["method"]["pool_dropout"] == 0.2
    assert command.parse("autotower", ["--config", str(config)]) == parsed(*options)
    with pytest.raises(SystemExit) as ended:
        command.parse("autotower", ["--preset=authors", "--print_config"])
    assert ended.value.code in (None, 0), "a file to be filled in"
    assert yaml.safe_load(capsys.readouterr().out)["method"]["rectify"] is True


@pytest.mark.parametrize(
    "options, told",
    [
        (["--method.blockz=3"], "blockz"),
        (["--method.blocks=many"], "method.blocks"),
        (["--preset=mine"], "preset"),
        (["--on-bad-row=ignore"], "on_bad_row"),
        (["--workers.data=lazy"], "workers.data"),
        (["--seeds=[a]"], "seeds"),
        (["--method.fitness.typo=1"], "typo"),
        (["--config=/nowhere.yaml"], "nowhere.yaml"),
        (["--config={broken}"], "config"),
    ],
)
def test_a_wrong_option_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    (tmp_path / "broken.yaml").write_text("preset: [authors")
    with pytest.raises(SystemExit) as ended:
        parsed(*(option.replace("{broken}", str(tmp_path / "broken.yaml")) for option in options))
    assert ended.value.code == 2 and told in capsys.readouterr().err


@pytest.mark.parametrize("arguments, code", [([], 2), (["--help"], 0), (["-h"], 0), (["autotowr", "--root=x"], 2)])
def test_what_is_no_pipeline_shows_which_there_are(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    assert command.main(arguments) == code
    said = capsys.readouterr()
    assert "autotower" in (said.out or said.err)


Given = Callable[..., int]
OF_DATA = ("has no protocol", "there is no schema.yaml", "--raw is empty")


@pytest.fixture
def pipeline(tmp_path: Path, shop: Any, monkeypatch: pytest.MonkeyPatch) -> Given:
    """The whole command over the shop, with one stage."""
    monkeypatch.setattr("components.run.environment", lambda: None)

    def run_of(*options: str) -> int:
        root = ["--root", str(tmp_path / "run")] if not any(one.startswith("--root") for one in options) else []
        known = ["--dataset=parquet", f"--raw={shop.raw}", "--stages=[prepare]"]
        return command.main(["autotower", *root, *known, *options])

    return run_of


@pytest.mark.parametrize(
    "options, told",
    [
        (["--dataset=movielenz"], "no 'movielenz' in datasets; there are: "),
        (["--protocol=weekly"], "parquet has no protocol 'weekly'; it has: user_temporal"),
        (["--raw=/nowhere"], "/nowhere: there is no schema.yaml"),
        (["--strategies=[evolutoin]"], "no 'evolutoin' in strategies; there are: evolution"),
        (["--strategies=[evolution:people=3]"], "evolution has no setting 'people'"),
        (["--strategies=[evolution:population=1]"], "population >= 2"),
        (["--strategies=[]"], "--strategies needs one or more"),
        (["--rivals=[popularity,popularity]"], "--rivals needs one or more, each once"),
        (["--root="], "--root is empty"),
        (["--raw="], "--raw is empty"),
        (["--keep=0"], "Run: keep is at least 1, not 0"),
        (["--workers.train=0"], "Workers: train is at least 1, not 0"),
        (["--diagnosis.seeds=0"], "Diagnosis: seeds is at least 1, not 0"),
        (["--method.steps=0"], "AutoTower: steps is at least 1, not 0"),
        (["--method.growth=1.5"], "growth"),
        (["--method.training.epochs=0"], "Training: epochs is at least 1, not 0"),
        (["--method.training.batch=0"], "Training: batch is at least 1, not 0"),
        (["--method.fitness.rows=0"], "Fitness: rows is at least 1, not 0"),
        (["--budgets=['macs=nan']"], "budget 'macs': a limit must be positive, not nan"),
        (["--stages=[run]"], "no stage 'run'; there are: prepare, supernet"),
        (["--stages=[supernet]"], "supernet reads what prepare makes, which is not done"),
        (["--stages=[prepare,supernet,retrain]"], "retrain reads what search makes, which is not done"),
        (["--seeds=[1,1]"], "--seeds needs one or more, each once; not [1, 1]"),
        (["--budgets=[XXL]"], "budget 'XXL' is not of the form unit=limit"),
        (["--budgets=[flops=3]"], "budget 'flops': the unit"),
        (["--stages=[prepare,serch]"], "no stage 'serch'; there are: prepare, supernet, search"),
        (["--stages=[supernet,prepare]"], "each stands once, in the order prepare, supernet"),
        (["--stages=[prepare,prepare]"], "each stands once, in the order prepare, supernet"),
        (["--rivals=[nothing]"], "no 'nothing' in methods; there are: "),
        (["--rivals=[googlednn:size=XL]"], "'XL' is none of L, M, H"),
    ],
)
def test_a_wrong_name_fails_before_anything_runs(
    pipeline: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    assert pipeline(*options) == (3 if any(f"{word} " in f"{told} " for word in OF_DATA) else 2)
    said = capsys.readouterr()
    assert told in said.err and said.err.startswith("error: ") and "Traceback" not in said.err
    assert "prepare" not in said.out and not (tmp_path / "run").exists()


def test_a_stage_does_not_come_after_what_reads_it(
    pipeline: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pipeline() == 0
    for stage in ("supernet", "search", "retrain"):
        Folder(f"{tmp_path}/run/{stage}").write_json("done.json", {})
    assert pipeline(f"--stages={json.dumps(STAGES)}") == 2
    assert (
        "run: tune comes too late, retrain was done without it. Leave it out of --stages, or" in capsys.readouterr().err
    )
    assert pipeline("--stages=[prepare,supernet,search,retrain]") == 0
    assert components.main(["tune", f"{tmp_path}/run"]) == 2
    assert "tune comes too late" in capsys.readouterr().err


def test_stages_run_once_in_order(pipeline: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline() == 0
    assert "prepare: done in" in capsys.readouterr().out
    assert (tmp_path / "run/prepare/done.json").exists() and (tmp_path / "run/run.json").exists()
    assert pipeline() == 0
    assert capsys.readouterr().out == "prepare: done before\n"
    assert pipeline("--keep=5") == 0, "what no stage has used may change"
    assert pipeline("--protocol=authors") == 2, "another run"
    assert "holds another run. protocol: user_temporal there, authors here." in capsys.readouterr().err


def test_a_failing_stage_says_how_to_go_on(
    pipeline: Given, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(run: Run) -> None:
        raise FloatingPointError("none of 3 genotypes has a finite score")

    monkeypatch.setattr("components.supernet.main", fails)
    assert pipeline("--stages=[prepare,supernet]") == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: none of 3 genotypes has a finite score\nWhat is finished stays")
    assert "prepare: done in" in said.out
    assert pipeline("--on-bad-row=skip") == 2
    refused = capsys.readouterr().err
    assert "on_bad_row: error there, skip here" in refused and "What is finished" not in refused
