"""The upstream way of training, as a peer: a plain float32 PyTorch loop of the CIFAR-10 recipe, one script a model.

Run by bench/cpu.py. Prints the number of images trained on.
"""

import argparse

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from train import cifar
from train.config import Data
from train.model import ResNet9

MEAN, STD, FILL = (125.307, 122.961, 113.8575), (51.5865, 50.847, 51.255), (125.0, 122.0, 113.0)


def augment(images: torch.Tensor) -> torch.Tensor:
    """Mirror, translate by two, cut out four: on float images [B, 3, 32, 32]."""
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    padded = torch.tensor(FILL).view(1, 3, 1, 1).repeat(len(images), 1, 36, 36)
    padded[:, :, 2:34, 2:34] = mirrored
    result = torch.empty_like(images)
    for index, (y, x, top, left) in enumerate(
        zip(
            *torch.randint(0, 5, (2, len(images))).tolist(),
            *torch.randint(0, 29, (2, len(images))).tolist(),
            strict=True,
        )
    ):
        result[index] = padded[index, :, y : y + 32, x : x + 32]
        result[index, :, top : top + 4, left : left + 4] = torch.tensor(FILL).view(3, 1, 1)
    return result


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--train", "--test", "--epochs"):
        parser.add_argument(name, type=int)
    parser.add_argument("--data-root")
    parser.add_argument("--out")
    options = parser.parse_args()
    torch.set_num_threads(2)
    train, test = cifar.read(Data(root=options.data_root))
    train, test = train.first(options.train, "train"), test.first(options.test, "test")
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
    images = torch.from_numpy(train.images).permute(0, 3, 1, 2).float()
    labels = torch.from_numpy(train.labels)
    subset = torch.randperm(len(labels))[: len(labels) // 2]
    network: nn.Module = ResNet9(64, 3, 10)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batch = 512
    per_epoch = len(subset) // batch
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5, momentum=0.9, weight_decay=5e-4)
    corners = ([0, 5 * per_epoch, 24 * per_epoch], [0, 1, 0])
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(np.interp(step, *corners)))
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1)
    for _ in range(options.epochs):
        order = subset[torch.randperm(len(subset))]
        for step in range(per_epoch):
            index = order[step * batch : (step + 1) * batch]
            x = ((augment(images[index]) - mean) / std).contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad(set_to_none=True)
            loss_function(network(x.permute(0, 2, 3, 1)[None])[0], labels[index]).backward()
            optimizer.step()
            scheduler.step()
    network.eval()
    margins = []
    with torch.no_grad():
        for split in (train, test):
            for start in range(0, len(split.labels), 1000):
                x = (torch.from_numpy(split.images[start : start + 1000]).permute(0, 3, 1, 2).float() - mean) / std
                both = [network(view.permute(0, 2, 3, 1)[None])[0] for view in (x, x.flip(3))]
                logits, target = sum(both) / 2, torch.from_numpy(split.labels[start : start + 1000])
                correct = logits.gather(1, target[:, None])[:, 0]
                margins.append(correct - logits.masked_fill(F.one_hot(target, 10).bool(), -torch.inf).amax(1))
    np.save(options.out, torch.cat(margins).numpy().astype(np.float16))
    print(options.epochs * per_epoch * batch)


if __name__ == "__main__":
    main()
