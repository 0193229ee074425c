"""Rows through the real loop and a real store in a temporary folder, as `datamodels train` does them.

Seconds a row: from one commit to the next, over all rows but the first of every stream, whose training nothing
overlaps. In it: tables, initial state, training, evaluation of every image in every view, margins, copies to the host,
checksums, writes and fdatasync. Not in it: reading the data set, creating the store, capturing graphs.
"""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch

from bench.timing import between, moment, wall
from datamodels.train.config import Setting
from datamodels.train.data.sources import Dataset
from datamodels.train.store.create import create_store
from datamodels.train.store.layout import Layout
from datamodels.train.store.writer import RowFailure, RowResult, Writer
from datamodels.train.trainer.engine import Lane, Stop
from datamodels.train.trainer.run_rows import Results, train_rows
from datamodels.train.trainer.trainer import Drawn, Moment, Outcome, Trainer


@dataclass(frozen=True)
class Measured:
    seconds_per_row: float
    rows: int
    """Rows behind it."""
    fastest: float
    slowest: float
    """From one commit to the next; with several streams, they come in bunches."""
    commit: float
    """Median seconds of a group's commit on the host; it overlaps the next group's training."""
    idle_between_rows: float
    """Share of the time in which no row was between its first step and its end on the device: from one row's last value
    on its way to the host until the next row's first step, tables and initial state count as idle."""


class WatchedTrainer(Trainer):
    """Keeps when each group began on the device, came to its first step, and ended."""

    spans: list[tuple[Moment, Moment, Moment]]

    def train(self, lane: Lane, rows: range, stop: Stop, drawn: Drawn | None = None) -> Outcome:
        outcome = super().train(lane, rows, stop, drawn)
        self.spans.append(outcome.moments)
        return outcome


class WatchedWriter(Writer):
    """Keeps what each commit took."""

    taken: list[float]

    def commit(self, group: int, results: Sequence[RowResult | RowFailure]) -> None:
        began = time.perf_counter()
        super().commit(group, results)
        self.taken.append(time.perf_counter() - began)


class Rows:
    """A trainer and a store of one setting, which rows can be asked of again and again; a context, which closes it."""

    def __init__(self, setting: Setting, dataset: Dataset, device: torch.device, streams: int, root: Path) -> None:
        self.setting, self.device, self.group = setting, device, setting.recipe.group
        self.trainer = WatchedTrainer(setting, dataset, device, streams=streams)
        self.store = create_store(Layout(root, setting.dataset, setting.pct), setting, dataset, lambda text: None)
        self.writer = WatchedWriter(self.store, {})
        self.done = 0
        """Groups."""

    def run(self, groups: int) -> list[float]:
        """Train the next groups; when each of them was committed, by the host's clock. Raises RuntimeError."""
        ended: list[float] = []

        def finished(results: Results) -> None:
            succeeded(results)
            ended.append(time.perf_counter())

        self.trainer.spans, self.writer.taken = [], []
        rows = range(self.done * self.group, (self.done + groups) * self.group)
        self.done += groups
        train_rows(self.store, self.writer, self.trainer, rows, lambda: False, finished)
        return ended

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()


def succeeded(results: Results) -> list[RowResult]:
    """Rows none of which has failed. Raises RuntimeError."""
    for result in results:
        if isinstance(result, RowFailure):
            raise RuntimeError(f"row {result.row}: {result.reason}")
    return [result for result in results if isinstance(result, RowResult)]


def measure(rows: Rows, budget: float, most: int) -> Measured:
    """Seconds a row, from as many rows as fit in `budget` seconds: on each stream at least 2 groups, at most `most`."""
    streams = len(rows.trainer.lanes)
    took = wall(lambda: rows.run(streams), rows.device)
    groups = streams * max(2, min(most, int(budget / took) - 1))
    origin = moment(rows.device)
    ended = rows.run(streams + groups)[streams - 1 :]
    steps = [(after - before) / rows.group for before, after in itertools.pairwise(ended)]
    spans = sorted(tuple(between(origin, each) for each in span) for span in rows.trainer.spans)[streams:]
    return Measured(
        seconds_per_row=(ended[-1] - ended[0]) / (groups * rows.group),
        rows=groups * rows.group,
        fastest=min(steps),
        slowest=max(steps),
        commit=statistics.median(rows.writer.taken),
        idle_between_rows=idle([(first, done) for _, first, done in spans]),
    )


def idle(spans: Sequence[tuple[float, float]]) -> float:
    """Share of the time from the first beginning to the last end in which none of the spans runs."""
    spans = sorted(spans)
    busy, until = 0.0, spans[0][0]
    for began, ended in spans:
        busy += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return 1 - busy / (until - spans[0][0])
