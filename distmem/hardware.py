"""What this machine has, told without importing torch (which takes seconds)."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hardware:
    """cores: processors this process may use."""

    cuda_devices: int
    mps: bool
    cores: int

    @property
    def best_device(self) -> str:
        return "cuda" if self.cuda_devices else "mps" if self.mps else "cpu"


def detect() -> Hardware:
    """Devices by the driver's files and by the build of the installed torch; the worker asks torch itself later."""
    return Hardware(
        cuda_devices=_cuda_devices() if _torch_has_cuda() else 0,
        mps=platform.system() == "Darwin" and platform.machine() == "arm64",
        cores=usable_cores(),
    )


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cuda_devices() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() not in ("", "-1")])
    gpus = Path("/proc/driver/nvidia/gpus")
    return len(list(gpus.iterdir())) if gpus.is_dir() else len(list(Path("/dev").glob("nvidia[0-9]*")))


def _torch_has_cuda() -> bool:
    from distmem.recipe.signature import find_module

    version = find_module("torch.version")
    return version is not None and "cuda: Optional[str] = None" not in version.read_text()
