"""The exact k-th smallest magnitude, from histograms that add up over layers and over ranks.

A float without its sign bit, read as an integer, grows with the magnitude. So the k-th magnitude is found digit by
digit (radix selection, 16 bits a round): count the keys per digit, see in which digit the k-th lies, look only
at keys with that digit in the next round. The counts are integers: their sum does not depend on the order, and the
result on shards is bit for bit that on the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_DIGIT = 16


def magnitude_keys(weight: Tensor, width: int = 32) -> Tensor:
    """Non-negative integers in the order of the magnitudes. Flat [n], int32 or, for width 64, int64.

    16-bit floats are widened without loss; float64 needs width 64. Both zeros have the key 0.
    """
    floats, integers = (torch.float64, torch.int64) if width == 64 else (torch.float32, torch.int32)
    return weight.detach().reshape(-1).abs().to(floats).view(integers)


def histograms(keys: Sequence[Tensor], rows: Sequence[int], prefixes: Tensor | None, shift: int) -> Tensor:
    """How often each value of the 16-bit digit at `shift` occurs: int64 [rows, 65536] on the CPU, local sums.

    keys: integers of each layer; rows: the row to which each layer counts; prefixes: int64 [rows], the digits
    above, other keys are left out; None in the first round.
    """
    counts = torch.zeros(max(rows, default=-1) + 1, 2**_DIGIT, dtype=torch.int64)
    for layer, row in zip(keys, rows, strict=True):
        if prefixes is not None:
            layer = layer[layer >> (shift + _DIGIT) == int(prefixes[row])]
        counts[row] += torch.bincount((layer >> shift) & (2**_DIGIT - 1), minlength=2**_DIGIT).cpu()
    return counts


def pick_digit(counts: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """The digit in which the rank-th smallest key (counted from 1) of each row lies, and its rank inside it.

    counts: int64 [rows, 65536], summed over all ranks; ranks: int64 [rows]; rank 0 gives digit 0 and rank 0.
    """
    cumulated = counts.cumsum(1)
    digits = torch.searchsorted(cumulated, ranks[:, None]).squeeze(1)
    below = (cumulated - counts).gather(1, digits[:, None]).squeeze(1)
    return digits, ranks - below


def kth_keys(keys: Sequence[Tensor], rows: Sequence[int], ranks: Sequence[int], width: int) -> tuple[Tensor, Tensor]:
    """Per row the rank-th smallest key, and how many keys equal to it are among the rank smallest.

    keys, rows: as in histograms; ranks: per row, counted from 1, at most the number of its keys; for rank 0 the
    results are 0 and 0. Both results int64 [rows]. Memory: 0.5 MiB per row.
    """
    left = torch.tensor(list(ranks), dtype=torch.int64)
    prefixes = None
    for shift in range(width - _DIGIT, -1, -_DIGIT):
        digits, left = pick_digit(histograms(keys, rows, prefixes, shift), left)
        prefixes = digits if prefixes is None else (prefixes << _DIGIT) | digits
    assert prefixes is not None
    return prefixes, left
