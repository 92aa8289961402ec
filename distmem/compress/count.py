"""How many weights are left: a table per parameter and its totals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distmem.compress.select import untied
from distmem.errors import CompressError
from distmem.units import did_you_mean


def count_nonzeros(params: Mapping[str, Tensor], codebooks: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
    """One row per parameter, tied ones once: name, shape, nonzeros, total, bytes (dense), codebook.

    codebooks: the number of shared values by parameter name; rows without one have codebook None.
    Raises CompressError if a codebook belongs to no parameter.
    """
    params, codebooks = untied(params), codebooks or {}
    for name in codebooks:
        if name not in params:
            raise CompressError(f'there is a codebook for "{name}", but no such parameter.{did_you_mean(name, params)}')
    return [
        {
            "name": name,
            "shape": list(param.shape),
            "nonzeros": int(torch.count_nonzero(param.detach())),
            "total": param.numel(),
            "bytes": param.numel() * param.element_size(),
            "codebook": codebooks.get(name),
        }
        for name, param in params.items()
    ]


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the rows: nonzeros, total, bytes, and compression_rate = total / nonzeros.

    Raises CompressError if nothing is left: such a model cannot be retrained, and its rate is no number.
    """
    nonzeros, total, size = (sum(row[key] for row in rows) for key in ("nonzeros", "total", "bytes"))
    if nonzeros == 0:
        raise CompressError(
            f"all {total} weights are zero: no compression rate exists",
            remedy="prune with a lower sensitivity or sparsity",
        )
    return {"nonzeros": nonzeros, "total": total, "compression_rate": total / nonzeros, "bytes": size}
