"""Run a Python file of the user: exactly the bytes that its digest is of; its errors are one line.

Nothing here imports torch.
"""

import contextlib
import hashlib
import sys
import traceback
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from datamodels.train.errors import Interrupted, UserError, WorkError
from datamodels.train.values import expanded
from fmow import mend_torchvision_imports


def sha256_of(path: str, key: str) -> str:
    """Return the sha256 of a file that the config's `key` names, read a piece at a time. Raises UserError."""
    try:
        with open(expanded(path, key), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{key} is {path!r}: cannot read it: {error.strerror}") from None


def function_of(path: str, key: str, name: str, sha256: str | None = None) -> Callable[..., Any]:
    """Return the function `name` that a file defines; what it raises becomes a UserError. Raises UserError."""
    function = getattr(module_of(path, key, sha256), name, None)
    if not callable(function):
        raise UserError(f"{path} defines no function {name} ({key})")

    def call(*arguments: object) -> Any:
        with telling(path):
            return function(*arguments)

    return call


def module_of(path: str, key: str, sha256: str | None = None) -> ModuleType:
    """Run a file and return it as a module.

    The file's folder is not searched for imports, because the digest is of this file alone. Raises UserError, also
    where the file does not have the expected digest.
    """
    content = _content(path, key)
    found = hashlib.sha256(content).hexdigest()
    if sha256 not in (None, found):
        raise UserError(f"{path} has changed: it has sha256 {found}, expected {sha256} ({key})")
    module = ModuleType(f"user_file_{found[:16]}")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses and others look for it
    mend_torchvision_imports()  # which the file may import, or a package that it imports
    with telling(path):
        exec(compile(content, path, "exec", dont_inherit=True), module.__dict__)
    return module


@contextlib.contextmanager
def telling(path: str) -> Iterator[None]:
    """Turn what a user's code raises into a UserError that names file and line; send what it prints to standard error.

    An error of memory, and our own errors, pass unchanged.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (UserError, WorkError, Interrupted, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's own
            raise
        raise UserError(f"{path}{line_of(error, path)}: {reason_of(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return an exception's type and the first line of its text."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}"


def line_of(error: BaseException, path: str) -> str:
    """Return the last line of the file that the error passed, as `, line N`."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f", line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f", line {lines[-1]}" if lines else ""


def _content(path: str, key: str) -> bytes:
    try:
        return expanded(path, key).read_bytes()
    except OSError as error:
        raise UserError(f"{key} is {path!r}: cannot read it: {error.strerror}") from None
