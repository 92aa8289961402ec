from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from distmem.data.split import Columns, Items, Subset, Windows
from distmem.errors import DataError


def long(*ids: int) -> torch.Tensor:
    return torch.tensor(ids, dtype=torch.long)


def all_kinds() -> dict[str, Any]:
    x = torch.arange(24, dtype=torch.uint8).view(6, 2, 2)
    y = torch.arange(6)
    return {
        "columns": Columns(x, y),
        "items": Items(TensorDataset(x, y)),
        "windows": Windows(torch.arange(25, dtype=torch.uint8), 4),
        "subset": Subset(Columns(x, y), long(5, 3, 1, 0)),
    }


@pytest.mark.parametrize("kind", all_kinds())
@pytest.mark.parametrize("ids", [long(2, 0, 3, 3), long(1), long()])
def test_a_batch_is_contiguous_raw_and_in_order(kind, ids):
    split = all_kinds()[kind]
    x, y = split.gather(ids)
    assert len(x) == len(y) == len(ids)
    assert x.is_contiguous()
    assert y.is_contiguous()
    assert x.dtype == torch.uint8
    assert x.device.type == "cpu"
    for row, i in enumerate(ids.tolist()):
        alone_x, alone_y = split.gather(long(i))
        assert torch.equal(x[row], alone_x[0])
        assert torch.equal(y[row], alone_y[0])


def test_values_of_each_kind():
    kinds = all_kinds()
    for kind in ("columns", "items"):
        assert kinds[kind].gather(long(2))[0].tolist() == [[[8, 9], [10, 11]]]
    assert kinds["subset"].gather(long(1, 3))[1].tolist() == [3, 0]
    x, y = kinds["windows"].gather(long(5))
    assert (x.tolist(), y.tolist()) == ([[20, 21, 22, 23]], [[21, 22, 23, 24]])


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 300),
    length=st.integers(1, 40),
    dtype=st.sampled_from([np.uint8, np.uint16, np.int32, np.int64]),
    data=st.data(),
)
def test_windows_are_slices(count, length, dtype, data):
    tokens = np.random.default_rng(count).integers(0, 255, count).astype(dtype)
    if count <= length:
        with pytest.raises(DataError, match=f"{count} tokens hold no window of {length}"):
            Windows(tokens, length)
        return
    split = Windows(tokens, length)
    # every token but the unused tail is a target of exactly one window
    assert len(split) * length < count <= (len(split) + 1) * length
    i = data.draw(st.integers(0, len(split) - 1))
    x, y = split.gather(long(i))
    np.testing.assert_array_equal(x[0].numpy(), tokens[i * length : (i + 1) * length])
    np.testing.assert_array_equal(y[0].numpy(), tokens[i * length + 1 : (i + 1) * length + 1])
    assert x.numpy().dtype == dtype


def test_arrays_of_any_layout():
    x = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    read_only = np.arange(3.0)
    read_only.flags.writeable = False
    got_x, got_y = Columns(x, read_only).gather(long(2, 1))
    assert got_x.tolist() == [[8, 10], [4, 6]]
    assert got_y.tolist() == [2.0, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Columns(torch.zeros(3, 1), torch.zeros(2)), "first axes differ"),
        (lambda: Columns(torch.tensor(1.0), torch.tensor(1.0)), "first axes differ"),
        (lambda: Columns(torch.zeros(0, 1), torch.zeros(0)), "no samples"),
        (lambda: Columns([1, 2], torch.zeros(2)), "x is a list"),  # type: ignore[arg-type]
        (lambda: Columns(np.array(["a", "b"]), np.zeros(2)), "dtype <U1"),
        (lambda: Windows(torch.zeros(5), 2), "float32"),
        (lambda: Windows(torch.zeros(5, 5, dtype=torch.long), 2), r"\(5, 5\)"),
        (lambda: Items(TensorDataset(torch.zeros(0))), "no samples"),
        (lambda: Items(TensorDataset(torch.zeros(2))).gather(long(0)), "not a pair"),
        (lambda: Subset(Columns(torch.zeros(1), torch.zeros(1)), long()), "no samples"),
    ],
)
def test_wrong_shapes_are_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()
