"""The networks.

A network maps normalised images [G, B, H, W, C] to float32 logits [G, B, classes] for a group of G rows with parameters
of their own; in evaluation all rows see the same images, and G is 1 on input. Shape letters: G rows of a group, B
images of a batch, H W C an image.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodels.train.config import Recipe
from datamodels.train.errors import UserError
from datamodels.train.kernels import RELU, Form, batch_norm_act, finish, usable
from datamodels.train.trainer.own_model import OwnNetwork
from fmow.torchvision_compat import torchvision


class Unit:
    """A convolution, its batch norm, and what may follow: `x -> relu(bn(conv(x)))` and relatives.

    In training, batch norm takes the batch's statistics. In evaluation it costs no pass of its own over the
    activations: where own kernels run, it is in the one that ReLU, residual and pooling take; elsewhere it is folded
    into the convolution. Owns nothing: the two modules belong to a network.
    """

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d) -> None:
        self.conv, self.bn = conv, bn

    def __call__(self, x: Tensor, form: Form = RELU, residual: Tensor | None = None) -> Tensor:
        """[B, C, H, W] to the same, or to what the form pools it to. x may have further channels, of zeros."""
        conv = self.conv
        if conv.training or usable(x.device):
            y = F.conv2d(x, _like(x, conv.weight), None, conv.stride, conv.padding)
            return batch_norm_act(y, self.bn, form, residual)
        return finish(self._folded(x), form, residual)

    def _folded(self, x: Tensor) -> Tensor:
        """Convolution and batch norm in evaluation as one convolution."""
        conv = self.conv
        mean, var = self.bn.running_mean, self.bn.running_var
        assert mean is not None
        assert var is not None
        scale = self.bn.weight * torch.rsqrt(var + self.bn.eps)
        weight = conv.weight * scale[:, None, None, None]
        shift = self.bn.bias - mean * scale
        folded = _like(x, weight.to(x.dtype)), shift.to(x.dtype)
        return F.conv2d(x, *folded, conv.stride, conv.padding)


def _like(x: Tensor, weight_OIHW: Tensor) -> Tensor:
    """The weight with as many input channels as x has."""
    missing = x.shape[1] - weight_OIHW.shape[1]
    return F.pad(weight_OIHW, (0, 0, 0, 0, 0, missing)) if missing else weight_OIHW


def _unit(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1) -> Unit:
    return Unit(nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs))


class ResNet9(nn.Module):
    """The network of the published CIFAR-10 data (KakaoBrain's torchskeleton; FFCV's CIFAR-10 example)."""

    def __init__(self, width: int, channels: int, classes: int) -> None:
        super().__init__()
        w = width
        self.units = [
            _unit(channels, w),
            _unit(w, 2 * w, kernel=5, stride=2, padding=2),
            *(_unit(2 * w, 2 * w) for _ in range(2)),
            _unit(2 * w, 4 * w),
            *(_unit(4 * w, 4 * w) for _ in range(2)),
            _unit(4 * w, 2 * w, padding=0),
        ]
        self.convs = nn.ModuleList(unit.conv for unit in self.units)
        self.norms = nn.ModuleList(unit.bn for unit in self.units)
        self.head = nn.Linear(2 * w, classes, bias=False)

    def forward(self, images_GBHWC: Tensor) -> Tensor:
        units = self.units
        x = units[1](units[0](images_GBHWC[0].permute(0, 3, 1, 2)))
        x = units[3](units[2](x), Form(residual="after"), x)
        x = units[4](x, Form(pool="2x2"))
        x = units[6](units[5](x), Form(residual="after"), x)
        features = units[7](x, Form(pool="global"))
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
        self.stem = Unit(self.body.conv1, self.body.bn1)
        layers = (self.body.layer1, self.body.layer2, self.body.layer3, self.body.layer4)
        self.blocks = [_Block(block) for layer in layers for block in layer]
        self.units = [self.stem, *(unit for block in self.blocks for unit in block.units)]

    def forward(self, images_GBHWC: Tensor) -> Tensor:
        x = self.stem(images_GBHWC[0].permute(0, 3, 1, 2), Form(pool="3x3"))
        for block in self.blocks:
            x = block(x)
        return self.head(x.float().mean((2, 3)))[None]


class _Block:
    """A basic block of torchvision's, computed by units."""

    def __init__(self, block: Any) -> None:
        self.first, self.second = Unit(block.conv1, block.bn1), Unit(block.conv2, block.bn2)
        self.shortcut = Unit(*block.downsample) if block.downsample else None

    @property
    def units(self) -> list[Unit]:
        return [self.first, self.second, *([self.shortcut] if self.shortcut else [])]

    def __call__(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x, Form(relu=False)) if self.shortcut else x
        return self.second(self.first(x), Form(residual="before"), shortcut)


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
    if recipe.own_network:
        return OwnNetwork(recipe, shape, classes)
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
        network = build(replace(recipe, width=1, group=1), shape, classes)
        with torch.no_grad():
            for training in (True, False):
                network.train(training)(torch.zeros(1, min(batch, 2), *shape))
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"recipe.network is {recipe.network!r}, which cannot train on {batch} images of {_size(shape)} pixels at a "
            f"time: {reason}"
        ) from None


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
