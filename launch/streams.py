"""The standard streams of a process: always there, able to print any character."""

import codecs
import io
import os
import sys
from typing import Any


class _Heedless(io.FileIO):
    """A file that loses what it cannot write, as where its reader has left or its disk is full."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def _any_character(error: UnicodeError) -> tuple[str | bytes, int]:
    """The bytes of a file name that are no text as they are, and any other character as an escape."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error("any_character", _any_character)


def prepare_streams(encoding: str | None = None) -> None:
    """Open the streams that are closed, and let no character fail; writing to standard error never raises.

    Without it, the next file to be opened takes the number of a closed stream, and what a library prints goes into it.
    encoding: of standard output; None for the user's.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free, which is this one
    used = encoding or (sys.stdout.encoding if sys.stdout else "utf-8")
    output = io.BufferedWriter(io.FileIO(1, "w", closefd=False))
    sys.stdout = io.TextIOWrapper(output, used, "any_character", line_buffering=output.isatty())
    errors = io.BufferedWriter(_Heedless(2, "w", closefd=False))
    used = sys.stderr.encoding if sys.stderr else "utf-8"
    sys.stderr = io.TextIOWrapper(errors, used, "any_character", line_buffering=True)
