"""Sections with images: which training images stand behind which predictions."""

from collections.abc import Callable
from html import escape

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.report import html
from datamodels.launch.report.html import Section
from datamodels.launch.report.report_data import Subject
from datamodels.launch.text import counted
from datamodels.train.data import Dataset, Split

_NEIGHBOURS = 6
"""Images of each sign shown for an image."""
_MOVERS = 6
"""Training images shown with the targets that they move."""


def behind(subject: Subject, dataset: Dataset) -> Section:
    """For some targets the training images of largest weight of either sign."""
    cases = []
    for column, place in enumerate(subject.shown, len(subject.plotted)):
        target = int(subject.fitted.targets[place])
        name = name_of(dataset, subject.targets, target)
        lines = [name, *_told(subject, int(place)), f"#{target}"]
        image = html.thumbnail(subject.targets.images[target], f"{subject.kind} image {target}, {name}", lines)
        weight = subject.found.columns[:, column]
        draw = _drawing(dataset, dataset.train, "training", np.arange(len(weight)))
        cases.append(_case(image, weight, draw, ("raise its margin", "lower its margin")))
    text = (
        f"For {counted(len(cases), f'{subject.kind} image')}, evenly spaced: the training images that raise the margin "
        "most when a model is trained on them, and those that lower it most. The number is the weight, in units of "
        "margin; the bar is its share of the largest."
    ) + unseen(dataset)
    if subject.found.own is not None:
        text += " A target's weight for itself is left out here and given beside it as “self”."
    return Section("behind", "Images behind predictions", html.paragraph(text) + "".join(cases))


def _told(subject: Subject, place: int) -> list[str]:
    """What is known of a target, a line each."""
    lines = [] if subject.quality is None else [f"LDS {subject.quality.target_lds[place]:.2f}"]
    return lines if subject.found.own is None else [*lines, f"self {signed(float(subject.found.own[place]))}"]


def moved(subject: Subject, dataset: Dataset) -> Section:
    """For the training images of most influence the targets that they move most."""
    influence, targets = subject.found.influence, subject.fitted.targets
    order = np.argsort(-influence, kind="stable")[:_MOVERS]
    titles = f"{subject.kind} images that it raises", f"{subject.kind} images that it lowers"
    cases = []
    for example, weight in zip(order.tolist(), subject.fitted.rows(order), strict=True):
        name = name_of(dataset, dataset.train, example)
        lines = [name, f"mean {influence[example]:.3g}", f"#{example}"]
        image = html.thumbnail(dataset.train.images[example], f"training image {example}, {name}", lines)
        if subject.found.own is not None:
            weight[targets == example] = 0
        cases.append(_case(image, weight, _drawing(dataset, subject.targets, subject.kind, targets), titles))
    text = (
        f"The {counted(len(cases), 'training image')} of largest mean absolute weight over all targets (“mean”), with "
        f"the {subject.kind} images whose margins they raise and lower most."
    ) + unseen(dataset)
    return Section("moved", "Images that move most", html.paragraph(text) + "".join(cases))


_Draw = Callable[[int, float, str, float], str]
"""From a place among weights, the weight, a kind and the bar's length to a thumbnail."""


def _drawing(dataset: Dataset, images: Split, what: str, numbers: NDArray[np.int64]) -> _Draw:
    """Draws images, `numbers` being those of the weights' places."""

    def draw(place: int, weight: float, kind: str, share: float) -> str:
        number = int(numbers[place])
        name, value = name_of(dataset, images, number), signed(weight)
        alt = f"{what} image {number}, {name}, weight {value}"
        return html.thumbnail(images.images[number], alt, [name, value, f"#{number}"], kind, share)

    return draw


def _case(image: str, weight: NDArray[np.float32], draw: _Draw, titles: tuple[str, str]) -> str:
    """An image beside those of the largest positive and of the largest negative weights."""
    largest = float(np.abs(weight).max(initial=0.0)) or 1.0
    order = np.argsort(weight, kind="stable")
    ups = [place for place in order[::-1][:_NEIGHBOURS].tolist() if weight[place] > 0]
    downs = [place for place in order[:_NEIGHBOURS].tolist() if weight[place] < 0]
    columns = ""
    for title, places, kind in ((titles[0], ups, "up"), (titles[1], downs, "down")):
        values = [(place, float(weight[place])) for place in places]
        drawn = "".join(draw(place, value, kind, abs(value) / largest) for place, value in values)
        drawn = drawn or '<p class="small">none</p>'
        columns += f'<div><h3>{escape(title)}</h3><div class="thumbs">{drawn}</div></div>'
    return f'<div class="case">{image}{columns}</div>'


def name_of(dataset: Dataset, images: Split, number: int) -> str:
    return dataset.classes[images.labels[number]]


def unseen(dataset: Dataset) -> str:
    """What the page's images leave out, as a sentence to append, or nothing."""
    return html.channels_shown(dataset.train.images.shape[3])


def signed(value: float) -> str:
    return f"{value:+#.3g}".replace("-", "−")
