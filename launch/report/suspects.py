"""Sections about training data that deserves a look: suspected duplicates of targets, and images that do harm."""

from html import escape

import numpy as np
from numpy.typing import NDArray

from launch.report import html, plots
from launch.report.gallery import name_of, signed, unseen
from launch.report.html import Section
from launch.report.subject import Subject, spread
from train.data import Dataset, Split

_SHOWN = 12
"""Pairs and images that are shown."""
_TYPICAL = 200
"""Training images that tell how far apart two images usually are."""
_DEFINITION = (
    "A pair is ranked by how far the target's largest weight is ahead of its second, in units of the root mean square "
    "of its other weights (or the median target's, where that is larger). Each training {thing} is shown once, with "
    "the target that stands out most."
)


def duplicates(subject: Subject) -> Section:
    """Pairs of a target and a training example whose weight stands out."""
    places = _standing_out(subject)
    if subject.dataset is None:
        body = html.paragraph(
            f"{subject.kind.capitalize()} examples that hang on one training example more than on all others, as on a "
            f"near-duplicate. {_DEFINITION.format(thing='example')} The images are not at hand, so only numbers are "
            "shown; `--data.root` tells where they lie."
        )
        body += _numbers(subject, places)
    else:
        body = html.paragraph(
            f"{subject.kind.capitalize()} images that hang on one training image more than on all others, as on a "
            f"near-duplicate. {_DEFINITION.format(thing='image')} These are suspicions: look at them."
            f"{unseen(subject.dataset)}"
        )
        dataset = subject.dataset
        pairs = "".join(_pair(subject, dataset, place) for place in places.tolist())
        body += f'<div class="pairs">{pairs}</div>' if pairs else html.paragraph("None.")
        typical = min(_TYPICAL, subject.store.n_train)
        body += html.paragraph(
            f"Pixels: root mean square difference of values from 0 to 255, beside the median to {typical} training "
            "images, evenly spaced.",
            "small",
        )
    return Section("duplicates", "Suspected duplicates", body + html.plots([_standout_plot(subject)]))


def _standing_out(subject: Subject) -> NDArray[np.int64]:
    """Places of the targets whose largest weight stands out most, the most first, each of another training example."""
    standout, strongest = subject.found.standout, subject.found.strongest
    order = np.argsort(-standout, kind="stable")
    order = order[standout[order] > 0]
    _, first = np.unique(strongest[order], return_index=True)
    return order[np.sort(first)[:_SHOWN]]


def _pair(subject: Subject, dataset: Dataset, place: int) -> str:
    found = subject.found
    target, example = int(subject.fitted.targets[place]), int(found.strongest[place])
    ours, theirs = subject.targets.images[target], dataset.train.images[example]
    names = name_of(dataset, subject.targets, target), name_of(dataset, dataset.train, example)
    images = html.thumbnail(ours, f"{subject.kind} image {target}, {names[0]}", [names[0], subject.split, f"#{target}"])
    images += html.thumbnail(theirs, f"training image {example}, {names[1]}", [names[1], "train", f"#{example}"])
    first, second = (signed(float(value[place])) for value in (found.first, found.second))
    distance, usual = _distance(ours, theirs), _usual(ours, dataset.train)
    lines = [f"weight {first}", f"next {second}", f"pixels {distance:.1f} apart", f"usually {usual:.0f}"]
    return (
        f'<div class="pair"><div class="thumbs">{images}</div><p><b>{found.standout[place]:.1f}</b> ahead<br>'
        f"{'<br>'.join(map(escape, lines))}</p></div>"
    )


def _numbers(subject: Subject, places: NDArray[np.int64]) -> str:
    found = subject.found
    rows = [
        (
            f"{subject.fitted.targets[place]}",
            f"{found.strongest[place]}",
            signed(float(found.first[place])),
            signed(float(found.second[place])),
            f"{found.standout[place]:.1f}",
        )
        for place in places
    ]
    names = [f"{subject.kind} example", "training example", "largest weight", "second", "ahead by"]
    return html.grid("Suspected duplicates", names, rows) if rows else html.paragraph("None.")


def _standout_plot(subject: Subject) -> str:
    values = subject.found.standout
    svg = plots.histogram("standout", values, "lead of the largest weight", "targets")
    caption = "The lead by which pairs are ranked, of all targets. Duplicates lie apart, far to the right."
    return html.plot("Lead of the largest weight", f"n = {len(values):,} targets", svg, caption)


def harmful(subject: Subject) -> Section:
    """Training examples that lower margins in the mean."""
    effect = subject.found.effect
    order = np.argsort(effect, kind="stable")[:_SHOWN]
    order = order[effect[order] < 0]
    thing = "examples" if subject.dataset is None else "images"
    body = html.paragraph(
        f"Training {thing} whose mean weight over all {subject.kind} {thing} is most negative: models that see them "
        "do worse on the whole. Mislabelled and ambiguous ones tend to come first."
        f"{'' if subject.dataset is None else unseen(subject.dataset)}"
    )
    if not len(order):
        body += html.paragraph("None: no mean is negative.")
    elif subject.dataset is None:
        rows = [(f"{example}", signed(float(effect[example]))) for example in order]
        body += html.grid("Harmful examples", ["training example", "mean weight"], rows)
    else:
        dataset = subject.dataset
        drawn = "".join(_harm(dataset, int(example), effect[example], effect[order[0]]) for example in order)
        body += f'<div class="thumbs">{drawn}</div>'
    return Section("harmful", f"Harmful {thing}", body + html.plots([_effect_plot(subject)]))


def _harm(dataset: Dataset, example: int, effect: float, worst: float) -> str:
    name, value = name_of(dataset, dataset.train, example), signed(float(effect))
    alt = f"training image {example}, labelled {name}, mean weight {value}"
    return html.thumbnail(dataset.train.images[example], alt, [name, value, f"#{example}"], "down", effect / worst)


def _effect_plot(subject: Subject) -> str:
    effect = subject.found.effect
    svg = plots.histogram("effect", effect, "mean weight, in units of margin", "training examples")
    caption = f"Of each training example, over all fitted targets; {(effect < 0).mean():.1%} are negative."
    return html.plot("Mean weights", f"n = {len(effect):,} training examples", svg, caption)


def _distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Root mean square difference of pixel values."""
    return float(np.sqrt(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)))


def _usual(image: NDArray[np.uint8], others: Split) -> float:
    """Median distance of an image to others that are evenly spaced."""
    numbers = spread(len(others.labels), _TYPICAL)
    return float(np.median([_distance(image, others.images[int(number)]) for number in numbers]))
