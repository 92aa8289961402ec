"""Which weights a pruned model keeps: one mask per parameter, applied at every step."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distmem.errors import CompressError
from distmem.files import sync_file

_FORMAT = "distmem-masks-1"


class Masks(Mapping[str, Tensor]):
    """Bool tensors by parameter name: True keeps a weight, False has it pruned. A read-only mapping.

    Order of a training step: backward, mask_gradients_, clipping, optimizer step, apply_. The last one is what
    keeps pruned weights exactly zero: momentum, weight decay and the like would move them without a gradient.
    Raises CompressError if a mask is not a bool tensor.
    """

    def __init__(self, masks: Mapping[str, Tensor]):
        for name, mask in masks.items():
            if mask.dtype != torch.bool:
                raise CompressError(f'the mask of "{name}" has dtype {mask.dtype}, not torch.bool')
        self._masks = {name: mask.detach().contiguous() for name, mask in masks.items()}
        # multiplying floats by floats lets one fused call serve all layers; casts are made once and kept
        self._factors: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masks) and self.digest() == other.digest()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Masks({len(self)} parameters, {self.nonzeros()} of {self.total()} weights kept)"

    @torch.no_grad()
    def apply_(self, params: Mapping[str, Tensor]) -> None:
        """Set the pruned weights to zero, in place. params may hold more names than the masks do.

        A weight that is NaN or infinite stays not finite: a mask must not hide a run that has diverged.
        Raises CompressError if a parameter is missing or has another shape.
        """
        self._multiply_({name: self._checked(name, params) for name in self})

    @torch.no_grad()
    def mask_gradients_(self, params: Mapping[str, Tensor]) -> None:
        """Set the gradients of pruned weights to zero, in place; a gradient of None is left alone.

        Raises CompressError if a parameter is missing, has another shape or a sparse gradient.
        """
        gradients = {}
        for name in self:
            gradient = self._checked(name, params).grad
            if gradient is None:
                continue
            if gradient.layout != torch.strided:
                raise CompressError(
                    f'the gradient of "{name}" has layout {gradient.layout}: it cannot be masked',
                    remedy="build the embedding with sparse=False, or leave it out of layers",
                )
            gradients[name] = gradient
        self._multiply_(gradients)

    @torch.no_grad()
    def zero_moments_(self, optimizer: torch.optim.Optimizer, params: Mapping[str, Tensor]) -> None:
        """Zero the optimizer's state at pruned places, so that no old momentum pushes there.

        Only floating-point state of the parameter's shape is touched (exp_avg, momentum_buffer, ...): factored
        and quantized states mean something else, and apply_ keeps the weights zero without this.
        Raises CompressError if a parameter is missing or has another shape.
        """
        for name in self:
            param = self._checked(name, params)
            states = optimizer.state.get(param, {}).values()
            for state in states:
                if (
                    isinstance(state, Tensor)
                    and state.ndim > 0
                    and state.shape == param.shape
                    and state.is_floating_point()
                ):
                    self._multiply_({name: state})

    def digest(self) -> str:
        """32 hex digits, equal on two ranks exactly when names, shapes and bits are equal (BLAKE2b)."""
        digest = hashlib.blake2b(digest_size=16)
        for name in sorted(self):
            header = json.dumps([name, list(self[name].shape)]).encode()
            digest.update(len(header).to_bytes(8, "little") + header)
            digest.update(_packed(self[name]).tobytes())
        return digest.hexdigest()

    def nonzeros(self) -> int:
        """How many weights are kept."""
        return sum(int(mask.sum()) for mask in self.values())

    def total(self) -> int:
        """How many weights the masks cover."""
        return sum(mask.numel() for mask in self.values())

    @property
    def bytes(self) -> int:
        """Bytes held in memory: the masks and the casts made so far."""
        return sum(tensor.nbytes for tensor in [*self._masks.values(), *self._factors.values()])

    def to(self, device: str | torch.device) -> Masks:
        """The same masks on a device."""
        return Masks({name: mask.to(device) for name, mask in self.items()})

    def save(self, path: str | Path) -> None:
        """Write one bit per weight into a safetensors file; a reader sees the old file or the new one, whole.

        Raises CompressError if the file cannot be written.
        """
        from safetensors.numpy import save

        shapes = {name: list(mask.shape) for name, mask in self.items()}
        metadata = {"format": _FORMAT, "shapes": json.dumps(shapes), "digest": self.digest()}
        content = save({name: _packed(mask) for name, mask in self.items()}, metadata)
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_bytes(content)
            sync_file(temporary)
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise CompressError(f"cannot write the masks to {path}: {error.strerror or error}") from error

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Masks:
        """Read what save wrote. Raises CompressError if the file is missing, damaged or something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(Path(path), framework="numpy") as file:
                masks, digest = _unpacked(file)
        except OSError as error:
            raise CompressError(f"cannot read the masks in {path}: {error.strerror or error}") from error
        except (SafetensorError, ValueError, KeyError) as error:
            raise CompressError(
                f"{path} is not a file of masks, or it is damaged: {error}",
                remedy="run the prune stage again",
            ) from error
        loaded = cls(masks)
        if loaded.digest() != digest:
            raise CompressError(f"{path} is damaged: its digest is not {digest}", remedy="run the prune stage again")
        return loaded.to(device)

    def _checked(self, name: str, params: Mapping[str, Tensor]) -> Tensor:
        if name not in params:
            raise CompressError(
                f'there is a mask for "{name}", but the model has no such parameter',
                remedy="use the masks of this model, or rename them with it",
            )
        if params[name].shape != self[name].shape:
            raise CompressError(
                f'the mask of "{name}" has shape {tuple(self[name].shape)}, '
                f"the parameter has shape {tuple(params[name].shape)}"
            )
        return params[name]

    def _multiply_(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors:
            torch._foreach_mul_(list(tensors.values()), [self._factor(name, tensors[name]) for name in tensors])

    def _factor(self, name: str, like: Tensor) -> Tensor:
        key = (name, like.dtype, like.device)
        if key not in self._factors:
            self._factors[key] = self[name].to(like.device, like.dtype)
        return self._factors[key]


def _packed(mask: Tensor) -> np.ndarray:
    """Eight weights per byte in row-major order, the first in the highest bit; the last byte is padded with 0."""
    return np.packbits(mask.cpu().numpy().reshape(-1))


def _unpacked(file) -> tuple[dict[str, Tensor], str]:
    """The masks and the digest written in an open safetensors file. Raises ValueError on what save never writes."""
    metadata = file.metadata() or {}
    if metadata.get("format") != _FORMAT:
        raise ValueError(f"its format is {metadata.get('format')!r}, expected {_FORMAT!r}")
    shapes = json.loads(metadata["shapes"])
    if not isinstance(shapes, dict) or sorted(shapes) != sorted(file.keys()):
        raise ValueError("names of shapes and tensors differ")
    masks = {}
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f'"{name}" has the shape {shape!r}')
        count, stored = math.prod(shape), file.get_slice(name)
        if stored.get_dtype() != "U8" or stored.get_shape() != [(count + 7) // 8]:
            raise ValueError(f'"{name}" holds {stored.get_dtype()} {stored.get_shape()}, not the bits of {shape}')
        bits = np.unpackbits(file.get_tensor(name), count=count).astype(np.bool_)
        masks[name] = torch.from_numpy(bits).reshape(shape)
    return masks, metadata["digest"]
