"""The networks.

A network maps normalised images [G, B, H, W, C] to float32 logits [G, B, classes] for a group of G rows with parameters
of their own; in evaluation all rows see the same images, and G is 1 on input. Shape letters: G rows of a group, B
images of a batch, H W C an image.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.config import Recipe
from train.errors import UserError
from train.vision import torchvision


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class ResNet9(nn.Module):
    """The network of the published CIFAR-10 data (KakaoBrain's torchskeleton; FFCV's CIFAR-10 example)."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__()
        w = width
        self.body = nn.Sequential(
            conv_bn(channels, w),
            conv_bn(w, 2 * w, kernel=5, stride=2, padding=2),
            Residual(nn.Sequential(conv_bn(2 * w, 2 * w), conv_bn(2 * w, 2 * w))),
            conv_bn(2 * w, 4 * w),
            nn.MaxPool2d(2),
            Residual(nn.Sequential(conv_bn(4 * w, 4 * w), conv_bn(4 * w, 4 * w))),
            conv_bn(4 * w, 2 * w, padding=0),
        )
        self.head = nn.Linear(2 * w, classes, bias=False)

    def forward(self, images_GBHWC: Tensor) -> Tensor:
        features = self.body(images_GBHWC[0].permute(0, 3, 1, 2)).amax((2, 3))
        with torch.autocast(features.device.type, enabled=False):
            return 0.2 * self.head(features.float())[None]


class ResNet18(nn.Module):
    """torchvision's ResNet-18 (He et al. 2016), the network of the published FMoW data."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.body = torchvision().models.resnet18(num_classes=classes)
        if channels != 3:
            self.body.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.head = self.body.fc
        self.body.fc = nn.Identity()

    def forward(self, images_GBHWC: Tensor) -> Tensor:
        features = self.body(images_GBHWC[0].permute(0, 3, 1, 2))
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.float())[None]


class ConvNet(nn.Module):
    """Two 3x3 convolutions (the first with stride 2) and a linear layer, for a whole group as grouped convolutions."""

    def __init__(self, group: int, width: int, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        height, breadth, channels = shape
        self.group = group
        self.first = nn.Conv2d(group * channels, group * width, 3, stride=2, padding=1, groups=group)
        self.second = nn.Conv2d(group * width, group * width, 3, padding=1, groups=group)
        features = width * ((height + 1) // 2) * ((breadth + 1) // 2)
        self.weight = nn.Parameter(torch.empty(group, features, classes))
        self.bias = nn.Parameter(torch.empty(group, 1, classes))

    def forward(self, images_GBHWC: Tensor) -> Tensor:
        shared, batch, height, breadth, channels = images_GBHWC.shape
        images = images_GBHWC.permute(1, 0, 4, 2, 3).reshape(batch, shared * channels, height, breadth)
        groups = self.group if shared == self.group else 1
        x = F.relu(F.conv2d(images, self.first.weight, self.first.bias, stride=2, padding=1, groups=groups))
        x = F.relu(self.second(x)).reshape(batch, self.group, -1).transpose(0, 1)
        return torch.baddbmm(self.bias, x.float(), self.weight)


def build(recipe: Recipe, shape: tuple[int, ...], classes: int) -> nn.Module:
    """The network of a recipe for images [H, W, C], with undefined parameters."""
    if recipe.network == "resnet9":
        return ResNet9(recipe.width, shape[2], classes)
    if recipe.network == "resnet18":
        return ResNet18(shape[2], classes)
    return ConvNet(recipe.group, recipe.width, shape, classes)


def check(recipe: Recipe, shape: tuple[int, ...], classes: int, batch: int) -> None:
    """Raises UserError where the recipe cannot train on `batch` images [H, W, C] at a time.

    Tries two images on the narrowest network: whether images are too small for it depends on nothing else.
    """
    if recipe.cutout > min(shape[:2]):
        raise UserError(f"recipe.cutout is {recipe.cutout}, expected at most the side of the {_size(shape)} images")
    try:
        network = build(replace(recipe, width=1, group=1), shape, classes).train()
        with torch.no_grad():
            network(torch.zeros(1, min(batch, 2), *shape))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"recipe.network is {recipe.network!r}, which cannot train on {batch} images of {_size(shape)} pixels at a "
            f"time: {reason}"
        ) from None


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
