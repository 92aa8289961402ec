"""What every launcher starts on each rank.

    python -m distmem.worker RECIPE [key=value ...] [--out DIR] [--resume PATH] [--debug]
    torchrun --nproc-per-node 2 -m distmem.worker RECIPE ...

Ranks other than 0 write to logs/rankN.log in the run folder. The exit code is 0, 1 (failed), 2 (recipe) or
75 (stopped on request; starting it again with the same --out goes on).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from distmem.errors import DistmemError, Stopped, UsageError
from distmem.launched import launched
from distmem.signals import StopFlag, end_with_parent

# a message about an error in a model or a loss points at their code, not at ours around it
NOT_THE_USERS = ("site-packages", "/lib/python", str(Path(__file__).parent), "<frozen")


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m distmem.worker", description="one rank of a distmem run")
    parser.add_argument("recipe", help="a recipe file, or the name of a shipped one")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--out", type=Path, help="run folder; a run that is in it goes on")
    parser.add_argument("--resume", type=Path, help="a checkpoint folder of another run to start from")
    parser.add_argument("--debug", action="store_true", help="a few batches, anomaly detection, full tracebacks")
    parser.add_argument("--managed", action="store_true", help="started by distmem run, which reads the outcome")
    return parser.parse_intermixed_args(argv)  # overrides may stand behind options


def main(argv: list[str] | None = None) -> int:
    """Run one rank to its end; gives the exit code. Errors are printed, or noted for the launcher that reads them."""
    arguments = parse_arguments(argv)
    process = launched()
    rank = process.rank
    stop = StopFlag()
    stop.install()
    if arguments.managed or process.under_agent:
        end_with_parent(signal.SIGINT)  # and not SIGTERM: after an earlier request it ends this rank at once
    try:
        from distmem.rank import run_rank  # imports torch, which takes seconds

        run_rank(arguments, stop)
        return 0
    except Stopped as stopped:
        if rank == 0 and not arguments.managed:
            print(stopped, file=sys.stderr)
        # A rank that ends with 75 would be a failure to torchrun, to be restarted; the launcher knows from the outcome.
        return 0 if arguments.managed else stopped.exit_code
    except (Exception, KeyboardInterrupt) as error:
        report_failure(error, rank, arguments)
        if process.size > 1:
            sys.stderr.flush()
            os._exit(exit_code(error))  # no farewell: the other ranks wait in a collective, and must see this one go
        return exit_code(error)


def exit_code(error: BaseException) -> int:
    return error.exit_code if isinstance(error, DistmemError) else 1


def report_failure(error: BaseException, rank: int, arguments: argparse.Namespace) -> None:
    """A note for the launcher, which shows the first one; the message here when there is no such launcher."""
    text = traceback.format_exc()
    message = str(error) if isinstance(error, DistmemError) else plain_message(error)
    note = {"time": time.time(), "rank": rank, "message": message, "exit_code": exit_code(error), "traceback": text}
    note["lost"] = lost_neighbour(error)
    if arguments.managed and arguments.out is not None:
        with contextlib.suppress(OSError):  # a full disk must not hide the error
            folder = arguments.out / "errors"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"rank{rank}-{time.time_ns()}.json").write_text(json.dumps(note))
            (arguments.out / "logs").mkdir(exist_ok=True)
            with (arguments.out / "logs" / f"rank{rank}.log").open("a") as log:
                log.write(text)
            return
    if exit_code(error) == UsageError.exit_code and rank > 0:
        return  # the same on every rank
    shown = text if arguments.debug or not isinstance(error, (DistmemError, UsageError)) else message
    print(shown if rank == 0 else f"rank {rank}: {shown}", file=sys.stderr)


def lost_neighbour(error: BaseException) -> bool:
    """Whether an error only says that another rank is gone, or that this one was told to go: not the cause."""
    if isinstance(error, KeyboardInterrupt):
        return True
    torch_says = type(error).__name__.startswith("Dist")  # DistBackendError, DistNetworkError, DistStoreError
    return isinstance(error, RuntimeError) and (torch_says or "gloo" in str(error))


def plain_message(error: BaseException) -> str:
    """An error that is none of distmem's own: its kind, its words and the line it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if not any(part in frame.filename for part in NOT_THE_USERS)]
    last = (users or list(frames))[-1]
    return f"{type(error).__name__}: {error}\n  at {last.filename}:{last.lineno}: {last.line}"


if __name__ == "__main__":
    sys.exit(main())
