"""Do near-duplicates between CIFAR-10's training and test images get the largest weights? On a CPU, in about an hour:

python -m bench.pairs prepare --data-root DIR
datamodels run configs/cifar_pairs.yaml
python -m bench.pairs judge

`prepare` picks 400 training and 600 test images of four classes and writes them as .npy files: first the pairs of
near-duplicates, training image p and test image p for each p below their number, then images at random. The last
training images get a wrong label on purpose. `judge` says where the pairs and the wrong labels come out.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from train import cifar
from train.config import Data
from train.images import Split

CLASSES = ("airplane", "automobile", "frog", "horse")
TRAIN, TEST = 100, 150
"""Images of each class."""
WRONG = 20
"""Training images, among those at random, whose label is another class's."""
NEAR = 0.97
"""Smallest similarity of a pair."""
APART = 0.8
"""Largest similarity of the training images, and of the test images, of two pairs."""
SHIFT = 2
SEED = 0


@dataclass(frozen=True)
class Chosen:
    """What `prepare` chose; positions are CIFAR-10's default order."""

    train: list[int]
    test: list[int]
    similarity: list[float]
    """Of each pair."""
    wrong: int
    """How many training images, the last, have a wrong label."""


def crops(images: NDArray[np.uint8], rows: int = 0, columns: int = 0, mirror: bool = False) -> torch.Tensor:
    """Images [N, H, W, C] without SHIFT pixels on each side, moved, at half the resolution, centred, of length 1."""
    pixels = torch.from_numpy(images.copy()).float().permute(0, 3, 1, 2)
    pixels = pixels.flip(3) if mirror else pixels
    height, breadth = (side - 2 * SHIFT for side in pixels.shape[2:])
    top, left = SHIFT + rows, SHIFT + columns
    flat = F.avg_pool2d(pixels[:, :, top : top + height, left : left + breadth], 2).flatten(1)
    return F.normalize(flat - flat.mean(1, keepdim=True))


def similarity(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> torch.Tensor:
    """Correlation of pixels [len(first), len(second)], the largest over shifts of the second images and their mirror."""
    still, places = crops(first), range(-SHIFT, SHIFT + 1)
    best = torch.full((len(first), len(second)), -1.0)
    for mirror in (False, True):
        for rows in places:
            for columns in places:
                torch.maximum(best, still @ crops(second, rows, columns, mirror).T, out=best)
    return best


def near_duplicates(train: NDArray[np.uint8], test: NDArray[np.uint8]) -> list[tuple[float, int, int]]:
    """Similarity, training and test position of pairs, nearest first; no two pairs show the same thing."""
    near = similarity(train, test)
    found = torch.nonzero(near >= NEAR)
    found = found[near[found[:, 0], found[:, 1]].argsort(descending=True)].tolist()
    chosen: list[tuple[float, int, int]] = []
    for i, j in found:
        _, trains, tests = zip(*chosen, strict=True) if chosen else ((), [], [])
        alike = [similarity(a[[i]], a[list(b)]).max() for a, i, b in ((train, i, trains), (test, j, tests)) if b]
        if all(value <= APART for value in alike):
            chosen.append((float(near[i, j]), i, j))
    return chosen


def choose(train: Split, test: Split, rng: np.random.Generator) -> Chosen:
    pairs: list[tuple[float, int, int]] = []
    rest: dict[str, list[int]] = {"train": [], "test": []}
    for number in map(cifar.CLASSES.index, CLASSES):
        of_class = {"train": np.flatnonzero(train.labels == number), "test": np.flatnonzero(test.labels == number)}
        found = near_duplicates(train.images[of_class["train"]], test.images[of_class["test"]])
        found = [(near, int(of_class["train"][i]), int(of_class["test"][j])) for near, i, j in found]
        pairs += found
        for name, column, count in (("train", 1, TRAIN), ("test", 2, TEST)):
            others = np.setdiff1d(of_class[name], [pair[column] for pair in found])
            rest[name] += rng.choice(others, count - len(found), replace=False).tolist()
    return Chosen(
        train=[pair[1] for pair in pairs] + rng.permutation(rest["train"]).tolist(),
        test=[pair[2] for pair in pairs] + rng.permutation(rest["test"]).tolist(),
        similarity=[pair[0] for pair in pairs],
        wrong=WRONG,
    )


def labels_of(split: Split, positions: list[int]) -> NDArray[np.int64]:
    """Numbers among CLASSES."""
    return np.array([CLASSES.index(cifar.CLASSES[label]) for label in split.labels[positions]])


def prepare(data_root: str, folder: Path) -> None:
    rng = np.random.default_rng(SEED)
    train, test = cifar.read(Data(root=data_root))
    chosen = choose(train, test, rng)
    images = {"train": train.images[chosen.train], "test": test.images[chosen.test]}
    labels = {"train": labels_of(train, chosen.train), "test": labels_of(test, chosen.test)}
    labels["train"][-WRONG:] = (labels["train"][-WRONG:] + rng.integers(1, len(CLASSES), WRONG)) % len(CLASSES)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        np.save(folder / f"{name}_images.npy", images[name])
        np.save(folder / f"{name}_labels.npy", labels[name])
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    same = np.where(labels["train"][:, None] == labels["test"], np.float32(1), np.float32(-1))
    np.save(folder / "same_class.npy", same)
    np.save(folder / "pixels.npy", same * similarity(images["train"], images["test"]).numpy())
    (folder / "chosen.json").write_text(json.dumps(asdict(chosen)))
    pairs = len(chosen.similarity)
    print(f"{folder}: {len(chosen.train)} training and {len(chosen.test)} test images, {pairs} pairs, {WRONG} wrong labels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["prepare", "judge"])
    parser.add_argument("--data-root", default="data", help="folder with cifar-10-batches-py")
    parser.add_argument("--folder", type=Path, default=Path("data/cifar_pairs"), help="the chosen images")
    options = parser.parse_args()
    prepare(options.data_root, options.folder)


if __name__ == "__main__":
    main()
