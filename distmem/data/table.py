"""Tables from CSV and Parquet files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from distmem.errors import DataError
from distmem.units import did_you_mean

if TYPE_CHECKING:
    import pandas as pd

MAX_CATEGORIES = 64
MAX_CLASSES = 20  # an integer target with more values than this is a quantity
ROWS = 65536  # read at a time for the statistics


class Table(ABC):
    """Numbers and categories of a table as one float32 matrix.

    Numeric and boolean columns become one column each, text one per category of the training rows (at most 64; an
    unknown or missing one gives zeros). Rows are dealt to train and test by seed. fit() takes mean and deviation
    from the training rows only; prepare() puts the mean where a number is missing and standardises, columns of 0
    and 1 excepted. Targets: class numbers in the order of their sorted names, or float32 in their own unit.
    """

    path: Path
    target: str
    features: list[str] | None
    drop: list[str]
    task: str
    test: float
    seed: int

    def __init__(
        self,
        path: str,
        target: str,
        features: list[str] | None = None,
        drop: list[str] | None = None,
        task: Literal["auto", "classification", "regression"] = "auto",
        test: float = 0.2,
        seed: int = 0,
    ):
        if task not in ("auto", "classification", "regression"):
            raise DataError(f'task is "{task}"', remedy="auto, classification or regression")
        if not 0 <= test < 1:
            raise DataError(f"test is {test}", remedy="a fraction from 0 to below 1")
        self.path, self.target, self.features, self.drop = Path(path).expanduser(), target, features, drop or []
        self.task, self.test, self.seed = task, test, seed
        self.categories: dict[str, list[str]] = {}
        self.columns: list[str] | None = None
        self.labels: list[str] = []
        self.mean = self.shift = self.scale = torch.zeros(0)

    def splits(self) -> dict[str, Any]:
        frame = self._frame()
        order = np.random.default_rng(self.seed).permutation(len(frame))
        held = round(len(frame) * self.test)
        if held >= len(frame):
            raise DataError(f"{self.path}: test: {self.test} of {len(frame)} rows leaves none for training")
        train_ids, test_ids = np.sort(order[held:]), np.sort(order[:held])
        if self.columns is None:
            self._learn(frame, train_ids)
        x, y = self._features(frame), self._target(frame[self.target])
        return {"train": (x[train_ids], y[train_ids])} | ({"test": (x[test_ids], y[test_ids])} if held else {})

    def files(self) -> list[Path]:
        if not self.path.is_file():
            raise DataError(f"there is no file {self.path.absolute()}")
        return [self.path]

    def state(self) -> dict[str, Any]:
        return {"columns": self.columns, "categories": self.categories, "labels": self.labels, "task": self.task}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.columns, self.categories = state["columns"], state["categories"]
        self.labels, self.task = state["labels"], state["task"]

    def fit(self, x: Tensor, y: Tensor) -> None:
        self.mean, deviation = statistics(x)
        kept = flags(x)
        self.shift, self.scale = self.mean.masked_fill(kept, 0), deviation.masked_fill(kept, 1)

    def prepare(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        mean, shift, scale = (values.to(x.device) for values in (self.mean, self.shift, self.scale))
        x = (torch.where(x.isfinite(), x, mean) - shift) / scale
        return x, y if y.is_floating_point() else y.long()

    def hints(self) -> dict[str, int]:
        width = sum(len(self.categories.get(name, "1")) for name in self.columns or [])
        return {"features": width, "classes": len(self.labels) or 1}

    @abstractmethod
    def _parse(self) -> pd.DataFrame:
        """The whole file, as pandas reads it."""

    def _frame(self) -> pd.DataFrame:
        self.files()
        try:
            frame = self._parse()
        except (ValueError, OSError) as fault:  # pandas' and pyarrow's parsing errors are ValueErrors
            raise DataError(f"{self.path} cannot be read: {fault}") from fault
        if frame.empty:
            raise DataError(f"{self.path} has no rows")
        frame.columns = frame.columns.map(str)
        for name in [self.target, *(self.features or []), *self.drop]:
            if name not in frame:
                raise DataError(
                    f'{self.path} has no column "{name}".{did_you_mean(name, frame.columns)}',
                    remedy=f"it has {', '.join(frame.columns)}",
                )
        if missing := int(frame[self.target].isna().sum()):
            raise DataError(f'{self.path}: {missing} rows have no value in the target "{self.target}"')
        return frame

    def _learn(self, frame: pd.DataFrame, train_ids: np.ndarray) -> None:
        """Columns, their categories in the training rows, the task and its labels."""
        from pandas.api.types import is_bool_dtype, is_integer_dtype, is_numeric_dtype

        left_out = {self.target, *self.drop}
        self.columns = [name for name in self.features or frame.columns if name not in left_out]
        if not self.columns:
            raise DataError(f"{self.path}: no feature columns are left besides {', '.join(sorted(left_out))}")
        for name in self.columns:
            if not is_numeric_dtype(frame[name].dtype):
                self.categories[name] = self._categories(frame[name].iloc[train_ids])
        target = frame[self.target]
        numeric = is_numeric_dtype(target.dtype) and not is_bool_dtype(target.dtype)
        if self.task == "auto":
            few = is_integer_dtype(target.dtype) and target.nunique() <= MAX_CLASSES
            self.task = "classification" if few or not numeric else "regression"
        if self.task == "regression" and not numeric:
            raise DataError(f'{self.path}: the target "{self.target}" is {target.dtype}, not a number')
        self.labels = [str(value) for value in sorted(target.unique())] if self.task == "classification" else []

    def _categories(self, column: pd.Series) -> list[str]:
        found = sorted(map(str, column.dropna().unique()))
        if len(found) > MAX_CATEGORIES:
            raise DataError(
                f'{self.path}: the column "{column.name}" ({column.dtype}) has {len(found)} categories, '
                f"more than {MAX_CATEGORIES}",
                remedy=f"data.args.drop=[{column.name}]",
            )
        return found

    def _features(self, frame: pd.DataFrame) -> np.ndarray:
        parts = []
        for name in self.columns or []:
            if name not in frame:
                raise DataError(f'{self.path} lacks the column "{name}" of the training data')
            if name in self.categories:
                values = frame[name].astype(object).map(str, na_action="ignore").to_numpy(dtype=object)
                parts += [(values == category).astype(np.float32) for category in self.categories[name]]
            else:
                parts.append(self._numbers(frame[name]))
        return np.stack(parts, axis=1)

    def _numbers(self, column: pd.Series) -> np.ndarray:
        try:
            return column.to_numpy(dtype=np.float32, na_value=np.nan)
        except (ValueError, TypeError) as fault:
            raise DataError(f'{self.path}: the column "{column.name}" is not numeric: {fault}') from fault

    def _target(self, column: pd.Series) -> np.ndarray:
        if self.task == "regression":
            return self._numbers(column)
        number = {label: index for index, label in enumerate(self.labels)}
        values = column.astype(object).map(str).map(number)
        if values.isna().any():
            unknown = str(column[values.isna()].iloc[0])
            raise DataError(f'{self.path}: the class "{unknown}" of "{self.target}" is not in the training data')
        return values.to_numpy(dtype=np.int64)


class Csv(Table):
    """path: a CSV file with a header; target: the column to predict; features: the columns to use (null: all
    others); drop: columns to leave out; test: the fraction of rows kept for testing."""

    def _parse(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.path)


class Parquet(Table):
    """As Csv, for a Parquet file."""

    def _parse(self) -> pd.DataFrame:
        import pandas as pd

        return pd.read_parquet(self.path)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (f,) float32 of the finite values of x (n, f), in float64 over parts of the rows.

    Deviation 1 for a column that is constant or empty.
    """
    count = torch.zeros(x.shape[1], dtype=torch.float64)
    total, squares = count.clone(), count.clone()
    for part in x.split(ROWS):
        valid = part.isfinite()
        count += valid.sum(dim=0)
        total += torch.where(valid, part, 0).sum(dim=0, dtype=torch.float64)
    mean = total / count.clamp(min=1)
    for part in x.split(ROWS):
        squares += torch.where(part.isfinite(), part.double() - mean, 0).square().sum(dim=0)
    deviation = (squares / count.clamp(min=1)).sqrt()
    # the mean of a constant column is rounded, so its deviation need not be exactly 0
    return mean.float(), torch.where(deviation <= 1e-9 * mean.abs(), 1.0, deviation).float()


def flags(x: Tensor) -> Tensor:
    """Which columns (f,) of x (n, f) hold nothing but 0, 1 and missing values."""
    parts = [(~part.isfinite() | (part == 0) | (part == 1)).all(dim=0) for part in x.split(ROWS)]
    return torch.stack(parts).all(dim=0)
