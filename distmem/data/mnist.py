"""MNIST (LeCun et al. 1998), read by torchvision from the four idx files."""

from __future__ import annotations

import fcntl
import math
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmem.data.cache import cache_folder
from distmem.errors import DataError

# name -> number of axes
# an idx file starts with 0, 0, 8 (unsigned bytes) and that number, then the length of each axis as big-endian int32
IDX = {
    "train-images-idx3-ubyte": 3,
    "train-labels-idx1-ubyte": 1,
    "t10k-images-idx3-ubyte": 3,
    "t10k-labels-idx1-ubyte": 1,
}


class Mnist:
    """x (n, 28, 28) uint8, y (n,) int64; prepared: (n, 1, 28, 28) float32, standardised as in PyTorch's example.

    root: the folder that contains MNIST/raw/; null: the cache folder. download: fetch missing files through
    torchvision.
    """

    def __init__(self, root: str | None = None, download: bool = False):
        self.root = Path(root).expanduser() if root else cache_folder()
        self.download = download
        self.raw = self.root / "MNIST" / "raw"

    def splits(self) -> dict[str, Any]:
        from distmem.vision import load_torchvision

        for path in self.files():
            check_idx(path)
        mnist = load_torchvision(DataError).datasets.MNIST
        train, test = mnist(self.root, train=True), mnist(self.root, train=False)
        return {"train": (train.data, train.targets), "test": (test.data, test.targets)}

    def files(self) -> list[Path]:
        """The four files, downloaded first if that is allowed and needed."""
        paths = [self.raw / name for name in IDX]
        missing = [path.name for path in paths if not path.is_file()]
        if missing and not self.download:
            raise DataError(
                f"MNIST is not in {self.raw}: {', '.join(missing)} missing",
                remedy="data.args.root=FOLDER that contains MNIST/raw/, or data.args.download=true",
            )
        if missing:
            self._fetch(paths)
        return paths

    def prepare(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        # mean and deviation of the training pixels
        return ((x.to(torch.float32) / 255 - 0.1307) / 0.3081).unsqueeze(1), y.long()

    def hints(self) -> dict[str, int]:
        return {"features": 784, "classes": 10, "channels": 1}

    def _fetch(self, paths: list[Path]) -> None:
        from distmem.vision import load_torchvision

        try:
            self.raw.mkdir(parents=True, exist_ok=True)
            # one process of a node downloads, the others find the files
            with open(self.root / "mnist.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not all(path.is_file() for path in paths):
                    load_torchvision(DataError).datasets.MNIST(self.root, download=True)
        except (OSError, RuntimeError) as fault:
            raise DataError(
                f"downloading MNIST to {self.raw} failed: {fault}",
                remedy="check the network, or copy the four files there and give data.args.root",
            ) from fault


def check_idx(path: Path) -> None:
    """Compares an idx file's size with its header. Raises DataError with the expected and the actual bytes."""
    axes = IDX[path.name]
    header = 4 + 4 * axes
    remedy = "delete the file and fetch it again (data.args.download=true)"
    with open(path, "rb") as file:
        start, actual = file.read(header), path.stat().st_size
    if len(start) < header:
        raise DataError(f"{path} is damaged: a header of {header} bytes expected, {actual} bytes there", remedy=remedy)
    magic, *shape = struct.unpack(f">{1 + axes}i", start)
    if magic != 0x0800 + axes:
        raise DataError(f"{path} is not an idx file of {axes} axes: it starts with {start[:4].hex(' ')}", remedy=remedy)
    expected = header + math.prod(shape)
    if actual != expected:
        raise DataError(f"{path} is damaged: {expected} bytes expected, {actual} bytes there", remedy=remedy)
