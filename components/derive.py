"""What methods decide by themselves: kinds of rows and what each kind keeps (iHAS), and what rivals take of a supernet.

Of ours the gates of the run's supernet are settled; k-means runs over the training rows, a batch at a time, and then
says every row's kind. A rival that decides by itself trains a supernet of its own, here, on the same rows, and takes
from it what `decide` says.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans, MiniBatchKMeans

from components.finalists import known_as
from components.progress import News, Teller, watching
from components.run import Run
from components.trainings import ROUTER, continue_training, searched, steps_taken
from components.workers import RESTARTS, fits, granted, settle
from nascore.methods import Derived, Method
from nascore.routing import Router
from nascore.rows import Data, seed_of
from nascore.samplers.bernoulli import histograms, valleys

ROWS = 8_192
STARTS = 10
Points = NDArray[np.float32]


def main(run: Run) -> None:
    """Write `candidates.json`: what ours and each rival decided."""
    run.check_prepared()
    with run.stage("derive", resumes=True) as folder, watching(run, "derive") as board:
        fits(run, 1)
        deciding = {known_as(run, one): one for one in run.methods[1:] if one.decides}
        names = [*([""] if run.method.routes else []), *deciding]
        waiting = [_derive.options(**granted(run)).remote(run.root, name, board) for name in names]
        folder.write_json("candidates.json", dict(zip(names, ray.get(waiting), strict=True)))
        if any(steps_taken(run, f"derive/{name}") < one.train.steps for name, one in deciding.items()):
            run.cut()


@ray.remote(max_retries=RESTARTS)
def _derive(root: str, name: str, board: Any) -> list[dict[str, Any]]:
    run = Run.load(root)
    rival = next((one for one in run.methods[1:] if one.decides and known_as(run, one) == name), None)
    tell = Teller(board, f"{rival.name} {name}" if rival else "rows", run.workers.gpus)
    decided = rivals(run, rival, name, tell) if rival else ours(run, tell)
    tell.spent()
    return decided


def rivals(run: Run, rival: Method, name: str, tell: Any = lambda news: None) -> list[dict[str, Any]]:
    """Train a rival's supernet; what it decides."""
    folder = run.folder / "derive" / name
    if not folder.exists("decided.json"):
        continue_training(run, tell=tell, method=rival, of=f"derive/{name}")
        folder.write_text("curve.json", run.checkpoint(f"derive/{name}").read_text("curve.json"))
        device = settle(run)
        supernet, task = searched(run, rival, f"derive/{name}").to(device).eval(), rival.task(run.schema)
        splits = (run.rows(split, device=device, shown=rival.shown) for split in ("train", "valid"))
        genotype = rival.decide(supernet, task, *splits)
        folder.write_json("decided.json", [candidate(Derived(rival.name, (genotype,)))])
    known: list[dict[str, Any]] = folder.read_json("decided.json")
    return known


def candidate(derived: Derived, budget: str = "") -> dict[str, Any]:
    """What was decided, as JSON."""
    parts = [{field: list(choice) for field, choice in part.items()} for part in derived.parts]
    known = {"as": derived.name, "parts": parts, "budget": budget}
    return {**known, "kept": derived.kept, "wearer": derived.wearer, "gated": derived.gated}


# Kinds of rows


def ours(run: Run, tell: Any = lambda news: None) -> list[dict[str, Any]]:
    """Tell kinds of rows apart; what each of them keeps, and all else that is to be compared with that."""
    folder, method, device = run.folder / "derive", run.method, settle(run)
    supernet = searched(run, method, "supernet").to(device).eval()
    train, valid = (run.rows(split, run.workers.data, device=device) for split in ("train", "valid"))
    router = method.router(supernet, method.kinds).to(device)
    with torch.inference_mode():
        if router.gates.scope == "batch":
            counts = sum(
                histograms(router.gates.probability(router.vectors(one))).double().sum(0) for one in train.sweep(ROWS)
            )
            router.gates.threshold.copy_(valleys(counts[None])[0])  # type: ignore[index]
        router.centroids.copy_(torch.from_numpy(centroids(router, train, run.seeds[0], tell)))
        kinds, open_PG = told_apart(router, train, valid, method.fewest)
    for split, kind in kinds.items():
        folder.write_table(f"kinds-{split}.parquet", pa.table({"kind": kind}))
    folder.write_tensors(ROUTER, router.state_dict())
    rows = np.bincount(kinds["train"], minlength=len(open_PG))
    folder.write_json("kinds.json", {"rows": rows.tolist(), "shares": (rows / rows.sum()).tolist()})
    return [
        candidate(derived, budget)
        for budget in run.budgets
        for derived in method.derive(run.members(budget), open_PG, rows)
    ]


def centroids(router: Router, train: Data, seed: int, tell: Any) -> Points:
    """Where k-means sees the kinds, from one pass over the training rows. Shape (kinds, K)."""
    kinds = len(router.centroids)
    random, means, done = seed_of(seed, "kinds") % (1 << 32), None, 0
    early = np.empty((0, router.centroids.shape[1]), np.float32)
    for batch in train.sweep(ROWS):
        point_BK = router.masked(batch)[0].cpu().numpy()
        done += len(point_BK)
        if means is None:
            early = point_BK = np.concatenate([early, point_BK])
            if len(early) < kinds:
                continue  # the first rows of a stream may be few
            first = KMeans(kinds, n_init=STARTS, random_state=random).fit(early).cluster_centers_
            means = MiniBatchKMeans(kinds, init=first, n_init=1, random_state=random, reassignment_ratio=0.0)
        means.partial_fit(point_BK)
        tell(News(done, train.rows, "rows", lasting=False))
    if means is None:
        raise ValueError(f"{done} training rows are too few for {kinds} kinds of rows")
    found: Points = means.cluster_centers_.astype(np.float32)
    return found


def told_apart(
    router: Router, train: Data, valid: Data, fewest: int
) -> tuple[dict[str, NDArray[np.int8]], NDArray[np.float64]]:
    """The kind of each row, and the share of each kind's training rows that keep a gate open (kinds, gates).

    Kinds of fewer training or validation rows are taken out of the router, and their rows go to the nearest other;
    where all are, the largest stays.
    """
    while True:
        count = len(router.centroids)
        opened, rows = torch.zeros(count, router.gates.size, dtype=torch.float64), torch.zeros(count)
        kinds = dict[str, NDArray[np.int8]]()
        for split, data in (("train", train), ("valid", valid)):
            found = []
            for batch in data.sweep(ROWS):
                point_BK, open_BG = router.masked(batch)
                kind_B = router.nearest(point_BK)
                found.append(kind_B.cpu().numpy().astype(np.int8))
                if split == "train":
                    opened.index_add_(0, kind_B.cpu(), open_BG.cpu().double())
                    rows += torch.bincount(kind_B.cpu(), minlength=count)
            kinds[split] = np.concatenate(found)
        least_P = np.min([np.bincount(kinds[split], minlength=count) for split in kinds], 0)
        there = [kind for kind in range(count) if least_P[kind] >= fewest] or [int(rows.argmax())]
        if len(there) == count:
            return kinds, (opened / rows[:, None]).numpy()
        router.centroids = router.centroids[there]
