"""NASRec: search a whole click model, retrain the best in two rounds, test it against tuned rivals."""

from components.finalists import genotypes, of_specs
from components.run import STAGES, Run
from components.settings import Allowance, Diagnosis, Tuning, Workers
from nascore.datasets import OnBadRow
from nascore.methods.nasrec import NASRec

RIVALS = (
    "logistic_regression",
    "fm",
    "wide_deep",
    "deepfm",
    "dcnv2",
    "xdeepfm",
    "autoint",
    "dlrm",
    "dnn",
)


def nasrec(
    *,
    root: str,
    dataset: str,
    raw: str = "",
    protocol: str = "stratified",
    on_bad_row: OnBadRow = "error",
    method: NASRec = NASRec(),  # noqa: B008
    rivals: tuple[str, ...] = RIVALS,
    strategies: tuple[str, ...] = ("regularized",),
    budgets: tuple[str, ...] = ("whole",),
    keep: int = 15,
    front: bool = False,
    given: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    refit: bool = False,
    diagnosis: Diagnosis = Diagnosis(),  # noqa: B008
    tuning: Tuning = Tuning(),  # noqa: B008
    workers: Workers = Workers(),  # noqa: B008
    budget: Allowance = Allowance(),  # noqa: B008
    stages: tuple[str, ...] = STAGES,
) -> Run:
    """Search, retrain and test click models; the same command continues what was interrupted.

    Args:
        root: The run's folder, on any fsspec URL.
        dataset: A reader of nascore/datasets: criteo, avazu, kdd12, parquet, planted_clicks, …
        raw: The folder of the raw files, on any fsspec URL.
        protocol: How rows are split: stratified, or temporal where the data has an order in time.
        on_bad_row: What to do with malformed rows: error, or skip and count.
        method: The search space, its supernet and its training.
        rivals: Methods to compare with, such as dcnv2:depth=2; they are trained exactly as ours.
        strategies: Search strategies, such as regularized:population=64 and random.
        budgets: Limits to search under: whole, the space without limits, or text such as macs=2e6,params=1e6.
        keep: Candidates of each strategy and budget to retrain with limited tables; the best is then trained without.
        front: Whether to retrain and test also all that nothing of the same strategy beats at as few MACs.
        given: Models to retrain and test beside what is found: genotypes as JSON, or folders of finished runs, which
            stand for what was found there.
        seeds: Seeds of the searches and of all retrainings; the first also trains the supernet.
        refit: Whether what is tested is trained once more, on train and valid rows, for its best number of epochs.
        diagnosis: How the supernet's ranking is tested; genotypes below 3 leave it out.
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
        methods=(method, *of_specs(rivals, method.training)),
        strategies=strategies,
        budgets=budgets,
        keep=keep,
        front=front,
        given=tuple(genotype for text in given for genotype in genotypes(text)),
        seeds=seeds,
        refit=refit,
        diagnosis=diagnosis,
        tuning=tuning,
        workers=workers,
        budget=budget,
        stages=stages,
    )
