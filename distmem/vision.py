"""The one door to torchvision.

A torchvision wheel built for CUDA cannot load its compiled operators beside a CPU build of torch, and then the
whole package fails to import ("operator torchvision::nms does not exist"). Models, datasets and transforms need
none of those operators, so they are declared here and the import is done again.
"""

from __future__ import annotations

import functools
import importlib
import sys
from types import ModuleType

import torch
from torch import Tensor

from distmem.errors import DistmemError, ModelError

_declared: list[torch.library.Library] = []  # a declaration lives as long as its Library object


@functools.cache
def load_torchvision(error: type[DistmemError] = ModelError) -> ModuleType:
    """torchvision, usable beside any build of torch. Raises error if it is not installed or cannot be imported."""
    try:
        return importlib.import_module("torchvision")
    except ModuleNotFoundError as fault:
        raise error("torchvision is not installed", remedy='pip install "distmem[vision]"') from fault
    except RuntimeError as fault:
        if "torchvision::nms" not in str(fault):
            raise error(
                f"torchvision cannot be imported: {fault}", remedy="install the build for your torch"
            ) from fault
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    return _import_with_declared_operators()


def _import_with_declared_operators() -> ModuleType:
    library = torch.library.Library("torchvision", "FRAGMENT")
    _declared.append(library)
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    torchvision = importlib.import_module("torchvision")
    library.impl("nms", _nms, "CPU")
    # nms is the only operator that detection models of torchvision call; now it exists
    torchvision.extension._has_ops = lambda: True
    return torchvision


def _nms(dets: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices (long) of the boxes (n, 4) kept by greedy non-maximum suppression, best score first."""
    area = (dets[:, 2] - dets[:, 0]) * (dets[:, 3] - dets[:, 1])
    order = scores.argsort(descending=True, stable=True)
    keep = []
    while order.numel():
        best, rest = order[0], order[1:]
        keep.append(best)
        low = torch.maximum(dets[best, :2], dets[rest, :2])
        high = torch.minimum(dets[best, 2:], dets[rest, 2:])
        overlap = (high - low).clamp(min=0).prod(dim=1)
        order = rest[overlap / (area[best] + area[rest] - overlap) <= iou_threshold]
    return torch.stack(keep) if keep else order
