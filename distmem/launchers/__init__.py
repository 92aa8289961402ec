"""From a resolved recipe to a command and its environment, without side effects; `start` runs it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from distmem.recipe.schema import Recipe


@dataclass(frozen=True)
class Command:
    """argv to run as it is (never through a shell), and what is added to the environment where it is not set yet."""

    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)

    def managed(self) -> Command:
        """The same for `start`, which reads the outcome from the run folder."""
        return Command([*self.argv, "--managed"], self.env)

    def script(self, folder: Path, python_path: str | None = None) -> str:
        """A shell script that does the same from any folder; every word is quoted. python_path: to be exported."""
        lines = ["#!/usr/bin/env bash", "# written by distmem: the exact command of this run"]
        lines.append(f"cd {shlex.quote(str(folder))} || exit 1")
        if python_path:
            lines.append(f"export PYTHONPATH={shlex.quote(python_path)}")
        return "\n".join([*lines, *self.shell_lines(), ""])

    def shell_lines(self) -> list[str]:
        """Environment and command in shell words, one line per variable and per option."""
        exports = [f'export {name}="${{{name}:-{value}}}"' for name, value in self.env.items()]
        return [*exports, "exec " + " \\\n    ".join(_grouped([shlex.quote(word) for word in self.argv]))]


def _grouped(words: list[str]) -> list[str]:
    """One line per option with its value."""
    lines: list[str] = []
    for word in words:
        if lines and not word.startswith("-") and lines[-1].startswith("-") and " " not in lines[-1]:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def worker_arguments(recipe_file: Path, out: Path, resume: Path | None, debug: bool) -> list[str]:
    """What the worker is told: one file, and where to put the run."""
    words = [str(recipe_file), "--out", str(out)]
    words += ["--resume", str(resume)] if resume else []
    return [*words, "--debug"] if debug else words


def build_command(recipe: Recipe, worker: list[str], cores: int) -> Command:
    """The command that starts the workers. cores: of this machine, shared between its processes."""
    return LAUNCHERS[recipe.launch.launcher](recipe, worker, cores)


def local(recipe: Recipe, worker: list[str], cores: int) -> Command:
    """One process, no process group."""
    return local_command(sys.executable, worker)


def torchrun(recipe: Recipe, worker: list[str], cores: int) -> Command:
    """Processes of one node under torch's elastic agent, on a port it finds free."""
    procs = int(recipe.launch.procs_per_node)
    return torchrun_command(
        sys.executable, worker, str(procs), str(recipe.launch.restarts), str(max(1, cores // procs))
    )


LAUNCHERS: dict[str, Callable[[Recipe, list[str], int], Command]] = {"local": local, "torchrun": torchrun}


def local_command(python: str, worker: list[str]) -> Command:
    return Command([python, "-m", "distmem.worker", *worker])


def torchrun_command(python: str, worker: list[str], procs: str, restarts: str, threads: str) -> Command:
    argv = [python, "-m", "torch.distributed.run", "--standalone"]
    argv += ["--nproc-per-node", procs, "--max-restarts", restarts]
    argv += ["--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "--shutdown-timeout", "300"]
    # "--" or torchrun takes the worker's options for abbreviations of its own
    argv += ["-m", "distmem.worker", "--", *worker]
    env = {
        "OMP_NUM_THREADS": threads,  # torchrun's own choice of 1 wastes cores, the default fights for them
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",  # stale gloo addresses make restarts fail otherwise (torch 2.13)
    }
    return Command(argv, env)
