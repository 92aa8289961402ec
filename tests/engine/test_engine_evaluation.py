"""Evaluation counts each sample once, and is the evaluation of the weights that are written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_parts import NormNet, few
from small_runs import fit, fit_on, prepared

from distmem.data.loader import evaluation_batches
from distmem.distributed import World
from distmem.evaluation import evaluate, improves
from distmem.export import export_weights, import_weights

FEW = ("data.name=small_parts:few", "train.batch_size=16", "train.steps=2", "train.precision=64-true")


class Seen:
    """A split that notes which of its samples are asked for."""

    def __init__(self, split):
        self.split, self.ids = split, []

    def __len__(self):
        return len(self.split)

    def gather(self, ids):
        self.ids += ids.tolist()
        return self.split.gather(ids)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("samples", "batch", "workers"), [(201, 16, 0), (5, 64, 2), (64, 64, 1), (1, 3, 0)])
def test_ranks_together_see_each_sample_once(size, samples, batch, workers):
    from distmem.data.split import Columns

    seen = Seen(Columns(torch.arange(samples)[:, None], torch.arange(samples)))
    for rank in range(size):
        for x, y in evaluation_batches(seen, batch, World(rank=rank, size=size), workers):
            assert torch.equal(x[:, 0], y)
            assert 0 < len(x) <= batch
    assert sorted(seen.ids) == list(range(samples))


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_numbers_are_those_of_the_whole_split(size, tmp_path):
    """201 samples on up to 4 ranks, in batches of 64 at most: neither divides them."""
    done = fit_on(size, tmp_path, *FEW, "metrics=[accuracy, top5, small_parts:off_by]")[0]
    x, y = few()["test"]
    assert len(x) == 201
    weights = list(done.weights.values())
    for weight, bias in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = F.relu(x.double() @ weight.T + bias)
    scores = x @ weights[-2].T + weights[-1]
    assert done.evaluation["val_loss"] == pytest.approx(float(F.cross_entropy(scores, y)), rel=1e-12)
    assert done.evaluation["val_accuracy"] * 201 == pytest.approx(int((scores.argmax(1) == y).sum()))
    assert done.evaluation["val_top5"] * 201 == pytest.approx(int((scores.topk(5).indices == y[:, None]).sum()))
    assert done.evaluation["val_off_by"] * 201 == pytest.approx(int((scores.argmax(1) - y).abs().sum()))


@pytest.mark.parametrize("eval_batch", [1, 50, 1000])
def test_the_size_of_its_batches_changes_nothing(eval_batch, tmp_path):
    done = fit(World(), tmp_path / "some", *FEW, f"train.eval_batch_size={eval_batch}")
    auto = fit(World(), tmp_path / "auto", *FEW)
    assert done.evaluation == pytest.approx(auto.evaluation, rel=1e-12)


@pytest.mark.parametrize("size", [1, 2])
def test_batch_statistics_are_those_that_are_saved(size, tmp_path):
    """Each rank sees its own batches; evaluated is the model that the file will hold, not a mixture."""
    model = {"name": "small_parts:NormNet"}
    done = fit_on(size, tmp_path, "train.steps=9", model=model)[0]
    net = NormNet(64, 10)
    net.load_state_dict(done.weights)
    net.eval()
    x, y = digits_test()
    scores = net(x).detach()
    assert done.evaluation["val_loss"] == pytest.approx(float(F.cross_entropy(scores, y)), rel=1e-5)
    assert done.evaluation["val_accuracy"] == pytest.approx(float((scores.argmax(1) == y).double().mean()), abs=1e-9)


def digits_test():
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    split = train_test_split(digits.data / 16, digits.target, test_size=0.2, stratify=digits.target, random_state=0)
    return torch.tensor(split[1]).float(), torch.tensor(split[3])


def test_it_leaves_the_model_in_training_and_draws_nothing(tmp_path):
    run, _ = prepared(World(), tmp_path, model={"name": "small_parts:DropoutNet"})
    before = torch.get_rng_state()
    first = evaluate(run)
    assert torch.equal(torch.get_rng_state(), before)
    assert run.backend.model.training
    assert all(parameter.grad is None for parameter in run.backend.model.parameters())
    assert evaluate(run) == first  # no dropout


def test_exported_weights_evaluate_the_same(tmp_path):
    run, _ = prepared(World(), tmp_path)
    with torch.no_grad():
        run.backend.model.layers[0].weight.mul_(2)
    first = evaluate(run)
    export_weights(run.backend.model, tmp_path / "model.safetensors")
    other, _ = prepared(World(), tmp_path / "other", seed=9)
    assert evaluate(other) != first
    import_weights(other.backend.model, tmp_path / "model.safetensors")
    assert evaluate(other) == first


@pytest.mark.parametrize(("every", "steps"), [("1epoch", [12, 24, 26]), ("5steps", [5, 10, 15, 20, 25, 26])])
def test_when_it_is_done(every, steps, tmp_path):
    done = fit(World(), tmp_path, f"train.eval_every={every}")
    lines = [line for line in done.lines if line["kind"] == "eval"]
    assert [line["step"] for line in lines] == steps
    assert {key: lines[-1][key] for key in done.evaluation} == done.evaluation


def test_best_goes_up_for_accuracy_and_down_for_losses(tmp_path):
    _, phase = prepared(World(), tmp_path)
    assert not improves(phase, {"val_accuracy": 1.0})  # nothing to keep the best by
    for name, values, better in (
        ("val_accuracy", [0.1, 0.3, 0.2, 0.3, 0.4], [True, True, False, False, True]),
        ("val_loss", [0.4, 0.5, 0.3, float("nan"), 0.2], [True, False, True, False, True]),
    ):
        phase.best, phase.best_value = name, None
        assert [improves(phase, {name: value}) for value in values] == better
