"""Optimizers by name or import path, and their state by parameter name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from distmem import imports
from distmem.errors import ModelError

if TYPE_CHECKING:
    import torch

OPTIMIZERS = {
    name.lower(): f"torch.optim.{module}:{name}"
    for name, module in {
        "SGD": "sgd",
        "Adam": "adam",
        "AdamW": "adamw",
        "Adadelta": "adadelta",
        "Adagrad": "adagrad",
        "Adamax": "adamax",
        "NAdam": "nadam",
        "RAdam": "radam",
        "RMSprop": "rmsprop",
        "ASGD": "asgd",
        "Rprop": "rprop",
    }.items()
}

# 8-bit states and steps inside the backward pass come with the memory levers of a later version.
HALF_UNSAFE_EPS = {"adam", "adamw", "adamax", "nadam", "radam", "rmsprop", "adadelta", "adagrad"}


def build_optimizer(
    name: str, parameters: Iterable[torch.nn.Parameter], lr: float, args: dict
) -> torch.optim.Optimizer:
    """An optimizer over the parameters that are trained, fused where torch has a fused kernel for them.

    lr: base learning rate, before the schedule. Raises ModelError.
    """
    kind = imports.find("optimizer", name, OPTIMIZERS, ModelError)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ModelError("the model has no parameter that is trained", remedy="unfreeze some of its layers")
    args = {**_fused(kind, trained, args), **args, "params": trained, "lr": lr}
    return imports.call("optimizer", name, kind, args, ModelError)


def _fused(kind: Any, parameters: list[torch.nn.Parameter], args: dict) -> dict[str, bool]:
    """One kernel for the whole step: on a CPU it is several times faster than the loop over parameters."""
    import torch

    if not (isinstance(kind, type) and kind.__module__.startswith("torch.optim")):
        return {}  # elsewhere `fused` may mean something else
    if "fused" not in inspect.signature(kind).parameters or {"foreach", "fused", "capturable"} & set(args):
        return {}
    halves = (torch.float16, torch.bfloat16)
    if issubclass(kind, torch.optim.SGD) and any(p.device.type == "cpu" and p.dtype in halves for p in parameters):
        return {}  # most weights would stay where they are (https://github.com/pytorch/pytorch/issues/191763)
    devices = torch.utils._foreach_utils._get_fused_kernels_supported_devices()
    dense = all(torch.empty_like(p, device="meta").stride() == p.stride() for p in parameters)  # or it writes beside
    supported = all(p.is_floating_point() and p.device.type in devices for p in parameters)
    return {"fused": True} if dense and supported and not args.get("differentiable") else {}


def named_state(optimizer: torch.optim.Optimizer, names: dict[torch.nn.Parameter, str]) -> dict[str, dict[str, Any]]:
    """State of each parameter by its name: {"fc1.weight": {"exp_avg": tensor, "step": tensor}}."""
    return {
        name: dict(optimizer.state[parameter]) for parameter, name in names.items() if optimizer.state.get(parameter)
    }


def load_named_state(
    optimizer: torch.optim.Optimizer, names: dict[torch.nn.Parameter, str], state: dict[str, dict[str, Any]]
) -> None:
    """Put state saved by `named_state` back; tensors of a parameter's shape go to its device and dtype."""
    import torch

    for parameter, name in names.items():
        for key, value in state.get(name, {}).items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape and key != "step":
                # in the parameter's own strides: fused kernels walk both memories side by side
                value = torch.empty_like(parameter, requires_grad=False).copy_(value)
            elif isinstance(value, torch.Tensor):
                value = value.clone()  # `step`: a scalar that torch keeps on the CPU unless fused on a GPU
                fused = optimizer.param_groups[0].get("fused") or optimizer.param_groups[0].get("capturable")
                value = value.to(parameter.device) if fused else value
            optimizer.state[parameter][key] = value
