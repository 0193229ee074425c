"""What a setting still lacks, as tasks: the store alone says what is done, and the queue what is on its way."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.slurm.config import Slurm, seconds_of
from datamodels.launch.slurm.queue import Queue
from datamodels.launch.slurm.script import eval_path
from datamodels.launch.slurm.tasks import Range, alignment, pieces, ranges
from datamodels.launch.status import refuse_failures, report_path
from datamodels.train import Setting, UserError
from datamodels.train.store import Array, Store

DEFAULT_ROWS = 256
"""Rows of a task where nothing says how long they take."""


@dataclass(frozen=True)
class Rows:
    """What planning needs to know of the rows of a store, which need not be there yet."""

    setting: Setting
    rows: int
    group: int
    arrays: Sequence[Array]
    missing: NDArray[np.int64]
    seconds: float | None
    """Mean seconds of the rows that are done, of a GPU or of a CPU's worker."""

    @classmethod
    def of(cls, store: Store, with_failed: bool = False) -> "Rows":
        """with_failed: count rows that failed for good as missing."""
        done = store.completed()
        missing = np.flatnonzero(~done) if with_failed else store.missing()
        seconds = float(store.states.seconds[done].mean()) if done.any() else None
        return cls(store.setting, store.rows, store.group, list(store.arrays.values()), missing, seconds)

    def rate(self, cluster: Slurm) -> float | None:
        """Rows an hour of one task, as stated or measured."""
        if cluster.rows_per_hour or not self.seconds:
            return cluster.rows_per_hour
        at_work = cluster.gpus_for(self.setting) or cluster.workers_for(self.setting)
        return at_work * 3600 / self.seconds

    def tasks(self, cluster: Slurm, queued: Sequence[Range]) -> list[Range]:
        """The ranges of rows that are neither done nor queued, one for each task."""
        wanted, rate = DEFAULT_ROWS, self.rate(cluster)
        if cluster.rows:
            wanted = cluster.rows
        elif rate:
            limit = (seconds_of(cluster.time) or 0) - cluster.signal
            hours = min(cluster.minutes / 60, 0.8 * limit / 3600)
            wanted = max(1, int(min(rate * hours, self.rows)))
        wanted = min(wanted, self.rows)
        row_bytes = [int(np.prod(array.shape[1:])) * array.dtype.itemsize for array in self.arrays]
        return ranges(self.missing, queued, alignment(self.group, row_bytes, wanted), wanted, self.rows)


@dataclass(frozen=True)
class Work:
    """What is left of the first stage that is not complete."""

    stage: str
    tasks: list[Range]
    """What is neither done nor queued."""
    left: str
    """All that is not done, for people."""
    count: int
    """The same as a number."""


def next_work(store: Store, split: str, cluster: Slurm, queue: Queue) -> Work | None:
    """None where all is done that can be. Raises WorkError where too many rows failed for good."""
    from datamodels.lasso import assemble, is_current, preflight_check, target_count

    rows = Rows.of(store)
    if len(rows.missing):
        left = f"{len(rows.missing)} of {store.rows} rows missing"
        return Work("train", rows.tasks(cluster, queue.tasks("train")), left, len(rows.missing))
    refuse_failures(store, "submit")
    try:
        preflight_check(store.setting, store.eras)
    except UserError:
        return None  # nothing can be fitted to these rows: `submit` has said so

    width = target_count(store, split)
    if not is_current(store, split):
        assemble(store, split)
    lacking = [task for task in pieces(width, cluster.after.targets) if not is_current(store, split, task)]
    if lacking or not is_current(store, split):
        tasks = [task for task in lacking or [(0, width)] if task not in queue.tasks("fit")]
        return Work("fit", tasks, f"{len(lacking)} pieces of the fit missing", len(lacking))

    if not _is_judged(store, split):
        return Work("eval", [] if queue.tasks("eval") else [(0, width)], "evaluation and report missing", 1)
    return None


def _is_judged(store: Store, split: str) -> bool:
    """Whether evaluation and report are younger than the datamodels and the evaluation rows."""
    from datamodels.lasso import path_of

    results = [report_path(store, split)]
    if store.eval_models:
        results.append(eval_path(store.layout, split))
    made = max([path_of(store, split).stat().st_mtime, *store.states.time[store.models :]])
    return all(path.exists() and path.stat().st_mtime >= made for path in results)
