"""The best candidates of every strategy and budget, and every rival, trained anew from several seeds."""

from components.finalists import finalists
from components.run import Run
from components.workers import Job, train_all


def main(run: Run) -> None:
    """Train every model from every seed into `<model_id>/part=0/seed=<n>`."""
    with run.stage("retrain", resumes=True) as folder:
        unique = {one.model_id: one for one in finalists(run)}
        jobs = [
            Job.of(f"retrain/{model_id}/part=0/seed={seed}", one.method, one.genotype, seed, run.refit)
            for model_id, one in unique.items()
            for seed in run.seeds
        ]
        folder.write_json("models.json", list(unique))
        train_all(run, "retrain", jobs)
