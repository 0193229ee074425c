"""The networks, and their parameters as one flat tensor that is reset for every group of rows.

A network maps normalised images [G, B, H, W, C] to float32 logits [G, B, classes] for a group of G rows with parameters
of their own; in evaluation all rows see the same images, and G is 1 on input. Shape letters: G rows of a group, B
images of a batch, H W C an image.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from train.config import Recipe
from train.errors import UserError
from train.streams import Stream, uniform
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


@dataclass(frozen=True)
class Section:
    """The part [start, stop) of a row's parameter vector that one parameter takes, and how it starts."""

    parameter: nn.Parameter
    start: int
    stop: int
    fill: Callable[[NDArray[np.float32]], NDArray[np.float32] | float]
    """From uniform numbers in [0, 1) to initial values."""


class Parameters:
    """All parameters of a network for G rows in one flat tensor, with their gradient and momentum likewise.

    Parameters lie one after another, each with its G rows together; the weights of ungrouped convolutions lie in
    channels_last order.
    """

    def __init__(self, network: nn.Module, group: int, device: torch.device) -> None:
        self.group = group
        self.sections = list(_sections(network, group))
        size = sum(section.parameter.numel() for section in self.sections)
        self.value, self.grad, self.momentum = (torch.zeros(size, device=device) for _ in range(3))
        at = 0
        for section in self.sections:
            parameter, count = section.parameter, section.parameter.numel()
            shape = parameter.shape
            parameter.data = _view(self.value[at : at + count], shape)
            parameter.grad = _view(self.grad[at : at + count], shape)
            at += count
        sizes = torch.tensor([section.stop - section.start for section in self.sections], device=device)
        rows = torch.arange(group, device=device).repeat(len(sizes))
        self.row = rows.repeat_interleave(sizes.repeat_interleave(group))
        """The row in the group that each element belongs to."""

    @property
    def per_row(self) -> int:
        return self.sections[-1].stop

    def reset(self, seed: int, rows: range) -> None:
        """Start the rows afresh, each from its own initialisation stream; momentum back to zero."""
        starts = [uniform(seed, row, Stream.INITIALISATION, self.per_row) for row in rows]
        flat = [section.fill(start[section.start : section.stop]) for section in self.sections for start in starts]
        sizes = [section.stop - section.start for section in self.sections for _ in starts]
        values = [np.broadcast_to(np.float32(part), size) for part, size in zip(flat, sizes, strict=True)]
        self.value.copy_(torch.from_numpy(np.concatenate(values)))
        self.momentum.zero_()

    def step(self, lr: Tensor, momentum: float, weight_decay: float) -> None:
        """One step of SGD as in torch.optim.SGD, with a learning rate per row (lr: [G]); clears the gradient."""
        self.grad.add_(self.value, alpha=weight_decay)
        self.momentum.mul_(momentum).add_(self.grad)
        self.value.addcmul_(self.momentum, lr if self.group == 1 else lr[self.row], value=-1)
        self.grad.zero_()


def _view(flat: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 4:
        outputs, inputs, height, breadth = shape
        return flat.view(outputs, height, breadth, inputs).permute(0, 3, 1, 2)
    return flat.view(shape)


def _sections(network: nn.Module, group: int) -> list[Section]:
    sections: list[Section] = []
    for name, parameter in network.named_parameters():
        start = sections[-1].stop if sections else 0
        stop = start + parameter.numel() // group
        sections.append(Section(parameter, start, stop, _initialiser(network, name, parameter)))
    return sections


def _initialiser(
    network: nn.Module, name: str, parameter: nn.Parameter
) -> Callable[[NDArray[np.float32]], NDArray[np.float32] | float]:
    """PyTorch's default: uniform within 1/sqrt(fan_in); 1 and 0 for batch norm; torchvision's own for its ResNet."""
    owner, _, kind = name.rpartition(".")
    module = network.get_submodule(owner)
    if isinstance(module, nn.BatchNorm2d):
        return lambda u: 1.0 if kind == "weight" else 0.0
    if isinstance(network, ResNet18) and isinstance(module, nn.Conv2d):
        return _normal(math.sqrt(2 / (parameter.shape[0] * parameter[0, 0].numel())))
    if isinstance(module, nn.Conv2d):
        return _symmetric(1 / math.sqrt(module.weight[0].numel()))
    if isinstance(module, nn.Linear):
        return _symmetric(1 / math.sqrt(module.in_features))
    assert isinstance(module, ConvNet)
    return _symmetric(1 / math.sqrt(module.weight.shape[1]))


def _symmetric(bound: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda u: (2 * u - 1) * np.float32(bound)


def _normal(std: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    from scipy.special import ndtri

    # In float64, since the largest u plus half its spacing rounds to 1 in float32, whose quantile is infinite.
    return lambda u: (ndtri(u + np.float64(2**-25)) * std).astype(np.float32)


def reset_statistics(network: nn.Module) -> None:
    """Running means and variances of batch norm, back to 0 and 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
