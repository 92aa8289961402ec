"""Bytes that are really there: by class after a step, and live tensor bytes while a step runs."""

from __future__ import annotations

import resource
import sys
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations create while it is on, until each is freed: now, and at the peak.

    What existed before is not counted, so entered around a forward pass `live` is what that pass keeps for
    the backward pass (activations), and `peak` adds the temporaries.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in before and id(storage) not in self._known:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def freed(_: Any) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, views and tied ones once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}.values())


def model_bytes(model: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    """Bytes of parameters, buffers and optimizer state on this rank."""
    states = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    return {
        "parameters": storage_bytes(model.parameters()),
        "buffers": storage_bytes(model.buffers()),
        "optimizer": sum(v.numel() * v.element_size() for v in states),
    }


def peak_resident_bytes() -> int:
    """Largest resident memory of this process so far (getrusage; Linux counts KiB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_device_bytes(device: torch.device) -> int | None:
    """Largest allocated memory of the GPU so far; None on other devices."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
