"""The networks, and how their parameters start.

A network maps normalised images [G, B, H, W, C] to float32 logits [G, B, classes] for a group of G rows, each with its
own parameters; in evaluation all rows see the same images, and G is 1 on input. Shape letters: G rows of a group, B
images of a batch, H W C an image.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from datamodels.train.config import Recipe
from datamodels.train.errors import UserError
from datamodels.train.kernels import TORCH, Kernels, activated, max_pool2d
from datamodels.train.trainer.custom_model import CustomNetwork
from fmow import torchvision


class Unit:
    """A convolution and its batch norm, with ReLU and residual: `x -> relu(bn(conv(x)) + before) + after`.

    In training, batch norm takes the batch's statistics. In evaluation it takes no pass of its own over the
    activations: Triton computes it together with ReLU and residual; without Triton it is folded into the convolution.
    Owns nothing: the two modules belong to a network.
    """

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, kernels: Kernels) -> None:
        self.conv, self.bn, self.kernels = conv, bn, kernels

    def __call__(
        self, x: Tensor, *, relu: bool = True, before: Tensor | None = None, after: Tensor | None = None
    ) -> Tensor:
        """[B, C, H, W] to the same. x may have further channels, of zeros."""
        conv = self.conv
        if conv.training or self.kernels.name == "triton":
            y = F.conv2d(x, _padded(conv.weight, x), None, conv.stride, conv.padding)
            return self.kernels.batch_norm_act(y, self.bn, relu=relu, before=before, after=after)
        return activated(self._folded(x), relu=relu, before=before, after=after)

    def _folded(self, x: Tensor) -> Tensor:
        """Convolution and batch norm in evaluation as one convolution."""
        conv, bn = self.conv, self.bn
        assert bn.running_mean is not None
        assert bn.running_var is not None
        scale = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
        weight = conv.weight * scale[:, None, None, None]
        shift = bn.bias - bn.running_mean * scale
        return F.conv2d(x, _padded(weight.to(x.dtype), x), shift.to(x.dtype), conv.stride, conv.padding)


def _padded(weight_OIHW: Tensor, x: Tensor) -> Tensor:
    """The weight with as many input channels as x has."""
    missing = x.shape[1] - weight_OIHW.shape[1]
    return F.pad(weight_OIHW, (0, 0, 0, 0, 0, missing)) if missing else weight_OIHW


class ResNet9(nn.Module):
    """The network of the published CIFAR-10 data (KakaoBrain's torchskeleton; FFCV's CIFAR-10 example)."""

    def __init__(self, width: int, channels: int, classes: int, kernels: Kernels) -> None:
        super().__init__()
        w = width
        sizes = [channels, w, 2 * w, 2 * w, 2 * w, 4 * w, 4 * w, 4 * w, 2 * w]
        shapes = [(3, 1, 1), (5, 2, 2), *[(3, 1, 1)] * 5, (3, 1, 0)]
        """Kernel, stride and padding."""
        self.units = [
            Unit(nn.Conv2d(inputs, outputs, *shape, bias=False), nn.BatchNorm2d(outputs), kernels)
            for inputs, outputs, shape in zip(sizes[:-1], sizes[1:], shapes, strict=True)
        ]
        self.convs = nn.ModuleList(unit.conv for unit in self.units)
        self.norms = nn.ModuleList(unit.bn for unit in self.units)
        self.head = nn.Linear(2 * w, classes, bias=False)

    def forward(self, images_GBHWC: Tensor) -> Tensor:
        units = self.units
        x = units[1](units[0](images_GBHWC[0].permute(0, 3, 1, 2)))
        x = units[3](units[2](x), after=x)
        x = max_pool2d(units[4](x), 2, 2)
        x = units[6](units[5](x), after=x)
        features = units[7](x).amax((2, 3))
        return 0.2 * self.head(features.float())[None]


class ResNet18(nn.Module):
    """torchvision's ResNet-18 (He et al. 2016), the network of the published FMoW data."""

    def __init__(self, channels: int, classes: int, kernels: Kernels) -> None:
        super().__init__()
        self.body = torchvision().models.resnet18(num_classes=classes)
        if channels != 3:
            self.body.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.head = self.body.fc
        self.body.fc = nn.Identity()
        self.stem = Unit(self.body.conv1, self.body.bn1, kernels)
        layers = (self.body.layer1, self.body.layer2, self.body.layer3, self.body.layer4)
        self.blocks = [_Block(block, kernels) for layer in layers for block in layer]
        self.units = [self.stem, *(unit for block in self.blocks for unit in block.units)]

    def forward(self, images_GBHWC: Tensor) -> Tensor:
        x = max_pool2d(self.stem(images_GBHWC[0].permute(0, 3, 1, 2)), 3, 2, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.float().mean((2, 3)))[None]


class _Block:
    """A basic block of torchvision's, computed by units."""

    def __init__(self, block: Any, kernels: Kernels) -> None:
        self.first, self.second = Unit(block.conv1, block.bn1, kernels), Unit(block.conv2, block.bn2, kernels)
        self.shortcut = Unit(block.downsample[0], block.downsample[1], kernels) if block.downsample else None
        self.units = [self.first, self.second, *([self.shortcut] if self.shortcut else [])]

    def __call__(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x, relu=False) if self.shortcut else x
        return self.second(self.first(x), before=shortcut)


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


def build(recipe: Recipe, shape: tuple[int, ...], classes: int, kernels: Kernels = TORCH) -> nn.Module:
    """The network of a recipe for images [H, W, C], with undefined parameters."""
    if recipe.custom_network:
        return CustomNetwork(recipe, shape, classes)
    if recipe.network == "resnet9":
        return ResNet9(recipe.width, shape[2], classes, kernels)
    if recipe.network == "resnet18":
        return ResNet18(shape[2], classes, kernels)
    return ConvNet(recipe.group, recipe.width, shape, classes)


def has_units(recipe: Recipe) -> bool:
    """Whether the network is made of units, which choose their own precision; others take torch's autocast."""
    return recipe.network in ("resnet9", "resnet18")


Fill = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From uniform numbers in [0, 1) to initial values."""


def initialiser(network: nn.Module, name: str) -> Fill:
    """How a parameter starts: PyTorch's default, uniform within 1/sqrt(fan_in); 1 and 0 for batch norm; torchvision's
    normal distribution for the convolutions of its ResNet.
    """
    owner, _, kind = name.rpartition(".")
    module = network.get_submodule(owner)
    if isinstance(module, nn.BatchNorm2d):
        return lambda u: np.full_like(u, 1 if kind == "weight" else 0)
    if isinstance(module, nn.Conv2d):
        if isinstance(network, ResNet18):
            return lambda u: normal(u, math.sqrt(2 / (module.out_channels * math.prod(module.kernel_size))))
        fan_in = module.weight[0].numel()
    elif isinstance(module, nn.Linear):
        fan_in = module.in_features
    else:
        assert isinstance(module, ConvNet)
        fan_in = module.weight.shape[1]
    return lambda u: (2 * u - 1) * np.float32(1 / math.sqrt(fan_in))


def normal(u: NDArray[np.float32], std: float) -> NDArray[np.float32]:
    """Normally distributed numbers from uniform ones in [0, 1)."""
    from scipy.special import ndtri

    # In float64, since the largest u plus half its spacing rounds to 1 in float32, whose quantile is infinite.
    return (ndtri(u + np.float64(2**-25)) * std).astype(np.float32)


def check(recipe: Recipe, shape: tuple[int, ...], classes: int, batch: int) -> None:
    """Raises UserError where the recipe cannot train on `batch` images [H, W, C] at a time.

    Tries two images on the narrowest network: whether images are too small for it depends on nothing else.
    """
    size = f"{shape[1]} x {shape[0]}"
    if recipe.cutout > min(shape[:2]):
        raise UserError(f"recipe.cutout is {recipe.cutout}, expected at most the side of the {size} images")
    try:
        network = build(replace(recipe, width=1, group=1), shape, classes)
        with torch.no_grad():
            for training in (True, False):
                network.train(training)(torch.zeros(1, min(batch, 2), *shape))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"recipe.network is {recipe.network!r}, which cannot train on {batch} images of {size} pixels at a time: "
            f"{reason}"
        ) from None
