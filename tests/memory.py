"""The peak memory of a process that a test starts."""

import re
from pathlib import Path


def peak() -> int:
    """Return this process's peak resident memory since it was executed, in bytes.

    `ru_maxrss` would count the process that started this one, if that was larger.
    """
    (kib,) = re.findall(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return 1024 * int(kib)
