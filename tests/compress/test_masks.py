from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch import nn

from distmem.compress.masks import Masks
from distmem.compress.prune import sparsity_masks
from distmem.compress.select import select
from distmem.errors import CompressError


def random_masks(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Masks({name: torch.rand(shape, generator=generator) < 0.4 for name, shape in shapes.items()})


SHAPES = {"a.weight": (3, 5), "b.weight": (2, 3, 1, 7), "c.bias": (1,)}


def test_apply_zeroes_the_pruned_and_leaves_the_rest_bitwise():
    masks = random_masks(SHAPES)
    params = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    params["unmasked"] = torch.randn(4)
    before = {name: param.clone() for name, param in params.items()}
    masks.apply_(params)
    for name, mask in masks.items():
        assert torch.equal(params[name], torch.where(mask, before[name], 0.0))
    assert torch.equal(params["unmasked"], before["unmasked"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_and_memory_formats(dtype):
    mask = torch.rand(4, 3, 2, 2) < 0.5
    weight = torch.randn(4, 3, 2, 2).to(dtype).to(memory_format=torch.channels_last)
    expected = torch.where(mask, weight, 0)
    Masks({"w": mask}).apply_({"w": weight})
    assert weight.dtype == dtype
    assert torch.equal(weight, expected)


def test_parameters_that_need_gradients_are_masked_in_place(net):
    params = dict(net.named_parameters())
    masks = sparsity_masks(select(params), 0.5)
    versions = {name: param.data_ptr() for name, param in params.items()}
    masks.apply_(params)
    assert {name: param.data_ptr() for name, param in params.items()} == versions
    assert all(param.requires_grad for param in params.values())


def test_gradients_are_masked_and_none_is_skipped():
    masks = Masks({"a": torch.tensor([True, False]), "b": torch.tensor([False, True])})
    a, b = (nn.Parameter(torch.ones(2)) for _ in "ab")
    a.grad = torch.tensor([3.0, 4.0])
    masks.mask_gradients_({"a": a, "b": b})
    assert a.grad.tolist() == [3.0, 0.0]
    assert b.grad is None
    assert a.tolist() == [1.0, 1.0]


def test_a_sparse_gradient_is_refused():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(CompressError, match="sparse=False"):
        Masks({"weight": torch.ones(5, 2, dtype=torch.bool)}).mask_gradients_(dict(embedding.named_parameters()))


def test_a_mask_does_not_hide_a_diverged_weight():
    weight = torch.tensor([float("inf"), 1.0])
    Masks({"w": torch.tensor([False, False])}).apply_({"w": weight})
    assert torch.isnan(weight[0])
    assert weight[1] == 0


@pytest.mark.parametrize("params", [{}, {"w": torch.ones(2, 1)}, {"w": torch.ones(1, 2)}])
def test_masks_of_another_model_are_refused(params):
    masks = Masks({"w": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(CompressError, match='"w"'):
        masks.apply_(params)


def test_only_bool_tensors_are_masks():
    with pytest.raises(CompressError, match="float32"):
        Masks({"w": torch.ones(2)})


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, amsgrad=True),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0, weight_decay=1e-3),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.9, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3, weight_decay=1e-2, decoupled_weight_decay=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("fresh", [True, False], ids=["fresh", "used"])
def test_pruned_weights_are_zero_after_200_steps(name, fresh, net, digits):
    inputs, labels = digits
    params = dict(net.named_parameters())
    optimizer = OPTIMIZERS[name](net.parameters())

    def step(number, masks=None):
        part = torch.arange(number * 64, number * 64 + 64) % 1400
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs[part]), labels[part]).backward()
        if masks:
            masks.mask_gradients_(params)
        optimizer.step()
        if masks:
            masks.apply_(params)

    if not fresh:
        for number in range(5):
            step(number)
    masks = sparsity_masks(select(params), 0.8)
    masks.apply_(params)
    masks.zero_moments_(optimizer, params)
    start = {key: param.detach().clone() for key, param in params.items()}
    for number in range(200):
        step(number, masks)
        assert all(int(params[key][~mask].count_nonzero()) == 0 for key, mask in masks.items())
    for key, mask in masks.items():
        # pixels that are always dark give no gradient, so not all kept weights move
        assert int((params[key] != start[key])[mask].sum()) > 0.4 * int(mask.sum())
        assert all(
            int(state[~mask].count_nonzero()) == 0
            for state in optimizer.state[params[key]].values()
            if isinstance(state, torch.Tensor) and state.shape == mask.shape
        )
    assert (net(inputs[1400:]).argmax(1) == labels[1400:]).float().mean() > 0.8


def test_masked_gradients_alone_are_not_enough(net, digits):
    """Why apply_ has to follow the step: momentum from before moves pruned weights."""
    params = dict(net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    nn.functional.cross_entropy(net(digits[0]), digits[1]).backward()
    optimizer.step()
    masks = sparsity_masks(select(params), 0.5)
    masks.apply_(params)
    masks.mask_gradients_(params)
    optimizer.step()
    assert int(params["3.weight"][~masks["3.weight"]].count_nonzero()) > 0


def test_moments_are_zeroed_only_where_pruned_and_only_of_the_right_kind():
    param = nn.Parameter(torch.ones(2, 2))
    mask = torch.tensor([[True, False], [False, True]])
    optimizer = torch.optim.Adam([param])
    optimizer.state[param] = {
        "step": torch.tensor(7.0),
        "exp_avg": torch.full((2, 2), 3.0),
        "row": torch.ones(2),
        "codes": torch.full((2, 2), 9, dtype=torch.uint8),
    }
    Masks({"w": mask}).zero_moments_(optimizer, {"w": param})
    state = optimizer.state[param]
    assert state["exp_avg"].tolist() == [[3.0, 0.0], [0.0, 3.0]]
    assert (state["step"], state["row"].sum(), int(state["codes"].min())) == (7.0, 2.0, 9)


def test_the_step_count_is_no_moment_of_a_scalar():
    param = nn.Parameter(torch.tensor(2.0))
    optimizer = torch.optim.Adam([param])
    param.grad = torch.tensor(1.0)
    optimizer.step()
    Masks({"w": torch.tensor(False)}).zero_moments_(optimizer, {"w": param})
    assert optimizer.state[param]["step"] == 1


def test_counts_and_bytes():
    masks = Masks({"a": torch.tensor([[True, False, True]]), "b": torch.zeros(4, dtype=torch.bool)})
    assert (masks.nonzeros(), masks.total(), masks.bytes) == (2, 7, 7)
    masks.apply_({"a": torch.ones(1, 3), "b": torch.ones(4)})
    masks.apply_({"a": torch.ones(1, 3), "b": torch.ones(4)})
    assert masks.bytes == 7 + 7 * 4


def test_the_digest_tells_any_difference():
    base = random_masks(SHAPES)
    reordered = Masks(dict(reversed(list(base.items()))))
    assert reordered.digest() == base.digest()
    flipped = {name: mask.clone() for name, mask in base.items()}
    flipped["b.weight"][1, 2, 0, 6] ^= True
    reshaped = {**base, "a.weight": base["a.weight"].reshape(5, 3)}
    renamed = {("x.weight" if name == "a.weight" else name): mask for name, mask in base.items()}
    digests = {Masks(masks).digest() for masks in (dict(base), flipped, reshaped, renamed)}
    assert len(digests) == 4
    assert base == reordered
    assert base != Masks(flipped)


shapes = st.dictionaries(
    st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__" and name.isprintable()),
    st.lists(st.integers(0, 5), max_size=4),
    max_size=4,
)


@settings(deadline=None, max_examples=60)
@given(shapes, st.integers(0, 99))
def test_what_is_saved_is_loaded(tmp_path_factory, shapes, seed):
    masks = random_masks(shapes, seed)
    path = tmp_path_factory.mktemp("masks") / "m.safetensors"
    masks.save(path)
    loaded = Masks.load(path)
    assert loaded.digest() == masks.digest()
    assert {name: mask.tolist() for name, mask in loaded.items()} == {n: m.tolist() for n, m in masks.items()}
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_file_takes_one_bit_per_weight(tmp_path):
    masks = random_masks({"w": (300, 784)})
    masks.save(tmp_path / "m.safetensors")
    assert 300 * 784 / 8 <= (tmp_path / "m.safetensors").stat().st_size < 300 * 784 / 8 + 400


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_a_damaged_file_is_refused_or_reads_the_same(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("masks") / "m.safetensors"
    masks = random_masks(SHAPES)
    masks.save(path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="truncate"):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        loaded = Masks.load(path)
    except CompressError:
        return
    assert loaded.digest() == masks.digest()


def test_every_flipped_bit_of_a_mask_is_noticed(tmp_path):
    path = tmp_path / "m.safetensors"
    random_masks({"w": (9, 11)}).save(path)
    content = path.read_bytes()
    for place in range(len(content) - 13, len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            # the last byte ends with padding: 99 = 12 * 8 + 3, and padding carries nothing
            if place == len(content) - 1 and bit < 5:
                assert Masks.load(path).total() == 99
            else:
                with pytest.raises(CompressError, match="damaged"):
                    Masks.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"shapes": "[1"},
        {"shapes": json.dumps({"v": [2, 4]})},
        {"shapes": json.dumps({"w": [2, 40]})},
        {"shapes": json.dumps({"w": [-2, -4]})},
        {"shapes": json.dumps({"w": "eight"})},
        {"shapes": json.dumps({"w": [4, 2]})},
        {"digest": "0" * 32},
    ],
)
def test_foreign_metadata_is_refused(tmp_path, change):
    path = tmp_path / "m.safetensors"
    masks = random_masks({"w": (2, 4)})
    masks.save(path)
    metadata = {"format": "distmem-masks-1", "shapes": json.dumps({"w": [2, 4]}), "digest": masks.digest()}
    tensors = load_file(path)
    save_file(tensors, path, metadata)
    assert Masks.load(path) == masks
    save_file(tensors, path, {**metadata, **change})
    with pytest.raises(CompressError, match="damaged"):
        Masks.load(path)


def test_other_files_and_places_are_refused(tmp_path):
    with pytest.raises(CompressError, match="cannot read"):
        Masks.load(tmp_path / "missing.safetensors")
    save_file({"w": np.zeros(3, dtype=np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(CompressError, match="not a file of masks"):
        Masks.load(tmp_path / "weights.safetensors")
    with pytest.raises(CompressError, match="cannot write"):
        random_masks(SHAPES).save(tmp_path / "no" / "folder.safetensors")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_masks_on_a_gpu_equal_those_on_the_cpu():
    weights = {"a": torch.randn(300, 784), "b": torch.randn(100, 300)}
    on_cpu = sparsity_masks(weights, 0.9, "global")
    on_gpu = {name: weight.cuda() for name, weight in weights.items()}
    masks = sparsity_masks(on_gpu, 0.9, "global")
    assert masks.digest() == on_cpu.digest()
    masks.apply_(on_gpu)
    assert sum(int(weight.count_nonzero()) for weight in on_gpu.values()) == masks.nonzeros()
    assert on_cpu.to("cuda")["a"].is_cuda
