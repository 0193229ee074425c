"""The dry run: what `submit` would hand to sbatch, and what that takes in rows, bytes, hours and money.

Nothing is submitted, nothing on disk changes, and neither SLURM nor a store need be there.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from datamodels.lasso import split_and_output
from datamodels.launch.plan import arrays_of, store_as_it_is
from datamodels.launch.progress import duration, notice
from datamodels.launch.request import Request
from datamodels.launch.slurm import client
from datamodels.launch.slurm.config import Slurm, seconds_of
from datamodels.launch.slurm.queue import Queue
from datamodels.launch.slurm.script import files, portable
from datamodels.launch.slurm.tasks import Plan, Range, folder_of, next_folder, pieces
from datamodels.launch.slurm.work import Rows
from datamodels.train import UserError


def dry_run(request: Request, cluster: Slurm) -> int:
    """Print the scripts of every stage and what the training takes. Raises UserError."""
    setting, layout = request.setting, request.layout
    store, notices = store_as_it_is(setting, layout), list[str]()
    if store:
        rows = Rows.of(store, request.options["retry_failed"])
    else:
        arrays = arrays_of(setting, notices)
        rows = Rows(setting, setting.rows, setting.recipe.group, arrays, np.arange(setting.rows), None)
    shapes = {array.name: array.shape for array in rows.arrays}
    split = request.split(shapes)
    store_id = store.manifest.id if store else None
    queued: list[Range] = []
    try:
        queued = Queue(client.jobs(folder_of(layout)), store_id, split).tasks("train")
    except UserError as error:
        notices.append(f"what is queued is not known: {error}")
    tasks = rows.tasks(cluster, queued)
    targets, n_train = shapes["_".join(split_and_output(split))][1], shapes["train_masks"][1]

    path, limit = next_folder(folder_of(layout)), client.array_limit(cluster.cluster_names)
    content = portable(rows.setting), dataclasses.asdict(cluster)
    scripts: dict[str, str] = {}
    for stage, wanted in {
        "train": tasks,
        "fit": pieces(targets, cluster.after.targets),
        "eval": [(0, targets)],
    }.items():
        if wanted:
            plan = Plan(store_id or "ID", stage, split, 0, 0, tuple(wanted[: cluster.room(1)]), limit, *content)
            scripts |= {name: text for name, text in files(plan, path, layout).items() if name.endswith(".sh")}

    size = sum(array.bytes for array in rows.arrays)
    most = max((stop - start for start, stop in tasks), default=0)
    span = " of up to {} rows, from {}:{} to {}:{}".format(most, *tasks[0], *tasks[-1]) if tasks else ""
    lines = [
        ("rows", f"{len(rows.missing)} of {rows.rows} missing"),
        ("queued", f"{len(queued)} tasks"),
        ("tasks", f"{len(tasks)}{span}"),
        ("disk", f"{size} bytes ({size / 1e9:.3g} GB)"),
        ("fit-disk", _fit_disk(rows.setting.models, n_train, targets)),
        *_costs(rows, tasks, cluster),
    ]
    for text in notices:
        notice(text)
    for name, text in scripts.items():
        print(f"----- {name}\n{text}")
    print("\n".join(f"{name:10} {value}" for name, value in lines))
    return 0


def _fit_disk(models: int, n_train: int, targets: int) -> str:
    """What fitting a split writes beside the store: what is kept, and what is removed at its end."""
    from datamodels.lasso import fit_bytes
    from datamodels.lasso.gram import disk_bytes

    weights = fit_bytes(n_train, targets)  # twice while pieces are joined
    kept = disk_bytes(models, n_train, targets) + weights
    return f"{kept} bytes ({kept / 1e9:.3g} GB), and meanwhile {weights} more ({weights / 1e9:.3g} GB)"


def _costs(rows: Rows, tasks: Sequence[Range], cluster: Slurm) -> list[tuple[str, str]]:
    """Rate, GPU-hours (CPU-hours too where no GPU is asked for), time and money of the training."""
    rate, gpus = rows.rate(cluster), cluster.gpus_for(rows.setting)
    if rate:
        # The missing rows of these tasks; those of queued tasks are paid for already.
        edges = np.searchsorted(rows.missing, np.array(tasks, np.int64).reshape(-1, 2))
        hours = int((edges[:, 1] - edges[:, 0]).sum()) / rate
        source = "stated" if cluster.rows_per_hour else "measured"
        lines, about = [("rate", f"{rate:,.0f} rows an hour a task ({source})")], "about"
    else:
        lines, about = [("rate", "not known: no row is done, and slurm.rows_per_hour is not given")], "at most"
        if math.isinf(limit := seconds_of(cluster.time) or 0):
            return [*lines, ("GPU-hours" if gpus else "CPU-hours", "not known: slurm.time sets no limit")]
        hours = len(tasks) * limit / 3600
    lines.append(("GPU-hours", f"{about} {hours * gpus:,.1f}" if gpus else "0"))
    lines.append(("CPU-hours", f"{about} {hours * cluster.cpus:,.1f}"))
    if rate and tasks:
        at_once = min(len(tasks), cluster.at_once or len(tasks))
        lines.append(("duration", f"about {duration(3600 * hours / at_once)} with {at_once} tasks at once"))
    if cluster.price:
        lines.append(("money", f"{about} {hours * (gpus or cluster.cpus) * cluster.price:,.2f}"))
    return lines
