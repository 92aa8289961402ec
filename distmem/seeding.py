"""Random numbers as a function of (seed, step, rank): nothing to save, and a resumed step draws what it would have."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """One well-mixed 64-bit number of several (the finaliser of splitmix64, Steele et al. 2014)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def seed_all(device: torch.device, *numbers: int) -> None:
    """Seed torch's generators of the CPU and of `device`, numpy's and Python's, from several numbers.

    Not torch.manual_seed: where CUDA is not in use it notes each call, with its stack, for later (0.4 ms a step,
    and never freed).
    """
    state = mix(*numbers)
    torch.default_generator.manual_seed(state & (2**63 - 1))
    if device.type != "cpu":
        getattr(torch, device.type).manual_seed(state & (2**63 - 1))
    np.random.seed(state & 0xFFFFFFFF)
    random.seed(state)


def be_deterministic() -> None:
    """Only algorithms that give the same bits in every run; an operation without one raises.

    cuBLAS needs its workspace fixed before its first use (docs.nvidia.com/cuda/cublas, Results Reproducibility).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
