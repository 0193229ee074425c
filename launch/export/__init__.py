"""Files that other libraries read, made from a store's rows and its datamodels: `datamodels export --to TARGET`.

To add a target: write a module with a function `write(store, folder, progress, *, option=default, ...)` that writes its
files into the folder and returns what export.json says of them; add the function to TARGETS; add its name, and options
that are new, to EXPORT in launch/commands/__init__.py; describe it in docs/export.md, whose examples the tests run.
`Subsets` reads masks and margins block by block, `Weights` reads datamodels in mask units, and `write_npy` writes
arrays.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datamodels.lasso import Progress, target_count
from datamodels.launch.export import dattri, huggingface, parquet, quanda, safetensors, sparse, trak
from datamodels.launch.export.folder import new_folder
from datamodels.launch.export.huggingface import read_datamodels
from datamodels.train import UserError
from datamodels.train.store import BaseStore

__all__ = ["TARGETS", "options_of", "read_datamodels", "write_export"]

TARGETS: dict[str, Callable[..., dict[str, Any]]] = {
    "trak": trak.write,
    "dattri": dattri.write,
    "quanda": quanda.write,
    "sparse": sparse.write,
    "parquet": parquet.write,
    "safetensors": safetensors.write,
    "huggingface": huggingface.write,
}


def options_of(to: str) -> dict[str, Any]:
    """The options that a target takes, with their defaults: its function's keyword-only parameters."""
    parameters = inspect.signature(TARGETS[to]).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}


def write_export(store: BaseStore, to: str, given: dict[str, Any], progress: Progress) -> Path:
    """Write the files of a target and return their folder, {store.derived}/export/{to}_{split}_{pct}pct.

    `given` holds the options that are not at their defaults. The folder's name has no split if the target takes none.
    An earlier export there is replaced, or left as it was if this one fails. Raises UserError, WorkError.
    """
    defaults = options_of(to)
    for key in given.keys() - defaults.keys():
        raise UserError(f"--{key} is not for --to {to}, which takes {', '.join(f'--{name}' for name in defaults)}")
    options = {**defaults, **given}
    name = to
    if "split" in options:
        target_count(store, options["split"])
        name = f"{to}_{options['split']}"
    path = store.derived / "export" / f"{name}_{store.setting.file_tag}"
    about = {"to": to, "dataset": store.setting.dataset, "alpha": store.setting.alpha, **options}
    with new_folder(path, about) as folder:
        about |= TARGETS[to](store, folder, progress, **options)
    return path
