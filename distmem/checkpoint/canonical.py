"""The canonical state: every tensor under a name that no backend, wrapper or world size changes.

    model/fc1.weight                 parameters and buffers
    optimizer/fc1.weight/exp_avg     optimizer state by parameter
    masks/fc1.weight                 which weights are kept (one byte each)

Half-precision tensors are kept as float32, which holds them exactly, so a run may go on in another precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distmem.errors import CheckpointError
from distmem.memory.optimizers import load_named_state, named_state
from distmem.units import did_you_mean

_HALVES = (torch.float16, torch.bfloat16)


def replicated_state(model: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:
    """Copies on the CPU of a model (and its optimizer) that this rank holds as a whole."""
    weights = model.state_dict()
    if odd := [name for name, value in weights.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"the model keeps something that is no tensor in its state: {', '.join(odd)}")
    state = {f"model/{name}": _copy(tensor) for name, tensor in weights.items()}
    if optimizer is not None:
        names = {parameter: name for name, parameter in model.named_parameters()}
        for name, values in named_state(optimizer, names).items():
            for key, value in values.items():
                if isinstance(value, (Tensor, int, float)):
                    state[f"optimizer/{name}/{key}"] = _copy(torch.as_tensor(value))
                elif value is not None:
                    raise CheckpointError(
                        f"the optimizer keeps a {type(value).__name__} for {name} ({key}); a checkpoint holds numbers",
                        remedy="another optimizer: tensors and numbers can be saved and resumed",
                    )
    return state


def _copy(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.to("cpu", torch.float32 if tensor.dtype in _HALVES else tensor.dtype, copy=True).contiguous()


def load_replicated(state: dict[str, Tensor], model: nn.Module, optimizer: Optimizer | None) -> None:
    """Fill a whole model and its optimizer from a canonical state. Raises CheckpointError naming what differs."""
    load_weights(below(state, "model/"), model)
    if optimizer is not None:
        by_parameter: dict[str, dict[str, Any]] = {}
        for path, tensor in below(state, "optimizer/").items():
            name, _, key = path.rpartition("/")
            by_parameter.setdefault(name, {})[key] = tensor
        names = {parameter: name for name, parameter in model.named_parameters()}
        load_named_state(optimizer, names, by_parameter)


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The part of a state under a prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def load_weights(weights: dict[str, Tensor], model: nn.Module, source: str = "the checkpoint") -> None:
    """Copy weights by name into a model, checking every name and shape. Raises CheckpointError."""
    own = model.state_dict()
    faults = [
        f"{name}: {tuple(weights[name].shape)} in {source}, {tuple(own[name].shape)} in the model"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    faults += [
        f"{name}: in the model only.{did_you_mean(name, set(weights) - set(own))}" for name in own.keys() - weights
    ]
    faults += [f"{name}: in {source} only" for name in weights.keys() - own.keys()]
    if faults:
        shown = "\n    ".join(sorted(faults)[:20])
        more = f"\n    and {len(faults) - 20} more" if len(faults) > 20 else ""
        raise CheckpointError(
            f"{source} does not fit the model: {len(faults)} of {len(own)} names or shapes differ\n    {shown}{more}",
            remedy="use the model and the arguments it was trained with",
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
