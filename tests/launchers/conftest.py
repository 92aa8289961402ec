from __future__ import annotations

import pytest
from scenes import Stage


@pytest.fixture(scope="session")
def played(tmp_path_factory):
    """played(NAME): what came of a scene."""
    stage = Stage(tmp_path_factory.mktemp("scenes"))
    yield stage
    stage.close()
