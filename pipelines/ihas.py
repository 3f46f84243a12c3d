"""iHAS: learn which dimensions each kind of row needs, train a model a kind, test them against tuned rivals."""

from components.finalists import of_specs
from components.run import Run
from components.settings import Allowance, Tuning, Workers
from nascore.datasets import OnBadRow
from nascore.methods.ihas import IHAS

RIVALS = (
    "fm",
    "wide_deep:width=16,depth=2",
    "deepfm:width=16,depth=2",
    "autofield",
    "adafs",
    "adafs:kind=hard",
    "pep",
    "optfs",
    "optembed",
)
STAGES = ("prepare", "supernet", "derive", "tune", "retrain", "evaluate", "report")


def ihas(
    *,
    root: str,
    dataset: str,
    raw: str = "",
    protocol: str = "stratified",
    on_bad_row: OnBadRow = "error",
    method: IHAS = IHAS(),  # noqa: B008
    rivals: tuple[str, ...] = RIVALS,
    budgets: tuple[str, ...] = ("whole",),
    seeds: tuple[int, ...] = (0, 1, 2),
    refit: bool = False,
    tuning: Tuning = Tuning(),  # noqa: B008
    workers: Workers = Workers(),  # noqa: B008
    budget: Allowance = Allowance(),  # noqa: B008
    stages: tuple[str, ...] = STAGES,
) -> Run:
    """Learn gates, tell kinds of rows apart, train and test a model for each; the same command continues.

    Args:
        root: The run's folder, on any fsspec URL.
        dataset: A reader of nascore/datasets: criteo, avazu, kdd12, parquet, planted_populations, …
        raw: The folder of the raw files, on any fsspec URL.
        protocol: How rows are split: stratified, or temporal where the data has an order in time.
        on_bad_row: What to do with malformed rows: error, or skip and count.
        method: The gates, their supernet and the training of all models.
        rivals: Methods to compare with, such as deepfm:width=16,depth=2; they are trained exactly as ours. Those that
            gate or weigh vectors, such as pep:share=0.3, take our sizes, steps and lessons; those that decide what
            stays train a supernet of their own first.
        budgets: Limits of each kind's own model: whole, the space without limits, or text such as table_params=1e6.
        seeds: Seeds of all retrainings; the first also trains the supernet.
        refit: Whether what is tested is trained once more, on train and valid rows, for its best number of epochs.
        tuning: How ours and the rivals are tuned before they are trained for the comparison.
        workers: What the stages may use of the cluster.
        budget: Hours after which the search ends in order, with the best so far.
        stages: The stages to run, in order.
    """
    return Run(
        root=root,
        dataset=dataset,
        raw=raw,
        protocol=protocol,
        on_bad_row=on_bad_row,
        methods=(method, *of_specs(rivals, method.training, method)),
        strategies=(),
        budgets=budgets,
        seeds=seeds,
        refit=refit,
        tuning=tuning,
        workers=workers,
        budget=budget,
        stages=stages,
    )
