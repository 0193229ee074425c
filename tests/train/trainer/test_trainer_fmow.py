"""Training on FMoW: the network is torchvision's, and rows do not depend on the form that images come in."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from datamodels.train.config import Data, Recipe, Setting
from datamodels.train.data import beton
from datamodels.train.data.images import Images, LazyImages, Split
from datamodels.train.data.sources import Dataset, load
from datamodels.train.store.writer import RowResult
from datamodels.train.trainer.executor import Executor
from datamodels.train.trainer.models import build, normal
from datamodels.train.trainer.optimizer import FlatParameters
from datamodels.train.trainer.trainer import Trainer
from fmow import torchvision
from tests.conftest import PROJECT
from tests.train.data.test_packing import write_raw
from tests.train.trainer.fake_gpu import FakeGpu

CPU = torch.device("cpu")


@pytest.fixture
def twins() -> tuple[torch.nn.Module, torch.nn.Module, FlatParameters]:
    """Our ResNet-18 at its initial state, and torchvision's with the same weights."""
    torch.set_num_threads(1)
    ours = build(Recipe(network="resnet18"), (64, 64, 3), 62)
    parameters = FlatParameters(ours, 1, CPU)
    parameters.reset(0, range(1))
    theirs = torchvision().models.resnet18(num_classes=62)
    state = {name.removeprefix("body.").replace("head.", "fc."): value for name, value in ours.state_dict().items()}
    theirs.load_state_dict({name: value.clone() for name, value in state.items()})
    return ours, theirs, parameters


def test_resnet18_is_torchvisions(twins: tuple[torch.nn.Module, torch.nn.Module, FlatParameters]) -> None:
    ours, theirs, parameters = twins
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-3)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(6, 64, 64, 3, generator=generator), torch.arange(6)
    for _ in range(3):
        losses = [F.cross_entropy(ours(images[None])[0], labels), F.cross_entropy(theirs(images.movedim(3, 1)), labels)]
        torch.testing.assert_close(*losses)
        optimizer.zero_grad()
        parameters.backward(losses[0])
        losses[1].backward()
        optimizer.step()
        parameters.step(torch.tensor([0.01]), 0.9, 1e-3)
    for network in (ours, theirs):
        network.eval()
    torch.testing.assert_close(ours(images[None])[0], theirs(images.movedim(3, 1)))


def test_no_draw_starts_a_weight_at_infinity() -> None:
    extremes = np.array([0, 0.5, 1 - 2**-24], np.float32)
    found = normal(extremes, 2.0)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [-10.84, 0, 10.84], atol=1e-3)


# The same rows from every form


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 3
    images = (rng.integers(0, 90, (48, 32, 32, 3)) + 70 * labels[:, None, None, None]).astype(np.uint8)
    return Dataset(
        Split(images[:30], labels[:30]), Split(images[30:], labels[30:]), ("a", "b", "c"), (120,) * 3, (60,) * 3, ""
    )


class Read(LazyImages):
    """Images that are read one by one from an array."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__(images.shape, images.dtype)
        self.images = images

    def read_into(self, position: int, out: np.ndarray) -> None:
        out[:] = self.images[position]

    def stamp(self) -> str:
        return "read"


def mapped(images: np.ndarray, folder: Path) -> Images:
    np.save(folder / "images.npy", images)
    return np.load(folder / "images.npy", mmap_mode="c")


def raw_beton(images: np.ndarray, folder: Path) -> Images:
    write_raw(folder / "images.beton", images, np.arange(len(images)))
    return beton.read(folder / "images.beton").images


FORMS: dict[str, Callable[[np.ndarray, Path], Images]] = {
    "array": lambda images, folder: images,
    "read": lambda images, folder: Read(images),
    "mapped": mapped,
    "beton": raw_beton,
}


def row(dataset: Dataset, translate: int, resident: bool | None, device: torch.device | Executor = CPU) -> bytes:
    recipe = Recipe(width=4, translate=translate, cutout=2 * translate)
    recipe = replace(recipe, epochs=2, peak_epoch=1, batch=5, lr=0.01, eval_batch=7, device="cpu", threads=1)
    setting = Setting(alpha=0.5, models=4, eval_models=0, recipe=recipe, data=Data(resident=resident))
    result = Trainer(setting, dataset, device)(1)[0]
    assert isinstance(result, RowResult)
    return b"".join(array.tobytes() for array in result.arrays.values())


@pytest.mark.parametrize("translate", [0, 2])
def test_a_row_does_not_depend_on_where_its_images_are(dataset: Dataset, tmp_path: Path, translate: int) -> None:
    expected = row(dataset, translate, True)
    for form, make in FORMS.items():
        splits = {}
        for name in ("train", "test"):
            (tmp_path / form / name).mkdir(parents=True)
            split = getattr(dataset, name)
            splits[name] = Split(make(split.images, tmp_path / form / name), split.labels)
        for resident in (None, True, False):
            assert row(replace(dataset, **splits), translate, resident) == expected, (form, resident)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_row_does_not_depend_on_the_type_of_its_images(dataset: Dataset, tmp_path: Path, dtype: type) -> None:
    for translate, form, resident in ((0, "read", False), (2, "mapped", False), (2, "array", True)):
        expected, splits = row(dataset, translate, True), {}
        for name in ("train", "test"):
            split, folder = getattr(dataset, name), tmp_path / form / name
            folder.mkdir(parents=True, exist_ok=True)
            splits[name] = Split(FORMS[form](split.images.astype(dtype), folder), split.labels)
        for device in (CPU, FakeGpu()):
            assert row(replace(dataset, **splits), translate, resident, device) == expected, (translate, form, device)


MEMORY = """
import sys
from pathlib import Path
import numpy as np
import torch
from datamodels.train.config import Data, Recipe, Setting
from datamodels.train.data.sources import Dataset
from datamodels.train.data.images import Split
from datamodels.train.trainer.trainer import Trainer

def anonymous():
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024

images = np.load(sys.argv[1], mmap_mode="c")
split = Split(images, np.arange(len(images)) % 3)
dataset = Dataset(split, Split(images[:8], split.labels[:8]), ("a", "b", "c"), (120,) * 3, (60,) * 3, "")
recipe = Recipe(
    network="convnet", width=1, epochs=2, peak_epoch=1, batch=8, translate=int(sys.argv[2]), cutout=0, eval_batch=16,
    device="cpu", threads=1, precision="float32",
)
before = anonymous()
dataset.sha256()
trainer = Trainer(Setting(alpha=0.5, models=1, eval_models=0, recipe=recipe, data=Data()), dataset, torch.device("cpu"))
for batch in trainer.shared.loaders["train"].in_order(16):
    pass
for batch in trainer.shared.loaders["train"].batches(np.arange(32).reshape(4, 8)):
    pass
print(anonymous() - before, images.nbytes)
"""


@pytest.mark.parametrize("translate", [0, 2])
def test_a_mapped_file_is_never_copied_whole(tmp_path: Path, translate: int) -> None:
    path = tmp_path / "images.npy"
    np.lib.format.open_memmap(path, "w+", np.uint8, (4000, 224, 224, 3)).flush()
    command = [sys.executable, "-c", MEMORY, str(path), str(translate)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    taken, size = map(int, done.stdout.split())
    assert taken < size / 3


def test_the_same_fmow_row_twice_has_the_same_bytes(real_data: Path) -> None:
    recipe = Recipe(network="resnet18", translate=0, cutout=0, weight_decay=1e-3, lr=0.002, batch=8, threads=1)
    recipe = replace(recipe, epochs=2, peak_epoch=1, device="cpu")
    data = Data(root=str(real_data), packed="nowhere", size=32)
    setting = Setting(dataset="fmow", alpha=0.5, models=4, eval_models=0, recipe=recipe, data=data)
    dataset = load(setting)
    used = Trainer(setting, dataset, CPU)
    rows = [used(3), used(0), Trainer(setting, dataset, CPU)(0)]
    contents = [b"".join(array.tobytes() for array in row[0].arrays.values()) for row in rows]
    assert contents[1] == contents[2] != contents[0]
    arrays = rows[1][0].arrays
    assert arrays["train_masks"].shape == (43,)
    assert arrays["test_margins"].shape == (31,)
    assert arrays["test_logits"].shape == (31, 62)
