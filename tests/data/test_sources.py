from __future__ import annotations

import inspect
import math
import urllib.error

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from distmem.data import SOURCES
from distmem.data.digits import Digits
from distmem.data.source import Source
from distmem.data.split import Windows
from distmem.data.synthetic import Synthetic
from distmem.data.text import Text
from distmem.errors import DataError
from distmem.imports import find


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_has_annotated_arguments(name):
    found = inspect.signature(find("data source", name, SOURCES, DataError)).parameters
    assert all(parameter.annotation is not parameter.empty for parameter in found.values())


def test_digits_are_scikit_learns_split_by_class():
    splits = Digits().splits()
    (train_x, train_y), (test_x, test_y) = splits["train"], splits["test"]
    reference = load_digits()
    assert (len(train_x), len(test_x)) == (1437, 360)
    both = np.concatenate([train_x, test_x]).reshape(-1, 64).astype(int).tolist()
    assert sorted(both) == sorted(reference.data.astype(int).tolist())
    wanted = np.bincount(reference.target) * 0.2
    assert np.abs(np.bincount(test_y) - wanted).max() <= 1
    again = Digits().splits()
    assert np.array_equal(again["test"][0], test_x)
    x, y = Digits().prepare(torch.from_numpy(train_x), torch.from_numpy(train_y))
    assert x.shape == (1437, 1, 8, 8)
    assert (x.dtype, y.dtype, x.max().item()) == (torch.float32, torch.int64, 1.0)


@pytest.fixture
def write(tmp_path):
    def inner(content: str | bytes, name: str = "text.txt"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return inner


def test_text_by_character(write):
    text = "zebra café\r\n" * 40
    source = Text(write(text), context=10, test=0.25)
    splits = source.splits()
    assert source.hints() == {"vocab_size": len(set(text)), "context": 10}
    letters = sorted(set(text))
    decoded = "".join(letters[i] for i in splits["train"].tokens.tolist() + splits["test"].tokens.tolist())
    assert decoded == text
    assert len(splits["test"].tokens) == len(text) // 4
    assert splits["train"].tokens.dtype == torch.uint8


def test_text_by_byte_and_with_a_large_alphabet(write):
    source = Text(write("naïve" * 20), level="byte", context=4, test=0.0)
    splits = source.splits()
    assert list(splits) == ["train"]
    assert bytes(splits["train"].tokens.tolist()).decode() == "naïve" * 20
    assert source.hints()["vocab_size"] == 256
    large = Text(write("".join(map(chr, range(0x4E00, 0x4E00 + 300))) + "😀"), context=4)
    tokens = large.splits()["train"].tokens
    assert tokens.dtype == torch.uint16
    assert large.hints()["vocab_size"] == 301


@pytest.mark.parametrize(
    ("content", "args", "message"),
    [
        ("", {}, "is empty"),
        (b"abc\xff\xfe" * 99, {}, "is not UTF-8(.|\n)*level=byte"),
        ("short", {}, "tokens hold no window of 128"),
        ("x" * 300, {"level": "word"}, "char or byte"),
        ("x" * 300, {"test": 1.0}, "test is 1.0"),
        ("x" * 300, {"contxt": 3}, 'Did you mean "context"'),
    ],
)
def test_text_faults(write, content, args, message):
    with pytest.raises(DataError, match=message):
        Source("text", {"path": write(content), **args}).splits()


def test_text_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"no file .*nowhere\.txt"):
        Source("text", {"path": str(tmp_path / "nowhere.txt")}).splits()


def test_synthetic_tables_and_images_can_be_learned():
    for args in ({"features": 8, "classes": 3}, {"kind": "images", "size": 8, "channels": 1, "classes": 3}):
        source = Synthetic(samples=1000, **args)
        splits = source.splits()
        assert (len(splits["train"][0]), len(splits["test"][0])) == (800, 200)
        prepared = {key: source.prepare(*map(torch.from_numpy, pair)) for key, pair in splits.items()}
        x, y = prepared["train"]
        assert x.dtype == torch.float32
        assert x[0].numel() == source.hints()["features"]
        fitted = LogisticRegression(max_iter=500).fit(x.flatten(1), y)
        assert fitted.score(prepared["test"][0].flatten(1), prepared["test"][1]) > 0.9


def test_synthetic_tokens_follow_their_teacher():
    source = Synthetic("tokens", samples=300, vocab_size=50, context=64)
    split = source.splits()["train"]
    assert isinstance(split, Windows)
    assert len(split) == 240
    x, y = source.prepare(*split.gather(torch.arange(240)))
    table = np.zeros((50, 50))
    np.add.at(table, (x[:, :-1].flatten().numpy(), y[:, :-1].flatten().numpy()), 1)
    assert (np.count_nonzero(table, axis=1) <= 4).all()
    shares = table / table.sum(axis=1, keepdims=True)
    entropy = -(table * np.log(shares, where=shares > 0, out=np.zeros_like(shares))).sum() / table.sum()
    assert entropy == pytest.approx(math.log(4), abs=0.15)


def test_synthetic_depends_on_its_seed_alone():
    one, same, other = (Synthetic(samples=50, seed=seed).splits()["train"][0] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    with pytest.raises(DataError, match="no training samples"):
        Synthetic(samples=3, test=1.0)
    with pytest.raises(DataError, match='kind is "audio"'):
        Source("synthetic", {"kind": "audio"})


# MNIST: idx files of a few samples


def write_mnist(root, count=6):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    made = {}
    for name in ("train", "t10k"):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = np.array([0x0800 + array.ndim, *array.shape], ">i4").tobytes()
            (raw / f"{name}-{kind}-ubyte").write_bytes(header + array.tobytes())
        made[name] = (images, labels)
    return made, raw


def test_mnist_reads_the_four_files(tmp_path):
    pytest.importorskip("PIL")
    made, _ = write_mnist(tmp_path)
    source = Source("mnist", {"root": str(tmp_path)})
    splits = source.splits()
    for key, name in (("train", "train"), ("test", "t10k")):
        x, y = splits[key].gather(torch.arange(6))
        np.testing.assert_array_equal(x.numpy(), made[name][0])
        np.testing.assert_array_equal(y.numpy(), made[name][1])
    x, y = source.prepare(splits)(*splits["train"].gather(torch.tensor([0, 3])))
    assert x.shape == (2, 1, 28, 28)
    assert y.tolist() == [0, 3]
    expected = (made["train"][0][3].astype(np.float64) / 255 - 0.1307) / 0.3081
    np.testing.assert_allclose(x[1, 0].numpy(), expected, atol=1e-6)


def test_mnist_truncated_foreign_or_empty(tmp_path):
    _, raw = write_mnist(tmp_path)
    source = Source("mnist", {"root": str(tmp_path)})
    images = raw / "t10k-images-idx3-ubyte"
    good = images.read_bytes()
    expected = 16 + 6 * 784
    for damaged in (good[:-100], good + b"more"):
        images.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"{images}.*{expected} bytes expected, {len(damaged)} bytes there"):
            source.splits()
    images.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="not an idx file of 3 axes"):
        source.splits()
    images.write_bytes(b"")
    with pytest.raises(DataError, match="a header of 16 bytes expected, 0 bytes there"):
        source.splits()


def test_mnist_missing_says_where_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTMEM_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=rf"{tmp_path}/MNIST/raw(.|\n)*root=(.|\n)*download=true"):
        Source("mnist", {}).splits()
    _, raw = write_mnist(tmp_path / "part")
    (raw / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="raw: t10k-labels-idx1-ubyte missing"):
        Source("mnist", {"root": str(tmp_path / "part")}).splits()


def test_mnist_download_that_fails_or_works(tmp_path, monkeypatch):
    datasets = pytest.importorskip("distmem.vision").load_torchvision().datasets

    def offline(self):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(datasets.MNIST, "download", offline)
    with pytest.raises(DataError, match=r"downloading MNIST .* failed: .*no route"):
        Source("mnist", {"root": str(tmp_path), "download": True}).splits()
    monkeypatch.setattr(datasets.MNIST, "download", lambda self: write_mnist(tmp_path))
    assert len(Source("mnist", {"root": str(tmp_path), "download": True}).splits()["train"]) == 6
