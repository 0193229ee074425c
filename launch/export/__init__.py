"""Files that other libraries read, made from a store's rows and its datamodels: `datamodels export`."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from datamodels.lasso import Progress
from datamodels.launch.export import dattri, parquet, quanda, sparse, trak
from datamodels.launch.export.folder import new_folder
from datamodels.launch.export.job import Job, Options
from datamodels.train import UserError
from datamodels.train.store import ReadableStore

__all__ = ["TARGETS", "Target", "write_export"]


@dataclass(frozen=True)
class Target:
    write: Callable[[Job, Path], dict[str, Any]]
    """Writes the files into a folder and returns what export.json says of them."""
    takes: tuple[str, ...]
    """The options that it takes."""


TARGETS = {
    "trak": Target(trak.write, ("split", "rows", "margin")),
    "dattri": Target(dattri.write, ("split", "rows", "margin")),
    "quanda": Target(quanda.write, ("rows", "checkpoints")),
    "sparse": Target(sparse.write, ("split", "threshold")),
    "parquet": Target(parquet.write, ("split", "k")),
}


def write_export(store: ReadableStore, to: str, given: dict[str, Any], progress: Progress) -> Path:
    """Write the files of a target, given some of its options; returns their folder.

    {store.derived}/export/{to}_{split}_{pct}pct, without the split where it does not matter; a former export there is
    replaced. Raises UserError, WorkError; then a former export is left as it was.
    """
    target = TARGETS[to]
    for key in given.keys() - target.takes:
        raise UserError(f"--{key} is not for --to {to}, which takes {', '.join(f'--{name}' for name in target.takes)}")
    options = replace(Options(), **given)
    if "split" in target.takes:
        store.margins(options.split)
    name = f"{to}_{options.split}" if "split" in target.takes else to
    path = store.derived / "export" / f"{name}_{store.setting.pct}pct"
    about = {"to": to, "dataset": store.setting.dataset, "alpha": store.setting.alpha}
    about |= {field.name: getattr(options, field.name) for field in fields(options) if field.name in target.takes}
    with new_folder(path, about) as folder:
        about |= target.write(Job(store, options, progress), folder)
    return path
