"""What tests of nights share: days of made-up clicks, and small runs over them."""

from pathlib import Path
from typing import Any

from pipelines._asked import Nightly

OPTIONS: dict[str, Any] = {
    "method": {"blocks": 2, "embedding": 4, "dense_sizes": [4, 8], "sparse_sizes": [2, 4], "tokens": 2},
    "method.steps": 20,
    "method.batch": 64,
    "method.candidates": 8,
    "method.fitness.rows": 300,
    "method.fitness.calibration": 320,
    "method.head.batch": 64,
    "method.training.batch": 64,
    "method.training.learning_rate": 0.03,
    "strategies": ["random:batch=4"],
    "seeds": [0],
    "stages": ["prepare", "supernet", "search", "retrain"],
}
IHAS: dict[str, Any] = {
    "method": {"embedding": 4, "layers": [8], "pretrained": 10, "steps": 20, "clusters": 2},
    "method.learner.every": 2,
    "method.training": {"batch": 64, "epochs": 1},
    "seeds": [0],
    "stages": ["prepare", "supernet", "derive", "retrain"],
}
ROWS = 400


def settings(raw: str, registry: Path, night: str, **changes: Any) -> Nightly:
    known: dict[str, Any] = {"window": 3, "options": OPTIONS, "warm_steps": 0.5, **changes}
    return Nightly(registry=str(registry), raw=raw, night=f"2026-01-0{night}", **known)
