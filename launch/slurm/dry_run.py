"""The dry run: what `submit` would hand to sbatch, and what that takes in rows, bytes, hours and money.

Nothing is submitted, nothing on disk changes, and neither SLURM nor a store need be there.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from datamodels.launch.plan import arrays_of, store_as_it_is
from datamodels.launch.progress import duration, notice
from datamodels.launch.slurm import queue as slurm_queue
from datamodels.launch.slurm.config import Slurm, seconds_of
from datamodels.launch.slurm.plan import Plan, Range, folder_of, next_folder, pieces
from datamodels.launch.slurm.script import files, portable, require_path
from datamodels.launch.slurm.work import Queue, Rows, rows_of
from datamodels.train import Setting, UserError
from datamodels.train.store import Layout, Store


def dry_run(setting: Setting, layout: Layout, cluster: Slurm, split: str, retry_failed: bool) -> int:
    """Print the scripts of every stage and what the training takes. Raises UserError."""
    require_path(layout)
    store, notices = store_as_it_is(setting, layout), list[str]()
    rows = rows_of(store, retry_failed) if store else _new_rows(setting, notices)
    queued = _queued(layout, store, split, notices)
    tasks = rows.tasks(cluster, queued)
    n_train, targets = (_shapes(rows)[name][1] for name in ("train_masks", "test_margins"))
    targets = targets if split == "test" else n_train
    fit_gpus = cluster.after.gpus_for_fit
    stages = {"train": tasks, "fit": pieces(targets, cluster.after.targets), "eval": [(0, targets)]}
    limit = slurm_queue.limits().array
    path = next_folder(folder_of(layout))
    shown = dict[str, str]()
    content = portable(rows.setting), dataclasses.asdict(cluster)
    for stage, wanted in stages.items():
        if wanted:
            plan = Plan(
                store.manifest.id if store else "ID", stage, split, 0, 0, tuple(wanted), limit, *content, fit_gpus
            )
            shown |= {name: text for name, text in files(plan, path, layout).items() if name.endswith(".sh")}
    for line in notices:
        notice(line)
    for name, text in shown.items():
        print(f"----- {name}\n{text}")
    print(_summary(rows, tasks, queued, cluster, split))
    return 0


def _new_rows(setting: Setting, notices: list[str]) -> Rows:
    """The rows of a store that is yet to be created. Raises UserError."""
    arrays = arrays_of(setting, notices)
    return Rows(setting, setting.rows, setting.recipe.group, arrays, np.arange(setting.rows), None)


def _shapes(rows: Rows) -> dict[str, tuple[int, ...]]:
    return {array.name: array.shape for array in rows.arrays}


def _queued(layout: Layout, store: Store | None, split: str, notices: list[str]) -> list[Range]:
    try:
        return Queue(slurm_queue.jobs(folder_of(layout)), store.manifest.id if store else None, split).tasks("train")
    except UserError as error:
        notices.append(f"what is queued is not known: {error}")
        return []


def _summary(rows: Rows, tasks: Sequence[Range], queued: Sequence[Range], cluster: Slurm, split: str) -> str:
    size = sum(array.bytes for array in rows.arrays)
    lines = [
        ("rows", f"{len(rows.missing)} of {rows.rows} missing"),
        ("queued", f"{len(queued)} tasks"),
        ("tasks", _tasks(tasks)),
        ("disk", f"{size} bytes ({size / 1e9:.3g} GB)"),
        ("fit-disk", _fit_disk(rows, split)),
    ]
    return "\n".join(f"{name:10} {value}" for name, value in [*lines, *_costs(rows, tasks, cluster)])


def _fit_disk(rows: Rows, split: str) -> str:
    """What fitting a split writes beside the store: sums and datamodels, and what is removed at its end."""
    from datamodels.lasso import fit_bytes
    from datamodels.lasso.gram import disk_bytes

    shapes = _shapes(rows)
    n_train = shapes["train_masks"][1]
    targets = shapes["test_margins"][1] if split == "test" else n_train
    weights = fit_bytes(n_train, targets)  # twice while pieces are joined
    kept = disk_bytes(rows.setting.models, n_train, targets) + weights
    return f"{kept} bytes ({kept / 1e9:.3g} GB), and meanwhile {weights} more ({weights / 1e9:.3g} GB)"


def _tasks(tasks: Sequence[Range]) -> str:
    if not tasks:
        return "0"
    first, last = (f"{start}:{stop}" for start, stop in (tasks[0], tasks[-1]))
    return f"{len(tasks)} of up to {max(stop - start for start, stop in tasks)} rows, from {first} to {last}"


def _rows_in(tasks: Sequence[Range], rows: Rows) -> int:
    """The missing rows of tasks; those of queued tasks are paid for already."""
    edges = np.searchsorted(rows.missing, np.array(tasks, np.int64).reshape(-1, 2))
    return int((edges[:, 1] - edges[:, 0]).sum())


def _costs(rows: Rows, tasks: Sequence[Range], cluster: Slurm) -> list[tuple[str, str]]:
    """Rate, GPU-hours (CPU-hours too where no GPU is asked for), time and money of the training."""
    rate, limit = rows.rate(cluster), (seconds_of(cluster.time) or 0) / 3600
    if rate:
        hours = _rows_in(tasks, rows) / rate
        source = "stated" if cluster.rows_per_hour else "measured"
        lines, about = [("rate", f"{rate:,.0f} rows an hour a task ({source})")], "about"
    else:
        hours = len(tasks) * limit
        lines, about = [("rate", "not known: no row is done, and slurm.rows_per_hour is not given")], "at most"
    gpus = cluster.gpus_for(rows.setting)
    lines.append(("GPU-hours", f"{about} {hours * gpus:,.1f}" if gpus else "0"))
    lines.append(("CPU-hours", f"{about} {hours * cluster.cpus:,.1f}"))
    if rate and tasks:
        at_once = min(len(tasks), cluster.at_once or len(tasks))
        lines.append(("duration", f"about {duration(3600 * hours / at_once)} with {at_once} tasks at once"))
    if cluster.price:
        lines.append(("money", f"{about} {hours * (gpus or cluster.cpus) * cluster.price:,.2f}"))
    return lines
