"""Print what distmem says to each broken recipe: python tests/broken/show.py [part of a name]"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from cases import cases, prepare, run

LINES = 4  # of a message


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DISTMEM_CACHE"] = str(folder / "cache")
        prepare(folder)
        for case in cases():
            if wanted not in case.file.name:
                continue
            outcome = run(case, folder)
            message = outcome.err.replace(f"{folder}/", "").splitlines()
            more = [f"... {len(message) - LINES} more lines"] if len(message) > LINES + 1 else message[LINES:]
            print(f"{case.file.name}  exit {outcome.exit}")
            print("\n".join(f"    {line}" for line in [*message[:LINES], *more]))


if __name__ == "__main__":
    main()
