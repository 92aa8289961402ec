"""Odd models, optimizers and data go on as exactly as the usual ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from small_runs import assert_same, fit

from distmem.distributed import World
from distmem.errors import CheckpointError, ModelError, TrainingError
from distmem.memory.optimizers import build_optimizer

ADAM = {"name": "adam", "lr": 0.01}
ITEMS = {
    "model": {"name": "small_parts:DropoutNet", "args": {"features": 64, "classes": 10}},
    "data": {"name": "small_parts:noisy"},
    "train": {"steps": 9, "batch_size": 8},
}


def resumed(folder: Path, *overrides: str, **sections) -> None:
    whole = fit(World(), folder / "whole", *overrides, **sections)
    fit(World(), folder / "parts", *overrides, stop=4, **sections)
    parts = fit(World(), folder / "parts", *overrides, **sections)
    assert parts.losses == whole.losses
    assert_same(parts.weights, whole.weights)
    assert_same(parts.optimizer, whole.optimizer)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_weights_that_are_not_row_major_and_scalars(precision, tmp_path):
    resumed(tmp_path, f"train.precision={precision}", model={"name": "small_parts:ChannelsLast"}, optim=ADAM)


def test_numbers_that_an_optimizer_keeps_in_its_groups(tmp_path):
    resumed(tmp_path, optim={"name": "small_parts:CountingSGD", "lr": 0.1, "args": {"momentum": 0.9}})


def test_items_that_draw_random_numbers(tmp_path):
    resumed(tmp_path, **ITEMS)
    again = fit(World(), tmp_path / "again", **ITEMS)
    once_more = fit(World(), tmp_path / "once more", **ITEMS)
    assert again.losses == once_more.losses


def test_no_fused_kernel_for_weights_with_gaps():
    whole = torch.nn.Parameter(torch.randn(4, 8)[:, :4])
    assert not build_optimizer("adam", [whole], 0.1, {}).defaults["fused"]
    dense = torch.nn.Parameter(torch.randn(4, 4))
    assert build_optimizer("adam", [dense], 0.1, {}).defaults["fused"]


def test_other_data_is_not_gone_on_with(tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("a,label\n" + "".join(f"{i},{i % 3}\n" for i in range(200)))
    data = {"name": "csv", "args": {"path": str(table), "target": "label"}}
    fit(World(), tmp_path / "run", stop=4, data=data)
    with table.open("a") as more:
        more.write("7,1\n" * 50)
    with pytest.raises(CheckpointError, match="with 160 training samples, and now there are 200"):
        fit(World(), tmp_path / "run", data=data)


def _broadcast(world):
    whole = torch.arange(24.0).view(4, 6) if world.first else torch.zeros(4, 6)
    view = whole[:, ::2]
    world.broadcast(view)
    return whole


def test_a_view_is_broadcast_with_its_own_elements():
    first, second = run_ranks(_broadcast, 2)
    assert torch.equal(second[:, ::2], first[:, ::2])
    assert not second[:, 1::2].any()


def _unused(world, folder):
    with pytest.raises(ModelError, match="got no gradient in the step before"):
        fit(world, folder, model={"name": "small_parts:Unused"})


def test_a_parameter_without_a_gradient_on_two_ranks(tmp_path):
    run_ranks(_unused, 2, tmp_path)


def test_nll_of_scores_that_are_no_log_probabilities(tmp_path):
    with pytest.raises(TrainingError, match=r"nll takes log-probabilities(.|\n)*cross_entropy"):
        fit(World(), tmp_path, loss="nll")


def test_cross_entropy_on_numbers_says_what_to_use(tmp_path):
    with pytest.raises(TrainingError, match=r"needs class numbers, and the targets are float32\n  try: .*mse"):
        fit(World(), tmp_path, data={"name": "small_parts:numbers"}, model={"name": "mlp", "args": {"hidden": [4]}})
