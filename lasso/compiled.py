"""Compile functions for the CPU with numba."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """njit with sums in any order, for numbers that are finite; see _kept."""
    return _kept(function, {"reassoc", "contract", "nsz", "nnan", "arcp"})


def compiled_strictly(function: Callable[..., Any]) -> Callable[..., Any]:
    """njit in which NaN and infinity count; products and sums may be joined, no more. See _kept."""
    return _kept(function, {"contract"})


def _kept(function: Callable[..., Any], fastmath: set[str]) -> Callable[..., Any]:
    """The compiled code is kept on disk, or in this process alone where no cache folder can be written."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}
    try:
        kernel = njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)
    # numba takes kept code as current while the function's own file is: functions that it calls may lie in others
    kernel._cache._cache_file._source_stamp = sources_stamp(Path(function.__code__.co_filename).parent)
    return kernel


@cache
def sources_stamp(folder: Path) -> str:
    """A digest of this file and of all modules with kernels in a folder; kernels call none of another folder."""
    texts = [path.read_bytes() for path in (Path(__file__), *sorted(folder.glob("*.py")))]
    return hashlib.sha256(b"".join(text for text in texts if b"@compiled" in text or b"njit" in text)).hexdigest()
