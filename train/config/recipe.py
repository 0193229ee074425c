"""The keys `recipe.*` of a setting, with their defaults and what each means (shown by `--help`)."""

import math
from dataclasses import dataclass
from typing import Literal

from datamodels.train.user_code import sha256_of
from datamodels.train.values import require


@dataclass
class Recipe:
    """How one model is trained. The defaults are the published CIFAR-10 recipe."""

    network: str = "resnet9"
    """`resnet9` and `resnet18`: the CIFAR-10 and the FMoW network of the published data; `convnet`: two small
    convolutions, many models at once; or a Python file (.py) whose function `network(shape, classes)` returns a
    torch.nn.Module, shape being (channels, height, width)."""
    network_sha256: str | None = None
    """Digest of the network's Python file; null for the file as it is now."""
    width: int = 64
    """Channels of the first layer of `resnet9` (deeper ones keep their published ratios to it), and of `convnet`'s."""
    epochs: int = 24
    """Passes over the row's training subset."""
    peak_epoch: float = 5.0
    """Epoch at which the triangular learning-rate schedule peaks."""
    batch: int = 512
    """Images per step. The last images of an epoch that fill no batch are dropped; a subset smaller than one batch is
    one batch."""
    steps_per_epoch: int | None = None
    """Steps of an epoch, however many images a subset has, so that a smaller subset is not trained for less; null for
    as many as it fills batches."""
    lr: float = 0.5
    """Learning rate at the peak."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 weight decay, on every parameter."""
    label_smoothing: float = 0.1
    """Label smoothing of the cross-entropy loss."""
    flip: bool = True
    """Mirror each training image with probability one half."""
    translate: int = 2
    """Shift each training image by up to this many pixels in each direction, filling with the mean colour."""
    cutout: int = 4
    """Side in pixels of a square of mean colour drawn at a random place in each training image; 0 for none."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of convolutions; `auto` is bfloat16 if the device computes it natively, else float16 on a GPU (below
    compute capability 8.0) and float32 on a CPU."""
    kernels: Literal["auto", "triton", "torch"] = "auto"
    """What computes batch norm, augmentation and SGD on a GPU. `triton`: Triton's kernels; `torch`: PyTorch's
    operations; `auto`: Triton's where they start, else PyTorch's with a notice. All rows of a store that a GPU trains
    have what its first one had. On a CPU it is `torch`."""
    device: Literal["cuda", "cpu"] = "cuda"
    """`cuda` uses GPUs if there are any, else the CPU with a notice; `cpu` never uses a GPU."""
    threads: int = 2
    """CPU threads of one worker. Part of the recipe, because the bytes of a row depend on it."""
    group: int = 1
    """Rows trained together. Groups are fixed: rows [g*group, (g+1)*group)."""
    eval_batch: int = 1000
    """Images per forward pass when margins and logits are computed."""

    @property
    def custom_network(self) -> bool:
        """Whether the network is a Python file of the user."""
        return self.network.endswith(".py")

    def __post_init__(self) -> None:
        if self.custom_network:
            self.network_sha256 = self.network_sha256 or sha256_of(self.network, "recipe.network")
        else:
            names = ("resnet9", "resnet18", "convnet")
            expected = f"{', '.join(names)}, or a Python file (.py)"
            require(self.network in names, "recipe.network", self.network, expected)
            require(self.network_sha256 is None, "recipe.network_sha256", self.network_sha256, "null: no file is named")
        for key in ("width", "epochs", "batch", "threads", "group", "eval_batch"):
            require(getattr(self, key) >= 1, f"recipe.{key}", getattr(self, key), "at least 1")
        steps = self.steps_per_epoch
        require(steps is None or steps >= 1, "recipe.steps_per_epoch", steps, "at least 1, or null")
        for key in ("translate", "cutout"):
            require(getattr(self, key) >= 0, f"recipe.{key}", getattr(self, key), "at least 0")
        for key in ("lr", "momentum", "weight_decay", "label_smoothing", "peak_epoch"):
            value = getattr(self, key)
            require(math.isfinite(value) and value >= 0, f"recipe.{key}", value, "a finite number of at least 0")
        require(self.momentum < 1, "recipe.momentum", self.momentum, "less than 1")
        require(self.label_smoothing < 1, "recipe.label_smoothing", self.label_smoothing, "less than 1")
        require(0 < self.peak_epoch < self.epochs, "recipe.peak_epoch", self.peak_epoch, "between 0 and recipe.epochs")
        grouped = self.network == "convnet" or self.group == 1
        expected = f"1 for the network {self.network}: only convnet trains several rows at once"
        require(grouped, "recipe.group", self.group, expected)
