"""Write the README's tables from the JSON files of the benchmarks.

python benchmarks/readme.py            rewrites README.md between its <!-- table: NAME --> marks
python benchmarks/readme.py --check    exits with 1 when README.md is not what the JSON says
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def percent(spread: dict) -> str:
    return f"{100 * spread['median']:.2f} % ({100 * spread['min']:.2f} to {100 * spread['max']:.2f})"


def stages(name: str) -> str:
    """Accuracy and weights of every stage, median and range over the seeds."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    lines = ["| stage | test accuracy, median (range) | weights left | rate |", "|---|---|---|---|"]
    for row in result["stages"]:
        left = row["nonzeros"]["median"]
        lines.append(
            f"| {row['name']} | {percent(row['val_accuracy'])} | {left:,.0f} of {row['total']:,} "
            f"({100 * left / row['total']:.2f} %) | {row['compression_rate']['median']:.2f}x |"
        )
    seconds = result["wall_s"]["median"]
    machine = result["machine"]
    lines.append("")
    lines.append(f"{result['seeds']} seeds, {seconds:.0f} s each on {machine['device']}, torch {machine['torch']}.")
    return "\n".join(lines)


def equality(name: str) -> str:
    """Largest differences between runs that should be the same."""
    result = json.loads((RESULTS / f"{name}.json").read_text())
    lines = ["| compared | largest relative difference of the loss |", "|---|---|"]
    for row in result["rows"]:
        shown = "0 (bit-equal)" if row["bit_equal"] else f"{row['relative']:.1e}"
        lines.append(f"| {row['title']} | {shown} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[str], str]] = {"mnist_lenet300": stages, "mnist_cnn": stages, "equality": equality}


def rewritten(text: str) -> str:
    for name, table in TABLES.items():
        block = f"<!-- table: {name} -->\n{table(name)}\n<!-- end -->"
        text = re.sub(rf"<!-- table: {name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.S)
    return text


def main() -> int:
    readme = ROOT / "README.md"
    old = readme.read_text()
    new = rewritten(old)
    if "--check" in sys.argv:
        return int(new != old)
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
