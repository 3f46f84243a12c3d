"""`python -m pipelines kubeflow <name> … -o pipeline.yaml`: any run as a Kubeflow pipeline, one container a stage.

The first step writes the run's `run.json`, a step follows for each stage, and the last one shows what came out. With
`--rayjob` one step stands for all stages: it has KubeRay run them. The steps' own work is in `_steps.py` and
`_rayjob.py`, which the image holds; the functions below only call it, so `kfp.local` runs the same ones. Between steps
go values, never files: all that a run knows stays in its folder. The data and the model are imported, not put out by a
step, because Kubeflow accepts what a step puts out only below its own pipeline root.
"""

import json
import math
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import kfp.kubernetes
from kfp import compiler, dsl

from components.run import Run
from pipelines import _submit
from pipelines._steps import NIGHT

IMAGE = "nascore:0.1.0"
STORAGE, TOKEN = "nascore-storage", "nascore-ray-token"
"""A Secret and a ConfigMap of one name, and the Secret of Ray's token: those of k8s/."""
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
LEARNS = ("supernet", "search", "diagnose", "derive", "tune", "retrain")
BASE, EACH = 4, 4
"""GiB of a step beside its workers, and of each of its workers where the run does not say."""
RETRIES, PAUSE = 2, "60s"
USAGE = "python -m pipelines kubeflow <name> [options of that pipeline] -o FILE [options below]"
ABOUT = f"Write a run as a Kubeflow pipeline, a step for each stage. --root is a URL; {NIGHT} in it is the day."
RECURRING = '''\
"""Create the recurring run of {file} in place of one of the same name: python {script} --host URL."""

from argparse import ArgumentParser
from pathlib import Path

from kfp import Client

NAME = "{name}"

parser = ArgumentParser(description=__doc__)
parser.add_argument("--host", help="The API of Kubeflow Pipelines; inside the cluster it is found.")
parser.add_argument("--namespace", help="The profile's namespace, where Kubeflow has several users.")
options = parser.parse_args()

client = Client(host=options.host)
experiment = client.create_experiment(NAME, namespace=options.namespace).experiment_id
there = client.list_recurring_runs(experiment_id=experiment, page_size=100).recurring_runs or []
made = client.create_recurring_run(
    experiment_id=experiment,
    job_name=NAME,
    cron_expression="{cron}",  # seconds first; UTC, unless the cluster's scheduler was told another zone
    max_concurrency=1,  # a night waits until the one before is over
    no_catchup=True,  # missed nights are not made up for
    enable_caching=False,
    pipeline_package_path=str(Path(__file__).with_name("{file}")),
)
for known in there:
    if known.display_name == NAME:
        client.delete_recurring_run(known.recurring_run_id)
print(f"{{NAME}}: recurring run {{made.recurring_run_id}}")
'''
Parse = Callable[[str, list[str]], Run]
Settings = Callable[[str, list[str]], dict[str, Any]]


def main(arguments: list[str], names: Sequence[str], parse: Parse, settings: Settings) -> int:
    """Write the pipeline that a command line asks for; 0, or 2 where it asks for nothing.

    `parse` gives the run of a pipeline's command line, `settings` its options as they are written; both raise for wrong
    ones.
    """
    known, rest = _parser().parse_known_args(arguments)
    name, *options = rest or [""]
    if name in ("", "-h", "--help"):
        print(_parser().format_help())
        return 0 if name else 2
    if name.startswith("-"):
        raise ValueError("the pipeline's name comes first: python -m pipelines kubeflow <name> … -o FILE")
    if name not in names:
        raise ValueError(f"no pipeline {name!r}; there are: {', '.join(names)}")
    if {"-h", "--help"} & set(options):
        parse(name, options)
    _checked(known)
    root = _submit.checked(settings(name, options), "")
    if known.cron and NIGHT not in root:
        raise ValueError(f"--cron: each night needs a folder of its own, such as --root '{root}/{NIGHT}'")
    run = parse(name, options)
    title = re.sub(r"[^a-z0-9-]", "-", f"nascore-{name}")
    made = rayjob_pipeline(run, title, known) if known.rayjob else pipeline(run, title, known)
    compiler.Compiler().compile(made, str(known.output))
    print(f"{known.output}: {title}, {len(run.planned)} stages{' in a RayJob' if known.rayjob else ''}")
    if known.cron:
        script = known.output.with_name(f"{known.output.stem.replace('-', '_')}_recurring.py")
        script.write_text(recurring(title, known.output.name, script.name, known.cron), encoding="utf-8")
        print(f"{script}: creates the recurring run")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(usage=USAGE, description=ABOUT, add_help=False, allow_abbrev=False)
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="The pipeline, a .yaml file.")
    parser.add_argument("--image", default=IMAGE, help=f"The image of all steps; {IMAGE} if left out.")
    parser.add_argument("--no-caching", action="store_true", help="Kubeflow skips no step that it has seen before.")
    parser.add_argument("--cron", help="When to run, such as '0 2 * * *'; writes FILE_recurring.py too, no caching.")
    parser.add_argument("--rayjob", action="store_true", help="One step for all stages, which KubeRay runs.")
    parser.add_argument("--template", default="nascore", help="The suspended RayJob that --rayjob copies.")
    parser.add_argument("--namespace", default="", help="Where it is; the step's own namespace if left out.")
    parser.add_argument("--timeout", type=float, default=24.0, help="Hours after which --rayjob ends; 24 if left out.")
    parser.add_argument("--labels", default="", help="More labels for its RayJob: KEY=VALUE, commas between.")
    return parser


def _checked(known: Namespace) -> None:
    if known.output is None or known.output.suffix not in (".yaml", ".yml"):
        raise ValueError("-o FILE is missing, or is no .yaml file, such as -o pipeline.yaml")
    if not known.output.absolute().parent.is_dir():
        raise ValueError(f"-o {known.output}: there is no folder {known.output.absolute().parent}")
    if not known.image or known.timeout <= 0:
        raise ValueError("--image is not empty, and --timeout is above 0")
    if not re.fullmatch(r"([^=,]+=[^=,]+(,(?!$)|$))*", known.labels):
        raise ValueError(f"--labels {known.labels}: not KEY=VALUE with commas between")
    if known.cron is not None:
        known.cron = six_fields(known.cron)
        known.no_caching = True


def six_fields(cron: str) -> str:
    """A cron expression as Kubeflow reads it, with seconds first; raises where it has neither five fields nor six."""
    fields = cron.split()
    if len(fields) not in (5, 6) or not all(re.fullmatch(r"[-0-9A-Za-z*?/,]+", one) for one in fields):
        raise ValueError(f"--cron {cron!r}: five fields, minute hour day month weekday, such as '0 2 * * *'")
    return " ".join(["0"] * (6 - len(fields)) + fields)


def recurring(title: str, file: str, script: str, cron: str) -> str:
    """The text of the Python file that creates the recurring run."""
    return RECURRING.format(name=title, file=file, script=script, cron=cron)


# The steps' functions: their text goes into the pipeline, so each imports what it needs


def save(root: str, settings: str) -> NamedTuple("Saved", [("root", str), ("digest", str)]):
    """Write run.json into the run's folder."""
    from pipelines import _steps

    return _steps.save(root, settings)


def stage(name: str, root: str, digest: str) -> None:
    """Run one stage; `digest` only tells Kubeflow's cache when the settings are others."""
    from pipelines import _steps

    _steps.stage(name, root)


def rayjob(root: str, attempt: str, template: str, namespace: str, timeout: float, labels: str) -> str:
    """Have KubeRay run all stages, and wait for the end."""
    from pipelines import _rayjob

    return _rayjob.run(root, attempt, template, namespace, timeout, labels)


def results(
    root: str,
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("Results", [("data", str), ("split_digest", str), ("model", str), ("model_id", str), ("verdict", str)]):
    """Show the report and the test's figures, and say where data and model are."""
    from pathlib import Path

    from pipelines import _steps

    known = _steps.results(root)
    if known.page:
        Path(page.path).write_text(known.page, encoding="utf-8")
    for name, value in known.figures.items():
        metrics.log_metric(name, value)
    return known.data, known.split_digest, known.model, known.model_id, known.verdict


# The pipelines


def pipeline(run: Run, title: str, known: Namespace) -> Any:
    """The pipeline of a run, a step for each stage."""

    @dsl.pipeline(name=title, description=_about(run))
    def made(root: str = run.root, settings: str = _settings(run)) -> None:
        saved = last = _saved(root, settings, known)
        for name in run.planned:
            component = _component(stage, known)
            component.component_spec.name = name
            task = component(name=name, root=saved.outputs["root"], digest=saved.outputs["digest"]).after(last)
            _given(_storage(task), *needs(run, name), known)
            kfp.kubernetes.use_secret_as_env(task, TOKEN, {"auth_token": "RAY_AUTH_TOKEN"}, optional=True)
            kfp.kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit="1Gi")  # Ray's objects
            last = task
        _results(run, saved, last, known)

    return made


def rayjob_pipeline(run: Run, title: str, known: Namespace) -> Any:
    """The pipeline of a run whose stages KubeRay runs."""

    @dsl.pipeline(name=title, description=_about(run))
    def made(
        root: str = run.root,
        settings: str = _settings(run),
        template: str = known.template,
        namespace: str = known.namespace,
    ) -> None:
        saved = _saved(root, settings, known)
        task = _component(rayjob, known)(
            root=saved.outputs["root"],
            attempt=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
            template=template,
            namespace=namespace,
            timeout=known.timeout * 3600,
            labels=known.labels,
        )
        _given(task, 1, 1, 0, known, caches=False)
        _results(run, saved, task, known)

    return made


def needs(run: Run, name: str) -> tuple[int, int, int]:
    """CPUs, GiB of memory and GPUs of a stage's step, which starts a Ray of its own with all of them."""
    workers = run.workers
    if name not in (*LEARNS, "evaluate"):
        return workers.cpus, BASE + EACH * workers.cpus, 0
    together = {"supernet": workers.train, "search": max(1, workers.evaluators)}
    count = together.get(name, max(together.values()))
    memory = BASE + count * (workers.memory or EACH * workers.cpus)
    return count * workers.cpus, math.ceil(memory), math.ceil(count * workers.gpus) if name in LEARNS else 0


def _about(run: Run) -> str:
    return f"{run.method.name} on {run.dataset}, {run.protocol}: {', '.join(run.planned)}"


def _settings(run: Run) -> str:
    """The run as JSON, without its root, which is a parameter of its own."""
    return json.dumps({name: value for name, value in run.to_json().items() if name != "root"}, separators=(",", ":"))


def _component(function: Callable[..., Any], known: Namespace) -> Any:
    return dsl.component(function, base_image=known.image, install_kfp_package=False)


def _saved(root: Any, settings: Any, known: Namespace) -> Any:
    """The first step, which is never skipped: the day and the folder are not what they were."""
    return _given(_storage(_component(save, known)(root=root, settings=settings)), 1, 2, 0, known, caches=False)


def _results(run: Run, saved: Any, last: Any, known: Namespace) -> None:
    """The last step, and the data and the model as artifacts where the run keeps them."""
    shown = _component(results, known)(root=saved.outputs["root"]).after(last)
    _given(_storage(shown), 1, 2, 0, known, caches=False)
    about = {"split_digest": shown.outputs["split_digest"], "protocol": run.protocol, "dataset": run.dataset}
    kept = [dsl.importer(shown.outputs["data"], dsl.Dataset, metadata=about).set_display_name("data")]
    if "evaluate" in run.planned:
        model = {"model_id": shown.outputs["model_id"], "verdict": shown.outputs["verdict"], "method": run.method.name}
        kept.append(dsl.importer(shown.outputs["model"], dsl.Model, metadata=model).set_display_name("model"))
    for task in kept:
        task.set_caching_options(not known.no_caching)


def _storage(task: Any) -> Any:
    """Where the object storage is and the keys to it, by reference; all of it may be missing."""
    kfp.kubernetes.use_secret_as_env(task, STORAGE, {key: key for key in KEYS}, optional=True)
    return kfp.kubernetes.use_config_map_as_env(task, STORAGE, {key: key for key in _submit.SENT}, optional=True)


def _given(task: Any, cpus: int, memory: int, gpus: int, known: Namespace, caches: bool = True) -> Any:
    """What a step may use, how often it is tried, and whether Kubeflow may skip it."""
    task.set_cpu_request(str(cpus)).set_cpu_limit(str(cpus))
    task.set_memory_request(f"{memory}Gi").set_memory_limit(f"{memory}Gi")
    if gpus:
        task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(gpus)
    task.set_retry(RETRIES, backoff_duration=PAUSE, backoff_factor=2.0)
    return task.set_caching_options(caches and not known.no_caching)
