"""The laws of the house, read from the source with `ast`; each law is also shown a tree that breaks it.

1. No import circle, no arrow upward: pipelines -> components -> nascore, and inside nascore the layers below.
2. A gallery's `__init__` imports none of its rooms; below what methods share, no file brings rooms of two together.
3. Ray only in components and pipelines, Optuna only in the strategies that are Optuna, kfp in pipelines/kubeflow.py.
4. A stage imports the stages' shared plumbing and nascore, never another stage.
5. Above the galleries only `prepare` and `evaluate` name the test split.
6. Files have at most 400 lines, and a gallery's room shows one class.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from nascore import plugins

ROOT = Path(__file__).parent.parent
LAYERS = (
    ("the package itself", "nascore"),
    ("ground", "space cost schema metrics plugins group negatives attention buckets ragged embedding storage s3 files"),
    ("galleries and rows", "ops samplers strategies tasks datasets protocols rows tables sparse days drift"),
    ("net", "net"),
    ("fitness", "fitness"),
    ("training", "training"),
    (
        "what methods share",
        "two_tower prefix_scoring click_net nasrec_net head_scoring sequence_net dnsrec_net gated_net pruned_net "
        "routing",
    ),
    ("methods", "methods"),
    ("components", "components"),
    ("pipelines", "pipelines"),
)
PACKAGES = ("nascore", "components", "pipelines")
GALLERIES = ("ops", "samplers", "strategies", "tasks", "datasets", "protocols", "methods")
OPTUNA = {"nascore.strategies.tpe", "nascore.strategies.nsga2"}
PLUMBING = {
    "components",
    *(
        f"components.{name}"
        for name in "folder order run workers job trainings finalists models spills examples".split()
    ),
    *(f"components.{name}" for name in "settings ledger tracking progress cost_section".split()),
    *(f"components.{name}" for name in "errors told page pictures search_sections kinds_section".split()),
    *(f"components.{name}" for name in "lease registry versions warm".split()),
    *(f"components.{name}" for name in "vocabularies score programs item_index card".split()),
}
SPLIT_READERS = ("components.prepare", "components.examples", "components.spills", "components.evaluate")
SHY = {"ray": ("components", "pipelines"), "optuna": tuple(OPTUNA), "kfp": ("pipelines.kubeflow",)}
LINES = 400


@dataclass(frozen=True)
class Module:
    """One file: its dotted name, where it stands, and what it imports anywhere in its text."""

    name: str
    path: str
    text: str
    is_package: bool

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    def mentions(self) -> Iterator[tuple[int, str, str]]:
        """(line, module, name or "") of each import; `import_module("literal")` is one too."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name, "") for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = self.name.split(".")
                    kept = package[: len(package) - node.level + self.is_package]
                    base = ".".join([*kept, *filter(None, [node.module])])
                yield from ((node.lineno, base, alias.name) for alias in node.names)
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in ("import_module", "__import__"):
                    yield node.lineno, str(node.args[0].value), ""


Tree = Mapping[str, Module]


def source(root: Path, *packages: str) -> Tree:
    """All modules of the packages that exist under `root`, by dotted name."""
    found = {}
    for package in packages:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            path = str(file.relative_to(root))
            found[name] = Module(name, path, file.read_text(), parts[-1] == "__init__")
    return found


def imports(tree: Tree, module: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of what a module imports; a name of our own tree is a module of it."""
    for line, base, name in module.mentions():
        whole = f"{base}.{name}" if name else base
        yield line, whole if whole in tree else base


def inside(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def layer(name: str) -> int:
    """The place of a module among the layers, from the ground up; -1 if it has none."""
    package, *rest = name.split(".")
    top = rest[0] if package == "nascore" and rest else package
    return next((i for i, (_, tops) in enumerate(LAYERS) if package in PACKAGES and top in tops.split()), -1)


def room(name: str) -> tuple[str, str] | None:
    """(gallery, room) of a module that is a gallery's room."""
    parts = name.split(".")
    return (parts[1], parts[2]) if len(parts) > 2 and parts[0] == "nascore" and parts[1] in GALLERIES else None


def arrows(tree: Tree) -> list[str]:
    """Law 1: modules outside the layers, imports from a higher layer, and circles."""
    wrong = []
    for module in tree.values():
        own = layer(module.name)
        if own < 0:
            wrong.append(f"{module.path} stands in no layer; name it in LAYERS of {Path(__file__).name}")
        for line, name in imports(tree, module):
            if 0 <= own < layer(name):
                wrong.append(f"{module.path}:{line} imports {name}: {LAYERS[own][0]} is below {LAYERS[layer(name)][0]}")
    return wrong + circles({m.name: {name for _, name in imports(tree, m) if name in tree} for m in tree.values()})


def circles(targets: Mapping[str, set[str]]) -> list[str]:
    done: set[str] = set()
    wrong = []

    def visit(name: str, path: list[str]) -> None:
        if name in path:
            wrong.append("import circle: " + " -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for target in sorted(targets[name] - {name}):
                visit(target, [*path, name])
            done.add(name)

    for name in sorted(targets):
        visit(name, [])
    return wrong


def rooms_apart(tree: Tree) -> list[str]:
    """Law 2: contracts that import a room, and files below the methods that bring rooms of two galleries together."""
    wrong = []
    for module in tree.values():
        met = [(line, name, other[0]) for line, name in imports(tree, module) if (other := room(name))]
        own = room(module.name)
        home = own[0] if own else met[0][2] if met else ""
        for line, name, gallery in met:
            if module.name == f"nascore.{gallery}":
                wrong.append(f"{module.path}:{line} imports {name}: a contract knows none of its rooms")
            elif gallery != home and layer(module.name) < layer("nascore.two_tower"):
                wrong.append(f"{module.path}:{line} imports {name} beside a room of {home}: only methods may")
    return wrong


def shy_libraries(tree: Tree) -> list[str]:
    """Law 3: imports of Ray, Optuna and kfp outside their places."""
    return [
        f"{module.path}:{line} imports {name}: allowed only in {', '.join(SHY[library])}"
        for module in tree.values()
        for line, name in imports(tree, module)
        if (library := name.split(".")[0]) in SHY and not inside(module.name, *SHY[library])
    ]


def stages_apart(tree: Tree) -> list[str]:
    """Law 4: a stage, or the plumbing, that imports a stage; `__main__` alone may."""
    return [
        f"{module.path}:{line} imports {name}: stages talk through files"
        for module in tree.values()
        if inside(module.name, "components") and module.name != "components.__main__"
        for line, name in imports(tree, module)
        if inside(name, "components") and name not in PLUMBING and name.split(".")[:2] != module.name.split(".")[:2]
    ]


def split_readers(tree: Tree) -> list[str]:
    """Law 5: the test split's name, its label or the list of all splits, above the galleries but in its two stages."""
    wrong = []
    for module in tree.values():
        if layer(module.name) < layer("nascore.net") or inside(module.name, *SPLIT_READERS):
            continue
        prose = {id(node.value) for node in ast.walk(module.tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(module.tree):
            text = str(node.value) if isinstance(node, ast.Constant) and id(node) not in prose else ""
            named = getattr(node, "id", "") or getattr(node, "attr", "") or getattr(node, "name", "")
            if re.search(r"(^|[/=])test($|/)", text) or named in ("TEST", "SPLITS"):
                where = f"{module.path}:{getattr(node, 'lineno', 0)}"
                wrong.append(f"{where} says {text or named!r}: only prepare and evaluate know the test split")
    return wrong


def long_files(tree: Tree) -> list[str]:
    """Law 6: files of too many lines."""
    counts = {module.path: len(module.text.splitlines()) for module in tree.values()}
    return [f"{path} has {count} lines; {LINES} are allowed" for path, count in counts.items() if count > LINES]


Law = Callable[[Tree], list[str]]
LAWS: tuple[Law, ...] = (arrows, rooms_apart, shy_libraries, stages_apart, split_readers, long_files)
ROOMS = [(gallery, name) for gallery in GALLERIES for name in plugins.names(gallery)]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_house_keeps(law: Law) -> None:
    tree = source(ROOT, *PACKAGES, *(("tests", "benchmarks") if law is long_files else ()))
    wrong = law(tree)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("gallery, name", ROOMS)
def test_a_room_shows_one_class(gallery: str, name: str) -> None:
    assert plugins.load(gallery, name)


def test_science_loads_without_ray_optuna_and_kfp() -> None:
    names = sorted(set(source(ROOT, "nascore")) - OPTUNA)
    script = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\n"
        f"print([library for library in {list(SHY)} if library in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_naming_a_gallery_imports_nothing() -> None:
    script = "import sys; from nascore import plugins; plugins.names('ops'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False", done.stderr


BROKEN: list[tuple[Law, dict[str, str], str]] = [
    (arrows, {"nascore/net.py": "from nascore.training import fit"}, "net is below training"),
    (arrows, {"nascore/space.py": "import nascore.ops.mlp"}, "ground is below galleries"),
    (
        arrows,
        {"nascore/training.py": "def f():\n    from nascore import methods", "nascore/methods/__init__.py": ""},
        "training.py:2 imports nascore.methods: training is below methods",
    ),
    (arrows, {"nascore/rows.py": "from components.run import Run"}, "galleries and rows is below components"),
    (arrows, {"components/search.py": "import pipelines.autotower"}, "components is below pipelines"),
    (
        arrows,
        {"nascore/__init__.py": "from . import space", "nascore/space.py": ""},
        "the package itself is below ground",
    ),
    (arrows, {"nascore/helpers.py": ""}, "nascore/helpers.py stands in no layer"),
    (
        arrows,
        {"nascore/cost.py": "from nascore.space import x", "nascore/space.py": "from .cost import y"},
        "import circle: nascore.cost -> nascore.space -> nascore.cost",
    ),
    (
        arrows,
        {"nascore/ops/__init__.py": "from .mlp import Mlp", "nascore/ops/mlp.py": "from nascore.ops import Op"},
        "import circle",
    ),
    (
        rooms_apart,
        {"nascore/ops/__init__.py": "from .mlp import Mlp", "nascore/ops/mlp.py": ""},
        "knows none of its rooms",
    ),
    (rooms_apart, {"nascore/tasks/click.py": "from nascore.samplers.uniform import Uniform"}, "a room of tasks"),
    (
        rooms_apart,
        {"nascore/net.py": "import nascore.tasks.click\nfrom nascore.ops import mlp", "nascore/ops/mlp.py": ""},
        "net.py:2",
    ),
    (
        rooms_apart,
        {"nascore/ops/mlp.py": "import importlib\nimportlib.import_module('nascore.tasks.click')"},
        "mlp.py:2",
    ),
    (shy_libraries, {"nascore/training.py": "def f():\n    import ray.train"}, "training.py:2 imports ray.train"),
    (shy_libraries, {"components/search.py": "from optuna import create_study"}, "nascore.strategies.tpe"),
    (shy_libraries, {"nascore/strategies/random.py": "import optuna"}, "random.py:1"),
    (shy_libraries, {"pipelines/nightly.py": "from kfp import dsl"}, "pipelines.kubeflow"),
    (
        stages_apart,
        {"components/search.py": "from components import retrain", "components/retrain.py": ""},
        "search.py:1",
    ),
    (stages_apart, {"components/search.py": "from .retrain import main"}, "through files"),
    (stages_apart, {"components/run.py": "import components.search"}, "run.py:1"),
    (split_readers, {"components/search.py": "data = open_split('test')"}, "says 'test'"),
    (split_readers, {"components/report.py": "x = f'{root}/split=test/part-0.parquet'"}, "/split=test/"),
    (split_readers, {"components/retrain.py": "from nascore.schema import SPLITS"}, "says 'SPLITS'"),
    (split_readers, {"components/tune.py": "from nascore import protocols\nprotocols.TEST"}, "tune.py:2"),
    (split_readers, {"pipelines/nightly.py": "SPLIT = 'test'"}, "nightly.py:1"),
    (split_readers, {"nascore/methods/autotower.py": "fit(split='test')"}, "autotower.py:1"),
    (long_files, {"nascore/net.py": "x = 1\n" * 401}, "nascore/net.py has 401 lines"),
]


@pytest.mark.parametrize("law, files, report", BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_law_is_reported(law: Law, files: dict[str, str], report: str, tmp_path: Path) -> None:
    write(tmp_path, files)
    wrong = law(source(tmp_path, *PACKAGES))
    assert any(report in line for line in wrong), wrong


def test_what_is_allowed_is_not_reported(tmp_path: Path) -> None:
    files = {
        "nascore/__init__.py": '"""Nothing."""',
        "nascore/space.py": "",
        "nascore/ops/__init__.py": "from nascore import plugins, space",
        "nascore/plugins.py": "from importlib import import_module\nimport_module(f'nascore.{x}')",
        "nascore/ops/mlp.py": "from nascore.ops import Op",
        "nascore/ops/gate.py": "from nascore.ops.mlp import Mlp",
        "nascore/training.py": "from nascore.ops.mlp import Mlp\nfrom nascore import tasks",
        "nascore/strategies/tpe.py": "import optuna",
        "nascore/protocols/user_temporal.py": "split = 'test'",
        "nascore/methods/autotower.py": "import nascore.ops.mlp\nfrom nascore.tasks.retrieval import Retrieval",
        "components/run.py": "import ray",
        "components/search.py": '"""Never split=test."""\nfrom components import run\nimport components.workers, ray',
        "components/evaluate.py": "from nascore.schema import SPLITS\nsplit = 'test'",
        "components/report.py": "print('Quality on the test split', 'latest', 'pytest')",
        "components/__main__.py": "from components import search",
        "pipelines/kubeflow.py": "import kfp\nfrom components import search",
    }
    write(tmp_path, files)
    for law in LAWS:
        assert law(source(tmp_path, *PACKAGES)) == []


def write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
