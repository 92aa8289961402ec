"""The broken recipes of this folder: what each says it must answer, the damaged files they name, and running one.

A recipe starts with `# exit: 2`, `# says: a regular expression that stderr must match`, `# command: check` or `run`,
and `# line: line:column` where a place is expected. {tmp} in it stands for the folder of the damaged files.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True)
class Case:
    """A broken recipe and the answer it expects."""

    file: Path
    exit: int
    says: str
    command: str
    place: str | None


@dataclass(frozen=True)
class Outcome:
    """What a command answered."""

    exit: int
    out: str
    err: str


def cases() -> list[Case]:
    """All broken recipes, in the order of their numbers."""
    return [_case(file) for file in sorted(FOLDER.glob("[0-9]*.yaml"))]


def _case(file: Path) -> Case:
    lines = file.read_bytes().split(b"\n")
    head = dict(re.findall(r"^# (\w+): (.+)$", b"\n".join(lines[:4]).decode("ascii", "replace"), re.MULTILINE))
    return Case(file, int(head["exit"]), head["says"], head["command"], head.get("line"))


def prepare(folder: Path) -> None:
    """Write the damaged data, weights and modules that the recipes name into a folder."""
    (folder / "table.csv").write_text("size,rooms,price\n50,2,100\n80,3,160\n120,5,250\n60,2,110\n")
    (folder / "own_nets.py").write_text("class Net:\n    def __init__(self, width: int = 3):\n        pass\n")
    (folder / "bad_syntax.py").write_text("class Net:\n    def __init__(self:\n        pass\n")
    (folder / "failing_nets.py").write_text("raise RuntimeError('no licence')\nclass Net: ...\n")
    (folder / "nothing").mkdir()
    for name in ("corrupt", "truncated"):
        write_mnist(folder / name / "MNIST" / "raw")
    corrupt = folder / "corrupt" / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    corrupt.write_bytes(b"<html><body>404 Not Found</body></html>" * 100)
    truncated = folder / "truncated" / "MNIST" / "raw" / "train-images-idx3-ubyte"
    truncated.write_bytes(truncated.read_bytes()[:-500])
    write_weights(folder)


def write_mnist(raw: Path) -> None:
    """Four small, valid idx files: 20 images to train with, 10 to test."""
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        images = struct.pack(">4i", 0x0803, count, 28, 28) + bytes(count * 28 * 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        labels = struct.pack(">2i", 0x0801, count) + bytes(number % 10 for number in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def write_weights(folder: Path) -> None:
    """Weights of a model with another last layer; the same file cut short; and no weights at all."""
    import torch
    from safetensors.torch import save_file

    from distmem.models import build

    weights = build("mlp", {"features": 64, "classes": 7}, {}).state_dict()
    save_file({name: torch.zeros_like(tensor) for name, tensor in weights.items()}, folder / "other.safetensors")
    whole = (folder / "other.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "garbage.safetensors").write_bytes(bytes(range(256)) * 8)


def place(case: Case, folder: Path) -> Path:
    """The recipe with {tmp} filled in, in a folder."""
    target = folder / case.file.name
    target.write_bytes(case.file.read_bytes().replace(b"{tmp}", str(folder).encode()))
    return target


def run(case: Case, folder: Path) -> Outcome:
    """`distmem check`, or what `distmem run` starts, in this process; `folder` is the working folder."""
    from distmem import cli, worker

    name = place(case, folder).name
    if case.command == "check":
        return in_process(folder, cli.main, ["distmem", "check", name])
    return in_process(folder, worker.main, ["distmem.worker", name, "--out", str(folder / "out" / case.file.stem)])


def in_process(folder: Path, main, argv: list[str]) -> Outcome:
    """Call an entry point as `python -m` would. Its signal handlers and its working folder end with it."""
    out, err = io.StringIO(), io.StringIO()
    before, here, handlers = sys.argv, Path.cwd(), [signal.getsignal(number) for number in SIGNALS]
    try:
        sys.argv = argv
        os.chdir(folder)
        sys.path.insert(0, str(folder))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main()
    except SystemExit as exit_:
        code = exit_.code
    finally:
        sys.argv = before
        sys.path.remove(str(folder))
        os.chdir(here)
        for number, handler in zip(SIGNALS, handlers, strict=True):
            signal.signal(number, handler)
    return Outcome(code or 0, out.getvalue(), err.getvalue())
