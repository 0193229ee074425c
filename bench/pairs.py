"""Do near-duplicates between CIFAR-10's training and test images get the largest weights? On a CPU, in about an hour:

python -m bench.pairs prepare --data-root DIR
datamodels run configs/cifar_pairs.yaml
python -m bench.pairs judge

`prepare` picks 400 training and 600 test images of four classes and writes them as .npy files: first the pairs of
near-duplicates, training image p and test image p for each p below their number, then images at random. The last
training images get a wrong label on purpose. `judge` says where the pairs and the wrong labels come out, beside three
other scores: differences of mean margins over the same models, pixels, and whether labels agree.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from datamodels.lasso import evaluate, load
from datamodels.launch.report.outliers import DEPTH, outliers_of
from datamodels.train.config import Data
from datamodels.train.data import cifar
from datamodels.train.data.images import Split
from datamodels.train.store.open import open as open_store

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
"""Pixels by which the images of a pair may be shifted in either direction."""
SEED = 0
SHOWN = 12
"""Suspected duplicates in a report."""
HEADER = """\
| scores | LDS | largest of {n} is the pair's | one of the 5 largest is | its median rank |\
 of the {shown} and the {pairs} largest outlier scores, pairs | | of the {wrong} most harmful, wrong |
|---|---|---|---|---|---|---|---|"""


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
    """Correlation of pixels [len(first), len(second)], the largest over shifts and mirrors of the second."""
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
    places = torch.nonzero(near >= NEAR)
    values = near[places[:, 0], places[:, 1]]
    chosen: list[tuple[float, int, int]] = []
    for at in values.argsort(descending=True):
        i, j = places[at].tolist()
        resembles = (_resembles(train, i, [k for _, k, _ in chosen]), _resembles(test, j, [k for _, _, k in chosen]))
        if not any(resembles):
            chosen.append((values[at].item(), i, j))
    return chosen


def _resembles(images: NDArray[np.uint8], one: int, others: list[int]) -> bool:
    return bool(others) and similarity(images[[one]], images[others]).max().item() > APART


def choose(train: Split, test: Split, rng: np.random.Generator) -> Chosen:
    pairs: list[tuple[float, int, int]] = []
    others: dict[str, list[int]] = {"train": [], "test": []}
    for number in map(cifar.CLASSES.index, CLASSES):
        trains, tests = (np.flatnonzero(split.labels == number) for split in (train, test))
        near = near_duplicates(train.images[trains], test.images[tests])
        found = [(value, int(trains[i]), int(tests[j])) for value, i, j in near]
        for name, column, pool, count in (("train", 1, trains, TRAIN), ("test", 2, tests, TEST)):
            rest = np.setdiff1d(pool, [pair[column] for pair in found])
            others[name] += rng.choice(rest, count - len(found), replace=False).tolist()
        pairs += found
    return Chosen(
        train=[i for _, i, _ in pairs] + rng.permutation(others["train"]).tolist(),
        test=[j for _, _, j in pairs] + rng.permutation(others["test"]).tolist(),
        similarity=[near for near, _, _ in pairs],
        wrong=WRONG,
    )


def labels_of(split: Split, positions: list[int]) -> NDArray[np.int64]:
    """Numbers among CLASSES."""
    return np.array([CLASSES.index(cifar.CLASSES[label]) for label in split.labels[positions]])


def prepare(data_root: str, folder: Path) -> None:
    rng = np.random.default_rng(SEED)
    train, test, *_ = cifar.read(Data(root=data_root))
    chosen = choose(train, test, rng)
    images = {"train": train.images[np.array(chosen.train)], "test": test.images[np.array(chosen.test)]}
    labels = {"train": labels_of(train, chosen.train), "test": labels_of(test, chosen.test)}
    labels["train"][-WRONG:] = (labels["train"][-WRONG:] + rng.integers(1, len(CLASSES), WRONG)) % len(CLASSES)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        np.save(folder / f"{name}_images.npy", images[name])
        np.save(folder / f"{name}_labels.npy", labels[name])
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    agree = np.where(labels["train"][:, None] == labels["test"], np.float32(1), np.float32(-1))
    np.save(folder / "labels_agree.npy", agree)
    np.save(folder / "pixels.npy", agree * similarity(images["train"], images["test"]).numpy())
    (folder / "chosen.json").write_text(json.dumps(asdict(chosen)))
    counts = f"{len(chosen.train)} training and {len(chosen.test)} test images"
    print(f"{folder}: {counts}, {len(chosen.similarity)} pairs, {WRONG} wrong labels")


def differences(masks: NDArray[np.bool_], margins: NDArray[np.float16]) -> NDArray[np.float32]:
    """Mean margin of the models with an example minus that of those without it [N_train, T]."""
    seen, values = masks.astype(np.float64), margins.astype(np.float64)
    counts = seen.sum(0)[:, None]
    sums = seen.T @ values
    return (sums / counts - (values.sum(0) - sums) / (len(masks) - counts)).astype(np.float32)


def verdict(scores: NDArray[np.float32], chosen: Chosen) -> str:
    """Where pairs and wrong labels come out by scores [N_train, T]; outliers and harm as in the report.

    Equal scores share a rank.
    """
    pairs = np.arange(len(chosen.similarity))
    own = scores[pairs, pairs]
    rank = ((scores[:, pairs] > own).sum(0) + (scores[:, pairs] >= own).sum(0) + 1) / 2
    largest = np.sort(scores, axis=0)[::-1][: DEPTH + 1]
    outliers = outliers_of(largest, np.sum(scores.astype(np.float64) ** 2, axis=0), len(scores))
    first = np.argsort(-outliers.score, kind="stable")
    caught = (first < len(pairs)) & (scores.argmax(0)[first] == first)
    wrong = np.argsort(scores.mean(1), kind="stable")[: chosen.wrong] >= len(scores) - chosen.wrong
    shares = [f"{np.mean(rank == 1):.1%}", f"{np.mean(rank <= 5):.1%}", f"{np.median(rank):g}"]
    return " | ".join(
        [*shares, *(f"{caught[:count].mean():.1%}" for count in (SHOWN, len(pairs))), f"{wrong.mean():.1%}"]
    )


def judge(folder: Path, root: Path) -> None:
    chosen = Chosen(**json.loads((folder / "chosen.json").read_text("utf-8")))
    store = open_store(root)
    rows = store.estimation_rows()
    scores = {
        "datamodels": load(store).weight,
        "difference of means": differences(store.masks[rows], store.margins()[rows]),
        "pixels": np.load(folder / "pixels.npy"),
        "labels agree": np.load(folder / "labels_agree.npy"),
    }
    print(HEADER.format(shown=SHOWN, n=store.n_train, pairs=len(chosen.similarity), wrong=chosen.wrong))
    for name, values in scores.items():
        quality = evaluate(store, values)
        assert quality.lds_interval
        interval = f"{quality.lds_interval.low:.3f} to {quality.lds_interval.high:.3f}"
        print(f"| {name} | {quality.lds:.3f} ({interval}) | {verdict(values, chosen)} |")
    print(
        f"\nceiling {quality.ceiling:.3f}, {quality.masks} masks of {quality.models} models, {quality.targets} targets"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["prepare", "judge"])
    parser.add_argument("--data-root", default="data", help="folder with cifar-10-batches-py")
    parser.add_argument("--folder", type=Path, default=Path("data/cifar_pairs"), help="of the chosen images")
    parser.add_argument("--root", type=Path, default=Path("runs/cifar_pairs"), help="of the store")
    options = parser.parse_args()
    if options.command == "prepare":
        prepare(options.data_root, options.folder)
    else:
        judge(options.folder, options.root)


if __name__ == "__main__":
    main()
