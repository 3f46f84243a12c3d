"""The best candidates of every strategy and budget, and every rival, trained anew from several seeds.

Where a method has a `final` form (NASRec: tables without a limit), the best of a budget's and strategy's candidates is
then trained once more in that form.
"""

from collections.abc import Iterable

from components.finalists import Finalist, contenders, finalists
from components.run import Run
from components.trainings import train_all


def main(run: Run) -> None:
    """Train every part of every model from every seed into `<model_id>/part=<n>/seed=<n>`."""
    with run.stage("retrain", resumes=True) as folder:
        first = {one.model_id: one for one in finalists(run)}
        _train(run, first.values())
        last = {one.model_id: one for one in contenders(run) if one.model_id not in first}
        _train(run, last.values())
        folder.write_json("models.json", [*first, *last])


def _train(run: Run, models: Iterable[Finalist]) -> None:
    jobs = []
    for one in models:
        refit = run.refit and one.method.final(run.schema) == one.method
        jobs += [job for seed in run.seeds for job in one.jobs(seed, f"retrain/{one.model_id}/part={{part}}", refit)]
    if jobs:
        train_all(run, "retrain", jobs)
