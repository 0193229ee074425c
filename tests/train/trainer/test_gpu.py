"""What only a GPU can show: that replayed steps are the steps, that rows come out the same, that nobody waits."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from datamodels.train.config import Data, Recipe, Setting
from datamodels.train.data.sources import Dataset, Split, load
from datamodels.train.store.writer import RowResult
from datamodels.train.trainer.executor import CudaExecutor
from datamodels.train.trainer.trainer import Trainer
from tests.conftest import tiny
from tests.train.trainer.fake_gpu import Eager
from tests.train.trainer.test_trainer import contents

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
GPU = torch.device("cuda", 0)
RECIPES = {
    "resnet9": Recipe(width=16, epochs=3, peak_epoch=1, batch=64, lr=0.1, eval_batch=100),
    "resnet18": Recipe(
        network="resnet18", epochs=2, peak_epoch=1, batch=32, lr=0.01, translate=0, cutout=0, eval_batch=100
    ),
    "convnet": Recipe(network="convnet", width=8, group=4, epochs=3, peak_epoch=1, batch=64, lr=0.1, eval_batch=100),
}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    labels = np.arange(512) % 4
    images = (rng.integers(0, 60, (512, 32, 32, 3)) + 50 * labels[:, None, None, None]).astype(np.uint8)
    split = Split(images, labels)
    return Dataset(split, split.first(256, "test"), tuple("abcd"), (125.0,) * 3, (50.0,) * 3, "here")


def trainer(
    network: str,
    dataset: Dataset,
    concurrent_groups: int = 1,
    resident: bool | None = None,
    executor: type[CudaExecutor] = CudaExecutor,
) -> Trainer:
    setting = Setting(alpha=0.5, models=100, eval_models=0, recipe=RECIPES[network], data=Data(resident=resident))
    return Trainer(setting, dataset, executor(GPU), concurrent_groups=concurrent_groups)


def in_flight(used: Trainer, groups: list[int]) -> dict[int, list[bytes]]:
    started = [(group, used.start(group)) for group in groups]
    return {group: contents(pending.result()) for group, pending in started}


@pytest.mark.parametrize("network", RECIPES)
def test_rows_have_the_same_bytes_whatever_is_in_flight_beside_them(network: str, dataset: Dataset) -> None:
    expected = in_flight(trainer(network, dataset), [0, 1, 2, 3])
    for concurrent_groups, order in ((1, [3, 1, 0, 2]), (2, [0, 1, 2, 3]), (3, [2, 3, 1, 0])):
        assert in_flight(trainer(network, dataset, concurrent_groups), order) == expected
    assert in_flight(trainer(network, dataset, 2, resident=False), [1, 2]) == {g: expected[g] for g in (1, 2)}
    assert len({row for rows in expected.values() for row in rows}) == 4 * RECIPES[network].group


@pytest.mark.parametrize("network", RECIPES)
def test_replayed_steps_are_the_steps(network: str, dataset: Dataset) -> None:
    called = trainer(network, dataset, executor=Eager)
    assert contents(trainer(network, dataset)(1)) == contents(called(1))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("network", RECIPES)
def test_nothing_waits_for_the_gpu_within_a_row(network: str, dataset: Dataset) -> None:
    used = trainer(network, dataset)
    used(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        pending = used.start(1)
        outcome = pending.outcome()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(isinstance(result, RowResult) for result in outcome.results())


@pytest.mark.parametrize("network", RECIPES)
def test_a_gpu_learns_what_a_cpu_does(network: str, dataset: Dataset) -> None:
    setting = Setting(alpha=0.5, models=100, eval_models=0, recipe=replace(RECIPES[network], precision="float32"))
    results = {device: Trainer(setting, dataset, torch.device(device))(0)[0] for device in ("cpu", "cuda:0")}
    cpu, gpu = results["cpu"], results["cuda:0"]
    assert isinstance(cpu, RowResult)
    assert isinstance(gpu, RowResult)
    assert (cpu.arrays["train_masks"] == gpu.arrays["train_masks"]).all()
    assert abs(cpu.accuracy - gpu.accuracy) < 0.1
    margins = [result.arrays["test_margins"].astype(np.float64) for result in (cpu, gpu)]
    assert np.corrcoef(*margins)[0, 1] > 0.9


def test_digits_train_on_a_gpu() -> None:
    setting = replace(tiny(), recipe=replace(tiny().recipe, device="cuda", epochs=20, peak_epoch=4, width=8))
    results = Trainer(setting, load(setting), GPU)(0)
    assert np.mean([result.accuracy for result in results if isinstance(result, RowResult)]) > 0.5
