"""How far apart are runs that should be the same? Losses of 50 steps on real images.

    python benchmarks/equality.py [--data FOLDER]     FOLDER holds MNIST/raw/; without it: scikit-learn's digits

(a) one rank against 2, 3 and 4; (b) one micro-batch against 4; both with dropout off, since ranks draw their own,
and with 293 samples in batches of 32, so that every tenth step has 5 samples. (c) activation checkpointing against
none, with dropout; (d) the command line, killed by SIGKILL at random steps and started again.

What is left in (a) and (b) is the order in which the same numbers are added, which the same runs in float64 show.
In float32 a last digit may turn a ReLU or the choice of a max-pooling over; from then on two runs of the CNN part,
and Adam, which divides by the size of a gradient, takes them further. For comparison: float32 against float64 on
one rank. Writes benchmarks/results/equality.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from distmem.distributed import World, join_world, leave_world

HERE = Path(__file__).resolve()
RESULTS = HERE.parent / "results"
SAMPLES, BATCH, STEPS = 293, 32, 50
OPTIMIZERS = {"sgd": {"name": "sgd", "lr": 0.01, "args": {"momentum": 0.9}}, "adam": {"name": "adam", "lr": 0.001}}
MODELS = {"lenet_300_100": "cross_entropy", "equality_parts:CnnWithoutDropout": "nll"}
RANKS = (2, 3, 4)
CHECKPOINTING = ("full", "sqrt", {"blocks": 2})
LIMIT = 1e-6  # relative, for (a) and (b) in float32 on LeNet-300-100


def recipe(root: str | None, model: str, loss: str, optimizer: str, **sections: Any) -> dict[str, Any]:
    return {
        "name": "equality",
        "seed": 0,
        "model": {"name": model},
        "data": {"name": "equality_parts:images", "args": {"root": root, "samples": SAMPLES}},
        "loss": loss,
        "optim": OPTIMIZERS[optimizer],
        "train": {"steps": STEPS, "batch_size": BATCH, "eval_every": "1000steps", **sections.pop("train", {})},
        "launch": {"device": "cpu"},
        **sections,
    }


def losses(world: World, values: dict[str, Any], folder: Path) -> list[float]:
    """Run the engine in this process; the losses of its steps."""
    from distmem.build import prepare
    from distmem.checks import check
    from distmem.engine import train
    from distmem.recipe.load import recipe_from_text
    from distmem.signals import StopFlag

    launch = {"device": "cpu", "procs_per_node": world.size, "launcher": "torchrun" if world.size > 1 else "local"}
    checked = check(recipe_from_text(yaml.safe_dump({**values, "launch": launch}), "equality"))
    if world.first:
        folder.mkdir(parents=True)
    world.barrier()
    with contextlib.redirect_stdout(io.StringIO()):
        run, phase = prepare(checked, folder, world, StopFlag(), argparse.Namespace(debug=False, resume=None))
        train(run, phase)
    world.barrier()
    return step_losses(folder)


def step_losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "step"]


def on_ranks(size: int, recipes: list[dict], folder: Path) -> list[list[float]]:
    """The losses of several recipes on `size` ranks, in one launch of torchrun."""
    asked, answered = folder / f"asked{size}.json", folder / f"answered{size}.json"
    asked.write_text(json.dumps(recipes))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), str(HERE)]
    subprocess.run([*command, "--asked", str(asked), "--answered", str(answered)], check=True)
    return json.loads(answered.read_text())


def answer(asked: Path, answered: Path) -> None:
    """What each rank of `on_ranks` does."""
    world = join_world("cpu")
    found = [
        losses(world, values, asked.with_suffix("") / str(number))
        for number, values in enumerate(json.loads(asked.read_text()))
    ]
    if world.first:
        answered.write_text(json.dumps(found))
    leave_world(world)


def compared(group: str, title: str, case: tuple[str, str, str], left: list[float], right: list[float]) -> dict:
    """case: model, optimizer, precision."""
    apart = [abs(a - b) for a, b in zip(left, right, strict=True)]
    model, optimizer, precision = case
    return {
        "group": group,
        "title": title,
        "model": model.partition(":")[2] or model,
        "optimizer": optimizer,
        "precision": precision,
        "steps": len(left),
        "absolute": max(apart),
        "relative": max(a / abs(b) for a, b in zip(apart, right, strict=True)),
        "bit_equal": left == right,
    }


def cut_in_pieces(root: str | None, folder: Path) -> list[dict]:
    """(a) and (b), for each model and optimizer in float32; Adam also in float64."""
    cases = [(m, o, "32-true") for m in MODELS for o in OPTIMIZERS] + [(m, "adam", "64-true") for m in MODELS]
    recipes = [recipe(root, m, MODELS[m], o, train={"precision": p}) for m, o, p in cases]
    pieces = [{**values, "train": {**values["train"], "accumulate": 4}} for values in recipes]
    whole = [losses(World(), values, folder / f"whole{i}") for i, values in enumerate(recipes)]
    found = {("ranks", f"1 rank, {size} ranks"): on_ranks(size, recipes, folder) for size in RANKS}
    found["ranks", "1 rank, 2 ranks x 4 micro-batches"] = on_ranks(2, pieces, folder / "both")
    found["micro-batches", "1 micro-batch, 4"] = [
        losses(World(), values, folder / f"pieces{i}") for i, values in enumerate(pieces)
    ]
    rows = [compared(*what, case, runs[i], whole[i]) for what, runs in found.items() for i, case in enumerate(cases)]
    for (model, optimizer, precision), run in zip(cases, whole, strict=True):
        if precision == "64-true":
            exact, case = run, (model, optimizer, "32-true")
            rows.append(compared("rounding", "float64, float32", case, whole[cases.index(case)], exact))
    return rows


def run_again(root: str | None, folder: Path) -> list[dict]:
    """(c): the CNN with dropout."""
    case = ("mnist_cnn", "adam", "32-true")
    values = recipe(root, "mnist_cnn", "nll", "adam")
    kept = losses(World(), values, folder / "kept")
    rows = []
    for number, choice in enumerate(CHECKPOINTING):
        again = {**values, "memory": {"activation_checkpointing": choice}}
        title = f"activations kept, checkpointing {choice}".replace("'", "")
        rows.append(compared("checkpointing", title, case, losses(World(), again, folder / f"again{number}"), kept))
    return rows


def killed(root: str | None, procs: int, kills: int, folder: Path) -> dict:
    """(d): one run in peace, one killed `kills` times at random steps; losses and final weights."""
    file = folder / f"killed{procs}.yaml"
    values = recipe(root, "mnist_cnn", "nll", "adam", checkpoint={"every": "4steps"})
    launch = {"device": "cpu", "procs_per_node": procs}
    file.write_text(yaml.safe_dump({**values, "launch": launch}))
    peace, war = folder / f"peace{procs}", folder / f"war{procs}"
    life(file, peace, None)
    steps = sorted(random.sample(range(1, STEPS - 4), kills))
    died_after = [life(file, war, step) for step in steps]
    life(file, war, None)
    weights = [(out / "model.safetensors").read_bytes() for out in (peace, war)]
    title = f"in one go, killed {kills} x and resumed; {procs} rank{'s' * (procs > 1)}"
    row = compared("killed", title, ("mnist_cnn", "adam", "32-true"), step_losses(war), step_losses(peace))
    equal = weights[0] == weights[1]
    return {**row, "bit_equal": row["bit_equal"] and equal, "weights_bit_equal": equal, "died_after_steps": died_after}


def life(file: Path, out: Path, until: int | None) -> int:
    """`distmem run` to its end, or until its log has a step; then every process of it is killed."""
    command = [sys.executable, "-m", "distmem", "run", str(file), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if until is not None and len(lines := logged(out)) >= until:
            kill_all(process)
            return len(lines)
        time.sleep(0.01)
    if process.returncode or until is not None:
        raise SystemExit(f"distmem run ended with {process.returncode} before step {until}")
    return STEPS


def logged(out: Path) -> list[str]:
    log = out / "metrics.jsonl"
    return [line for line in log.read_text().splitlines() if '"step"' in line[:20]] if log.exists() else []


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to the launcher and to all it has started, so that nobody can save or say anything."""
    import psutil

    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        member.suspend()  # none may notice the end of another
    for member in family:
        member.kill()
    process.wait()
    psutil.wait_procs(family)


TITLES = {
    "ranks": "1 rank and 2, 3 or 4",
    "micro-batches": "1 micro-batch and 4",
    "rounding": "for comparison: float32 and float64 on 1 rank",
    "checkpointing": "activations kept and activation checkpointing, with dropout",
    "killed": "in one go and killed by SIGKILL again and again, on 1 and 2 ranks",
}


def summary(details: list[dict]) -> list[dict]:
    """One row per comparison, model and precision: the worst of it."""
    rows: dict[str, dict] = {}
    for row in details:
        kind = "" if row["group"] == "rounding" else f", {'float32' if row['precision'] == '32-true' else 'float64'}"
        title = f"{TITLES[row['group']]}; {row['model']}{kind}"
        worst = rows.setdefault(title, {"title": title, "relative": 0.0, "absolute": 0.0, "bit_equal": True})
        for key in ("relative", "absolute"):
            worst[key] = max(worst[key], row[key])
        worst["bit_equal"] &= row["bit_equal"]
    return list(rows.values())


def good(row: dict) -> bool:
    """Bit-equal where nothing is added in another order; else within 1e-12 in float64, and LIMIT for LeNet."""
    if row["group"] in ("checkpointing", "killed"):
        return row["bit_equal"]
    if row["group"] == "rounding":
        return True
    if row["precision"] == "64-true":
        return row["relative"] <= 1e-12
    return row["model"] != "lenet_300_100" or row["relative"] <= LIMIT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that holds MNIST/raw/")
    parser.add_argument("--seed", type=int, default=0, help="of the steps at which runs are killed")
    parser.add_argument("--asked", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--answered", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # the number of threads is another order of summation
    if arguments.asked:
        answer(arguments.asked, arguments.answered)
        return 0
    random.seed(arguments.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    root = str(arguments.data.resolve()) if arguments.data else None
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "both").mkdir()
        details = cut_in_pieces(root, folder)
        details += run_again(root, folder)
        details += [killed(root, 1, 3, folder), killed(root, 2, 2, folder)]
    rows = summary(details)
    result = {
        "data": "mnist" if root else "digits",
        "samples": SAMPLES,
        "batch_size": BATCH,
        "steps": STEPS,
        "machine": {"processor": platform.machine(), "torch": torch.__version__, "threads": 1},
        "wall_s": round(time.perf_counter() - started, 1),
        "rows": rows,
        "details": details,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "equality.json").write_text(json.dumps(result, indent=2) + "\n")
    for row in details:
        equal = "bit-equal" if row["bit_equal"] else f"relative {row['relative']:.1e}  absolute {row['absolute']:.1e}"
        print(f"{row['title']:<48} {row['model']:<18} {row['optimizer']:<5} {row['precision']:<8} {equal}")
    print(f"{result['wall_s']} s, written to {RESULTS / 'equality.json'}")
    return int(not all(good(row) for row in details))


if __name__ == "__main__":
    sys.exit(main())
