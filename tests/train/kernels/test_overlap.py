"""What a GPU's way of working adds: groups in flight while the host goes on, and steps that are captured.

Without a GPU, streams, events and pinned memory are stood in for, so that every line runs; threads and order are real.
With one, tests/train/trainer/test_gpu.py asks the same of it.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from datamodels.launch.stop import Stop
from datamodels.launch.worker import Task, work
from datamodels.train import masks
from datamodels.train.config import Data, Recipe, Setting
from datamodels.train.data.sources import Dataset, Split, load
from datamodels.train.errors import Interrupted, WorkError
from datamodels.train.store.create import create_store
from datamodels.train.store.layout import Layout
from datamodels.train.store.store import Store, open_own
from datamodels.train.store.writer import RowResult, Writer
from datamodels.train.trainer import augment, device
from datamodels.train.trainer import cuda_graph as replay
from datamodels.train.trainer import engine as lane
from datamodels.train.trainer import flat_parameters as parameters
from datamodels.train.trainer import loader as feed
from datamodels.train.trainer import trainer as loop
from datamodels.train.trainer.cuda_graph import WARM_UP, Replay
from datamodels.train.trainer.trainer import Trainer
from tests.conftest import tiny
from tests.faults.stores import check
from tests.train.trainer.test_run_rows import MadeUp, train
from tests.train.trainer.test_run_rows import store as store
from tests.train.trainer.test_trainer import trainer


class Event:
    """The time at which the host recorded it, which here is the time at which the work before it was done."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.timed, self.at = enable_timing, 0.0
        assert blocking, "to wait for it would keep a core busy"

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "Event") -> float:
        assert self.timed
        assert end.timed
        assert self.at > 0
        return 1000 * (end.at - self.at)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    """A CPU that passes for a GPU; the set holds the threads that work was put into streams by."""
    threads: set[int] = set()

    def stream(_: Any) -> contextlib.AbstractContextManager[None]:
        threads.add(threading.get_ident())
        return contextlib.nullcontext()

    def warm_up(self: Replay) -> None:
        for _ in range(WARM_UP + 1):
            self._call()

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Replay, "prepare", warm_up)
    for module in (augment, device, feed, lane, loop, replay):
        if hasattr(module, "on_gpu"):
            monkeypatch.setattr(module, "on_gpu", lambda device: True)
        if hasattr(module, "pinned"):
            monkeypatch.setattr(module, "pinned", lambda shape, dtype: torch.empty(tuple(shape), dtype=dtype))
    monkeypatch.setattr(loop, "make_deterministic", lambda device: None)
    monkeypatch.setattr(feed, "_free", lambda device: 1 << 30)
    return threads


@pytest.fixture(scope="module")
def plainly() -> list[RowResult]:
    """The rows of three groups as a CPU trains them."""
    return rows_of(trainer(tiny()))


def rows_of(used: Trainer) -> list[RowResult]:
    """Rows of three groups that are all started before the first result is asked for."""
    started = [used.start(group) for group in (2, 0, 1)]
    results = [result for pending in started for result in pending.result()]
    assert all(isinstance(result, RowResult) for result in results)
    return [result for result in results if isinstance(result, RowResult)]


@pytest.mark.parametrize(("streams", "resident"), [(1, True), (2, True), (2, False)])
def test_rows_do_not_depend_on_what_is_in_flight(
    plainly: list[RowResult], gpu: set[int], streams: int, resident: bool
) -> None:
    setting = replace(tiny(), data=Data(train=100, test=60, resident=resident))
    used = Trainer(setting, load(setting), torch.device("cpu"), streams=streams)
    assert used.ahead == streams
    found = rows_of(used)
    assert len(gpu) == streams + 1, "a thread a stream, beside this one, which prepares them"
    for row, expected in zip(found, plainly, strict=True):
        assert row.row == expected.row
        assert row.seconds > 0
        for name, array in expected.arrays.items():
            np.testing.assert_allclose(
                row.arrays[name].astype(np.float64), array.astype(np.float64), rtol=2e-3, atol=2e-3
            )


def test_seconds_are_the_devices_and_not_those_that_rows_share(gpu: set[int]) -> None:
    used = Trainer(tiny(), load(tiny()), torch.device("cpu"), streams=2)
    outcome = used.start(0).outcome()
    began, _, ended = outcome.moments
    ended.at = began.at + 48
    assert {result.seconds for result in outcome.results()} == {3}, "48 s for 8 rows, with 8 others beside them"


def test_a_record_tells_how_many_groups_shared_the_device(
    gpu: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    layout = Layout(tmp_path, "digits", "50")
    create_store(layout, tiny(), load(tiny()), lambda text: None)
    work(Task(str(tmp_path), tiny().to_dict(), (0, 24), "cpu", streams=2), Stop())
    (reader,) = open_own(layout, tiny()).states.readers
    assert reader.provenance["streams"] == 2


def test_a_group_is_drawn_while_the_one_before_trains_and_not_by_its_thread(
    gpu: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    used, next_is_drawn, threads = trainer(tiny()), threading.Event(), set()
    draw, trained, overlapped = used.draw, used.lanes[0].train, []

    def noted(function: Callable[..., Any]) -> Callable[..., Any]:
        def note(*given: Any) -> Any:
            threads.add(threading.get_ident())
            return function(*given)

        return note

    def draw_and_tell(rows: range) -> loop.Drawn:
        found = draw(rows)
        if rows.start == 8:
            next_is_drawn.set()
        return found

    def train_once_the_next_is_drawn(stop: Callable[[], bool]) -> None:
        overlapped.append(next_is_drawn.wait(60))
        trained(stop)

    for module, name in ((loop, "tables"), (parameters, "uniform"), (masks, "raw")):
        monkeypatch.setattr(module, name, noted(getattr(module, name)))
    monkeypatch.setattr(used, "draw", draw_and_tell)
    monkeypatch.setattr(used.lanes[0], "train", train_once_the_next_is_drawn)
    pending = [used.start(group) for group in range(2)]
    assert [len(each.result()) for each in pending] == [8, 8]
    assert overlapped == [True, True]
    assert threads == {threading.get_ident()}


def test_a_stop_ends_the_groups_in_flight(gpu: set[int]) -> None:
    used, asked = trainer(tiny()), threading.Event()
    pending = [used.start(group, asked.is_set) for group in range(2)]
    assert len(pending[0].result()) == 8
    asked.set()
    stopped = used.start(2, asked.is_set)
    with pytest.raises(Interrupted):
        stopped.result()


class LateEvent(Event):
    """Of a GPU that fetches a batch only when somebody waits for it."""

    latest: "LateEvent"
    unfetched: dict["LateEvent", torch.Tensor]
    fetched: list[torch.Tensor]

    def record(self) -> None:
        LateEvent.latest = self

    def synchronize(self) -> None:
        if self in self.unfetched:
            self.fetched.append(self.unfetched.pop(self).clone())


def test_a_few_buffers_serve_all_batches_and_are_waited_for(gpu: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    allocated: list[torch.Tensor] = []
    LateEvent.unfetched, LateEvent.fetched = {}, []

    def pinned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        allocated.append(torch.empty(shape, dtype=dtype))
        return allocated[-1]

    monkeypatch.setattr(feed, "pinned", pinned)
    monkeypatch.setattr(torch.cuda, "Event", LateEvent)
    images = np.arange(100, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    for batch in feed.Feed(images, torch.device("cpu"), resident=False).all(6):
        LateEvent.unfetched[LateEvent.latest] = batch
    waiting = list(LateEvent.unfetched)
    assert len(allocated) == len(waiting) == feed.AHEAD + 2
    for event in waiting:
        event.synchronize()
    np.testing.assert_array_equal(torch.cat(LateEvent.fetched).numpy(), images)


META = {
    "resnet9": Recipe(width=8, epochs=1, peak_epoch=0.5, batch=16, eval_batch=8, precision="bfloat16"),
    "resnet18": Recipe(
        network="resnet18", epochs=1, peak_epoch=0.5, batch=16, eval_batch=8, translate=0, cutout=0, precision="float16"
    ),
    "convnet": Recipe(
        network="convnet", group=4, width=8, epochs=1, peak_epoch=0.5, batch=16, eval_batch=8, precision="float32"
    ),
}


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("network", META)
def test_a_row_never_asks_the_device_for_a_number(
    gpu: set[int], monkeypatch: pytest.MonkeyPatch, network: str, resident: bool
) -> None:
    """On torch's meta device, whose tensors hold nothing: to wait for one, or to mix it with the CPU's, raises."""
    monkeypatch.setattr(loop, "fetched", lambda value, device: torch.zeros(value.shape, dtype=value.dtype))
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (40, 40, 40, 3), dtype=np.uint8), np.arange(40) % 4)
    dataset = Dataset(split, split, tuple("abcd"), (120.0,) * 3, (60.0,) * 3, "here")
    setting = Setting(alpha=0.5, models=8, eval_models=0, recipe=META[network], data=Data(resident=resident))
    group = META[network].group
    assert len(Trainer(setting, dataset, torch.device("meta"))(1)) == group


@pytest.mark.parametrize("tta", ["mirror", "none", "legacy_fliplr"])
def test_channels_added_for_speed_change_no_view(gpu: set[int], monkeypatch: pytest.MonkeyPatch, tta: str) -> None:
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8), np.arange(24) % 4)
    dataset = Dataset(split, split, tuple("abcd"), (120.0, 90.0, 60.0), (60.0, 50.0, 40.0), "here")
    recipe = Recipe(width=4, epochs=1, peak_epoch=0.5, batch=8, eval_batch=16, precision="bfloat16", threads=1)
    setting = Setting(alpha=0.5, models=8, eval_models=0, recipe=recipe, tta=tta)
    with_more = Trainer(setting, dataset, torch.device("cpu"))(0)[0]
    monkeypatch.setattr(lane, "CHANNELS", 3)
    without = Trainer(setting, dataset, torch.device("cpu"))(0)[0]
    assert isinstance(with_more, RowResult)
    assert isinstance(without, RowResult)
    apart = with_more.arrays["test_logits"].astype(np.float64) - without.arrays["test_logits"].astype(np.float64)
    assert np.abs(apart).max() < 0.02 * np.abs(without.arrays["test_logits"]).max()


class Ahead(MadeUp):
    """A trainer of made-up rows that has a group in flight while the next one is started."""

    ahead = 1

    def __init__(self, store: Store, trained: Callable[[int], None] = lambda group: None) -> None:
        super().__init__(store)
        self.trained = trained
        self.pool = ThreadPoolExecutor(1)

    def start(self, group: int, stop: Callable[[], bool]) -> Any:
        self.groups.append(group)
        return self.pool.submit(self.result_of, group, stop)

    def result_of(self, group: int, stop: Callable[[], bool]) -> list[Any]:
        self.trained(group)
        if stop():
            raise Interrupted
        return [self.result(row) for row in range(4 * group, 4 * group + 4)]


def test_the_next_group_is_started_before_the_one_before_is_trained(store: Store) -> None:
    def trained(group: int) -> None:
        deadline = time.monotonic() + 60
        while group == 0 and len(made_up.groups) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert group != 0 or made_up.groups == [0, 1]

    made_up = Ahead(store, trained)
    assert train(store, made_up) == list(range(14))
    assert made_up.groups == [0, 1, 2, 3]
    assert check(store.layout.root) == 14


def test_what_is_in_flight_when_a_commit_fails_is_committed(store: Store) -> None:
    real = Writer.commit

    def commit(writer: Writer, group: int, results: Any) -> None:
        if group == 0:
            raise WorkError("cannot write row 0 of x")
        real(writer, group, results)

    made_up = Ahead(store)
    with mock.patch.object(Writer, "commit", commit), pytest.raises(WorkError, match="cannot write row 0"):
        train(store, made_up)
    assert made_up.groups[:2] == [0, 1]
    store.refresh()
    done = set(np.flatnonzero(store.completed()).tolist())
    assert {4, 5, 6, 7} <= done
    assert not done & {0, 1, 2, 3}
    assert train(store, MadeUp(store)) == sorted(set(range(14)) - done)


def test_a_stop_commits_what_was_trained_by_then(store: Store) -> None:
    asked = threading.Event()
    made_up = Ahead(store, lambda group: asked.set() if group == 1 else None)
    with pytest.raises(Interrupted):
        train(store, made_up, asked.is_set)
    store.refresh()
    assert np.flatnonzero(store.completed()).tolist() == [0, 1, 2, 3]
