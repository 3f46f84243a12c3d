"""AutoTower: search a two-tower retrieval model under a budget, retrain the best, test them against tuned rivals."""

from components.finalists import genotypes, of_specs
from components.run import STAGES, Run
from components.settings import Allowance, Diagnosis, Tuning, Workers
from nascore.datasets import OnBadRow
from nascore.methods.autotower import AutoTower


def autotower(
    *,
    root: str,
    dataset: str,
    raw: str = "",
    protocol: str = "user_temporal",
    on_bad_row: OnBadRow = "error",
    method: AutoTower = AutoTower(),  # noqa: B008
    rivals: tuple[str, ...] = ("googlednn:size=L", "googlednn:size=M", "googlednn:size=H", "popularity"),
    strategies: tuple[str, ...] = ("evolution",),
    budgets: tuple[str, ...] = ("M",),
    keep: int = 3,
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
    """Search, retrain and test two-tower models; the same command continues what was interrupted.

    Args:
        root: The run's folder, on any fsspec URL.
        dataset: A reader of nascore/datasets: movielens, parquet, planted, …
        raw: The folder of the raw files, on any fsspec URL.
        protocol: How rows are split and ranked: user_temporal, global_temporal, leave_one_out or authors.
        on_bad_row: What to do with malformed rows: error, or skip and count.
        method: The search space, its supernet and its training.
        rivals: Methods to compare with, such as googlednn:size=M; they are trained exactly as ours.
        strategies: Search strategies, such as evolution:population=50,mutation=0.1 and random.
        budgets: Limits to search under: L, M, H, whole, or text such as macs=3e5,user/params=1e5.
        keep: Candidates of each strategy and budget to retrain.
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
