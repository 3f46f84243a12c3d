"""The best candidates of every strategy and budget, and every rival, trained anew from several seeds."""

from components.run import Run
from components.workers import Job, train_all
from nascore.space import parse


def main(run: Run) -> None:
    """Train every model from every seed into `<model_id>/part=0/seed=<n>`."""
    with run.stage("retrain", resumes=True) as folder:
        models = [(run.method, parse(one["genotype"])) for one in (run.folder / "search").read_json("candidates.json")]
        for rival in run.methods[1:]:
            (member,) = rival.space(run.schema).members()
            models.append((rival, member))
        unique = {method.model_id(member, run.schema.split_digest): (method, member) for method, member in models}
        jobs = [
            Job.of(f"retrain/{model_id}/part=0/seed={seed}", method, member, seed, run.refit)
            for model_id, (method, member) in unique.items()
            for seed in run.seeds
        ]
        folder.write_json("models.json", list(unique))
        train_all(run, "retrain", jobs)
