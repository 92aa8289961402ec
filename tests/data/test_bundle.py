from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from distmem.data import bundle, split
from distmem.data.cache import cache_folder
from distmem.errors import DataError


def load(name, tmp_path, args=None, val="test", seed=0, shared=True):
    return bundle.load(name, args or {}, val=val, seed=seed, shared=shared, cache=tmp_path / "cache")


OWN = """
import numpy as np, torch
from torch.utils.data import TensorDataset
from distmem.data.split import Windows

def pairs(n=10):
    x = np.arange(n * 3, dtype=np.uint8).reshape(n, 3)
    return {"train": (x, np.arange(n) % 4), "late": (x[:2], np.ones(2, int))}

def datasets():
    return {key: TensorDataset(torch.randn(n, 3), torch.arange(n)) for key, n in (("train", 10), ("val", 4))}

def tokens():
    return {"train": Windows(np.arange(41, dtype=np.uint16), 4), "val": Windows(np.arange(9, dtype=np.uint16), 4)}

def quantities():
    return {"train": (np.zeros((5, 2), np.float32), np.zeros(5, np.float32))}

def odd(): return {"train": "not data"}
def uneven(): return {"train": (np.zeros(3), np.zeros(4))}
def nothing(): return {}
def number(): return 3

class Broken:
    def splits(self): return 1 / 0

class Stream:
    seen = []
    def splits(self): return pairs(20)
    def fit(self, x, y): Stream.seen.append((len(x), len(y)))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_data.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own_data", None)


def test_val_is_a_split(tmp_path):
    found = load("digits", tmp_path)
    assert (len(found.train), len(found.val), found.test) == (1437, 360, None)
    assert found.hints == {"features": 64, "classes": 10, "channels": 1}
    with pytest.raises(DataError, match=r'no split "tset".* Did you mean "test"(.|\n)*train'):
        load("digits", tmp_path, val="tset")


def test_val_is_a_fraction_of_train_by_seed(tmp_path):
    found = load("digits", tmp_path, val=0.1)
    assert (len(found.train), len(found.val), len(found.test)) == (1293, 144, 360)
    assert isinstance(found.train, split.Subset)
    ids = torch.cat([found.train.ids, found.val.ids])
    assert torch.equal(ids.sort().values, torch.arange(1437))
    again, other = load("digits", tmp_path, val=0.1), load("digits", tmp_path, val=0.1, seed=1)
    assert torch.equal(found.val.ids, again.val.ids)
    assert not torch.equal(found.val.ids, other.val.ids)
    for wrong in (0.0, 1.0, 1.5, -0.1, 0.9999, 0.0001):
        with pytest.raises(DataError, match="leaves no training or no validation"):
            load("digits", tmp_path, val=wrong)


def test_val_is_another_source(tmp_path):
    other = {"name": "synthetic", "args": {"kind": "images", "size": 8, "channels": 1, "seed": 5, "samples": 30}}
    train = {"kind": "images", "size": 8, "channels": 1, "samples": 50}
    found = load("synthetic", tmp_path, train, val=other)
    assert (len(found.train), len(found.val), found.test) == (40, 24, None)
    with pytest.raises(DataError, match=r"\(8, 8\) torch.uint8.*\(32,\) torch.float32"):
        load("digits", tmp_path, val={"name": "synthetic", "args": {"samples": 30}})


def test_val_text_takes_over_the_alphabet(tmp_path):
    (tmp_path / "train.txt").write_text("abcd" * 100)
    (tmp_path / "val.txt").write_text("dcdc" * 20)
    args = {"path": str(tmp_path / "train.txt"), "context": 4}
    other = {"name": "text", "args": {"path": str(tmp_path / "val.txt"), "context": 4, "test": 0}}
    for _ in range(2):
        found = load("text", tmp_path, args, val=other)
        assert found.val.gather(torch.tensor([0]))[0].tolist() == [[3, 2, 3, 2]]
        assert found.hints == {"vocab_size": 4, "context": 4}
    (tmp_path / "val.txt").write_text("dcdx" * 20)
    with pytest.raises(DataError, match="character 'x', which the training text lacks"):
        load("text", tmp_path, args, val=other)


@pytest.mark.usefixtures("own")
def test_a_function_of_the_user(tmp_path):
    found = load("own_data:pairs", tmp_path, {"n": 12}, val="late")
    x, y = found.prepare(*found.train.gather(torch.tensor([1, 0])))
    assert x.tolist() == [[3, 4, 5], [0, 1, 2]]
    assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)
    assert found.hints == {"features": 3, "classes": 4}
    assert found.shared_file is None
    assert load("own_data:quantities", tmp_path, val=0.2).hints == {"features": 2, "classes": 1}


@pytest.mark.usefixtures("own")
def test_datasets_and_windows_of_the_user(tmp_path):
    found = load("own_data:datasets", tmp_path, val="val")
    assert isinstance(found.train.dataset, TensorDataset)
    assert found.train.gather(torch.tensor([3, 9]))[1].tolist() == [3, 9]
    found = load("own_data:tokens", tmp_path, val="val")
    x, y = found.prepare(*found.train.gather(torch.tensor([9])))
    assert (x.tolist(), y.tolist()) == ([[36, 37, 38, 39]], [[37, 38, 39, 40]])
    assert x.dtype == y.dtype == torch.int64
    assert found.hints == {"context": 4, "vocab_size": 41}


@pytest.mark.usefixtures("own")
def test_fit_sees_train_without_validation(tmp_path):
    own_data = importlib.import_module("own_data")

    load("own_data:Stream", tmp_path, val=0.25)
    load("own_data:Stream", tmp_path, val="late")
    assert own_data.Stream.seen == [(15, 15), (20, 20)]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("digit", {}, 'no data source "digit".* Did you mean "digits"'),
        ("digits", {"tset": 0.1}, 'no argument "tset".* Did you mean "test"'),
        ("csv", {"path": "x.csv"}, 'data source "csv" needs target'),
        ("own_data:odd", {}, 'the split "train" is a str'),
        ("own_data:uneven", {}, r'split "train": x has shape \(3,\) and y \(4,\)'),
        ("own_data:nothing", {}, "gave no splits"),
        ("own_data:number", {}, "made a int"),
        ("own_data:Broken", {}, r"splits\(\) failed: ZeroDivisionError"),
        ("own_data:absent", {}, 'no "absent"'),
        ("own_dada:pairs", {}, 'no module "own_dada"'),
    ],
)
def test_faults_are_named(tmp_path, name, args, message):
    with pytest.raises(DataError, match=message):
        load(name, tmp_path, args, val=0.5)


def test_without_sharing_nothing_is_written(tmp_path):
    found = load("digits", tmp_path, shared=False)
    assert found.shared_file is None
    assert not (tmp_path / "cache").exists()
    mapped = load("digits", tmp_path)
    for mine, shared in ((found.train, mapped.train), (found.val, mapped.val)):
        np.testing.assert_array_equal(mine.x, shared.x)
        np.testing.assert_array_equal(mine.y, shared.y)


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DISTMEM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / "home" / ".cache" / "distmem"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "distmem"
    monkeypatch.setenv("DISTMEM_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
