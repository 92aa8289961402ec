"""Where distmem keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """$DISTMEM_CACHE, else $XDG_CACHE_HOME/distmem, else ~/.cache/distmem. It may not exist yet."""
    if own := os.environ.get("DISTMEM_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "distmem"
    return Path.home() / ".cache" / "distmem"
