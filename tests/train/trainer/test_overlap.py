"""What a GPU's way of working adds: groups in flight while the host goes on, and steps that are captured.

Here on a CPU that behaves as one: threads and order are real. tests/train/trainer/test_gpu.py asks the same of a GPU.
"""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodels.launch.stop import Stop
from datamodels.launch.worker import Task, work
from datamodels.train.config import Data, Recipe, Setting
from datamodels.train.data.sources import Dataset, Split, load
from datamodels.train.errors import Interrupted
from datamodels.train.store.create import create_store
from datamodels.train.store.layout import Layout
from datamodels.train.store.store import Store
from datamodels.train.store.writer import RowResult
from datamodels.train.trainer import trainer as trainer_file
from datamodels.train.trainer.loader import AHEAD, Loader
from datamodels.train.trainer.trainer import Drawn, Outcome, Trainer
from tests.conftest import tiny
from tests.train.trainer.fake_gpu import Event, FakeGpu
from tests.train.trainer.test_trainer import trainer


def on_fake_gpu(concurrent_groups: int = 1) -> Trainer:
    return Trainer(tiny(), load(tiny()), FakeGpu(), concurrent_groups=concurrent_groups)


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


@pytest.mark.parametrize(("at_once", "resident"), [(1, True), (2, True), (2, False)])
def test_rows_do_not_depend_on_what_is_in_flight(plainly: list[RowResult], at_once: int, resident: bool) -> None:
    setting, gpu = replace(tiny(), data=Data(train=100, test=60, resident=resident)), FakeGpu()
    used = Trainer(setting, load(setting), gpu, concurrent_groups=at_once)
    assert used.ahead == at_once
    found = rows_of(used)
    assert len(gpu.threads) == at_once + 1, "a thread a stream, beside this one, which captures the steps"
    for row, expected in zip(found, plainly, strict=True):
        assert row.row == expected.row
        assert row.seconds > 0
        for name, array in expected.arrays.items():
            np.testing.assert_allclose(
                row.arrays[name].astype(np.float64), array.astype(np.float64), rtol=2e-3, atol=2e-3
            )


def test_seconds_are_the_devices_and_not_those_that_rows_share() -> None:
    outcome = on_fake_gpu(concurrent_groups=2).start(0).outcome()
    began, _, ended = outcome.moments
    ended.at = began.at + 48
    assert {result.seconds for result in outcome.results()} == {3}, "48 s for 8 rows, with 8 others beside them"


def test_a_record_tells_how_many_groups_shared_the_device(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "digits", "50pct")
    create_store(layout, tiny(), load(tiny()).declared(tiny().outputs), lambda text: None)
    work(Task(str(tmp_path), tiny().to_dict(), (0, 24), "cpu", concurrent_groups=2), Stop())
    (reader,) = Store.open(layout, tiny()).states.readers
    assert reader.provenance["concurrent_groups"] == 2


def test_a_group_is_drawn_while_the_one_before_trains_and_not_by_its_thread() -> None:
    next_is_drawn, drawing, overlapped = threading.Event(), set(), []

    class Watched(Trainer):
        def draw(self, rows: range) -> Drawn:
            drawing.add(threading.get_ident())
            found = super().draw(rows)
            if rows.start == 8:
                next_is_drawn.set()
            return found

        def train(self, *given: Any) -> Outcome:
            overlapped.append(next_is_drawn.wait(60))
            return super().train(*given)

    used = Watched(tiny(), load(tiny()), FakeGpu())
    pending = [used.start(group) for group in range(2)]
    assert [len(each.result()) for each in pending] == [8, 8]
    assert overlapped == [True, True]
    assert drawing == {threading.get_ident()}


def test_a_stop_ends_the_groups_in_flight() -> None:
    used, asked = on_fake_gpu(), threading.Event()
    pending = [used.start(group, asked.is_set) for group in range(2)]
    assert len(pending[0].result()) == 8
    asked.set()
    stopped = used.start(2, asked.is_set)
    with pytest.raises(Interrupted):
        stopped.result()


class LateGpu(FakeGpu):
    """Copies a batch only when somebody waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.allocated = 0
        self.latest: Event | None = None
        self.uncopied: dict[Event, torch.Tensor] = {}
        self.copied: list[torch.Tensor] = []

    def buffer(self, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        self.allocated += 1
        return super().buffer(shape, dtype)

    def event(self) -> Event:
        gpu = self

        class LateEvent(Event):
            def record(self) -> None:
                gpu.latest = self

            def synchronize(self) -> None:
                if self in gpu.uncopied:
                    gpu.copied.append(gpu.uncopied.pop(self).clone())

        return LateEvent()


def test_a_few_buffers_serve_all_batches_and_are_waited_for() -> None:
    gpu = LateGpu()
    images = np.arange(100, dtype=np.uint8)[:, None, None, None].repeat(3, 3)
    for batch in Loader(images, gpu, resident=False).in_order(6):
        assert gpu.latest is not None
        gpu.uncopied[gpu.latest] = batch
    waiting = list(gpu.uncopied)
    assert gpu.allocated == len(waiting) == AHEAD + 2
    for event in waiting:
        event.synchronize()
    np.testing.assert_array_equal(torch.cat(gpu.copied).numpy(), images)


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
def test_a_row_never_asks_the_device_for_a_number(network: str, resident: bool) -> None:
    """On torch's meta device, whose tensors hold nothing: to wait for one, or to mix it with the CPU's, raises."""
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (40, 40, 40, 3), dtype=np.uint8), np.arange(40) % 4)
    dataset = Dataset(split, split, tuple("abcd"), (120.0,) * 3, (60.0,) * 3, "here")
    setting = Setting(alpha=0.5, models=8, eval_models=0, recipe=META[network], data=Data(resident=resident))
    group = META[network].group
    assert len(Trainer(setting, dataset, FakeGpu(torch.device("meta")))(1)) == group


@pytest.mark.parametrize("tta", ["mirror", "none", "legacy_fliplr"])
def test_channels_added_for_speed_change_no_view(monkeypatch: pytest.MonkeyPatch, tta: str) -> None:
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8), np.arange(24) % 4)
    dataset = Dataset(split, split, tuple("abcd"), (120.0, 90.0, 60.0), (60.0, 50.0, 40.0), "here")
    recipe = Recipe(width=4, epochs=1, peak_epoch=0.5, batch=8, eval_batch=16, precision="bfloat16", threads=1)
    setting = Setting(alpha=0.5, models=8, eval_models=0, recipe=recipe, tta=tta)
    with_more = Trainer(setting, dataset, FakeGpu())(0)[0]
    monkeypatch.setattr(trainer_file, "CHANNELS", 3)
    without = Trainer(setting, dataset, FakeGpu())(0)[0]
    assert isinstance(with_more, RowResult)
    assert isinstance(without, RowResult)
    apart = with_more.arrays["test_logits"].astype(np.float64) - without.arrays["test_logits"].astype(np.float64)
    assert np.abs(apart).max() < 0.02 * np.abs(without.arrays["test_logits"]).max()
