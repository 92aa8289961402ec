"""For all rooms: one thread per process, a cache folder of this session, GPU tests only where there is a GPU."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
from hypothesis import settings

settings.register_profile("no clock", deadline=None)  # a busy machine is no fault of the code
settings.load_profile("no clock")

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, here and in the processes that tests start
CACHE = tempfile.mkdtemp(prefix="distmem-tests-")
os.environ["DISTMEM_CACHE"] = CACHE


@pytest.fixture(scope="session", autouse=True)
def _session():
    import torch

    torch.set_num_threads(1)
    yield
    shutil.rmtree(CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
