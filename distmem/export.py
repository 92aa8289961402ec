"""Weights in and out of a run: safetensors by parameter name."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from distmem.checkpoint.canonical import below, load_weights
from distmem.checkpoint.store import read_checkpoint
from distmem.errors import CheckpointError
from distmem.files import sync_file


def export_weights(model: nn.Module, path: Path) -> None:
    """Write a model's parameters and buffers; tied ones stand under each of their names. Raises CheckpointError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        weights = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
        save_file(weights, temporary)
        sync_file(temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(f"cannot write the weights to {path}: {error}", remedy="free some space") from error


def import_weights(model: nn.Module, path: Path) -> None:
    """Fill a model from a safetensors file, a checkpoint folder, or the folder of a run. Raises CheckpointError."""
    if (path / "manifest.json").exists():
        weights = below(read_checkpoint(path).tensors, "model/")
    else:
        file = path / "model.safetensors" if path.is_dir() else path
        try:
            weights = load_file(file)
        except OSError as error:
            raise CheckpointError(f"model.init: cannot read {file}: {error.strerror or error}") from error
        except SafetensorError as error:
            raise CheckpointError(
                f"model.init: {file} is damaged, or no safetensors file: {error}",
                remedy="give a file that distmem or safetensors wrote; pickled files are not read",
            ) from error
    load_weights(weights, model, str(path))
