"""Batches of images on the device: uint8 with the augmentation's border around them until they are normalised."""

import torch
from torch import Tensor

from datamodels.train.config import Recipe
from datamodels.train.data import Dataset
from datamodels.train.trainer.loader import select


class Augment:
    """Training images: mirror, translate, cutout (in this order), then normalise.

    One 64-bit draw an image: bits 0-15 mirror it, 16-31 choose the translation, 32-47 and 48-63 the cutout's place.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe, device: torch.device) -> None:
        self.recipe = recipe
        self.height, self.breadth = dataset.train.images.shape[1:3]
        self.normalise = Normalise(dataset, device)
        self.fill = torch.tensor([int(value) for value in dataset.mean], dtype=torch.uint8, device=device)
        self.rows = torch.arange(self.height, device=device)
        self.columns = torch.arange(self.breadth, device=device)

    def __call__(self, bordered: Tensor, index_GB: Tensor, draws_GB: Tensor) -> Tensor:
        """Normalised float32 images [G, B, H, W, C] of those at `index_GB` in `bordered`.

        bordered: uint8 [n, H + 2 translate, W + 2 translate, C], with a border of `fill`.
        """
        if self.recipe.translate:
            rows, columns = self._window(draws_GB)
            images = bordered[index_GB[..., None, None], rows[..., :, None], columns[..., None, :]]
        else:
            images = select(bordered, index_GB)
            if self.recipe.flip:
                images = torch.where(self._mirrored(draws_GB)[..., None, None], images.flip(3), images)
        if self.recipe.cutout:
            images = torch.where(self._hole(draws_GB)[..., None], self.fill, images)
        return self.normalise(images)

    def _window(self, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [G, B, H] and columns [G, B, W] of the padded image that the augmented one shows."""
        t = self.recipe.translate
        places = 2 * t + 1
        shift = (_field(draws, 1) * places**2) >> 16
        rows = (shift // places)[..., None] + self.rows
        columns = (shift % places)[..., None] + self.columns
        if self.recipe.flip:
            columns = torch.where(self._mirrored(draws), self.breadth + 2 * t - 1 - columns, columns)
        return rows, columns

    def _mirrored(self, draws: Tensor) -> Tensor:
        """Which images [G, B, 1] are mirrored."""
        return (_field(draws, 0) & 1).bool()[..., None]

    def _hole(self, draws: Tensor) -> Tensor:
        """Pixels [G, B, H, W] inside the cutout, a square that lies wholly in the image."""
        side = self.recipe.cutout
        top = ((_field(draws, 2) * (self.height - side + 1)) >> 16)[..., None]
        left = ((_field(draws, 3) * (self.breadth - side + 1)) >> 16)[..., None]
        inside_rows = (self.rows >= top) & (self.rows < top + side)
        inside_columns = (self.columns >= left) & (self.columns < left + side)
        return inside_rows[..., :, None] & inside_columns[..., None, :]


def _field(draws: Tensor, number: int) -> Tensor:
    return (draws >> (16 * number)) & 0xFFFF


class Normalise:
    """uint8 images [..., C] to float32 with the data set's mean and standard deviation taken out."""

    def __init__(self, dataset: Dataset, device: torch.device) -> None:
        std = torch.tensor(dataset.std, device=device)
        self.scale = 1 / std
        self.shift = -torch.tensor(dataset.mean, device=device) / std

    def __call__(self, images: Tensor) -> Tensor:
        return torch.addcmul(self.shift, images.float(), self.scale)


def views(images_BHWC: Tensor, tta: str) -> list[Tensor]:
    """The test-time views whose logits are averaged."""
    if tta == "mirror":
        return [images_BHWC, images_BHWC.flip(2)]
    if tta == "legacy_fliplr":
        return [images_BHWC, images_BHWC.flip(3)]
    return [images_BHWC]
