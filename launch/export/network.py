"""The networks of exported checkpoints, as plain modules that need nothing but PyTorch (ResNet-18: and torchvision).

A copy of this file lies beside the checkpoints, with `network.json`, which says what was trained:

    model = load(folder)
    model.load_state_dict(torch.load(checkpoint, weights_only=True))

A model maps images [B, C, H, W], uint8 or floats from 0 to 1, to logits [B, classes]. It takes out the data set's mean
and deviation and averages over the test-time views, so that these are the logits that the rows' margins come from.
`datamodels.train.trainer.models` has the same networks as they are trained.
"""

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Network(nn.Module):
    """What surrounds any of the networks. `about` is the content of network.json."""

    mean: Tensor
    std: Tensor

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__()
        self.tta = about["tta"]
        """Views: `none` (the image), `mirror` (and its mirror image), `legacy_fliplr` (and its channels reversed)."""
        self.register_buffer("mean", torch.tensor(about["mean"])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(about["std"])[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        values = images * 255 if images.is_floating_point() else images.float()
        shown = (values - self.mean) / self.std
        if self.tta == "none":
            return self.logits(shown)
        other = shown.flip(3 if self.tta == "mirror" else 1)
        return (self.logits(shown) + self.logits(other)) / 2

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


class OwnNetwork(Network):
    """What the function `network(shape, classes)` in `own_network.py`, in the same folder, makes."""

    def __init__(self, about: dict[str, Any]) -> None:
        super().__init__(about)
        spec = importlib.util.spec_from_file_location("own_network", Path(about["folder"]) / "own_network.py")
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules["own_network"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        height, breadth, channels = about["image"]
        self.body = module.network((channels, height, breadth), about["classes"])

    def logits(self, images: Tensor) -> Tensor:
        return self.body(images)


NETWORKS = {"convnet": ConvNet, "resnet9": ResNet9, "resnet18": ResNet18, "own": OwnNetwork}


def build(about: dict[str, Any]) -> Network:
    """The model that `network.json` (and `folder`, where it lies) describes, in evaluation mode, its parameters yet to
    be loaded.
    """
    return NETWORKS[about["network"]](about).eval()


def load(folder: str | Path) -> Network:
    """The model of an export's folder."""
    return build({**json.loads((Path(folder) / "network.json").read_text()), "folder": str(folder)})
