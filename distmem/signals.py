"""Requests to stop: a signal only sets a flag, which all ranks look at together at the next step boundary."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR1; a SIGINT on top of that, of an impatient user, ends the process at once."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def install(self) -> None:
        for number in STOP_SIGNALS:
            signal.signal(number, self._set)

    def _set(self, number: int, _: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name

    @property
    def is_set(self) -> bool:
        return self.signal is not None


def end_with_parent(number: int, parent: int | None = None) -> None:
    """Ask Linux for this signal when the parent dies, even by SIGKILL: no orphans keep a device.

    parent: its process id, where it is known, for a parent that is gone already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number)
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), number)
