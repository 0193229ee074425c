"""Signals that ask a process to stop, and the exit codes that they lead to."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 75
EXIT_CTRL_C = 130

LEAVE_SECONDS = 9.0
"""Seconds after a signal at which a process ends, whatever it does. What is committed does not depend on its end."""

STOPPED = "stopped: the same command goes on"

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

Handler = Callable[[int, FrameType | None], object]


def install(handler: Handler) -> dict[signal.Signals, Handler | int | None]:
    """Let `handler` handle the signals; returns the former handlers."""
    return {number: signal.signal(number, handler) for number in _SIGNALS}


@contextlib.contextmanager
def installed(handler: Handler) -> Iterator[None]:
    """Let `handler` handle the signals, and restore the former handlers at the end; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = install(handler)
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, signal.SIG_DFL if former is None else former)


def raise_interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """A handler for work that may end anywhere: KeyboardInterrupt carries the signal past every `except Exception`."""
    raise KeyboardInterrupt(number)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """A handler for the time of imports, during which an exception can get lost."""
    _end(exit_code(number))


def exit_code(number: int | None) -> int:
    """The exit code of a process that a signal has stopped."""
    return EXIT_CTRL_C if number == signal.SIGINT else EXIT_INTERRUPTED


def code_of(error: KeyboardInterrupt) -> int:
    """The exit code for an interrupt of `raise_interrupt`, or for Python's own, which carries no signal."""
    return exit_code(error.args[0] if error.args else signal.SIGINT)


def _end(code: int) -> NoReturn:
    with contextlib.suppress(OSError):
        os.write(2, f"{STOPPED}\n".encode())
    os._exit(code)


class Stop:
    """Called between training steps: whether to stop. While it is entered, signals are noted and interrupt nothing.

    A second Ctrl-C raises KeyboardInterrupt at once. A process that has not left `leave_after` seconds after a signal
    is ended. With `parent`, training also stops once that process is no longer the parent, so that no worker outlives
    its launcher.
    """

    def __init__(self, parent: int | None = None, leave_after: float = LEAVE_SECONDS) -> None:
        self.signal: int | None = None
        self.parent, self.leave_after = parent, leave_after
        self._since = 0.0
        self._over = threading.Event()
        self._installed = installed(self._note)

    def __enter__(self) -> "Stop":
        threading.Thread(target=self._watch, daemon=True).start()
        self._installed.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._installed.__exit__(None, None, None)
        self._over.set()

    def _note(self, number: int, frame: FrameType | None) -> None:
        # No lock here: the thread that is interrupted may hold it.
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt(number)
        self._since = self._since or time.monotonic()
        self.signal = number

    def _watch(self) -> None:
        while not self._over.wait(min(0.5, self.leave_after)):
            if self.seconds > self.leave_after:
                sys.stderr.flush()
                _end(self.exit_code)

    def __call__(self) -> bool:
        return self.signal is not None or (self.parent is not None and os.getppid() != self.parent)

    @property
    def seconds(self) -> float:
        """Seconds since the first signal; 0 before it."""
        return time.monotonic() - self._since if self._since else 0.0

    @property
    def exit_code(self) -> int:
        return exit_code(self.signal)

    def check(self) -> None:
        """Raises KeyboardInterrupt where a signal came although there was no training left to stop."""
        if self.signal is not None:
            raise KeyboardInterrupt(self.signal)
