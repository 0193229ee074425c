"""Training groups of rows: from a group's number to its rows' masks, margins and logits.

Shape letters: G rows of a group, N images of a split, K classes.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodels.train.config import Setting
from datamodels.train.data import Dataset
from datamodels.train.errors import UserError
from datamodels.train.masks import Era, Masks, batch_size
from datamodels.train.store import RowFailure, RowResult
from datamodels.train.trainer.augment import Augment
from datamodels.train.trainer.device import fetched, keep_freed_memory, make_deterministic, on_gpu
from datamodels.train.trainer.engine import Lane, Shared, Stop
from datamodels.train.trainer.loader import Feed
from datamodels.train.trainer.schedule import Tables, tables

FLOAT16_MAX = float(np.finfo(np.float16).max)

Results = list[RowResult | RowFailure]


class Trainer:
    """Trains groups of rows of one setting on one device.

    On a GPU, groups are worked off while the host goes on to the next ones: `streams` at a time, and one more is got
    ready. Elsewhere a group is done once it has been started.
    """

    def __init__(
        self,
        setting: Setting,
        dataset: Dataset,
        device: torch.device,
        eras: tuple[Era, ...] | None = None,
        streams: int = 1,
    ) -> None:
        recipe = setting.recipe
        if streams > 1 and recipe.own_network:  # it draws from torch's generators, of which a process has one set
            raise UserError(f"{streams} groups at once with {recipe.network}: own networks train one at a time")
        torch.set_num_threads(recipe.threads)
        keep_freed_memory()
        make_deterministic(device)
        self.setting, self.recipe, self.device = setting, recipe, device
        self.masks = Masks(setting, len(dataset.train.labels), list(eras) if eras else None)
        self.batch = batch_size(setting, len(dataset.train.labels))
        augment, resident = Augment(dataset, recipe, device), setting.data.resident
        self.shared = Shared(
            setting,
            device,
            augment,
            feeds={
                "train": Feed(dataset.train.images, device, resident, recipe.translate, augment.fill),
                "test": Feed(dataset.test.images, device, resident),
            },
            labels={
                name: torch.from_numpy(split.labels).to(device)
                for name, split in (("train", dataset.train), ("test", dataset.test))
            },
            classes=len(dataset.classes),
        )
        self.lanes = [Lane(self.shared) for _ in range(streams)]
        self._queues = [_Queue(lane, device) for lane in self.lanes] if on_gpu(device) else []
        self.ahead = streams
        """Groups to have under way (on a CPU: in their commit) while the next one is started."""
        self._started = 0

    def __call__(self, group: int, stop: Stop = lambda: False) -> Results:
        """Train the rows [group * G, (group + 1) * G), whether they are in the setting or beyond its end.

        Raises Interrupted, before any result, once `stop` says so.
        """
        return self.start(group, stop).result()

    def start(self, group: int, stop: Stop = lambda: False) -> "Pending":
        """Begin with a group's rows. Raises Interrupted where they are trained at once.

        For a GPU, all that the host draws for them is drawn here, while the group before trains: the lane's thread only
        sends it. That is kept for the groups under way, and no others.
        """
        rows = range(group * self.recipe.group, (group + 1) * self.recipe.group)
        if not self._queues:
            outcome = self.train(self.lanes[0], rows, stop)
            return Pending(lambda: outcome)
        drawn = self.draw(rows)
        queue = self._queues[self._started % len(self._queues)]
        self._started += 1
        return Pending(queue.submit(lambda lane: self.train(lane, rows, stop, drawn)).result)

    def draw(self, rows: range) -> "Drawn":
        """What the rows' own streams say, on the host."""
        masks = [self.masks[row] for row in rows]
        start = None if self.recipe.own_network else self.lanes[0].parameters.start(self.setting.seed, rows)
        return Drawn(masks, self.plan(rows, masks), start)

    def train(self, lane: Lane, rows: range, stop: Stop, drawn: "Drawn | None" = None) -> "Outcome":
        """Train and evaluate rows on a lane; on a GPU, its queue may still have all of it before it.

        drawn: what `draw` gave for these rows, where it has been asked before.
        """
        began = _now(self.device)
        drawn = drawn or self.draw(rows)
        lane.begin(drawn.tables, rows, drawn.start)
        ready = _now(self.device)
        lane.train(stop)
        values: dict[str, Tensor] = {}
        for name, labels in self.shared.labels.items():
            logits = lane.evaluate(name, stop)
            values |= {f"{name}_margins": margin(logits, labels), f"{name}_logits": logits}
        largest = {kind: fetched(value.abs().flatten(1).amax(1), self.device) for kind, value in values.items()}
        halves = {kind: fetched(value.half(), self.device) for kind, value in values.items()}
        return Outcome(rows, drawn.masks, halves, largest, (began, ready, _now(self.device)), len(self.lanes))

    def plan(self, rows: range, masks: list[NDArray[np.bool_]]) -> Tables:
        # A row without any example (possible under `bernoulli`) trains on the first and is failed afterwards.
        subsets = [np.flatnonzero(mask) if mask.any() else np.zeros(1, np.int64) for mask in masks]
        return tables(self.recipe, self.setting.seed, rows, subsets, self.batch)


def margin(logits_GNK: Tensor, labels_N: Tensor) -> Tensor:
    """Correct-class logit minus the largest other logit (Ilyas et al. 2022), [..., N]."""
    index = labels_N[:, None].expand(*logits_GNK.shape[:-1], 1)
    correct = logits_GNK.gather(-1, index)
    others = logits_GNK.scatter(-1, index, -torch.inf)
    return correct[..., 0] - others.amax(-1)


@dataclass(frozen=True)
class Drawn:
    """What the host draws for a group of rows."""

    masks: list[NDArray[np.bool_]]
    """Of each row, [N_train]."""
    tables: Tables
    start: NDArray[np.float32] | None
    """Initial values of the parameters; None for an own network, which starts itself."""


class _Queue:
    """A lane's stream, and the thread that fills it."""

    def __init__(self, lane: Lane, device: torch.device) -> None:
        self.lane, self.device = lane, device
        self.stream = torch.cuda.Stream(device)
        self.thread = ThreadPoolExecutor(1)
        torch.cuda.synchronize(device)
        with torch.cuda.device(device), torch.cuda.stream(self.stream):
            lane.prepare()

    def submit(self, work: Callable[[Lane], "Outcome"]) -> "Future[Outcome]":
        return self.thread.submit(self._on_stream, work)

    def _on_stream(self, work: Callable[[Lane], "Outcome"]) -> "Outcome":
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            return work(self.lane)


@dataclass(frozen=True)
class Pending:
    """A group that has been started."""

    outcome: Callable[[], "Outcome"]

    def result(self) -> Results:
        """The group's rows, once they are through. Raises Interrupted."""
        return self.outcome().results()


Moment = float | torch.cuda.Event


@dataclass(frozen=True)
class Outcome:
    """What a group left in the host's memory; from a GPU it is there once the last moment has come."""

    rows: range
    masks: list[NDArray[np.bool_]]
    halves: dict[str, Tensor]
    """Margins [G, N] and logits [G, N, K] as float16."""
    largest: dict[str, Tensor]
    """Their largest absolute values [G] before that."""
    moments: tuple[Moment, Moment, Moment]
    """Its beginning, its first step, its end."""
    at_once: int = 1
    """Groups that the device had in training at a time."""

    def results(self) -> Results:
        began, _, ended = self.moments
        if isinstance(ended, torch.cuda.Event):
            ended.synchronize()
        seconds = between(began, ended) / (len(self.rows) * self.at_once)
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
        values = {"train_masks": mask, **{kind: half[g].numpy() for kind, half in self.halves.items()}}
        return RowResult(
            row=row,
            arrays=values,
            seconds=seconds,
            accuracy=float((values["test_margins"] > 0).mean()),
            train_accuracy=float((values["train_margins"][mask] > 0).mean()),
        )


def _now(device: torch.device) -> Moment:
    if not on_gpu(device):
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True, blocking=True)  # who waits for it leaves the core to others
    event.record()
    return event


def between(began: Moment, ended: Moment) -> float:
    """Seconds."""
    if isinstance(began, torch.cuda.Event) and isinstance(ended, torch.cuda.Event):
        return began.elapsed_time(ended) / 1000
    assert isinstance(began, float)
    assert isinstance(ended, float)
    return ended - began
