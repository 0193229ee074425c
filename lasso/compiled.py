"""Compile functions for the CPU with numba."""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import config, njit, types
from numba.extending import intrinsic, register_jitable

OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
    "fastmath": {"reassoc", "contract", "nsz", "nnan", "arcp"},  # sums in any order, of numbers that are finite
}


config.DISABLE_JIT = 0  # type: ignore[attr-defined]  # NUMBA_DISABLE_JIT: in Python a fit would take days


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function with numba; the code is kept on disk, or in this process if no cache folder can be written."""
    try:
        kernel = njit(cache=True, **OPTIONS)(function)
    except RuntimeError:
        return njit(**OPTIONS)(function)
    # Numba takes cached code as current while the function's own file is, but the functions that it calls may lie in
    # others. It compares the version before it reads anything else, which may name classes that are gone.
    file = kernel._cache._cache_file
    file._version = f"{file._version} {sources_stamp(Path(function.__code__.co_filename).parent)}"
    return kernel


def jitable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let compiled functions call a function, which is compiled with them. From Python it runs as Python."""
    return register_jitable(**OPTIONS)(function)


@cache
def sources_stamp(folder: Path) -> str:
    """A digest of this file and of all modules with kernels in a folder; kernels call none of another folder."""
    texts = [path.read_bytes() for path in (Path(__file__), *sorted(folder.glob("*.py")))]
    return hashlib.sha256(b"".join(text for text in texts if b"@compiled" in text or b"jit" in text)).hexdigest()


def _count(typing_context: Any, word: Any) -> Any:
    """Number of ones of a uint64."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


ones: Any = intrinsic(_count)
