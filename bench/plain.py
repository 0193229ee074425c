"""The upstream way of training, as a peer: a plain PyTorch loop of the CIFAR-10 recipe.

Eager operators, channels_last, torch.optim.SGD, LambdaLR, and autocast with GradScaler in half precision; nothing of
the trainer but the reader of the data set, and the network of exported checkpoints. Generous where upstream is slower:
images stay on the device as uint8, and are augmented a batch at a time.

    python -m bench.plain --train N --test N --epochs N --data-root DIR --out FILE

trains one float32 model on a CPU's two threads and prints the number of images trained on (bench/cpu.py).
"""

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodels.launch.export.network import ResNet9

MEAN, STD, FILL = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255), (125.0, 122.0, 113.0)
LR, MOMENTUM, DECAY, SMOOTHING, EPOCHS, PEAK, BATCH = 0.5, 0.9, 5e-4, 0.1, 24, 5, 512
SHIFT, HOLE = 2, 4


def network(width: int) -> ResNet9:
    """ResNet-9 as plain modules, whose `logits` maps [B, 3, H, W] to [B, 10]."""
    about = {"image": [32, 32, 3], "dtype": "uint8", "classes": 10, "mean": [0], "std": [1], "tta": "none"}
    return ResNet9({"width": width, **about}).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Batches:
    """Augmentation and normalisation on a device."""

    def __init__(self, device: torch.device) -> None:
        self.mean, self.std = (torch.tensor(value, device=device) for value in (MEAN, STD))
        self.fill = torch.tensor(FILL, dtype=torch.uint8, device=device)

    def normalise(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """uint8 [B, H, W, 3] to [B, 3, H, W] in channels_last."""
        return ((images - self.mean) / self.std).to(dtype).permute(0, 3, 1, 2)

    def augment(self, images: Tensor) -> Tensor:
        """Mirror, translate by up to two, cut out a square of four: uint8 [B, H, W, 3] to the same."""
        count, side, device = len(images), images.shape[1], images.device
        wide = side + 2 * SHIFT
        padded = self.fill.repeat(count, wide, wide, 1)
        padded[:, SHIFT : SHIFT + side, SHIFT : SHIFT + side] = images
        line = torch.arange(side, device=device)
        y, x = (torch.randint(0, 2 * SHIFT + 1, (count, 1), device=device) + line for _ in "yx")
        x = torch.where(torch.rand(count, 1, device=device) < 0.5, wide - 1 - x, x)
        shown = padded[torch.arange(count, device=device)[:, None, None], y[:, :, None], x[:, None, :]]
        places = (line - torch.randint(0, side - HOLE + 1, (count, 1), device=device) for _ in "yx")
        rows, columns = ((place >= 0) & (place < HOLE) for place in places)
        return torch.where((rows[:, :, None] & columns[:, None, :])[..., None], self.fill, shown)


@dataclass(frozen=True)
class Images:
    """A data set on a device: uint8 [N, H, W, 3] and labels [N], for training and for testing."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


class Loop:
    """Trains one model after the other, each from scratch, in float32 or under autocast in a lower precision."""

    def __init__(
        self, images: Images, precision: torch.dtype, width: int = 64, epochs: int = EPOCHS, batch: int = BATCH
    ) -> None:
        self.images, self.precision, self.width, self.epochs, self.batch = images, precision, width, epochs, batch
        self.device = images.train.device
        self.batches = Batches(self.device)

    def __call__(self, subset: Tensor, epochs: int | None = None) -> list[Tensor]:
        """Margins of all training and test images after training on a subset; `epochs` ends the training early."""
        model = network(self.width).to(self.device)
        self.train(model, subset, self.epochs if epochs is None else epochs)
        return self.margins(model)

    def train(self, model: ResNet9, subset: Tensor, epochs: int) -> None:
        per_epoch = len(subset) // self.batch
        optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
        corners = [0, self.epochs * PEAK / EPOCHS * per_epoch, self.epochs * per_epoch]
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: float(np.interp(step, corners, [0, 1, 0]))
        )
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        loss_function = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
        for _ in range(epochs):
            order = subset[torch.randperm(len(subset), device=self.device)]
            for index in order[: per_epoch * self.batch].split(self.batch):
                optimizer.zero_grad(set_to_none=True)
                with self._autocast():
                    x = self.batches.normalise(self.batches.augment(self.images.train[index]))
                    loss = loss_function(model.logits(x), self.images.train_labels[index])
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()
                scheduler.step()

    @torch.no_grad()
    def margins(self, model: ResNet9) -> list[Tensor]:
        model.eval()
        sides = (self.images.train, self.images.train_labels), (self.images.test, self.images.test_labels)
        return [self._margins(model, *side) for side in sides]

    def _margins(self, model: ResNet9, images: Tensor, labels: Tensor) -> Tensor:
        found = []
        for batch, target in zip(images.split(1000), labels.split(1000), strict=True):
            x = self.batches.normalise(batch)
            with self._autocast():
                logits = (model.logits(x) + model.logits(x.flip(3))).float() / 2
            correct = logits.gather(1, target[:, None])[:, 0]
            others = logits.masked_fill(F.one_hot(target, logits.shape[1]).bool(), -torch.inf).amax(1)
            found.append((correct - others).half())
        return torch.cat(found).cpu()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)


def main() -> None:
    from datamodels.train.config import Data
    from datamodels.train.data import cifar

    parser = argparse.ArgumentParser()
    for name in ("--train", "--test", "--epochs"):
        parser.add_argument(name, type=int)
    parser.add_argument("--data-root")
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(2)
    train, test, *_ = cifar.read(Data(root=options.data_root))
    train, test = train.first(options.train, "train"), test.first(options.test, "test")
    tensors = [torch.from_numpy(array) for split in (train, test) for array in (np.array(split.images), split.labels)]
    images = Images(*tensors)
    subset = torch.randperm(len(images.train))[: len(images.train) // 2]
    margins = Loop(images, torch.float32)(subset, options.epochs)
    np.save(options.out, torch.cat(margins).numpy())
    print(options.epochs * (len(subset) // BATCH) * BATCH)


if __name__ == "__main__":
    main()
