"""Run a recipe with several seeds and write median and range of every stage.

    python benchmarks/seeds.py mnist_lenet300 --seeds 5 data.args.root=FOLDER

Writes benchmarks/results/RECIPE.json. Each seed is one run of `distmem run`, in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def run_once(recipe: str, seed: int, overrides: list[str], folder: Path) -> dict:
    """summary.json of one run; its output goes to the terminal."""
    out = folder / f"seed{seed}"
    subprocess.run(
        [sys.executable, "-m", "distmem", "run", recipe, f"seed={seed}", *overrides, "--out", str(out)], check=True
    )
    return json.loads((out / "summary.json").read_text())


def spread(values: list[float]) -> dict:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_intermixed_args()
    with tempfile.TemporaryDirectory() as folder:
        summaries = [
            run_once(arguments.recipe, seed, arguments.overrides, Path(folder)) for seed in range(arguments.seeds)
        ]
    first = summaries[0]
    stages = []
    for index, row in enumerate(first["stages"]):
        rows = [summary["stages"][index] for summary in summaries]
        stages.append(
            {
                "name": row["name"],
                "val_accuracy": spread([r["val_accuracy"] for r in rows]),
                "compression_rate": spread([r["compression_rate"] for r in rows]),
                "nonzeros": spread([r["nonzeros"] for r in rows]),
                "total": row["total"],
            }
        )
    result = {
        "recipe": arguments.recipe,
        "overrides": [o for o in arguments.overrides if not o.startswith("data.args.root")],
        "seeds": arguments.seeds,
        "parameters": first["parameters"],
        "precision": first["precision"],
        "epochs": first["epochs"],
        "accumulate": first["accumulate"],
        "machine": {"processor": platform.machine(), "device": first["device"], **first["versions"]},
        "samples_per_s": spread([summary["throughput"]["samples_per_s"] for summary in summaries]),
        "wall_s": spread([summary["wall_s"] for summary in summaries]),
        "stages": stages,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{Path(arguments.recipe).stem}.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    for stage in stages:
        accuracy, rate = stage["val_accuracy"], stage["compression_rate"]
        print(
            f"{stage['name']:<8} {100 * accuracy['median']:.2f} % ({100 * accuracy['min']:.2f} to "
            f"{100 * accuracy['max']:.2f})  {rate['median']:.2f}x"
        )
    print(f"written to {file}")


if __name__ == "__main__":
    main()
