"""Files with weights or scores of any attribution method, told apart by what they hold and not by their names."""

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.datamodels import Datamodels, load, load_tensors
from datamodels.train import UserError, is_pointer, mapped

if TYPE_CHECKING:
    import torch


def read_scores(path: Path) -> Datamodels | NDArray[Any]:
    """The datamodels in a file, or its one array of scores.

    A .npy file (TRAK's scores/NAME.mmap is one); a .npz archive with one array, or with a SciPy sparse matrix; what
    torch.save writes: a dict with `weight` and `bias`, a lone tensor (dattri's scores), or a dict with a single one.
    Archives, sparse and bfloat16 tensors are read into memory, the others mapped. Raises UserError.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(6)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if head == b"\x93NUMPY":
        return mapped(path)
    names = [Path(name).name for name in _members(path)] if head.startswith(b"PK") else []
    if names and "data.pkl" not in names:
        return _archived(path, names)
    if not names and not head.startswith(b"\x80"):  # not what torch wrote before it wrote archives either
        found = "a pointer of Git LFS: `git lfs pull` fetches the file itself" if is_pointer(path) else repr(head)
        raise UserError(f"{path} is no .npy, .npz or .pt file by its content, but begins with {found}")
    tensors = load_tensors(path)
    if isinstance(tensors, dict) and "weight" in tensors:
        return load(path)
    named = tensors if isinstance(tensors, dict) else {"a tensor": tensors}
    if len(named) != 1 or not hasattr(tensor := next(iter(named.values())), "layout"):
        kind = ", ".join(map(str, named)) if isinstance(tensors, dict) else type(tensors).__name__
        raise UserError(f"{path} holds {kind}, expected weight and bias, or one tensor [N_train, targets]")
    return _as_array(path, tensor)


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a whole archive: {error}") from None


def _archived(path: Path, names: list[str]) -> NDArray[Any]:
    try:
        if "format.npy" in names:
            from scipy import sparse

            return np.asarray(sparse.load_npz(path).toarray())
        if len(names) == 1:
            with np.load(path, allow_pickle=False) as archive:
                return np.asarray(archive[archive.files[0]])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a whole .npz file: {error}") from None
    raise UserError(f"{path} holds {', '.join(names)}, expected one array [N_train, targets]")


def _as_array(path: Path, tensor: "torch.Tensor") -> NDArray[Any]:
    import torch

    try:
        dense = tensor.detach().to_dense() if tensor.layout != torch.strided else tensor.detach()
        return np.asarray((dense.float() if dense.dtype == torch.bfloat16 else dense).numpy())
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise UserError(f"{path} holds a tensor that is no array: {str(error).splitlines()[0]}") from None
