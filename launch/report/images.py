"""Thumbnails, and the sections made of them: images with the largest weights for targets, most influential images,
images at the ends of principal components."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datamodels.lasso import Components
from datamodels.launch.progress import counted
from datamodels.launch.report.report_data import Examples, ReportData

_NEIGHBOURS = 6
"""Images of each sign shown for an image."""
_INFLUENTIAL = 6
"""Most influential training images that are shown."""
LARGEST_THUMBNAIL = 96
"""Side in pixels that larger images are scaled down to."""
_LOSSLESS = 48
"""Side in pixels up to which thumbnails are the images' own pixels."""


@dataclass(frozen=True)
class Thumbnail:
    url: str
    alt: str
    lines: Sequence[str]
    """Shown below the image."""
    soft: bool
    """Whether the browser may blur it."""
    kind: str = ""
    """`up` or `down`: the sign of its weight."""
    share: float | None = None
    """Length of the bar between image and lines, of its width."""


@dataclass(frozen=True)
class Case:
    """An image, if it is about one, and those of the largest positive and of the largest negative weights."""

    image: Thumbnail | None
    positive: list[Thumbnail]
    negative: list[Thumbnail]


def thumbnail(
    data: Examples,
    split: str,
    number: int,
    lines: Sequence[str] = (),
    weight: float | None = None,
    largest: float = 1.0,
    what: str = "weight",
) -> Thumbnail:
    """An image of a split over its class, its weight, `lines` and its number; the bar is |weight| / largest.

    A group (split `group`) is shown by up to four of its images. what: what the weight is called.
    """
    kind = {"train": f"training {data.thing}", "test": f"test {data.thing}", "group": "group"}[split]
    lines = [*lines, f"group {number}" if split == "group" else f"#{number}"]
    if data.dataset is None:
        name, url, soft = data.name(split, number), "", False
    else:
        images = data.dataset.test if split == "test" else data.dataset.train
        numbers = np.array([number])
        if split == "group":
            numbers = data.members(number)
            lines.append(counted(len(numbers), "image"))
        shown = [images.images[each] for each in numbers[:4].tolist()]
        if len(shown) > 1:
            shown += [np.zeros_like(shown[0])] * (4 - len(shown))
            shown = [np.concatenate([np.concatenate(shown[:2], axis=1), np.concatenate(shown[2:], axis=1)])]
        name = ", ".join(dict.fromkeys(data.dataset.classes[label] for label in images.labels[numbers[:4]]))
        url, soft = data_url(shown[0], data.shades), min(shown[0].shape[:2]) > LARGEST_THUMBNAIL
    alt = f"{kind} {number}, {name}"
    if weight is None:
        return Thumbnail(url, alt, [name, *lines], soft)
    told, kind = signed(weight), "up" if weight > 0 else "down"
    share = min(1.0, abs(weight) / largest)
    return Thumbnail(url, f"{alt}, {what} {told}", [name, told, *lines], soft, kind, share)


def signed(value: float) -> str:
    """Three digits with a sign."""
    return f"{value:+#.3g}".replace("-", "−")


def data_url(image: NDArray, shades: NDArray[np.float64] | None = None) -> str:
    """An image [H, W, C] as a data URL: its own pixels as PNG, or if it is large a small JPEG.

    Of 1 or 2 channels the first is shown as grey, of more the first 3 as red, green and blue. shades: values [2, C] of
    black and of full brightness; None for 0 and 255.
    """
    pixels = image[..., : 1 if image.shape[2] < 3 else 3]
    if shades is not None:
        black, full = shades[:, : pixels.shape[2]]
        pixels = np.round(255 * np.clip((pixels - black) / (full - black), 0, 1)).astype(np.uint8)
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    if max(picture.size) <= _LOSSLESS:
        kind = "png"
        picture.save(buffer, "PNG", optimize=True)
    else:
        kind = "jpeg"
        picture.thumbnail((LARGEST_THUMBNAIL, LARGEST_THUMBNAIL))
        picture.save(buffer, "JPEG", quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def target_cases(data: ReportData) -> list[Case]:
    """For some targets, the training images with the largest weights of either sign."""
    cases = []
    for column, place in enumerate(data.shown.tolist(), len(data.plotted)):
        target, weight = int(data.fitted.targets[place]), data.survey.columns[:, column]
        lines = []
        if data.evaluation is not None:
            lines.append(f"LDS {data.evaluation.target_lds[place]:.2f}".replace("-", "−"))
        if data.survey.own is not None:
            lines.append(f"self {signed(float(data.survey.own[place]))}")
        image = thumbnail(data, data.side, target, lines)
        cases.append(case_of(data, image, weight, data.feature_split, np.arange(len(weight))))
    return cases


def influential_cases(data: ReportData) -> list[Case]:
    """For the most influential training images, the targets that have the largest weights of either sign for them."""
    influence, targets = data.survey.influence, data.fitted.targets
    order = np.argsort(-influence, kind="stable")[:_INFLUENTIAL]
    cases = []
    for example, weight in zip(order.tolist(), data.fitted.rows(order), strict=True):
        if data.survey.own is not None:
            weight[targets == example] = 0
        image = thumbnail(data, data.feature_split, example, [f"mean {influence[example]:.3g}"])
        cases.append(case_of(data, image, weight, data.side, targets))
    return cases


def component_cases(data: Examples, found: Components, targets: NDArray[np.int64]) -> list[tuple[Case, Case]]:
    """For each component the training images at its ends, and those of the targets, whose numbers are `targets`."""
    every = np.arange(len(found.examples))
    return [
        (case_of(data, None, along, data.feature_split, every), case_of(data, None, place, data.side, targets, "place"))
        for along, place in zip(found.examples.T, found.targets.T, strict=True)
    ]


def case_of(
    data: Examples,
    image: Thumbnail | None,
    weight: NDArray[np.floating],
    split: str,
    numbers: NDArray[np.int64],
    what: str = "weight",
) -> Case:
    """An image beside those of the largest weights, `numbers` being the images of a split that the weights are of."""
    largest = float(np.abs(weight).max(initial=0.0)) or 1.0
    order = np.argsort(weight, kind="stable")
    ups = [place for place in order[::-1][:_NEIGHBOURS] if weight[place] > 0]
    downs = [place for place in order[:_NEIGHBOURS] if weight[place] < 0]
    positive, negative = (
        [thumbnail(data, split, int(numbers[at]), (), float(weight[at]), largest, what) for at in places]
        for places in (ups, downs)
    )
    return Case(image, positive, negative)
