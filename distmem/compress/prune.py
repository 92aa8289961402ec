"""Which weights to prune: by a threshold per layer, or so that an exact share of them goes.

The functions look at weights and return masks; nothing is changed. Sums over weights (moments here, histograms in
kth.py) are apart from the decisions taken on them, since on sharded weights the sums have to be reduced in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from distmem.compress.kth import kth_keys, magnitude_keys
from distmem.compress.masks import Masks
from distmem.errors import CompressError

_PIECE = 2**22
# beyond this |mean| / std the difference of sums in the variance has lost 4 of its 16 digits
_SHIFT_BEYOND = 100.0


def std_masks(weights: Mapping[str, Tensor], sensitivity: Mapping[str, float], previous: Masks | None = None) -> Masks:
    """Keep the weights with |w| >= sensitivity * std of their layer.

    std: of all weights of the layer, zeros included, unbiased (n - 1); 0 for a layer of one weight, which stays.
    The comparison is done in float64, so it holds for 16-bit weights too. previous: what it pruned stays pruned.
    Raises CompressError if a weight is not finite, or a sensitivity is missing or negative.
    """
    _check_finite(weights)
    limits = _values_for(weights, sensitivity, "sensitivity", high=float("inf"))
    sums = moments(weights)
    means, stds = mean_and_std(sums)
    if bool((means.abs() > _SHIFT_BEYOND * stds).any()):
        stds = mean_and_std(moments(weights, means))[1]
    masks = {}
    for (name, weight), std in zip(weights.items(), stds.tolist(), strict=True):
        kept = torch.cat([piece.abs() >= limits[name] * std for piece in _float64_pieces(weight)])
        masks[name] = kept.reshape(weight.shape).to(weight.device)
        before = _kept_before(name, weight, previous)
        if before is not None:
            masks[name] &= before
    return Masks(masks)


def sparsity_masks(
    weights: Mapping[str, Tensor],
    sparsity: Mapping[str, float] | float,
    scope: str = "layer",
    previous: Masks | None = None,
) -> Masks:
    """Prune the smallest magnitudes, exactly round(sparsity * n) of n weights; the others are kept.

    scope: "layer" counts n per layer, "global" over all layers together (then sparsity is one number). round is
    Python's, a half goes to the even number. Of equal magnitudes the earlier ones go first: in the order of the
    layers, inside a layer in row-major order. previous: what it pruned goes before all others, exact zeros
    included, and stays pruned even if sparsity asks for fewer.
    Memory: one 4-byte key per weight. Raises CompressError if a weight is not finite, a sparsity is missing or
    outside 0..1, or scope is unknown.
    """
    _check_finite(weights)
    sizes = [weight.numel() for weight in weights.values()]
    rows, pruned = _numbers_to_prune(weights, sparsity, scope, sizes)
    before = [_kept_before(name, weight, previous) for name, weight in weights.items()]
    for row, kept in zip(rows, before, strict=True):
        pruned[row] -= 0 if kept is None else int((~kept).sum())
    width = 64 if any(weight.dtype == torch.float64 for weight in weights.values()) else 32
    keys = [
        magnitude_keys(weight, width) if kept is None else magnitude_keys(weight, width)[kept.reshape(-1)]
        for weight, kept in zip(weights.values(), before, strict=True)
    ]
    limits, ties = kth_keys(keys, rows, [max(0, number) for number in pruned], width)
    masks = {}
    for name, layer, row, kept in zip(weights, keys, rows, before, strict=True):
        stays, taken = _above(layer, int(limits[row]), int(ties[row]))
        ties[row] -= taken
        if kept is not None:
            stays = torch.zeros_like(kept).masked_scatter_(kept, stays)
        masks[name] = stays.reshape(weights[name].shape)
    return Masks(masks)


def cubic_sparsity(step: int, begin: int, end: int, final: float, initial: float = 0.0) -> float:
    """The share to be pruned at a step of gradual pruning: fast at first, then slower and slower.

    final + (initial - final) * (1 - (step - begin) / (end - begin))**3, initial before begin, final from end on.
    Source: Zhu and Gupta 2017, arXiv 1710.01878, equation 1, with n * dt = end - begin.
    Raises CompressError unless begin < end and 0 <= initial <= final <= 1.
    """
    if begin >= end:
        raise CompressError(f"gradual pruning begins at step {begin} and ends at step {end}", remedy="end it later")
    if not 0 <= initial <= final <= 1:
        raise CompressError(f"sparsity cannot go from {initial} to {final}", remedy="let it grow inside 0..1")
    if step <= begin:
        return initial
    left = 1 - min((step - begin) / (end - begin), 1.0)
    return final + (initial - final) * left**3


def moments(weights: Mapping[str, Tensor], centres: Tensor | None = None) -> Tensor:
    """Per layer n, sum of (w - c) and sum of (w - c)^2: float64 [L, 3] on the CPU, local sums.

    centres: [L], the same on every rank; None for 0. With c near the mean nothing is lost in the variance
    (the shifted form of Chan, Golub, LeVeque 1983, which stays a plain sum over ranks).
    """
    rows = []
    for index, weight in enumerate(weights.values()):
        row = torch.zeros(3, dtype=torch.float64)
        for piece in _float64_pieces(weight):
            shifted = piece if centres is None else piece - float(centres[index])
            row += torch.stack(
                [torch.full_like(shifted.sum(), shifted.numel()), shifted.sum(), shifted @ shifted]
            ).cpu()
        rows.append(row)
    return torch.stack(rows) if rows else torch.zeros(0, 3, dtype=torch.float64)


def mean_and_std(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (less the centre) and unbiased standard deviation of each layer, from the sums over all ranks.

    sums: [L, 3] as from moments. std = sqrt((Q - S^2 / n) / (n - 1)); 0 where n < 2. Both float64 [L].
    """
    count, total, squares = sums.unbind(1)
    means = total / count.clamp(min=1)
    variances = (squares - total * means) / (count - 1).clamp(min=1)
    return means, torch.where(count < 2, 0.0, variances.clamp(min=0).sqrt())


def _numbers_to_prune(
    weights: Mapping[str, Tensor], sparsity: Mapping[str, float] | float, scope: str, sizes: list[int]
) -> tuple[list[int], list[int]]:
    """The row in which each layer is counted, and per row how many weights have to go."""
    if scope == "layer":
        shares = sparsity if isinstance(sparsity, Mapping) else dict.fromkeys(weights, sparsity)
        shares = _values_for(weights, shares, "sparsity", high=1.0)
        return list(range(len(sizes))), [round(shares[name] * size) for name, size in zip(weights, sizes, strict=True)]
    if scope != "global":
        raise CompressError(f'scope is "{scope}"', remedy='write "layer" or "global"')
    if isinstance(sparsity, Mapping):
        raise CompressError(
            "sparsity has a value per layer, but scope is global", remedy='write one number, or scope "layer"'
        )
    _values_for({"all layers": None}, {"all layers": sparsity}, "sparsity", high=1.0)
    return [0] * len(sizes), [round(sparsity * sum(sizes))] if sizes else []


def _above(keys: Tensor, limit: int, ties: int) -> tuple[Tensor, int]:
    """Keys that stay: greater than the limit, or equal to it after the first `ties` equal ones; how many those were."""
    stays = keys >= limit
    equal = (keys == limit).nonzero().squeeze(1)[:ties]
    stays[equal] = False
    return stays, equal.numel()


def _float64_pieces(weight: Tensor) -> Iterator[Tensor]:
    """The weights in order, some at a time: a float64 copy of a whole layer would double or quadruple its memory."""
    device = "cpu" if weight.device.type == "mps" else weight.device  # mps has no float64
    for piece in weight.detach().reshape(-1).split(_PIECE):
        yield piece.to(device).to(torch.float64)


def _kept_before(name: str, weight: Tensor, previous: Masks | None) -> Tensor | None:
    if previous is None or name not in previous:
        return None
    if previous[name].shape != weight.shape:
        raise CompressError(
            f'the previous mask of "{name}" has shape {tuple(previous[name].shape)}, the weight {tuple(weight.shape)}'
        )
    return previous[name].to(weight.device)


def _values_for(weights: Mapping[str, object], values: Mapping[str, float], what: str, high: float) -> dict[str, float]:
    for name in weights:
        if name not in values:
            raise CompressError(f'{what} has no value for "{name}"')
        if not 0 <= values[name] <= high:
            limits = "at least 0" if high == float("inf") else f"in 0..{high:g}"
            raise CompressError(f'{what} of "{name}" is {values[name]}', remedy=f"choose a number {limits}")
    return {name: float(values[name]) for name in weights}


def _check_finite(weights: Mapping[str, Tensor]) -> None:
    for name, weight in weights.items():
        bad = weight.numel() - int(torch.isfinite(weight).sum())
        if bad:
            raise CompressError(
                f'"{name}" has {bad} weights that are NaN or infinite',
                remedy="prune a checkpoint from before the training diverged",
            )
