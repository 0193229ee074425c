"""Images a second that reach the CPU as uint8 batches in random order: ours beside FFCV's and torchvision's loaders.

    python -m bench.loader DATA [--rounds 7] [--workers 2]

DATA is a folder with `cifar-10-batches-py` and `fmow_v1.1`; FMoW's images are repeated to 2,000. Needs FFCV
(`pip install .[ffcv]`). Every contender reads files that the system's cache holds, with the same number of threads or
processes; they take turns, one round to warm up and --rounds that count, the median of which is told. Prints one JSON
line a contender, and the ratios.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datamodels.train.config import Data
from datamodels.train.data import beton
from datamodels.train.data.images import Images
from datamodels.train.kernels.augment import select
from datamodels.train.trainer.executor import Executor
from datamodels.train.trainer.loader import AHEAD, Loader
from fmow import torchvision

vision = torchvision()
"""Imported here, so that a spawned DataLoader worker imports it the same way."""

WRITER = """
import sys
import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
for array, path, mode in zip(*[iter(sys.argv[1:])] * 3):
    images = np.load(array, mmap_mode="r")
    fields = {"image": RGBImageField(write_mode=mode, jpeg_quality=90), "label": IntField()}
    examples = [(image, index % 10) for index, image in enumerate(images)]
    DatasetWriter(path, fields, num_workers=2).from_indexed_dataset(examples)
"""
"""Writes .npy arrays as .beton files, in a process of its own: FFCV's writer forks."""
PICKED = {"fmow 224 x 224": "ours npy", "cifar 32 x 32": "ours in memory"}
"""What `data.form: auto` picks on a CPU for each data set, FMoW being packed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.workers)
    for name, images, batch in (
        ("fmow 224 x 224", fmow(options.data), 256),
        ("cifar 32 x 32", cifar(options.data), 512),
    ):
        with tempfile.TemporaryDirectory() as folder:
            contenders = prepare(Path(folder), images, batch, options.workers)
            rounds = [{label: rate(epoch) for label, epoch in contenders.items()} for _ in range(options.rounds + 1)]
        rates = {label: float(np.median([found[label] for found in rounds[1:]])) for label in contenders}
        for label, found in rates.items():
            print(json.dumps({"data": name, "loader": label, "images_per_second": round(found)}), flush=True)
        for label, others in (
            (PICKED[name], ("ffcv raw", "ffcv jpeg", "torchvision")),
            ("ours beton raw", ("ffcv raw",)),
            ("ours beton jpeg", ("ffcv jpeg",)),
        ):
            best = max(others, key=lambda other: rates[other])
            print(f"{name}: {label} / {best} = {rates[label] / rates[best]:.2f}", flush=True)


def fmow(root: Path) -> np.ndarray:
    paths = sorted((root / "fmow_v1.1" / "images").glob("*.png"))
    return np.tile(np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths]), (10, 1, 1, 1))


def cifar(root: Path) -> np.ndarray:
    from datamodels.train.data.cifar import read

    return np.asarray(read(Data(root=str(root)))[0].images)


def prepare(folder: Path, images: np.ndarray, batch: int, workers: int) -> dict[str, Callable[[], Iterable[int]]]:
    """The contenders: each call makes one pass and yields how many images each batch has."""
    np.save(folder / "images.npy", images)
    arguments = [word for mode in ("raw", "jpg") for word in (f"{folder}/images.npy", f"{folder}/{mode}.beton", mode)]
    subprocess.run([sys.executable, "-c", WRITER, *arguments], check=True, capture_output=True)
    raw, jpeg = (beton.read(folder / f"{mode}.beton").images for mode in ("raw", "jpg"))
    mapped = np.load(folder / "images.npy", mmap_mode="c")
    return {
        "ours in memory": ours(images, batch, resident=True),
        "ours npy": ours(mapped, batch),
        "ours beton raw": ours(raw, batch),
        "ours beton jpeg": ours(jpeg, batch),
        "ffcv raw": ffcv(folder / "raw.beton", batch, workers),
        "ffcv jpeg": ffcv(folder / "jpg.beton", batch, workers),
        "torchvision": image_folder(folder / "png", images[:5000], batch, workers),
    }


def ours(images: Images, batch: int, resident: bool = False) -> Callable[[], Iterator[int]]:
    """As the trainer reads them."""
    loader = Loader(images, Executor(torch.device("cpu")), resident)

    def epoch() -> Iterator[int]:
        steps = len(images) // batch
        order = np.random.default_rng().permutation(len(images))[: steps * batch].reshape(steps, batch)
        if loader.resident is not None:
            for pick in order:
                yield len(select(loader.resident, torch.from_numpy(pick)))
        else:
            for sent in loader.batches(order):
                yield len(sent)

    return epoch


def ffcv(path: Path, batch: int, workers: int) -> Callable[[], Iterator[int]]:
    from ffcv.loader import Loader, OrderOption

    loader = Loader(str(path), batch, workers, os_cache=True, order=OrderOption.RANDOM, seed=0, batches_ahead=AHEAD)

    def epoch() -> Iterator[int]:
        for images, _ in loader:
            yield len(images)

    return epoch


def image_folder(folder: Path, images: np.ndarray, batch: int, workers: int) -> Callable[[], Iterator[int]]:
    (folder / "class").mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / "class" / f"{number:06d}.png")
    transform = vision.transforms.PILToTensor()
    loader = torch.utils.data.DataLoader(
        vision.datasets.ImageFolder(str(folder), transform), batch, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=True, multiprocessing_context="spawn",
    )  # fmt: skip

    def epoch() -> Iterator[int]:
        for images, _ in loader:
            yield len(images)

    return epoch


def rate(epoch: Callable[[], Iterable[int]], seconds: float = 0.5) -> float:
    """Images a second over whole passes of at least so many seconds."""
    started, images = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        images += sum(epoch())
    return images / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
