"""Requests to stop: a signal only sets a flag, which all ranks look at together at the next step boundary."""

from __future__ import annotations

import signal
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Set by SIGTERM, SIGINT or SIGUSR1; the second SIGINT of an impatient user ends the process at once."""

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
