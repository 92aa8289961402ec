"""Stories of real runs, each told once per session in a thread, two at a time; the tests ask what came of them."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from launched import (
    ROOT,
    SITE,
    STEPS,
    Ended,
    all_gone,
    call,
    distmem,
    end,
    processes,
    start,
    with_hook,
    workplace,
)

from distmem.runs import is_finished

SCENES: dict[str, Callable[[Path], Any]] = {}
TWO = ("--procs", 2)


def scene(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    SCENES[function.__name__] = function
    return function


class Stage:
    """Plays the scene that is asked for, and then the others, each in a folder of its own."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.pool = ThreadPoolExecutor(2)
        self.played: dict[str, Future] = {}

    def __call__(self, name: str) -> Any:
        for one in (name, *SCENES) if name not in self.played else ():
            if one not in self.played:
                self.played[one] = self.pool.submit(SCENES[one], workplace(self.folder / one))
        return self.played[name].result()

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


@scene
def one_process(here: Path) -> tuple[Path, Ended]:
    return here / "out", distmem(here, "run", "small.yaml", "--out", "out")


@scene
def two_processes_twice_at_once(here: Path) -> list[Ended]:
    """Two runs of a recipe in one folder, started together, with an empty cache, and no folder named."""
    env = {"DISTMEM_CACHE": str(here / "cache")}
    argv = [sys.executable, "-m", "distmem", "run", "small.yaml", "--procs", "2"]
    both = [start(here, argv, env), start(here, argv, env)]
    return [end(one) for one in both]


@scene
def own_torchrun(here: Path) -> tuple[Path, Ended]:
    argv = ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "distmem.worker", "small.yaml"]
    return here / "out", call(here, [*argv, "checkpoint.keep=1", "--out", "out"])


@scene
def printed_script(here: Path) -> tuple[Path, Ended, Ended, list[str]]:
    """What --dry-run prints, saved where it says, and started from another folder."""
    odd = workplace(here / """it's "odd" $(touch pwned) `touch pwned` folder""")
    printed = distmem(odd, "run", "small.yaml", "--dry-run", "--out", "a $(touch pwned) run")
    left = sorted(file.name for file in odd.iterdir() if file.name != "__pycache__")
    pieces = re.split(r"^# (.*/(?:launch\.sh|recipe\.yaml))\n", printed.out, flags=re.MULTILINE)
    files = dict(zip(pieces[1::2], pieces[2::2], strict=True))
    for name, text in files.items():
        (odd / name).parent.mkdir(exist_ok=True)
        (odd / name).write_text(text)
    script = next(name for name in files if name.endswith(".sh"))
    return odd / "a $(touch pwned) run", printed, call(here, ["bash", str(odd / script)], {"PYTHONPATH": ""}), left


@scene
def stopped_in_one_process(here: Path) -> tuple[Path, list[Ended]]:
    """Stopped in the training, in gradual pruning and in retraining, each by another signal, and then finished.

    The checkpoint of the first stop is damaged before the run goes on.
    """
    run = ("run", "small.yaml", "--out", "out")
    moments = [("TERM", 5), ("INT", 2 * STEPS - 3 + 4), ("USR1", STEPS - 4 + 7)]
    lives = []
    for name, step in moments:
        lives.append(distmem(here, *run, env=with_hook(f"launcher:SIG{name}", step, done=name)))
        if name == "TERM":
            os.truncate(here / "out/checkpoints/step-00000005/state.safetensors", 1000)
    return here / "out", [*lives, distmem(here, *run)]


@scene
def hard_times_of_two_processes(here: Path) -> dict[str, Any]:
    """Stopped by SIGTERM; launcher killed; one rank stopped; one rank killed and restarted; finished."""
    run = ("run", "small.yaml", "--out", "out", *TWO)
    told: dict[str, Any] = {"folder": here / "out"}
    told["term"] = distmem(here, *run, env=with_hook("launcher:SIGTERM", 5, done="term"))
    told["launcher killed"] = distmem(here, *run, env=with_hook("launcher:SIGKILL", 4, done="kill"))
    told["orphans end"] = all_gone(processes(here))
    told["saved"] = [folder.name for folder in sorted((here / "out/checkpoints").glob("step-*"))]
    told["usr1 to rank 1"] = distmem(here, *run, env=with_hook("self:SIGUSR1", 2 * STEPS - 9 + 4, 1, done="usr1"))
    restarts = with_hook("self:SIGKILL", STEPS - 4 + 6, 1, done="restart")
    told["restarted"] = distmem(here, *run, "launch.restarts=1", "checkpoint.async=false", env=restarts)
    return told


@scene
def killed_rank(here: Path) -> dict[str, Any]:
    """Rank 1 is killed; then, later in the training, both at once; then the run is finished."""
    run = ("run", "small.yaml", "--out", "out", *TWO, "checkpoint.async=false")
    told: dict[str, Any] = {"folder": here / "out"}
    told["rank 1"] = distmem(here, *run, env=with_hook("self:SIGKILL", 8, 1, done="one"))
    told["both"] = distmem(here, *run, env=with_hook("self:SIGKILL", 9, "all", done="both"))
    told["finished"] = distmem(here, *run)
    return told


@scene
def killed_at_random(here: Path) -> tuple[Path, list[str], Ended]:
    """Killed again and again while a checkpoint is written at every step."""
    out, events = here / "out", []
    argv = [sys.executable, "-m", "distmem.worker", "small.yaml", "checkpoint.every=1steps", "--out", "out"]
    for _ in range(3):
        begun = {path.name for path in out.glob("**/step-*")}
        process = start(here, argv)
        while process.poll() is None and {path.name for path in out.glob("**/step-*")} == begun:
            time.sleep(0.005)
        wait = random.uniform(0.0, 0.3)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        left = [path.name for path in out.glob("**/.*.tmp")]
        events.append(f"killed {wait:.3f} s after its first checkpoint, leaving {left}")
    if is_finished(out):  # killed behind its last word
        return out, events, Ended(0, "")
    return out, events, call(here, argv)


@scene
def rank_1_raises(here: Path) -> tuple[Path, Ended]:
    return here / "out", distmem(here, "run", "small.yaml", "--out", "out", *TWO, env=with_hook("raise", 3, 1))


@scene
def page_of_own_model(here: Path) -> dict[str, Any]:
    """The files and the command of docs/your-own-model-and-data.md; then launch/torchrun.sh on them."""
    page = (ROOT / "docs" / "your-own-model-and-data.md").read_text()
    for name, text in re.findall(r"```\w+\n# (\S+)\n(.*?)```", page, flags=re.DOTALL):
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text(text)
    [command] = re.findall(r"```\n(PYTHONPATH.*?)\n```", page)
    shutil.copytree(ROOT / "launch", here / "launch")
    literal = call(here, ["bash", "-c", command], {"PYTHONPATH": str(ROOT)})
    env = {"PYTHONPATH": f".:{ROOT}", "RECIPE": "rings.yaml", "PROCS": "2"}
    return {"command": command, "literal": literal, "script": call(here, ["bash", "launch/torchrun.sh"], env)}


@scene
def debug(here: Path) -> tuple[Ended, Ended]:
    fine = distmem(here, "run", "small.yaml", "--out", "fine", "--debug", *TWO)
    return fine, distmem(here, "run", "small.yaml", "--out", "raised", "--debug", env=with_hook("raise", 2))


@scene
def impatience(here: Path) -> tuple[Ended, bool]:
    """Ctrl-C twice, while a rank is in a step that would take ten minutes."""
    ended = distmem(here, "run", "small.yaml", "--out", "out", *TWO, env=with_hook("ctrl-c-twice", 4))
    return ended, all_gone(processes(here))


@scene
def early(here: Path) -> list[Ended]:
    """Requests before the worker, or torch's agent, has begun, and before the first step."""
    (here / "sitecustomize.py").write_text(SITE)
    run = ("run", "small.yaml", "--out")
    return [
        distmem(here, *run, "a", env={"EARLY": "SIGTERM"}),
        distmem(here, *run, "b", *TWO, env={"EARLY": "SIGINT"}),
        distmem(here, *run, "c", env=with_hook("self:SIGUSR1", 0)),
    ]


@scene
def one_folder_twice_at_once(here: Path) -> tuple[Ended, Ended]:
    """A second run in the folder of one that is at work."""
    argv = [sys.executable, "-m", "distmem", "run", "small.yaml", "train.epochs=100000", "--out", "out"]
    first = start(here, argv)
    while not (here / "out" / "metrics.jsonl").exists() and first.poll() is None:
        time.sleep(0.05)
    second = call(here, argv)
    first.send_signal(signal.SIGTERM)
    return end(first), second
