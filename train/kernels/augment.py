"""Augmentation and normalisation of a batch, in the precision and with the channels that the first layer takes.

Images keep their type, with a border around them for the translation, until they are normalised.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from datamodels.train.config import Recipe
from datamodels.train.data import Dataset


class Augment:
    """Training images: mirror, translate, cutout (in this order), then normalise.

    One 64-bit draw an image: bits 0-15 mirror it, 16-31 choose the translation, 32-47 and 48-63 the cutout's place.
    """

    def __init__(
        self,
        dataset: Dataset,
        recipe: Recipe,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        channels: int | None = None,
    ) -> None:
        """dtype, channels: of the result; channels beyond the images' own are 0."""
        self.recipe, self.dtype = recipe, dtype
        self.height, self.width, own_channels = dataset.train.images.shape[1:]
        self.channels = channels or own_channels
        std = torch.tensor(dataset.std, device=device)
        self.scale, self.shift = 1 / std, -torch.tensor(dataset.mean, device=device) / std
        self.fill = as_tensor(np.array(dataset.mean).astype(dataset.train.images.dtype)).to(device)
        """The colour of borders and cutouts."""
        self.rows, self.columns = torch.arange(self.height, device=device), torch.arange(self.width, device=device)

    def __call__(self, bordered: Tensor, index_GB: Tensor, draws_GB: Tensor) -> Tensor:
        """Augmented and normalised images [G, B, H, W, channels] of those at `index_GB` in `bordered`.

        bordered: from `as_tensor` [n, H + 2 translate, W + 2 translate, C], with a border of `fill`.
        """
        return self.formatted(self.normalise(self.augmented(bordered, index_GB, draws_GB)))

    def normalise(self, images: Tensor) -> Tensor:
        """Images [..., C] to float32 with the data set's mean and standard deviation taken out."""
        values = images.int() & 0xFFFF if images.dtype == torch.int16 else images
        return torch.addcmul(self.shift, values.float(), self.scale)

    def formatted(self, images: Tensor) -> Tensor:
        """Normalised images [..., C] in the result's precision, with all of its channels."""
        missing = self.channels - images.shape[-1]
        return F.pad(images.to(self.dtype), (0, missing)) if missing else images.to(self.dtype)

    def augmented(self, bordered: Tensor, index_GB: Tensor, draws_GB: Tensor) -> Tensor:
        """Images [G, B, H, W, C] in their type: mirrored, translated and cut out by PyTorch's operations."""
        if self.recipe.translate:
            rows, columns = self.window(draws_GB)
            images = bordered[index_GB[..., None, None], rows[..., :, None], columns[..., None, :]]
        else:
            images = select(bordered, index_GB)
            if self.recipe.flip:
                images = torch.where(_mirrored(draws_GB)[..., None, None], images.flip(3), images)
        if self.recipe.cutout:
            images = torch.where(self.hole(draws_GB)[..., None], self.fill, images)
        return images

    def window(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [..., H] and columns [..., W] of the bordered image that the augmented one shows."""
        t = self.recipe.translate
        places = 2 * t + 1
        shift = (_field(draws, 1) * places**2) >> 16
        rows = (shift // places)[..., None] + self.rows
        columns = (shift % places)[..., None] + self.columns
        if self.recipe.flip:
            columns = torch.where(_mirrored(draws), self.width + 2 * t - 1 - columns, columns)
        return rows, columns

    def hole(self, draws: Tensor) -> Tensor:
        """Pixels [..., H, W] inside the cutout, a square that lies wholly in the image."""
        side = self.recipe.cutout
        top = ((_field(draws, 2) * (self.height - side + 1)) >> 16)[..., None]
        left = ((_field(draws, 3) * (self.width - side + 1)) >> 16)[..., None]
        inside_rows = (self.rows >= top) & (self.rows < top + side)
        inside_columns = (self.columns >= left) & (self.columns < left + side)
        return inside_rows[..., :, None] & inside_columns[..., None, :]


def as_tensor(images: NDArray) -> Tensor:
    """An array of images; uint16 as int16 of the same bits, since torch has few operations for uint16."""
    return torch.from_numpy(images.view(np.int16) if images.dtype == np.uint16 else images)


def select(images: Tensor, index_GB: Tensor) -> Tensor:
    """The images [G, B, H, W, C] at the given places, copied whole."""
    if images.device.type == "cpu":  # where torch would have its threads meet at every image
        return torch.from_numpy(images.numpy().take(index_GB.numpy(), axis=0))
    return images.index_select(0, index_GB.flatten()).unflatten(0, index_GB.shape)


def _field(draws: Tensor, number: int) -> Tensor:
    """Bits 16 number to 16 number + 15."""
    return (draws >> (16 * number)) & 0xFFFF


def _mirrored(draws: Tensor) -> Tensor:
    """Which images [..., 1] are mirrored."""
    return (_field(draws, 0) & 1).bool()[..., None]
