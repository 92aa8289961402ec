"""Runs of the real engine in the test's own process, or on ranks, with what a test wants to look at afterwards."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from distmem.build import prepare
from distmem.checks import check
from distmem.context import Phase, Run
from distmem.distributed import World
from distmem.engine import train
from distmem.errors import Stopped
from distmem.recipe.load import recipe_from_text
from distmem.recipe.schema import Recipe
from distmem.signals import StopFlag
from distmem.stages import run_stages

BATCH, SAMPLES = 120, 1437  # digits: 11 batches of an epoch are full, the 12th has 117
STEPS = 26
DIGITS: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "model": {"name": "mlp", "args": {"hidden": [32, 16]}},
    "data": {"name": "digits"},
    "optim": {"name": "sgd", "lr": 0.1, "args": {"momentum": 0.9}},
    "train": {"steps": STEPS, "batch_size": BATCH},
    "launch": {"device": "cpu"},
}


class StopBefore(StopFlag):
    """As if a signal arrived while step `step` of this process's life ran (the engine looks once per step)."""

    def __init__(self, step: int | None):
        super().__init__()
        self.left = step

    @property
    def is_set(self) -> bool:
        if self.left is None:
            return False
        self.left -= 1
        return self.left < 0


@dataclass
class Done:
    """start, weights: parameters and buffers before and after; lines: metrics.jsonl; stages: the rows of the stages."""

    start: dict[str, Tensor]
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    evaluation: dict[str, float] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    stopped: bool = False
    skipped: int = 0

    def steps(self, phase: str = "train") -> list[dict[str, Any]]:
        return [line for line in self.lines if line["kind"] == "step" and line["phase"] == phase]

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.steps()]


def recipe_of(*overrides: str, world: World = World(), **sections: Any) -> Recipe:
    """The recipe of this module with overrides, and whole sections replaced by the keyword arguments."""
    launch = {**DIGITS["launch"], "procs_per_node": world.size, "launcher": "torchrun" if world.size > 1 else "local"}
    return check(recipe_from_text(yaml.safe_dump({**DIGITS, "launch": launch, **sections}), "small", list(overrides)))


def prepared(
    world: World, folder: Path, *overrides: str, stop: int | None = None, **sections: Any
) -> tuple[Run, Phase]:
    """What `fit` trains, before it does so."""
    recipe = recipe_of(*overrides, world=world, **sections)
    folder.mkdir(parents=True, exist_ok=True)
    return prepare(recipe, folder, world, StopBefore(stop), argparse.Namespace(debug=False, resume=None))


def fit(world: World, folder: Path, *overrides: str, stop: int | None = None, **sections: Any) -> Done:
    """Train, and run the stages if there are any. stop: be asked to stop before this step of this life."""
    run, phase = prepared(world, folder, *overrides, stop=stop, **sections)
    return finished(run, phase)


def finished(run: Run, phase: Phase) -> Done:
    done = Done(copies(run.backend.model.state_dict()), {}, {})
    try:
        done.evaluation = train(run, phase)
        if run.recipe.after:
            done.stages = run_stages(run, done.evaluation)
    except Stopped:
        done.stopped = True
    run.world.barrier()  # rank 0 has written its lines
    state = run.backend.state(phase.optimizer)
    done.optimizer = {name: tensor for name, tensor in state.items() if name.startswith("optimizer/")}
    done.weights = copies(run.backend.model.state_dict())
    done.lines, done.skipped = read_lines(run.folder), phase.skipped
    return done


def read_lines(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def fit_on(size: int, folder: Path, *overrides: str, stop: int | None = None, **sections: Any) -> list[Done]:
    """fit on `size` ranks; one rank runs in this process. All ranks must end with the same weights."""
    if size == 1:
        return [fit(World(), folder, *overrides, stop=stop, **sections)]
    from ranks import run_ranks

    ranks = run_ranks(_fit_rank, size, folder, overrides, stop, sections)
    for other in ranks[1:]:
        assert_same(other.weights, ranks[0].weights)
    return ranks


def _fit_rank(world: World, folder: Path, overrides: tuple, stop: int | None, sections: dict) -> Done:
    return fit(world, folder, *overrides, stop=stop, **sections)


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Bit by bit."""
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert torch.equal(left[name], right[name]), name


def assert_near(left: dict[str, Tensor], right: dict[str, Tensor], rtol: float) -> None:
    """Each tensor within rtol of its largest value."""
    assert left.keys() == right.keys()
    for name in left:
        apart = (left[name].double() - right[name].double()).abs().max()
        assert apart <= rtol * right[name].double().abs().max(), f"{name}: {apart}"


def largest_difference(left: list[float], right: list[float]) -> float:
    """Relative, over two lists of losses of one length."""
    assert len(left) == len(right) > 0
    return max(abs(a - b) / abs(b) for a, b in zip(left, right, strict=True))
