"""The trainer of a setting with a trainer file: rows one at a time, each from its mask and its seed."""

import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodels.train.cpu import cpu_name
from datamodels.train.masks import Masks
from datamodels.train.own.declare import ask, declared_by, process_of
from datamodels.train.own.process import RowError
from datamodels.train.rng import Stream, raw, stream_row
from datamodels.train.store import RowFailure, RowResult, Store


class OwnTrainer:
    """Trains rows of a store, one at a time, in a process of their own.

    Raises UserError where the file declares something else than the store holds, or its `setup` fails.
    """

    ahead = 1
    """A row may be in its commit while the next one trains."""

    def __init__(self, store: Store, device: str) -> None:
        self.device, self.setting = device, store.setting
        self.masks = Masks(store.setting, store.n_train, list(store.eras))
        self.process = process_of(store.setting)
        self.ready = False
        """Whether `setup` has been called in the process that runs."""
        try:
            declared, self.versions = declared_by(self.process, store.setting)
            store.check_declared(declared)
            self._setup()
        except BaseException:
            self.close()
            raise
        self.outputs = declared.outputs

    def _setup(self) -> None:
        ask(self.process, "setup", self.device)
        self.ready = True

    def environment(self) -> dict[str, Any]:
        """What byte equality depends on, as far as it is known: the packages are those that the file imports."""
        device, versions = cpu_name(), {"python": platform.python_version(), **self.versions}
        if self.device != "cpu":
            import torch

            device = torch.cuda.get_device_name(self.device)
            versions["cudnn"] = str(torch.backends.cudnn.version())
        return {"device": device, "threads": self.setting.recipe.threads, "versions": versions}

    def start(self, row: int, stop: Callable[[], bool]) -> "Pending":
        """Train a row. Raises Interrupted once `stop` says so, UserError where the row is not what was declared."""
        mask = self.masks[row]
        if not mask.any():
            return Pending(RowFailure(row, "empty training subset", 0.0))
        stream = Stream.INITIALISATION
        seed = int(raw(self.setting.seed, stream_row(self.setting.fixed, stream, row), stream, 1)[0]) >> 1
        try:
            if not self.ready:
                self._setup()
            arrays, seconds = self.process("train", self.outputs, mask, seed, self.device, stop=stop)
        except RowError as error:
            self.ready = self.process.alive
            return Pending(RowFailure(row, str(error), 0.0))
        test, train = arrays.get("test_margins"), arrays.get("train_margins")
        accuracy = np.nan if test is None else float((test > 0).mean())
        on_subset = np.nan if train is None or train.shape != mask.shape else float((train[mask] > 0).mean())
        return Pending(RowResult(row, {"train_masks": mask, **arrays}, seconds, accuracy, on_subset))

    def close(self) -> None:
        """End the process."""
        self.process.close()


@dataclass(frozen=True)
class Pending:
    """A row that is trained."""

    outcome: RowResult | RowFailure

    def result(self) -> list[RowResult | RowFailure]:
        return [self.outcome]
