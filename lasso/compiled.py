"""How kernels are compiled."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """njit with the compiled code kept on disk, or in this process alone where no cache folder can be written."""
    fast = {"reassoc", "contract", "nsz", "nnan", "arcp"}
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fast}
    try:
        kernel = njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)
    # numba takes kept code as current while the function's own file is: those that it calls may lie in others
    kernel._cache._cache_file._source_stamp = _sources()
    return kernel


@cache
def _sources() -> str:
    """What all modules with kernels hold."""
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"".join(text for text in texts if b"@compiled" in text)).hexdigest()
