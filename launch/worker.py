"""One worker: trains missing rows of a store on one device, in the launcher's own process or in one of several."""

import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodels.launch.open_trainer import open_trainer
from datamodels.launch.stop import Stop, code_of, installed, raise_interrupt
from datamodels.launch.streams import prepare_streams
from datamodels.train import Interrupted, UserError, WorkError, from_dict, train_rows
from datamodels.train.store import Layout, Store, Writer


@dataclass(frozen=True)
class Task:
    """What a worker needs to know; travels as JSON."""

    root: str
    config: dict[str, Any]
    rows: tuple[int, int]
    device: str
    """`cpu`, or `cuda:0`, `cuda:1`, ..."""
    concurrent_groups: int = 1
    """Groups of rows that a GPU has in training at a time."""


def work(task: Task, stop: Stop, finished: Callable[[int], None] = lambda rows: None) -> None:
    """Train the task's missing rows; calls `finished` with how many are done, some at a time.

    `stop` is entered for the training alone: what comes before it may end anywhere. Raises Interrupted, UserError,
    WorkError.
    """
    setting = from_dict(task.config)
    try:
        store = Store.open(Layout(Path(task.root), setting.dataset, setting.file_tag), setting)
        with closing(open_trainer(store, task.device, task.concurrent_groups)) as trainer:
            made_by = {**trainer.environment(), **whereabouts()}
            made_by |= {"on": task.device, "concurrent_groups": task.concurrent_groups}
            with closing(Writer(store, made_by)) as writer, stop:
                train_rows(store, writer, trainer, range(*task.rows), stop, lambda results: finished(len(results)))
    except (RuntimeError, MemoryError) as error:  # what torch raises, as for a network that cannot take the images
        from datamodels.train.trainer import explain

        raise WorkError(f"training on {task.device} failed: {explain(error)}") from error


def whereabouts() -> dict[str, Any]:
    """Host, process and SLURM job that write a journal, for `status` and for people."""
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "job": os.environ.get("SLURM_ARRAY_JOB_ID", os.environ.get("SLURM_JOB_ID")),
        "task": os.environ.get("SLURM_ARRAY_TASK_ID"),
        "restart": os.environ.get("SLURM_RESTART_COUNT"),
    }


def main() -> int:
    """Entry point of a worker process: the task as JSON in the one argument; an error goes to standard output."""
    content = json.loads(sys.argv[1])
    stop = Stop(parent=content.pop("parent"))
    try:
        with installed(raise_interrupt):
            work(Task(**content), stop)
    except Interrupted:
        return stop.exit_code
    except KeyboardInterrupt as error:
        return code_of(error)
    except (UserError, WorkError) as error:
        print(error)
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:
        print(f"{error.filename or 'input/output'}: {error.strerror or error}")
        return 1
    return 0


if __name__ == "__main__":
    prepare_streams("utf-8")
    sys.exit(main())
