from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from distmem.data import bundle
from distmem.data.table import Csv, Parquet, statistics
from distmem.errors import DataError


@pytest.fixture
def frame():
    random = np.random.default_rng(0)
    height = random.normal(170, 10, 200)
    height[::17] = np.nan
    return pd.DataFrame(
        {
            "height": height,
            "count": random.integers(0, 1000, 200),
            "member": random.random(200) < 0.3,
            "colour": random.choice(["red", "green", "blue"], 200),
            "price": random.normal(5, 2, 200),
            "kind": random.choice(["b", "a"], 200),
        }
    )


@pytest.fixture(params=["csv", "parquet"])
def saved(request, frame, tmp_path):
    path = tmp_path / f"table.{request.param}"
    frame.to_csv(path, index=False) if request.param == "csv" else frame.to_parquet(path)
    return request.param, str(path)


def load(name, tmp_path, val="test", **args):
    return bundle.load(name, args, val=val, seed=0, shared=True, cache=tmp_path / "cache")


def everything(split, prepare):
    return prepare(*split.gather(torch.arange(len(split))))


def test_features_equal_scikit_learns(saved, frame, tmp_path):
    name, path = saved
    found = load(name, tmp_path, path=path, target="price", drop=["kind"])
    train, test = (everything(split, found.prepare) for split in (found.train, found.val))
    assert found.hints == {"features": 6, "classes": 1}
    # which rows went where: the prices are all different
    row = {np.float32(price): index for index, price in enumerate(frame.price)}
    train_rows, test_rows = ([row[np.float32(price)] for price in y.tolist()] for _, y in (train, test))
    assert sorted(train_rows + test_rows) == list(range(200))
    assert len(test_rows) == 40
    reference = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), ["height", "count"]),
        ("passthrough", ["member"]),
        (OneHotEncoder(sparse_output=False), ["colour"]),
    )
    # scikit-learn's deviation is taken after imputation, ours before
    expected = reference.fit_transform(frame.iloc[train_rows])
    factor = frame.iloc[train_rows]["height"].fillna(frame.iloc[train_rows]["height"].mean()).std(ddof=0)
    expected[:, 0] *= factor / frame.iloc[train_rows]["height"].std(ddof=0)
    np.testing.assert_allclose(train[0].numpy(), expected.astype(np.float32), atol=1e-5)
    assert not test[0].isnan().any()


def test_second_load_maps_the_file_and_knows_all(saved, tmp_path):
    name, path = saved
    first = load(name, tmp_path, path=path, target="kind")
    second = load(name, tmp_path, path=path, target="kind")
    assert first.shared_file == second.shared_file is not None
    assert first.hints == second.hints == {"features": 7, "classes": 2}
    for one, other in zip(everything(first.val, first.prepare), everything(second.val, second.prepare), strict=True):
        assert torch.equal(one, other)


def test_statistics_see_training_rows_only(frame, tmp_path):
    frame.to_csv(tmp_path / "t.csv", index=False)
    found = load("csv", tmp_path, val=0.25, path=str(tmp_path / "t.csv"), target="price", features=["count"])
    x, _ = everything(found.train, found.prepare)
    assert x.mean().item() == pytest.approx(0, abs=1e-6)
    assert x.std(unbiased=False).item() == pytest.approx(1, abs=1e-6)
    other, _ = everything(found.val, found.prepare)
    assert abs(other.mean().item()) > 1e-4
    assert (len(found.train), len(found.val), len(found.test)) == (120, 40, 40)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float32, st.tuples(st.integers(1, 30), st.integers(1, 4)),
        elements=st.one_of(st.floats(-1000, 1000, width=32), st.just(np.nan), st.just(np.inf)),
    )
)  # fmt: skip
def test_statistics_equal_numpys(x):
    mean, deviation = statistics(torch.from_numpy(x))
    for column in range(x.shape[1]):
        values = x[np.isfinite(x[:, column]), column].astype(np.float64)
        if not len(values):
            assert (mean[column], deviation[column]) == (0, 1)
            continue
        assert mean[column].item() == pytest.approx(values.mean(), rel=1e-5, abs=1e-6)
        if len(np.unique(values)) == 1:
            assert deviation[column] == 1
        elif values.std() > 1e-6:
            assert deviation[column].item() == pytest.approx(values.std(), rel=1e-4)


def test_tasks(frame, tmp_path):
    path = tmp_path / "t.csv"
    frame.assign(grade=np.arange(200) % 3 + 4).to_csv(path, index=False)
    for args, dtype, classes in [
        ({"target": "kind"}, torch.int64, 2),
        ({"target": "member"}, torch.int64, 2),
        ({"target": "grade"}, torch.int64, 3),
        ({"target": "grade", "task": "regression"}, torch.float32, 1),
        ({"target": "count"}, torch.float32, 1),
        ({"target": "price"}, torch.float32, 1),
    ]:
        found = load("csv", tmp_path, path=str(path), **args)
        _, y = everything(found.train, found.prepare)
        assert (y.dtype, found.hints["classes"]) == (dtype, classes), args
    grades = load("csv", tmp_path, path=str(path), target="grade")
    seen = everything(grades.train, grades.prepare)[1].tolist() + everything(grades.val, grades.prepare)[1].tolist()
    assert sorted(seen) == sorted((np.arange(200) % 3).tolist())


def test_validation_file_takes_over_labels_and_categories(tmp_path):
    pd.DataFrame({"c": ["x", "y", "z"] * 10, "t": ["a", "b", "c"] * 10}).to_csv(tmp_path / "one.csv", index=False)
    pd.DataFrame({"c": ["z", "new"], "t": ["c", "b"]}).to_csv(tmp_path / "two.csv", index=False)
    other = {"name": "csv", "args": {"path": str(tmp_path / "two.csv"), "target": "t", "test": 0}}
    for _ in range(2):  # built, then mapped
        found = load("csv", tmp_path, val=other, path=str(tmp_path / "one.csv"), target="t")
        x, y = everything(found.val, found.prepare)
        assert y.tolist() == [2, 1]
        assert x.tolist() == [[0, 0, 1], [0, 0, 0]]
    pd.DataFrame({"c": ["z"], "t": ["d"]}).to_csv(tmp_path / "two.csv", index=False)
    with pytest.raises(DataError, match='class "d" of "t" is not in the training data'):
        load("csv", tmp_path, val=other, path=str(tmp_path / "one.csv"), target="t")


def test_missing_categories_and_nullable_numbers(tmp_path):
    table = pd.DataFrame(
        {
            "i": pd.array([1, None, 3, 4], dtype="Int64"),
            "b": pd.array([True, None, False, True], dtype="boolean"),
            "s": ["p", None, "q", "p"],
            "t": [0.5, 1.5, 2.5, 3.5],
        }
    )
    table.to_parquet(tmp_path / "t.parquet")
    source = Parquet(str(tmp_path / "t.parquet"), "t", test=0.0)
    x, y = source.splits()["train"]
    np.testing.assert_array_equal(
        x, np.array([[1, 1, 1, 0], [np.nan, np.nan, 0, 0], [3, 0, 0, 1], [4, 1, 1, 0]], np.float32)
    )
    source.fit(torch.from_numpy(x), torch.from_numpy(y))
    filled, _ = source.prepare(torch.from_numpy(x), torch.from_numpy(y))
    assert filled[1].tolist() == pytest.approx([0, 2 / 3, 0, 0])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"target": "pric"}, 'no column "pric".* Did you mean "price"'),
        ({"target": "price", "features": ["height", "cuont"]}, 'no column "cuont".* Did you mean "count"'),
        ({"target": "price", "drop": ["colur"]}, 'Did you mean "colour"'),
        ({"target": "kind", "task": "regression"}, "not a number"),
        ({"target": "kind", "task": "ranking"}, "auto, classification or regression"),
        ({"target": "height"}, '12 rows have no value in the target "height"'),
        ({"target": "price", "features": ["price"]}, "no feature columns"),
        ({"target": "price", "test": 0.999}, "leaves none for training"),
        ({"target": "price", "test": -1}, "test is -1"),
    ],
)
def test_wrong_columns(saved, args, message, tmp_path):
    name, path = saved
    with pytest.raises(DataError, match=message):
        load(name, tmp_path, path=path, **args)


def test_too_many_categories(tmp_path):
    pd.DataFrame({"name": [f"n{i}" for i in range(200)], "t": range(200)}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=r'"name" .* has 160 categories, more than 64\n.*drop=\[name\]'):
        Csv(str(tmp_path / "t.csv"), "t").splits()


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"a,b\n1,2\n3,4,5,6\n", b"\xff\xfe\x00\x01\n\xd8"])
def test_empty_and_unparsable_files(tmp_path, content):
    for name in ("csv", "parquet"):
        path = tmp_path / f"bad.{name}"
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"bad\.{name}"):
            load(name, tmp_path, path=str(path), target="b")
    with pytest.raises(DataError, match="there is no file"):
        load("csv", tmp_path, path=str(tmp_path / "absent.csv"), target="b")
