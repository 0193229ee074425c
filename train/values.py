"""Values of keys, as messages show them and as paths."""

from pathlib import Path

from datamodels.train.errors import UserError


def shown(value: object) -> str:
    """Return a value as a config has it: null, true or false, and all others as Python writes them."""
    for word, constant in (("null", None), ("true", True), ("false", False)):
        if value is constant:
            return word
    return repr(value)


def expanded(path: str | Path, key: str) -> Path:
    """Return a path with the home folder in place of a leading ~. Raises UserError that names the key."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{key} is {str(path)!r}, but no home folder is known for {Path(path).parts[0]}") from None


def require(ok: bool, key: str, found: object, expected: str) -> None:
    """Raise UserError, unless `ok`: `{key} is {found}, expected {expected}`."""
    if not ok:
        raise UserError(f"{key} is {shown(found)}, expected {expected}")
