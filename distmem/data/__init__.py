"""Sources of data by name or import path. Importing this package imports no torch."""

from __future__ import annotations

SOURCES: dict[str, str] = {
    "mnist": "distmem.data.mnist:Mnist",
    "digits": "distmem.data.digits:Digits",
    "csv": "distmem.data.table:Csv",
    "parquet": "distmem.data.table:Parquet",
    "text": "distmem.data.text:Text",
    "synthetic": "distmem.data.synthetic:Synthetic",
}
