"""What torch's elastic agent says about the ranks it started: the only one who saw a rank end by a signal."""

from __future__ import annotations

import re
import signal

# one entry of the table that torch.distributed.elastic prints when ranks failed
_FAILURE = re.compile(r"^\s*rank\s*: (?P<rank>\d+) .*\n\s*exitcode\s*: (?P<code>-?\d+)", re.MULTILINE)


def ended_by_signal(said: str) -> tuple[int, int]:
    """(rank, signal) of the first rank that a signal ended; (0, 0) when there is none.

    SIGTERM does not count: the agent itself sends it to the neighbours of a rank that failed.
    """
    for failure in _FAILURE.finditer(said):
        number = -int(failure["code"])
        if number > 0 and number != signal.SIGTERM:
            return int(failure["rank"]), number
    return 0, 0
