"""Augmentation and normalisation as one kernel, in the precision and with the channels that the first layer takes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodels.train.kernels.runtime import OPTIONS, ceil_div, usable
from datamodels.train.trainer import Augment

BLOCK = 2048


class FusedAugment:
    """Calls `augment`, and casts and pads what it gives; the same numbers, bit for bit, whether by a kernel or not.

    A byte has 256 values, so that what each is normalised to is looked up rather than computed.
    """

    def __init__(self, augment: Augment, dtype: torch.dtype, channels: int) -> None:
        """channels: of the result, at least the images' own; those beyond are 0."""
        self.augment, self.dtype, self.channels = augment, dtype, channels
        fill = augment.fill
        values = torch.arange(256, dtype=torch.uint8, device=fill.device)[:, None].expand(256, len(fill))
        self.table = augment.normalise(values).to(dtype).contiguous()

    def __call__(self, bordered: Tensor, index_GB: Tensor, draws_GB: Tensor) -> Tensor:
        """Normalised images [G, B, H, W, channels] of those at `index_GB` in `bordered`, as Augment takes them."""
        if not usable(bordered.device):
            return self.shaped(self.augment(bordered, index_GB, draws_GB))
        from datamodels.train.kernels.device import augment

        plain = self.augment
        recipe, shape = plain.recipe, (plain.height, plain.breadth, self.channels)
        images = torch.empty((*index_GB.shape, *shape), dtype=self.dtype, device=bordered.device)
        grid = (index_GB.numel(), ceil_div(images[0, 0].numel(), BLOCK))
        tensors = (bordered, index_GB.contiguous(), draws_GB.contiguous(), self.table, plain.fill, images)
        sizes = {"H": plain.height, "W": plain.breadth, "C": len(plain.fill), "OUT": self.channels}
        changes = {"T": recipe.translate, "FLIP": recipe.flip, "SIDE": recipe.cutout}
        with torch.cuda.device_of(bordered):
            augment[grid](*tensors, **sizes, **changes, BLOCK=BLOCK, **OPTIONS)
        return images

    def shaped(self, images: Tensor) -> Tensor:
        """Images [..., C] cast and with all channels."""
        missing = self.channels - images.shape[-1]
        return F.pad(images.to(self.dtype), (0, missing)) if missing else images.to(self.dtype)
