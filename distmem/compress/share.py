"""Weight sharing: the non-zero weights of a layer take one of 2**bits values found by k-means."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distmem.compress.kmeans import assign, kmeans_1d
from distmem.errors import CompressError


def share_layer(weight: Tensor, bits: int, mask: Tensor | None = None, init: str = "linear") -> tuple[Tensor, Tensor]:
    """Codes and centroids for the non-zero weights of a layer; zeros stay zeros and have no code.

    mask: the layer's pruning mask, to be sure that pruned weights are zero.
    Returns codes (uint8, one per non-zero weight in row-major order) and centroids
    (float32, sorted, none of them zero, at most 2**bits), both on the CPU. Each weight gets the nearest centroid.
    Centroids are values of the weight's own dtype, so that weights written with them read back the same codes.
    Raises CompressError if bits is not in 1..8, a weight is not finite or a pruned weight is not zero.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise CompressError(f"bits is {bits!r}", remedy="choose a whole number in 1..8")
    weight = weight.detach()
    if mask is not None and bool(((weight != 0) & ~mask.to(weight.device)).any()):
        raise CompressError("pruned weights are not zero", remedy="apply the masks before sharing")
    values = weight[weight != 0].to(torch.float32).cpu().numpy()
    if not values.all():
        raise CompressError("weights are too small for float32", remedy="scale the layer, or prune them")
    centroids = torch.from_numpy(kmeans_1d(values, 2**bits, init)[0])
    centroids_np = np.unique(centroids.to(weight.dtype).to(torch.float32).numpy())
    centroids_np = _without_zero(centroids_np, values)
    codes = torch.from_numpy(assign(values, centroids_np).astype(np.uint8))
    return codes, torch.from_numpy(centroids_np)


@torch.no_grad()
def write_shared_(weight: Tensor, codes: Tensor, centroids: Tensor) -> None:
    """Put the centroids of the codes into the non-zero places of a weight, in place.

    codes, centroids: as from share_layer, here or on another rank. Raises CompressError if the weight has another
    number of non-zeros.
    """
    places = weight != 0
    if int(places.sum()) != codes.numel():
        raise CompressError(f"the weight has {int(places.sum())} non-zeros, there are {codes.numel()} codes")
    weight[places] = centroids[codes.to(torch.int64)].to(weight.device, weight.dtype)


def share_(
    params: Mapping[str, Tensor],
    bits: Mapping[str, int],
    masks: Mapping[str, Tensor] | None = None,
    init: str = "linear",
) -> dict[str, dict[str, Any]]:
    """Share the weights of the layers named in bits, in place.

    Returns per layer: bits, codes and centroids (share_layer), inertia (sum of squared changes).
    Raises CompressError if a layer is missing, and as share_layer does; nothing is changed then.
    """
    shared: dict[str, dict[str, Any]] = {}
    for name, number in bits.items():
        if name not in params:
            raise CompressError(f'bits are given for "{name}", but there is no such parameter')
        try:
            codes, centroids = share_layer(params[name], number, None if masks is None else masks.get(name), init)
        except CompressError as error:
            raise CompressError(f'cannot share "{name}": {error.cause}', remedy=error.remedy) from error
        shared[name] = {"bits": number, "codes": codes, "centroids": centroids}
    for name, layer in shared.items():
        before = params[name].detach().clone()
        write_shared_(params[name], layer["codes"], layer["centroids"])
        layer["inertia"] = float((params[name].detach() - before).to(torch.float64).square().sum())
    return shared


def shared_bits(nonzeros: int, clusters: int, weight_bits: int = 32) -> float:
    """Bits of a shared layer, places not counted: n * log2(k) for the codes, k * b for the centroids."""
    return nonzeros * math.log2(clusters) + clusters * weight_bits if nonzeros else 0.0


def rate(total: int, nonzeros: int, clusters: int, weight_bits: int = 32) -> float:
    """How many times smaller the weights are, places not counted: total * b / (n * log2(k) + k * b).

    total: weights before pruning; nonzeros: n, weights with a code; clusters: k; weight_bits: b. With nothing
    pruned this is r = n * b / (n * log2(k) + k * b), Deep Compression (Han, Mao, Dally 2016, arXiv 1510.00149),
    equation 1. Raises CompressError if no weight is left.
    """
    if nonzeros <= 0 or clusters <= 0:
        raise CompressError(f"no rate for {nonzeros} weights in {clusters} clusters")
    return total * weight_bits / shared_bits(nonzeros, clusters, weight_bits)


def _without_zero(centroids: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A centroid of exactly 0 would prune the weights that take it: it becomes the smallest of those weights.

    Such a value is one of the layer's own, so it does not vanish in another precision as the next float above 0
    would, and it lies inside the cluster, so the order of the centroids stays.
    """
    zero = np.flatnonzero(centroids == 0)
    if zero.size:
        cluster = values[assign(values, centroids) == zero[0]]
        centroids = centroids.copy()
        centroids[zero[0]] = cluster[np.argmin(np.abs(cluster))]
    return centroids
