"""Pruning, retraining and sharing after the training: through the engine, on one and on several ranks."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from small_runs import assert_near, assert_same, copies, finished, fit, fit_on, prepared, read_lines

from distmem.compress.masks import Masks
from distmem.distributed import World
from distmem.engine import train
from distmem.errors import CompressError
from distmem.stages import run_stages

WEIGHTS = ("layers.0.weight", "layers.1.weight", "layers.2.weight")
NUMBERS = 64 * 32 + 32 * 16 + 16 * 10
PRUNE = {"prune": {"method": "global", "sparsity": 0.8}}
GRADUAL = {"prune": {"method": "global", "sparsity": 0.9, "gradual": {"epochs": 2, "every": "5steps"}}}
RETRAIN = {"retrain": {"epochs": 1}}
SHARE = {"share": {"bits": 3}}
ALL = [PRUNE, RETRAIN, SHARE]
SHORT = ("train.steps=12", "optim.lr=0.3")


def zeros(weights):
    return sum(int((weights[name] == 0).sum()) for name in WEIGHTS)


def masks_of(folder):
    return Masks.load(folder / "masks.safetensors")


def without_times(rows):
    return [{key: value for key, value in row.items() if key != "wall_s"} for row in rows]


OPTIMIZERS = {
    "adam": {"name": "adam", "lr": 0.01, "args": {"weight_decay": 0.01}},
    "sgd": {"name": "sgd", "lr": 0.3, "args": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.001}},
    "adamw": {"name": "adamw", "lr": 0.01, "args": {"weight_decay": 0.5}},
    "adadelta": {"name": "adadelta", "lr": 1.0},
    "drift": {"name": "small_parts:Drift", "lr": 0.3},
}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_stay_exactly_zero(name, size, tmp_path):
    """In retraining, whatever the optimizer does with momentum and decay; and the rest learns."""
    after = [PRUNE, {"retrain": {"epochs": 1, "optim": OPTIMIZERS[name]}}]
    done = fit_on(size, tmp_path, *SHORT, after=after)[0]
    pruned = load_file(tmp_path / "stages" / "01-prune" / "model.safetensors")
    retrained = load_file(tmp_path / "stages" / "02-retrain" / "model.safetensors")
    masks = masks_of(tmp_path / "stages" / "01-prune")
    assert zeros(pruned) == round(0.8 * NUMBERS)
    for weight in WEIGHTS:
        assert torch.equal(retrained[weight][~masks[weight]], torch.zeros(int((~masks[weight]).sum())))
        assert (retrained[weight][masks[weight]] != pruned[weight][masks[weight]]).float().mean() > 0.5
    assert_same(retrained, done.weights)
    dense, cut, again = done.stages
    assert cut["val_loss"] > dense["val_loss"]
    assert again["val_loss"] < cut["val_loss"]
    assert again["nonzeros"] <= cut["nonzeros"] < dense["nonzeros"] == dense["total"]


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true", "64-true"])
def test_pruned_weights_stay_zero_in_other_precisions(precision, tmp_path):
    done = fit(World(), tmp_path, *SHORT, f"train.precision={precision}", after=[PRUNE, RETRAIN])
    assert zeros(done.weights) >= round(0.8 * NUMBERS)
    assert len(done.steps("2-retrain")) == 12


def test_the_first_moments_of_a_fresh_optimizer(tmp_path):
    """Retraining starts anew: at its first step SGD's momentum is the gradient alone, and its steps count from 1."""
    done = fit(World(), tmp_path, *SHORT, after=[PRUNE, RETRAIN])
    assert [line["step"] for line in done.steps("2-retrain")] == list(range(1, 13))
    run, phase = prepared(World(), tmp_path / "by hand", *SHORT)
    train(run, phase)
    masks = masks_of(tmp_path / "stages" / "01-prune")
    parameters = dict(run.backend.model.named_parameters())
    masks.apply_(parameters)
    pruned = load_file(tmp_path / "stages" / "01-prune" / "model.safetensors")
    assert_same(copies(parameters), pruned)


@pytest.mark.parametrize("method", ["layer", "global"])
def test_gradual_pruning_reaches_exactly_its_sparsity(method, tmp_path):
    stage = {"prune": {**GRADUAL["prune"], "method": method, "gradual": {"epochs": 2, "every": "3steps"}}}
    seen = []
    run, phase = prepared(World(), tmp_path, *SHORT, after=[stage])
    import distmem.stages

    plain = distmem.stages._masks

    def noting(run, settings, share, previous):
        masks = plain(run, settings, share, previous)
        seen.append((share, masks.total() - masks.nonzeros()))
        return masks

    distmem.stages._masks = noting
    try:
        done = finished(run, phase)
    finally:
        distmem.stages._masks = plain
    # 24 steps, an update every 3 of them: 0, 3 ... 21; s = s_f (1 - (1 - t/21)^3)
    expected = [1 - (1 - step / 21) ** 3 for step in range(0, 24, 3)]
    assert [share for share, _ in seen] == pytest.approx(expected)
    sizes = [64 * 32, 32 * 16, 16 * 10]
    for share, pruned in seen:
        wanted = [round(0.9 * share * size) for size in (sizes if method == "layer" else [NUMBERS])]
        assert pruned == sum(wanted)
    assert zeros(done.weights) >= sum(round(0.9 * size) for size in (sizes if method == "layer" else [NUMBERS]))
    masks = masks_of(tmp_path / "stages" / "01-prune")
    assert masks.total() - masks.nonzeros() == seen[-1][1]


@pytest.mark.parametrize("optim", ["adam", "sgd"])
def test_gradual_pruning_stopped_in_the_midst(optim, tmp_path):
    """Between two updates and at one: masks, weights and momenta go on bit by bit."""
    stage = {"prune": {**GRADUAL["prune"], "gradual": {**GRADUAL["prune"]["gradual"], "optim": OPTIMIZERS[optim]}}}
    after = [stage, RETRAIN]
    whole = fit(World(), tmp_path / "whole", *SHORT, after=after)
    for stop in (12 + 8, 12 + 10):
        folder = tmp_path / str(stop)
        assert fit(World(), folder, *SHORT, stop=stop, after=after).stopped
        done = fit(World(), folder, *SHORT, after=after)
        assert [line.get("loss") for line in done.lines] == [line.get("loss") for line in whole.lines]
        assert_same(done.weights, whole.weights)
        assert masks_of(folder / "stages" / "01-prune") == masks_of(tmp_path / "whole" / "stages" / "01-prune")
        assert without_times(done.stages) == without_times(whole.stages)


def test_stopped_anywhere_the_stages_go_on(tmp_path):
    """After the training, within gradual pruning, between stages, within retraining: the log and the rows are whole."""
    after = [GRADUAL, RETRAIN, SHARE]
    whole = fit(World(), tmp_path / "whole", *SHORT, after=after)
    lives = 0
    while (done := fit(World(), tmp_path / "parts", *SHORT, stop=7, after=after)).stopped:
        lives += 1
    assert lives >= 5  # 12 + 24 + 12 steps
    assert_same(done.weights, whole.weights)
    assert without_times(done.stages) == without_times(whole.stages)
    keys = [(line["kind"], line["phase"], line["step"], line.get("loss")) for line in done.lines]
    assert keys == [(line["kind"], line["phase"], line["step"], line.get("loss")) for line in whole.lines]


def test_a_stage_that_is_done_is_taken_over(tmp_path):
    whole = fit(World(), tmp_path, *SHORT, after=ALL)
    for name in ("03-share",):
        shutil.rmtree(tmp_path / "stages" / name)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("stages/*/*.safetensors")}
    assert len(times) == 4
    run, phase = prepared(World(), tmp_path, *SHORT, after=ALL)
    done = finished(run, phase)
    assert without_times(done.stages) == without_times(whole.stages)
    assert_same(done.weights, whole.weights)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert read_lines(tmp_path) == whole.lines


def test_what_a_stage_leaves(tmp_path):
    done = fit(World(), tmp_path, *SHORT, after=ALL)
    folders = sorted(path.name for path in (tmp_path / "stages").iterdir())
    assert folders == ["01-prune", "02-retrain", "03-share"]
    for row, name in zip(done.stages[1:], folders, strict=True):
        folder = tmp_path / "stages" / name
        written = json.loads((folder / "stage.json").read_text())
        codebooks = written.pop("codebooks")
        assert written == json.loads(json.dumps(row))
        weights = load_file(folder / "model.safetensors")
        assert zeros(weights) == row["total"] - row["nonzeros"] - sum(
            int((tensor == 0).sum()) for key, tensor in weights.items() if key not in WEIGHTS
        )
        assert row["compression_rate"] == pytest.approx(row["total"] / row["nonzeros"])
        assert set(codebooks) == (set(WEIGHTS) if name == "03-share" else set())
        assert masks_of(folder).nonzeros() == NUMBERS - round(0.8 * NUMBERS)
    assert (tmp_path / "stages" / "02-retrain" / "checkpoints").is_dir()
    shared = load_file(tmp_path / "stages" / "03-share" / "model.safetensors")
    assert all(len(shared[name][shared[name] != 0].unique()) <= 8 for name in WEIGHTS)
    assert [row["name"] for row in done.stages] == ["dense", "prune", "retrain", "share"]


def _shared(world, folder, source):
    run, _ = prepared(world, folder, *SHORT, after=[SHARE])
    from distmem.export import import_weights

    import_weights(run.backend.model, source)
    rows = run_stages(run, {"val_loss": 1.0, "val_accuracy": 0.5})
    return copies(run.backend.model.state_dict()), without_times(rows)


def test_codebooks_do_not_depend_on_the_ranks(tmp_path):
    """Three layers on 1, 2, 3 and 4 ranks: one rank solves them all, or one has none."""
    fit(World(), tmp_path / "dense", *SHORT, after=[PRUNE])
    source = tmp_path / "dense" / "stages" / "01-prune" / "model.safetensors"
    alone, rows = _shared(World(), tmp_path / "1", source)
    dense = load_file(source)
    assert all(torch.equal(alone[name] == 0, dense[name] == 0) for name in WEIGHTS)
    for size in (2, 3, 4):
        for weights, same in run_ranks(_shared, size, tmp_path / str(size), source):
            assert_same(weights, alone)
            assert [row["nonzeros"] for row in same] == [row["nonzeros"] for row in rows]


def test_two_ranks_do_what_one_does(tmp_path):
    exact = "train.precision=64-true"
    alone = fit(World(), tmp_path / "1", *SHORT, exact, after=[GRADUAL, RETRAIN])
    done = fit_on(2, tmp_path / "2", *SHORT, exact, after=[GRADUAL, RETRAIN])[0]
    assert masks_of(tmp_path / "1" / "stages" / "01-prune") == masks_of(tmp_path / "2" / "stages" / "01-prune")
    assert_near(done.weights, alone.weights, 1e-8)


def test_two_ranks_stopped_and_resumed_in_a_stage(tmp_path):
    after = [GRADUAL, RETRAIN, SHARE]
    whole = fit_on(2, tmp_path / "whole", *SHORT, after=after)[0]
    assert all(done.stopped for done in fit_on(2, tmp_path / "parts", *SHORT, stop=20, after=after))
    done = fit_on(2, tmp_path / "parts", *SHORT, after=after)[0]
    assert_same(done.weights, whole.weights)
    assert without_times(done.stages) == without_times(whole.stages)


def test_pruning_twice_adds_up(tmp_path):
    more = {"prune": {"method": "std", "sensitivity": 3.0, "layers": "layers.0.*"}}
    done = fit(World(), tmp_path, *SHORT, after=[PRUNE, more, RETRAIN])
    first, second = (masks_of(tmp_path / "stages" / name) for name in ("01-prune", "02-prune"))
    assert set(second) == set(WEIGHTS)  # the layers that the second stage leaves alone stay pruned
    assert zeros(done.weights) >= second.total() - second.nonzeros() > first.total() - first.nonzeros()
    name = "layers.0.weight"
    assert not (second[name] & ~first[name]).any()
    assert second[name].sum() < first[name].sum()


def test_too_few_steps_for_gradual_pruning(tmp_path):
    stage = {"prune": {"method": "global", "sparsity": 0.5, "gradual": {"epochs": 1, "every": "2epochs"}}}
    with pytest.raises(CompressError, match="no mask update between the first and the last"):
        fit(World(), tmp_path, "train.steps=2", after=[stage])


def _different(world, folder):
    run, phase = prepared(world, folder, "train.steps=1", after=[PRUNE])
    train(run, phase)
    with torch.no_grad():
        run.backend.model.layers[0].weight.mul_(1 + world.rank)  # as if a rank had gone astray
    with pytest.raises(CompressError, match="masks differ between ranks"):
        run_stages(run, {"val_loss": 1.0})


def test_ranks_that_hold_other_weights_are_found(tmp_path):
    run_ranks(_different, 2, tmp_path)
