"""What the stages of a run wrote, read once for the report."""

from collections.abc import Mapping
from typing import Any

from components.ledger import summed
from components.run import Run
from nascore import plugins

TASKS = [plugins.load("tasks", name) for name in plugins.names("tasks")]
SMALLER_IS_BETTER = {metric for task in TASKS for metric in task.lower}
NEAREST_TO_ONE = {metric for task in TASKS for metric in task.ratios}
Row = dict[str, Any]


class Told:
    """What the stages of a run wrote; what a stage that was left out would have written is empty."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.statistics: Row = self._read("prepare", "statistics.json", {})
        self.losses: list[Row] = self._read("supernet", "curve.json", [])
        self.candidates: list[Row] = self._read("search", "candidates.json", [])
        self.kinds: Row = self._read("derive", "kinds.json", {}) if run.method.routes else {}
        self.tuning: Row = self._read("tune", "tuned.json", {})
        self.diagnosis: Row = self._read("diagnose", "diagnose.json", {})
        self.report: Row = self._read("evaluate", "report.json", {})
        self.headline = str(self.report.get("headline", ""))
        stage, name = run.folder / "search", "trials.parquet"
        self.trials: list[Row] = stage.read_table(name).to_pylist() if stage.exists(name) else []
        self.strategies = [*run.strategies, *sorted({trial["strategy"] for trial in self.trials} - {*run.strategies})]
        self.trials.sort(key=lambda trial: (trial["budget"], trial["strategy"], trial["seed"], trial["number"]))
        stage = run.folder / "retrain"
        names = stage.names("*/part=*/seed=*/result.json")
        self.results: list[Row] = [{**stage.read_json(name), "model_id": name.partition("/")[0]} for name in names]
        self.stages = self._stages()
        self.models = self._models()
        self.found = [model for model in self.models if model["role"] == "found"]
        self.baselines = [model for model in self.models if model["role"] != "found"]

    def _read(self, stage: str, name: str, otherwise: Any) -> Any:
        folder = self.run.folder / stage
        return folder.read_json(name) if folder.exists(name) else otherwise

    def _stages(self) -> list[Row]:
        """What each stage of the run has cost by now, all attempts together, in the order of the stages."""
        attempts, known = self.run.ledger.attempts(), list[Row]()
        for stage in self.run.stages:
            own = [one for one in attempts if one["stage"] == stage]
            if own and stage != "report":
                spent = {unit: round(value, 3) for unit, value in summed(own).items()}
                known.append({"stage": stage, **spent, "attempts": len(own), "stopped": own[-1]["stopped"]})
        return known

    def _models(self) -> list[Row]:
        """The models of the comparison, each with its rows by metric: found ones, then baselines, best first."""
        models: dict[tuple[str, str], Row] = {}
        for row in self.report.get("rows", []):
            model = models.setdefault((row["model"], row["model_id"]), {**row, "metrics": {}})
            model["metrics"][row["metric"]] = row
        found = [model for model in models.values() if model["role"] == "found"]
        others = [model for model in models.values() if model["role"] != "found"]
        return found + sorted(others, key=lambda model: loss(model["metrics"][self.headline]))

    def label(self, model_id: str) -> str:
        """What the comparison calls a model, "" if it is not in it; two searches may have found the same."""
        return " = ".join(model["model"] for model in self.models if model["model_id"] == model_id)

    def marked(self) -> Mapping[str, str]:
        """The label of every candidate of the search, which knows it by its id before it was tuned."""
        labels = {one["candidate"]: self.label(name) for name, one in self.report.get("models", {}).items()}
        return {one["model_id"]: labels.get(one["model_id"], "") for one in self.candidates}


def loss(row: Row) -> float:
    """The row's value, negated unless smaller is better; the distance from 1 of a ratio that should be 1."""
    kind = row["metric"].partition("/")[0].partition("@")[0]
    if kind in NEAREST_TO_ONE:
        return abs(float(row["value"]) - 1)
    return float(row["value"]) if kind in SMALLER_IS_BETTER else -float(row["value"])
