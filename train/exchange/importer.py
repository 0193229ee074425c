"""Copy the arrays of MadryLab/datamodels, or any .npy files, to a root of published files: docs/format.md, "Import"."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train.config import Setting
from datamodels.train.errors import UserError
from datamodels.train.exchange.new_root import CONFIG, new_root, refuse_other_files
from datamodels.train.npy_file import Notice, RowFile, mapped, new_file
from datamodels.train.outputs import is_output
from datamodels.train.store import Layout, check_space, read_flags
from datamodels.train.user_code import sha256_of

_BLOCK_BYTES = 2**25
"""Bytes that are read at a time."""

Flags = NDArray[np.bool_]
Progress = Callable[[str, int, int], None]
"""Called with the name of a file, rows of it that are copied, and all its rows."""


def import_arrays(
    source: Path,
    form: str,
    root: Path,
    keys: Mapping[str, Any],
    names: Mapping[str, str],
    progress: Progress,
    notice: Notice,
) -> tuple[Layout, Path]:
    """Copy the arrays of a folder to a new root; returns where they lie then, and a config for them.

    form: `madrylab`, a store of MadryLab/datamodels, or `arrays`. keys: of the config, `dataset`, and if given `alpha`
    or `tag`, and `eval_models`. Else alpha is the share of ones in the masks, and the last tenth of the completed rows
    are for evaluation. names: files of the source by the names of arrays here, such as `test_loss`; if empty, all whose
    own names say what they are.

    Raises UserError, WorkError, OSError.
    """
    refuse_other_files(source, root)
    arrays, left_out = _open_arrays(source, form, names)
    rows, flags = len(arrays["train_masks"]), source / "_completed.npy"
    completed = read_flags(flags, rows) if flags.exists() else np.ones(rows, bool)
    if not len(done := np.flatnonzero(completed)):
        raise UserError(f"{flags} marks none of {rows} rows as completed, expected some")
    keys = _alpha_or_tag(source, arrays["train_masks"], completed, root, keys)
    keys.setdefault("eval_models", rows - int(done[-(len(done) // 10)]) if len(done) >= 10 else 0)
    setting = Setting(**keys)
    if setting.eval_models >= rows:
        raise UserError(f"eval_models is {setting.eval_models}, but {source} holds {rows} rows in all")

    arrays["_completed"] = completed
    kinds = {name: _kind(name, values.dtype) for name, values in arrays.items()}
    row_bytes = sum(kinds[name].itemsize * values[0].size for name, values in arrays.items())
    check_space(root, row_bytes * len(done))
    layout = Layout(root, setting.dataset, setting.file_tag)
    with new_root(source, layout, keys) as staged:
        for name, values in arrays.items():
            _copy(values, completed, staged.array(name), kinds[name], progress)
        if setting.own_masks:
            keys["mask_sha256"] = sha256_of(str(staged.array("train_masks")), "mask")
    for path in left_out:
        notice(f"{path} is left out: --names test_OUTPUT={path.stem} would name it as an output")
    return layout, root / CONFIG


def _open_arrays(source: Path, form: str, names: Mapping[str, str]) -> tuple[dict[str, NDArray[Any]], list[Path]]:
    """Return masks [M, N_train] and outputs [M, T, ...] of a folder, mapped, by their names here; and files left out.

    Raises UserError.
    """
    files = {path.stem: path for path in sorted(source.glob("*.npy"))}
    if form == "madrylab":
        _check_store(source, files)
    files.pop("_completed", None)
    usual = source / ("masks.npy" if "masks" in files else "train_masks.npy")
    found, left_out = {"train_masks": usual} if names else {}, []
    for name, file in names.items():
        if not is_output(name):
            raise UserError(
                f"--names gives {name!r}, expected train_masks, or test_ or train_ and a word of a-z and 0-9"
            )
        found[name] = source / f"{file.removesuffix('.npy')}.npy"
    for stem, path in {} if names else files.items():
        name = "train_masks" if stem == "masks" else stem if stem.startswith(("test_", "train_")) else f"test_{stem}"
        if name in found:
            raise UserError(f"{path} and {found[name].name} are both {name}: say which with --names {name}=FILE")
        if is_output(name) and (name == "train_masks" or mapped(path).dtype.kind in "fb"):
            found[name] = path
        else:
            left_out.append(path)
    for name in ("train_masks", next((name for name in found if name.startswith("test_")), "test_margins")):
        if name not in found:
            held = ", ".join(path.name for path in files.values()) or "no .npy file"
            raise UserError(f"{source} holds {held}, expected {name}: --names {name}=FILE says which file that is")

    masks = mapped(found.pop("train_masks"))
    if masks.ndim != 2 or masks.dtype.kind not in "buif" or not masks.size:
        raise UserError(f"{masks.filename} holds {masks.dtype} of shape {masks.shape}, expected masks [rows, n_train]")
    arrays: dict[str, NDArray[Any]] = {"train_masks": masks}
    for name, path in found.items():
        values = mapped(path)
        fits = values.shape[:1] == masks.shape[:1] and values.dtype.kind in "buif" and values.size
        if name in ("train_margins", "train_logits"):
            fits = fits and values.shape[1:2] == masks.shape[1:]
        if not fits:
            raise UserError(
                f"{path} holds {values.dtype} of shape {values.shape}, expected numbers that fit {masks.filename}, "
                f"whose shape is {masks.shape} (--names NAME=FILE takes only what it names)"
            )
        arrays[name] = values if values.ndim > 1 else values[:, None]  # a number for each row
    return arrays, left_out


def _check_store(source: Path, files: Mapping[str, Path]) -> None:
    """Raises UserError unless files are those of a store of MadryLab/datamodels, as its spec.json describes, if any."""
    if "_completed" not in files:
        raise UserError(f"{source / '_completed.npy'} does not exist, expected a store of MadryLab/datamodels")
    if not (path := source / "spec.json").exists():
        return  # `initialize_store` leaves it where it was
    try:
        spec = json.loads(path.read_bytes())
        shapes = {key: (spec["num_models"], *array["shape"]) for key, array in spec["schema"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error!r}, expected num_models, and shapes of arrays in schema") from None
    for key, shape in shapes.items():
        if (held := mapped(source / f"{key}.npy").shape) != shape:
            raise UserError(f"{source / key}.npy has shape {held}, but {path} says {shape}")


def _blocks(values: NDArray[Any], completed: Flags) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield first rows and copies of blocks with completed rows; their other rows are 0."""
    height = max(1, _BLOCK_BYTES * len(values) // (values.size * max(values.itemsize, 4)))
    for start in range(0, len(values), height):
        chosen = completed[start : start + height]
        if chosen.any():
            block = np.array(values[start : start + height])
            block[~chosen] = 0
            yield start, block


def _alpha_or_tag(
    source: Path, masks: NDArray[Any], completed: Flags, root: Path, keys: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keys of the config, with those that describe the masks. Raises UserError.

    Alpha is the share of ones with as few digits as rounding and chance explain.
    """
    sizes = np.zeros(len(masks), np.int64)
    for start, block in _blocks(masks, completed):
        numbers = block.view(np.uint8) if block.dtype == bool else block  # a bool's byte may be anything
        if len(wrong := np.argwhere((numbers != 0) & (numbers != 1))):
            row, column = wrong[0]
            raise UserError(f"{source}: the mask of row {start + row} holds {numbers[row, column]}, expected 0 and 1")
        sizes[start : start + len(block)] = np.count_nonzero(numbers, axis=1)
    if "tag" in keys:
        path = os.path.abspath(Layout(root, keys["dataset"], keys["tag"]).array("train_masks"))
        return {**keys, "mask": path, "mask_sha256": "that of the copy"}
    sizes, n_train = sizes[completed], masks.shape[1]
    share, exact = float(sizes.mean() / n_train), sizes.min() == sizes.max()
    deviation = (share * (1 - share) * n_train) ** 0.5
    if "alpha" not in keys and (share in (0, 1) or sizes.std() > 2 * deviation):
        found = f"{sizes.min()} to {sizes.max()} of {n_train} training examples"
        raise UserError(f"{source}: masks hold {found}, which is no alpha: expected --tag NAME to name the files by")
    chance = 3 * deviation / (n_train * len(sizes) ** 0.5)
    rounded = (round(share, digits) for digits in range(1, 7))
    explained = (
        near for near in rounded if (round(near * n_train) == sizes[0] if exact else abs(near - share) <= chance)
    )
    alpha = next(explained, round(share, 6))
    return {"alpha": alpha, **keys, "mask": "exact" if exact else "bernoulli"}


def _kind(name: str, kind: np.dtype) -> np.dtype:
    """Return the type that an array has here, of the one that its source has."""
    if name in ("train_masks", "_completed"):
        return np.dtype(bool)
    return kind.newbyteorder("=") if kind.kind == "f" else np.dtype(np.float32)


def _copy(values: NDArray[Any], completed: Flags, path: Path, kind: np.dtype, progress: Progress) -> None:
    """Write the completed rows of an array to a file of its full length. Raises WorkError, OSError."""
    new_file(path, values.shape, kind)
    file = RowFile(path, values.shape, kind, writable=True)
    for start, block in _blocks(values, completed):
        file.write(start, block)
        progress(path.name, start + len(block), len(values))
    file.sync(len(values) - 1)
    file.close()
