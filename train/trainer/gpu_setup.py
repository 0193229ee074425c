"""Which kernels a GPU trains with, after a check of them, and what to do about errors of its set-up."""

import subprocess
import sys
from collections.abc import Callable, Collection

import torch

from datamodels.train.config import Recipe
from datamodels.train.errors import UserError, WorkError
from datamodels.train.kernels import TORCH, Kernels, check_kernels, triton_kernels
from datamodels.train.trainer.device import precision
from datamodels.train.trainer.executor import Executor


def choose_kernels(
    recipe: Recipe,
    executor: Executor,
    stored: Collection[str] = (),
    triton: Callable[[], Kernels] = triton_kernels,
    tell: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> Kernels:
    """The kernels of a recipe on a device; Triton's are checked first, and told of where they do not start.

    stored: what rows of the store were trained with by GPUs. triton: makes Triton's kernels. Raises UserError where
    the recipe wants others than are stored; WorkError where Triton's kernels compute something wrong, or where they are
    needed and do not start.
    """
    if executor.capability is None:
        return TORCH
    if len(stored) > 1:
        raise WorkError(f"rows of this store were trained with the kernels {' and '.join(sorted(stored))}: {MIXED}")
    wanted = next(iter(stored), recipe.kernels)
    if recipe.kernels not in ("auto", wanted):
        raise UserError(
            f"recipe.kernels is {recipe.kernels!r}, but rows of this store were trained with {wanted!r}: use another "
            "--root, or the store's own value"
        )
    if wanted == "torch":
        return TORCH
    device = executor.device
    try:
        kernels = triton()
        check_kernels(kernels, device, precision(recipe, executor))
        return kernels
    except (UserError, WorkError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        told = f"Triton's kernels do not start on {device}: {explain(error)}"
        if stored:
            raise WorkError(f"{told}; rows of this store were trained with them") from error
        if wanted == "triton":
            raise WorkError(f"{told}; or use recipe.kernels: torch") from error
        tell(f"{told}; PyTorch's operations train all rows of this store")
        return TORCH


MIXED = "`repair --rows A:B` makes rows of one kind missing again (`status` counts them)"
COMPILER = "Triton needs a C compiler and Python's headers (apt install gcc python3-dev)"
MEMORY = "use fewer --workers, --data.resident false, or a GPU that nothing else uses"


def explain(error: BaseException) -> str:
    """What torch or Triton raised, in one line, with its remedy where there is one."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return f"{text.partition(' If reserved')[0].rstrip('.')}; {MEMORY}"  # torch's own advice is of no use here
    if isinstance(error, ModuleNotFoundError):
        return f"{text} (pip install {error.name})"
    if isinstance(error, subprocess.CalledProcessError):
        said = " ".join(str(error.stderr or "").split())[-200:]
        return f"the C compiler ended with exit code {error.returncode}{': ' + said if said else ''}; {COMPILER}"
    if "compiler" in text.lower() or isinstance(error, FileNotFoundError):
        return f"{text.rstrip('.')}; {COMPILER}"
    if type(error).__name__ == "OutOfResources":
        return f"{text}: this GPU is too small for a kernel"
    first = str(error).strip().partition("\n")[0]
    return first if first and isinstance(error, RuntimeError) else f"{type(error).__name__} {first}".strip()
