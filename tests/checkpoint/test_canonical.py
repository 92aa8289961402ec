"""Names that no optimizer, precision or wrapper changes; weights that do not fit are told by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distmem.checkpoint.canonical import below, load_replicated, load_weights, replicated_state
from distmem.checkpoint.store import read_checkpoint, write_checkpoint
from distmem.errors import CheckpointError
from distmem.export import export_weights, import_weights


def network(width: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 2))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    torch.manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def test_names():
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    trained(model, optimizer, 1, 0)
    state = replicated_state(model, optimizer)
    parameters = [name for name, _ in model.named_parameters()]
    expected = {f"model/{name}" for name in model.state_dict()}
    expected |= {f"optimizer/{name}/{key}" for name in parameters for key in ("exp_avg", "exp_avg_sq", "step")}
    assert state.keys() == expected
    assert {f"model/{name}" for name in ("1.running_mean", "1.num_batches_tracked", "3.weight")} < expected
    assert replicated_state(model, None).keys() == {f"model/{name}" for name in model.state_dict()}
    assert below(state, "optimizer/3.bias/").keys() == {"exp_avg", "exp_avg_sq", "step"}


def test_copies_do_not_follow_the_training():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    state = replicated_state(model, optimizer)
    before = {name: tensor.clone() for name, tensor in state.items()}
    trained(model, optimizer, 1, 0)
    assert not torch.equal(before["model/0.weight"], model[0].weight)
    for name, tensor in before.items():
        assert torch.equal(state[name], tensor)


@pytest.mark.parametrize(
    "kind",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
        lambda p: torch.optim.Adadelta(p),
        lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
        lambda p: torch.optim.NAdam(p),
        lambda p: torch.optim.ASGD(p),
        lambda p: torch.optim.Rprop(p),
        lambda p: torch.optim.SGD(p, lr=0.1),
    ],
)
def test_a_run_goes_on_bit_by_bit(tmp_path, kind):
    torch.manual_seed(1)
    model = network()
    optimizer = kind(model.parameters())
    trained(model, optimizer, 3, 0)
    write_checkpoint(tmp_path / "one", replicated_state(model, optimizer), {"step": 3})
    other = network()
    its = kind(other.parameters())
    load_replicated(read_checkpoint(tmp_path / "one").tensors, other, its)
    trained(model, optimizer, 3, 7)
    trained(other, its, 3, 7)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_kept_as_float32_and_come_back(dtype):
    model = network().to(dtype)
    state = replicated_state(model, None)
    assert state["model/0.weight"].dtype == torch.float32
    other = network().to(dtype)
    load_replicated(state, other, None)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])


def test_weights_that_do_not_fit():
    weights = dict(network(6).state_dict())
    weights["0.wieght"] = weights.pop("0.weight")
    weights["extra"] = torch.zeros(1)
    model = network(5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(weights, model, "old.safetensors")
    said = str(caught.value)
    assert "old.safetensors does not fit the model: 9 of 9 names or shapes differ" in said
    assert '0.weight: in the model only. Did you mean "0.wieght"?' in said
    assert "extra: in old.safetensors only" in said
    assert "3.weight: (2, 6) in old.safetensors, (2, 5) in the model" in said
    assert "use the model and the arguments it was trained with" in said
    for name, tensor in model.state_dict().items():  # nothing is half loaded
        assert torch.equal(tensor, before[name])


def test_many_differences_are_cut_short():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(15)))
    with pytest.raises(CheckpointError, match=r"30 of 30 names or shapes differ(.*\n){21}.*and 10 more"):
        load_weights({}, model)


def test_weights_of_a_file_a_run_and_a_checkpoint(tmp_path):
    model = network()
    export_weights(model, tmp_path / "model.safetensors")
    write_checkpoint(tmp_path / "step-00000001", replicated_state(model, None), {"step": 1})
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "step-00000001"):
        other = network()
        import_weights(other, path)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name])


def test_tied_weights_are_exported_under_each_name(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    export_weights(model, tmp_path / "tied.safetensors")
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    import_weights(other, tmp_path / "tied.safetensors")
    assert torch.equal(other[0].weight, other[1].weight)
    assert torch.equal(other[0].weight, model[0].weight)


def test_files_that_are_no_weights(tmp_path):
    torch.save(network().state_dict(), tmp_path / "pickled.pt")
    with pytest.raises(
        CheckpointError, match=r"pickled.pt is damaged, or no safetensors file.*(\n.*)*pickled files are not read"
    ):
        import_weights(network(), tmp_path / "pickled.pt")
    with pytest.raises(CheckpointError, match=r"cannot read .*none.safetensors: No such file"):
        import_weights(network(), tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match=r"cannot write the weights to .*/no/where"):
        export_weights(network(), tmp_path / "no" / "where")
