"""How this process was started: the one place that reads a launcher's variables."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Launched:
    """rank and size over all nodes; local_rank and local_size on this node."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    has_master: bool
    under_agent: bool  # torchrun, by whomever


def launched() -> Launched:
    """RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE and MASTER_ADDR as torchrun sets them; alone without them."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return Launched(
        rank=int(os.environ.get("RANK", "0")),
        size=size,
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_size=int(os.environ.get("LOCAL_WORLD_SIZE", size)),
        has_master="MASTER_ADDR" in os.environ,
        under_agent="TORCHELASTIC_RUN_ID" in os.environ,
    )
