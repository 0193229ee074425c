"""Rows through the real loop and a real store in a temporary folder, as `datamodels train` does them.

Seconds a row: from one commit to the next, over all rows but the first of every stream, whose training nothing
overlaps. In it: schedule, initial state, training, evaluation of every image in every view, margins, copies to the
host, checksums, writes and fdatasync. Not in it: reading the data set, creating the store, capturing graphs.
"""

import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from bench import flops
from bench.timing import wall
from datamodels.train.config import Setting
from datamodels.train.data import Dataset
from datamodels.train.kernels import Kernels
from datamodels.train.run_rows import Results, train_rows
from datamodels.train.store import Layout, RowFailure, RowResult, Writer, create_store
from datamodels.train.trainer.executor import Executor, Moment
from datamodels.train.trainer.trainer import Outcome, Trainer


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
    on its way to the host until the next row's first step, schedule and initial state count as idle."""


class WatchedTrainer(Trainer):
    """Keeps when each group began on the device, came to its first step, and ended."""

    spans: list[tuple[Moment, Moment, Moment]]

    def train(self, *given: Any) -> Outcome:
        outcome = super().train(*given)
        self.spans.append(outcome.moments)
        return outcome


class WatchedWriter(Writer):
    """Keeps what each commit took."""

    taken: list[float]

    def commit(self, results: Sequence[RowResult | RowFailure]) -> None:
        began = time.perf_counter()
        super().commit(results)
        self.taken.append(time.perf_counter() - began)


class Rows:
    """A trainer and a store of one setting, which rows can be asked of again and again; a context, which closes it."""

    def __init__(
        self, setting: Setting, dataset: Dataset, executor: Executor, streams: int, root: Path, kernels: Kernels
    ) -> None:
        self.setting, self.executor, self.group = setting, executor, setting.recipe.group
        self.trainer = WatchedTrainer(setting, dataset, executor, concurrent_groups=streams, kernels=kernels)
        layout = Layout(root, setting.dataset, setting.file_tag)
        self.store = create_store(layout, setting, dataset.declared(setting.outputs), lambda text: None)
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
    streams, executor = len(rows.trainer.engines), rows.executor
    took = wall(lambda: rows.run(streams), executor)
    groups = streams * max(2, min(most, int(budget / took) - 1))
    origin = executor.moment()
    ended = rows.run(streams + groups)[streams - 1 :]
    steps = [(after - before) / rows.group for before, after in itertools.pairwise(ended)]
    spans = sorted(tuple(executor.seconds(origin, each) for each in span) for span in rows.trainer.spans)[streams:]
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


def rates(entry: dict[str, Any], setting: Setting, dataset: Dataset, matmul: float) -> dict[str, float]:
    """What a row's seconds mean in FLOP/s."""
    training, evaluation = flops.of_row(setting, dataset)
    rate = (training + evaluation) / entry["seconds_per_row"]
    return {
        "training_flops": training,
        "evaluation_flops": evaluation,
        "flops_per_second": rate,
        "fraction_of_matmul": rate / matmul,
        "training_images_per_second": flops.trained_images(setting, dataset) / entry["seconds_per_row"],
    }


def describe(entry: dict[str, Any]) -> str:
    return (
        f"{entry['seconds_per_row']:.4f} s a row (n = {entry['rows']}, {entry['fastest']:.4f} to "
        f"{entry['slowest']:.4f}), {entry['training_images_per_second']:,.0f} images/s, "
        f"{entry['flops_per_second'] / 1e12:.3g} TFLOP/s, {entry['fraction_of_matmul']:.1%} of matmul; idle from "
        f"a row's end to the next one's first step {entry['idle_between_rows']:.2%}; commit "
        f"{1e3 * entry['commit']:.0f} ms"
    )


def repeated(setting: Setting, dataset: Dataset, executor: Executor) -> dict[str, Any]:
    """Whether a group's rows come out with the same bytes: by one trainer twice, and by another one beside group 1 on a
    second stream, whose graphs are captured anew. Counts values and those that differ. Raises RuntimeError.
    """
    trainer = Trainer(setting, dataset, executor)
    first, again = succeeded(trainer(0)), succeeded(trainer(0))
    steps = trainer.draw(range(setting.recipe.group)).schedule.steps
    del trainer
    both = Trainer(setting, dataset, executor, concurrent_groups=2)
    pending = [both.start(group) for group in (0, 1)]
    beside, _ = (succeeded(each.result()) for each in pending)
    return {
        "dataset": setting.dataset,
        "network": setting.recipe.network,
        "rows": len(first),
        "steps": steps,
        "values": sum(value.size for row in first for value in row.arrays.values()),
        "differing_again": differing(first, again),
        "differing_beside_another": differing(first, beside),
    }


def differing(rows: list[RowResult], others: list[RowResult]) -> int:
    """Values whose bytes differ."""
    pairs = [
        (row.arrays[kind], other.arrays[kind]) for row, other in zip(rows, others, strict=True) for kind in row.arrays
    ]
    return sum(int(np.count_nonzero(_bytes(a) != _bytes(b))) for a, b in pairs)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(f"u{values.itemsize}")
