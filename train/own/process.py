"""The process that a user's trainer file runs in, and how the trainer talks to it.

Parent and child exchange tuples: (function, arguments) one way, ("done", value) or (what went wrong, text) the other.
"""

import ast
import ctypes
import importlib.metadata
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train.errors import Interrupted, UserError
from datamodels.train.outputs import Output
from datamodels.train.user_code import line_of, module_of, reason_of, telling
from datamodels.train.values import expanded

POLL_SECONDS = 0.5
_PR_SET_PDEATHSIG = 1


class RowError(Exception):
    """Why a row could not be trained, in a line."""


class Process:
    """A process that runs a trainer's file, started when it is first called and after every end of it."""

    def __init__(self, path: str, sha256: str | None, threads: int) -> None:
        self.path, self._arguments, self._threads = path, (path, sha256), threads
        self._child: Any = None
        self._connection: Any = None

    def __call__(self, name: str, *arguments: object, stop: Callable[[], bool] = lambda: False) -> Any:
        """Return what one of _FUNCTIONS returns there.

        Raises UserError for mistakes in the user's file, RowError for what failed but may go well for another row,
        Interrupted once `stop` says so; the process is ended then.
        """
        try:
            if self._child is None:
                self._start()
            self._connection.send((name, arguments))
            while not self._connection.poll(POLL_SECONDS):
                if stop():
                    self.close()
                    raise Interrupted
            kind, value = self._connection.recv()
        except (EOFError, OSError):  # it has ended, whatever it was doing
            self._child.join()
            code = self._child.exitcode
            self._child = None
            ended = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            raise RowError(f"the process {ended}") from None
        if kind == "done":
            return value
        raise (UserError if kind == "mistake" else RowError)(value)

    def _start(self) -> None:
        limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(self._threads))
        before = dict(os.environ)
        context = get_context("spawn")
        self._connection, there = context.Pipe()
        try:  # libraries read these when they are imported
            os.environ.update({"CUBLAS_WORKSPACE_CONFIG": ":4096:8", **before, **limits})
            self._child = context.Process(target=_serve, args=(there, os.getpid(), *self._arguments))
            self._child.start()
            # Only a process that is no daemon may have children, such as a DataLoader's workers; this one is waited for
            # as the parent ends, unless it has ended by then.
            Finalize(self, self._child.kill, exitpriority=0)
        finally:
            os.environ.clear()
            os.environ.update(before)
            there.close()

    @property
    def alive(self) -> bool:
        """Whether the process of the last call still runs."""
        return self._child is not None

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._child is not None:
            self._child.kill()
            self._child.join()
            self._child = None


def _serve(connection: Connection, parent: int, path: str, sha256: str | None) -> None:
    """Answer the parent's calls until it closes the connection or ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the parent decides what they mean
        signal.signal(number, signal.SIG_IGN)
    os.dup2(2, 1)  # standard output is for results
    module: ModuleType | None = None
    while True:
        try:
            name, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            module = module or module_of(path, "trainer", sha256)
            answer = "done", _FUNCTIONS[name](module, path, *arguments)
        except UserError as error:
            answer = "mistake", str(error)
        except RowError as error:
            answer = "failed", str(error)
        except BaseException as error:
            answer = "failed", reason_of(error)
        connection.send(answer)


def _declare(module: ModuleType, path: str) -> dict[str, Any]:
    """Return `n_train`, `outputs` as the file gives them, and the versions of the packages that it imports."""
    found: dict[str, Any] = {}
    for name in ("n_train", "outputs"):
        if not hasattr(module, name):
            raise UserError(f"{path} defines no {name}, expected n_train, outputs and train (trainer)")
        value = getattr(module, name)
        with telling(path):
            found[name] = value() if callable(value) else value
    if not callable(getattr(module, "train", None)):
        raise UserError(f"{path} defines no function train (trainer)")
    return {**found, "versions": _versions(path)}


def _versions(path: str) -> dict[str, str]:
    nodes = list(ast.walk(ast.parse(expanded(path, "trainer").read_bytes())))
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    named |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    packages = importlib.metadata.packages_distributions()
    found = {name for module in named for name in packages.get(module.partition(".")[0], ())}
    return {name: importlib.metadata.version(name) for name in sorted(found)}


def _names(module: ModuleType, path: str) -> Any:
    """Return what the file's `names()` returns; None where it defines none."""
    if not hasattr(module, "names"):
        return None
    with telling(path):
        return module.names()


def _setup(module: ModuleType, path: str, device: str) -> None:
    if hasattr(module, "setup"):
        with telling(path):
            module.setup(device)


def _train(
    module: ModuleType, path: str, outputs: tuple[Output, ...], mask: NDArray[np.bool_], seed: int, device: str
) -> tuple[dict[str, NDArray], float]:
    """Return a row's outputs, as they are stored, and the seconds that `train` took."""
    while True:
        imported = "torch" in sys.modules
        _seed_generators(seed)
        began = time.perf_counter()
        try:
            found = module.train(mask.copy(), seed, device)
        except (Exception, SystemExit) as error:
            raise RowError(f"{line_of(error, path)}: {reason_of(error)}".lstrip(", :")) from error
        seconds = time.perf_counter() - began
        if imported or "torch" not in sys.modules:
            break  # or else torch drew before it could be seeded
    if not isinstance(found, dict) or found.keys() != {each.name for each in outputs}:
        said = ", ".join(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise UserError(f"{path}: train returns {said}, expected a dictionary of {', '.join(o.name for o in outputs)}")
    return {each.name: _stored(found[each.name], each, path) for each in outputs}, seconds


def _stored(value: Any, output: Output, path: str) -> NDArray:
    """Return an output as it is stored. Raises UserError for another shape or type, RowError for other values."""
    try:
        array = np.asarray(value)
    except Exception as error:
        raise UserError(f"{path}: train returns {output.name} that NumPy cannot read: {reason_of(error)}") from None
    if array.shape != output.shape or array.dtype.kind not in "fiub":
        raise UserError(f"{path}: train returns {output.name} {array.dtype} {list(array.shape)}, declared {output}")
    if not np.isfinite(array).all():
        raise RowError(f"{output.name} not finite")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array, output.dtype)
    if not np.isfinite(stored).all():
        raise RowError(f"{output.name} outside {output.dtype}'s range")
    return stored


def _seed_generators(seed: int) -> None:
    """Seed the generators of NumPy and Python, and torch's of all devices where it is imported."""
    random.seed(seed)
    np.random.seed(np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32))  # noqa: NPY002 - users draw from it
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)


_FUNCTIONS: dict[str, Callable[..., Any]] = {"declare": _declare, "names": _names, "setup": _setup, "train": _train}
