"""Training groups of rows: from a group's number to its rows' masks, margins and logits.

Shape letters: G rows of a group, N images of a split, K classes.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodels.train.config import Setting
from datamodels.train.data import Dataset
from datamodels.train.errors import UserError, WorkError
from datamodels.train.kernels import Kernels
from datamodels.train.masks import Era, Masks, batch_size
from datamodels.train.store import RowFailure, RowResult
from datamodels.train.trainer.device import environment, precision
from datamodels.train.trainer.engine import Engine, Shared, Stop
from datamodels.train.trainer.executor import Executor, Moment, executor_of
from datamodels.train.trainer.gpu_setup import MEMORY, choose_kernels, explain
from datamodels.train.trainer.loader import Loader
from datamodels.train.trainer.models import has_units
from datamodels.train.trainer.schedule import Schedule, draw_schedule

FLOAT16_MAX = float(np.finfo(np.float16).max)

CHANNELS = 8
"""Input channels that half-precision convolutions on a GPU need for their fast path (pytorch #54404)."""

Results = list[RowResult | RowFailure]


class Trainer:
    """Trains groups of rows of one setting on one device.

    On a GPU, `concurrent_groups` of them train at a time, each by its own engine, while the host draws the next one.
    On a CPU a group is done once it has been started.
    """

    def __init__(
        self,
        setting: Setting,
        dataset: Dataset,
        device: torch.device | Executor,
        eras: tuple[Era, ...] | None = None,
        concurrent_groups: int = 1,
        kernels: Kernels | None = None,
    ) -> None:
        """kernels: what `choose_kernels` gave, if already called. Raises UserError, WorkError."""
        recipe = setting.recipe
        if concurrent_groups > 1 and recipe.custom_network:
            # it draws from torch's generators, of which a process has one set
            raise UserError(
                f"{concurrent_groups} groups at once with {recipe.network}: custom networks train one at a time"
            )
        torch.set_num_threads(recipe.threads)
        self.executor = device if isinstance(device, Executor) else executor_of(device)
        self.setting, self.recipe, self.device = setting, recipe, self.executor.device
        self.kernels = kernels or choose_kernels(recipe, self.executor)
        self.masks = Masks(setting, len(dataset.train.labels), list(eras) if eras else None)
        self.batch = batch_size(setting, len(dataset.train.labels))
        self._refused_memory = self.executor.refused_memory()
        try:
            self.shared = _shared(setting, dataset, self.executor, self.kernels)
            self.engines = [Engine(self.shared) for _ in range(concurrent_groups)]
            self._queues = [_Queue(engine, self.executor) for engine in self.engines] if self.executor.overlaps else []
        except (UserError, WorkError):
            raise
        except Exception as error:
            if self.executor.capability is None:
                raise
            raise WorkError(f"{self.device} cannot be set up: {explain(error)}") from error
        self._refuse_other_algorithms()
        self.ahead = concurrent_groups
        """Groups to have under way (on a CPU: in their commit) while the next one is started."""
        self._started = 0

    def environment(self) -> dict[str, Any]:
        """What byte equality depends on: rows made with equal environments are equal."""
        return environment(self.recipe, self.executor, self.kernels.name)

    def close(self) -> None:
        """Nothing needs to be given up."""

    def __call__(self, group: int, stop: Stop = lambda: False) -> Results:
        """Train the rows [group * G, (group + 1) * G), whether they are in the setting or beyond its end.

        Raises Interrupted, before any result, once `stop` says so.
        """
        return self.start(group, stop).result()

    def start(self, group: int, stop: Stop = lambda: False) -> "Pending":
        """Start training a group's rows. On a CPU they are trained before this returns, or raises Interrupted.

        For a GPU, all that the host draws for them is drawn here, while the group before trains: the engine's thread
        only sends it.
        """
        rows = range(group * self.recipe.group, (group + 1) * self.recipe.group)
        if not self._queues:
            outcome = self.train(self.engines[0], rows, stop)
            return Pending(lambda: outcome)
        drawn = self.draw(rows)
        queue = self._queues[self._started % len(self._queues)]
        self._started += 1
        return Pending(queue.submit(lambda engine: self.train(engine, rows, stop, drawn)).result)

    def draw(self, rows: range) -> "Drawn":
        """Draw masks, batch order and initial weights on the CPU."""
        masks = [self.masks[row] for row in rows]
        # A row without any example (possible under `bernoulli`) trains on the first and is failed afterwards.
        subsets = [np.flatnonzero(mask) if mask.any() else np.zeros(1, np.int64) for mask in masks]
        seed, fixed = self.setting.seed, self.setting.fixed
        schedule = draw_schedule(self.recipe, seed, rows, subsets, self.batch, fixed)
        parameters = self.engines[0].parameters
        start = None if self.recipe.custom_network else parameters.initial_values(seed, rows, fixed)
        return Drawn(masks, schedule, start)

    def train(self, engine: Engine, rows: range, stop: Stop, drawn: "Drawn | None" = None) -> "Outcome":
        """Train and evaluate rows by an engine; on a GPU, its stream may still have all of it before it.

        drawn: what `draw` gave for these rows, if already called.
        """
        executor = self.executor
        began = executor.moment()
        drawn = drawn or self.draw(rows)
        engine.begin(drawn.schedule, rows, None if drawn.start is None else executor.send(drawn.start))
        ready = executor.moment()
        engine.train(stop)

        values: dict[str, Tensor] = {}
        largest: dict[str, Tensor] = {}
        for name, labels in self.shared.labels.items():
            logits = engine.evaluate(name, stop)
            margins = margin(logits, labels)
            values |= {f"{name}_margins": margins.half(), f"{name}_logits": logits.half()}
            if self.setting.outputs.loss:
                values[f"{name}_loss"] = loss(logits, labels)
            if self.setting.outputs.correct:
                values[f"{name}_correct"] = (margins > 0).half()
            largest |= {f"{name}_margins": margins.abs().amax(1), f"{name}_logits": logits.abs().flatten(1).amax(1)}
        kept = {kind: executor.fetch(value) for kind, value in values.items()}
        largest = {kind: executor.fetch(value) for kind, value in largest.items()}
        moments = began, ready, executor.moment()
        self._refuse_other_algorithms()
        return Outcome(rows, drawn.masks, kept, largest, moments, executor, at_once=len(self.engines))

    def _refuse_other_algorithms(self) -> None:
        """Raises WorkError where cuDNN may have taken an algorithm that needs less memory and rounds otherwise."""
        if self.executor.refused_memory() > self._refused_memory:
            free = self.executor.free_memory()
            raise WorkError(
                f"{self.device} ran out of memory ({free / 1e9:.3g} GB are free now), after which convolutions may be "
                f"computed in another way and rows come out with other bytes: {MEMORY}"
            )


def margin(logits_GNK: Tensor, labels_N: Tensor) -> Tensor:
    """Correct-class logit minus the largest other logit (Ilyas et al. 2022), [..., N]."""
    index = labels_N[:, None].expand(*logits_GNK.shape[:-1], 1)
    correct = logits_GNK.gather(-1, index)
    others = logits_GNK.scatter(-1, index, -torch.inf)
    return correct[..., 0] - others.amax(-1)


def loss(logits_GNK: Tensor, labels_N: Tensor) -> Tensor:
    """Cross-entropy, [..., N]."""
    index = labels_N[:, None].expand(*logits_GNK.shape[:-1], 1)
    return logits_GNK.logsumexp(-1) - logits_GNK.gather(-1, index)[..., 0]


def _shared(setting: Setting, dataset: Dataset, executor: Executor, kernels: Kernels) -> Shared:
    """Put the data set on the device, or get ready to read it batch by batch."""
    recipe, device, resident = setting.recipe, executor.device, setting.data.resident
    dtype = precision(recipe, executor) if has_units(recipe) else torch.float32
    channels = dataset.train.images.shape[3]
    if executor.overlaps and dtype != torch.float32:
        channels = max(channels, CHANNELS)
    augment = kernels.augment(dataset, recipe, device, dtype, channels)
    loaders = {
        "train": Loader(dataset.train.images, executor, resident, recipe.translate, augment.fill),
        "test": Loader(dataset.test.images, executor, resident),
    }
    splits = {"train": dataset.train, "test": dataset.test}
    labels = {name: torch.from_numpy(split.labels).to(device) for name, split in splits.items()}
    return Shared(setting, executor, kernels, augment, loaders, labels, len(dataset.classes))


class _Queue:
    """An engine's stream, and the thread that fills it."""

    def __init__(self, engine: Engine, executor: Executor) -> None:
        self.engine, self.executor = engine, executor
        self.stream, self.thread = executor.stream(), ThreadPoolExecutor(1)
        executor.synchronize()
        with executor.on(self.stream):
            engine.capture()

    def submit(self, work: Callable[[Engine], "Outcome"]) -> "Future[Outcome]":
        return self.thread.submit(self._on_stream, work)

    def _on_stream(self, work: Callable[[Engine], "Outcome"]) -> "Outcome":
        with self.executor.on(self.stream):
            return work(self.engine)


@dataclass(frozen=True)
class Drawn:
    """What the host draws for a group of rows."""

    masks: list[NDArray[np.bool_]]
    """Of each row, [N_train]."""
    schedule: Schedule
    start: NDArray[np.float32] | None
    """Initial values of the parameters; None for a custom network, which starts itself."""


@dataclass(frozen=True)
class Pending:
    """A group that has been started."""

    outcome: Callable[[], "Outcome"]

    def result(self) -> Results:
        """The group's rows, once they are trained. Raises Interrupted."""
        return self.outcome().results()


@dataclass(frozen=True)
class Outcome:
    """What a group left in the host's memory; from a GPU it is there once the last moment has come."""

    rows: range
    masks: list[NDArray[np.bool_]]
    outputs: dict[str, Tensor]
    """By array, as they are stored: margins [G, N] and logits [G, N, K]; loss and correct [G, N] where kept."""
    largest: dict[str, Tensor]
    """The largest absolute margins and logits [G] before they were rounded to float16."""
    moments: tuple[Moment, Moment, Moment]
    """Its beginning, its first step, its end."""
    executor: Executor
    at_once: int
    """Groups that the device had in training at a time."""

    def results(self) -> Results:
        """Each row's arrays, or why it failed; waits for the group's end."""
        seconds = self.executor.seconds(self.moments[0], self.moments[-1]) / (len(self.rows) * self.at_once)
        return [self._result(g, seconds) for g in range(len(self.rows))]

    def _result(self, g: int, seconds: float) -> RowResult | RowFailure:
        row, mask = self.rows[g], self.masks[g]
        if not mask.any():
            return RowFailure(row, "empty training subset", seconds)
        for kind, largest in self.largest.items():
            if not torch.isfinite(largest[g]):
                return RowFailure(row, f"{kind} not finite", seconds)
            if largest[g] > FLOAT16_MAX:
                return RowFailure(row, f"{kind} outside float16's range", seconds)
        values = {"train_masks": mask, **{kind: output[g].numpy() for kind, output in self.outputs.items()}}
        return RowResult(
            row=row,
            arrays=values,
            seconds=seconds,
            accuracy=float((values["test_margins"] > 0).mean()),
            train_accuracy=float((values["train_margins"][mask] > 0).mean()),
        )
