"""The networks of exported checkpoints, as plain modules that need nothing but PyTorch (ResNet-18: and torchvision).

A copy of this file lies beside the checkpoints, with `network.json`, which describes the network:

    model = load(folder)
    model.load_state_dict(torch.load(checkpoint, weights_only=True))

A model maps images [B, C, H, W] as they are in the data set (in place of uint8, floats from 0 to 1 as well) to logits
[B, classes]. It normalises images by the data set's mean and standard deviation and averages logits over the test-time
views, so the rows' margins come from these logits. The trainer's networks (train/trainer/models.py) have the same
parameters, and kernels and groups of their own.
"""

import importlib.util
import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MakeNetwork = Callable[[tuple[int, int, int], int], nn.Module]
"""A user's function `network(shape, classes)`, shape being (C, H, W)."""


class Network(nn.Module):
    """Normalisation and views around any of the networks. `about` is the content of network.json."""

    mean: Tensor
    std: Tensor

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__()
        self.tta = about["tta"]
        """Views: `none` (the image), `mirror` (and its mirror image), `legacy_fliplr` (and its channels reversed)."""
        self.bytes = about["dtype"] == "uint8"
        self.register_buffer("mean", torch.tensor(about["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(about["std"])[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        values = images * 255 if self.bytes and images.is_floating_point() else images.float()
        view = (values - self.mean) / self.std
        if self.tta == "none":
            return self.logits(view)
        other = view.flip(3 if self.tta == "mirror" else 1)
        return (self.logits(view) + self.logits(other)) / 2

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of normalised images [B, C, H, W]."""
        raise NotImplementedError


class ConvNet(Network):
    """Two convolutions and a linear layer."""

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__(about)
        width, (height, breadth, channels) = about["width"], about["image"]
        self.first = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width * ((height + 1) // 2) * ((breadth + 1) // 2), about["classes"])

    def logits(self, images: Tensor) -> Tensor:
        return self.head(F.relu(self.second(F.relu(self.first(images)))).flatten(1))


class ResNet9(Network):
    """KakaoBrain's torchskeleton's, as in FFCV's CIFAR-10 example."""

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__(about)
        w = about["width"]
        sizes = [about["image"][2], w, 2 * w, 2 * w, 2 * w, 4 * w, 4 * w, 4 * w, 2 * w]
        pairs = list(itertools.pairwise(sizes))
        self.convs = nn.ModuleList(nn.Conv2d(*pair, 3, padding=1, bias=False) for pair in pairs)
        self.convs[1] = nn.Conv2d(*pairs[1], 5, stride=2, padding=2, bias=False)
        self.convs[7] = nn.Conv2d(*pairs[7], 3, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _, outputs in pairs)
        self.head = nn.Linear(2 * w, about["classes"], bias=False)

    def logits(self, images: Tensor) -> Tensor:
        def unit(number: int, x: Tensor) -> Tensor:
            return F.relu(self.norms[number](self.convs[number](x)))

        x = unit(1, unit(0, images))
        x = x + unit(3, unit(2, x))
        x = F.max_pool2d(unit(4, x), 2)
        x = x + unit(6, unit(5, x))
        return 0.2 * self.head(unit(7, x).amax((2, 3)))


class ResNet18(Network):
    """torchvision's (He et al. 2016)."""

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__(about)
        from torchvision.models import resnet18

        self.body = resnet18(num_classes=about["classes"])
        if about["image"][2] != 3:
            self.body.conv1 = nn.Conv2d(about["image"][2], 64, 7, 2, 3, bias=False)
        self.head = self.body.fc
        self.body.fc = nn.Identity()

    def logits(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


class CustomNetwork(Network):
    """The module that a user's function makes."""

    def __init__(self, about: dict[str, Any], make: MakeNetwork) -> None:
        super().__init__(about)
        height, breadth, channels = about["image"]
        self.body = make((channels, height, breadth), about["classes"])

    def logits(self, images: Tensor) -> Tensor:
        return self.body(images.contiguous())


NETWORKS = {"convnet": ConvNet, "resnet9": ResNet9, "resnet18": ResNet18}


def build(about: dict[str, Any], make: MakeNetwork | None = None) -> Network:
    """The model that network.json describes, in evaluation mode, with parameters yet to be loaded.

    make: the user's function, if about["network"] is "own".
    """
    return (CustomNetwork(about, make) if make else NETWORKS[about["network"]](about)).eval()


def load(folder: str | Path) -> Network:
    """The model of an export's folder. Runs custom_network.py, the user's file, if there is one."""
    about = json.loads((Path(folder) / "network.json").read_text("utf-8"))
    if about["network"] != "own":
        return build(about)
    spec = importlib.util.spec_from_file_location("custom_network", Path(folder) / "custom_network.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["custom_network"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return build(about, module.network)
