"""Runs of the real engine in the test's own process, or on ranks, with everything that a test may want to look at."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from distmem.checks import check
from distmem.context import Phase, Run
from distmem.distributed import World
from distmem.engine import train
from distmem.errors import Stopped
from distmem.hardware import Hardware
from distmem.rank import prepare
from distmem.recipe.load import recipe_from_text
from distmem.signals import StopFlag
from distmem.stages import run_stages

CPU = Hardware(cores=2, memory_bytes=8 << 30, cuda_devices=0, mps=False) if False else None
DIGITS = {
    "name": "small",
    "seed": 3,
    "model": {"name": "mlp", "args": {"hidden": [32, 16]}},
    "data": {"name": "digits"},
    "optim": {"name": "sgd", "lr": 0.1, "args": {"momentum": 0.9}},
    "train": {"steps": 26, "batch_size": 120},  # 1,437 samples: 11 batches and one of 117
    "launch": {"device": "cpu"},
}
