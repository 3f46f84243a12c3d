"""What the tests share: one thread for torch, one local Ray cluster, and the folder of real data."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One Ray cluster of two CPUs on this machine for all tests marked `ray`, without its dashboard."""
    os.environ.update(RAY_AUTH_MODE="disabled", RAY_worker_niceness="0", OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1")
    import ray

    scratch = tempfile.mkdtemp(prefix="ray-")  # pytest's own folders are too deep for Ray's sockets
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=scratch)
    yield
    ray.shutdown()
    shutil.rmtree(scratch, ignore_errors=True)


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data, for tests marked `data`."""
    if "NASCORE_DATA" not in os.environ:
        pytest.skip("NASCORE_DATA is unset; it names the folder of real data sets")
    return Path(os.environ["NASCORE_DATA"])
