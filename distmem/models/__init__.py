"""Models by name or import path. Importing this package imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from distmem import imports
from distmem.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

MODELS: dict[str, str] = {
    "mnist_cnn": "distmem.models.mnist_cnn:MnistCnn",
    "lenet_300_100": "distmem.models.lenet:LeNet300100",
    "lenet5": "distmem.models.lenet:LeNet5",
    "mlp": "distmem.models.mlp:Mlp",
    "resnet18": "distmem.models.resnet:ResNet18",
    "resnet34": "distmem.models.resnet:ResNet34",
    "resnet50": "distmem.models.resnet:ResNet50",
    "resnet101": "distmem.models.resnet:ResNet101",
    "resnet152": "distmem.models.resnet:ResNet152",
    "gpt_char": "distmem.models.gpt:GptChar",
}

_SAME_AS = {"in_channels": "channels", "num_classes": "classes"}  # other usual names of what the data knows
_AT_LEAST = ("classes", "vocab_size")  # a smaller value would index past the end of the output


def build(name: str, args: Mapping[str, Any], hints: Mapping[str, int]) -> nn.Module:
    """The model, freshly initialised, on the current default device.

    name: a key of MODELS or an import path "my_pkg.nets:Net"; args: the recipe's, by parameter name;
    hints: what the data knows (features, classes, channels, vocab_size, context), used for parameters of that
    name that args leave out. Raises ModelError.
    """
    from torch import nn

    target = imports.find("model", name, MODELS, ModelError)
    model = imports.call("model", name, target, _filled(name, target, args, hints), ModelError)
    if not isinstance(model, nn.Module):
        raise ModelError(f'model "{name}" made a {type(model).__name__}', remedy="return a torch.nn.Module")
    return model


def blocks(model: nn.Module) -> list[nn.Module]:
    """The units to shard and to checkpoint, in the order they run.

    model.blocks() if it has such a method; the children of a Sequential; else the direct children that have
    parameters, a ModuleList (which cannot be called) replaced by its members.
    """
    from torch import nn

    own = getattr(model, "blocks", None)
    if callable(own) and not isinstance(own, nn.Module):
        return list(own())
    if isinstance(model, nn.Sequential):
        return list(model.children())
    found: list[nn.Module] = []
    for child in model.children():
        found += child if isinstance(child, nn.ModuleList) else [child]
    return [block for block in found if next(block.parameters(), None) is not None]


def _filled(name: str, target: Any, args: Mapping[str, Any], hints: Mapping[str, int]) -> dict[str, Any]:
    filled = dict(args)
    for key in imports.parameters(target) or {}:
        hint = _SAME_AS.get(key, key)
        if hint not in hints:
            continue
        value = filled.setdefault(key, hints[hint])
        if hint in _AT_LEAST and isinstance(value, int) and value < hints[hint]:
            raise ModelError(
                f'model "{name}" is given {key}: {value}, but the data has {hints[hint]}',
                remedy=f"leave {key} out of the recipe, or write {hints[hint]}",
            )
    return filled
