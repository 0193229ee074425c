"""A custom network: a user's function `network(shape, classes)` in a Python file that returns a torch module.

The module maps normalised float images [B, C, H, W] to logits [B, classes]; shape is (C, H, W). Every row gets a new
module, and the generators of torch, NumPy and Python are seeded from the row's streams, so that nothing carries over
from the row before.
"""

import random
from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datamodels.train.config import Recipe
from datamodels.train.errors import UserError
from datamodels.train.rng import Stream, raw, stream_row
from datamodels.train.user_code import function_of, telling

KEY = "recipe.network"


class CustomNetwork(nn.Module):
    """Adapts a user's module to images [1, B, H, W, C] and logits [1, B, classes]. Raises UserError."""

    def __init__(self, recipe: Recipe, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.path, self.classes = recipe.network, classes
        height, breadth, channels = shape
        make = function_of(recipe.network, KEY, "network", recipe.network_sha256)
        self.make: Callable[[], Any] = lambda: make((channels, height, breadth), classes)
        self.body = self._made()

    def restart(self, seed: int, row: int, device: torch.device, fixed: Collection[str] = ()) -> None:
        """Make the row's module, initialised on the CPU, and seed the generators for what it draws in training.

        fixed: as in the setting.
        """
        first, second = (
            int(raw(seed, stream_row(fixed, stream, row), stream, 1)[0])
            for stream in (Stream.INITIALISATION, Stream.NETWORK)
        )
        _seed_generators(first)
        self.body = self._made().to(device)
        _seed_generators(second)

    def forward(self, images_GBHWC: Tensor) -> Tensor:
        images_BCHW = images_GBHWC[0].permute(0, 3, 1, 2).contiguous()
        with telling(self.path):
            logits = self.body(images_BCHW)
        expected = [len(images_BCHW), self.classes]
        if not isinstance(logits, Tensor) or list(logits.shape) != expected or not logits.is_floating_point():
            found = f"{logits.dtype} {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise UserError(f"{self.path}: the network returns {found}, expected logits {expected}")
        return logits.float()[None]

    def _made(self) -> nn.Module:
        body = self.make()
        if not isinstance(body, nn.Module):
            raise UserError(f"{self.path}: network() returns {type(body).__name__}, expected a torch.nn.Module")
        for name, parameter in body.named_parameters():
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise UserError(f"{self.path}: {name} has no shape yet: lazy modules are not supported")
            if parameter.requires_grad and parameter.dtype != torch.float32:
                raise UserError(f"{self.path}: {name} is {parameter.dtype}, expected torch.float32")
        if not any(parameter.requires_grad for parameter in body.parameters()):
            raise UserError(f"{self.path}: network() returns a module without a parameter to train")
        return body


def _seed_generators(seed: int) -> None:
    """Seed the generators of torch (of all devices), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(np.array([seed & 0xFFFFFFFF, seed >> 32], np.uint32))  # noqa: NPY002 - users draw from it
    random.seed(seed)
