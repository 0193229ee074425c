"""One worker: trains missing rows of a store on one device. The launcher's own process, or one of several."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodels.launch.stop import Stop, code_of, handling, raise_interrupt
from datamodels.train import Interrupted, Setting, UserError, WorkError, from_dict
from datamodels.train.data import load
from datamodels.train.store import Layout, check_data, open_own


@dataclass(frozen=True)
class Task:
    """What a worker needs to know; travels as JSON."""

    root: str
    config: dict[str, Any]
    rows: tuple[int, int]
    device: str
    """`cpu`, or `cuda:0`, `cuda:1`, ..."""
    streams: int = 1
    """Groups of rows that a GPU has in training at a time."""

    @property
    def setting(self) -> Setting:
        return from_dict(self.config)

    @property
    def layout(self) -> Layout:
        return Layout(Path(self.root), self.setting.dataset, self.setting.pct)


def work(task: Task, stop: Stop, finished: Callable[[int], None] = lambda rows: None) -> None:
    """Train the task's missing rows; `finished` hears how many at a time.

    `stop` is entered for the training alone: what comes before it may end anywhere. Raises Interrupted, UserError,
    WorkError.
    """
    with _told(task.device):
        import torch

        from datamodels.train.store import Writer
        from datamodels.train.trainer import Trainer, environment, train_rows

        store = open_own(task.layout, task.setting)
        dataset = load(store.setting)
        check_data(store.manifest, dataset)
        device = torch.device(task.device)
        trainer = Trainer(store.setting, dataset, device, store.eras, task.streams)
        where = {**whereabouts(), "on": task.device, "streams": len(trainer.engines)}
        writer = Writer(store, {**environment(store.setting.recipe, device), **where})
        try:
            with stop:
                train_rows(store, writer, trainer, range(*task.rows), stop, lambda results: finished(len(results)))
        finally:
            writer.close()


@contextlib.contextmanager
def _told(device: str) -> Iterator[None]:
    """Turn what torch raises, such as for a network that cannot take the images, into a WorkError of one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise WorkError(f"training on {device} failed: {first}") from error


def whereabouts() -> dict[str, Any]:
    """Who writes a journal, for `status` and for people."""
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
        with handling(raise_interrupt):
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
    sys.exit(main())
