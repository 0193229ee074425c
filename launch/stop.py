"""Signals that ask a process to stop, and the exit codes they lead to."""

import os
import signal
import threading
from types import FrameType

EXIT_INTERRUPTED = 75
EXIT_CTRL_C = 130

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Stop:
    """Called between training steps: whether to stop. A second Ctrl-C stops at once, with KeyboardInterrupt.

    With `parent`, also once that process is no longer the parent, so that no worker outlives its launcher.
    """

    def __init__(self, parent: int | None = None) -> None:
        self.signal: int | None = None
        self.parent = parent
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def __call__(self) -> bool:
        return self.signal is not None or (self.parent is not None and os.getppid() != self.parent)

    @property
    def exit_code(self) -> int:
        return EXIT_CTRL_C if self.signal == signal.SIGINT else EXIT_INTERRUPTED
