"""Sections about training data that deserves a look: suspected duplicates of targets, and images that do harm."""

from html import escape

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.report import html, plots
from datamodels.launch.report.gallery import name_of, signed, unseen
from datamodels.launch.report.html import Section
from datamodels.launch.report.outliers import ALLOWED, DEPTH, HEADROOM, believed
from datamodels.launch.report.report_data import Subject, spread
from datamodels.launch.text import counted
from datamodels.train.data import Dataset, Split

_SHOWN = 12
"""Pairs and images that are shown."""
_TYPICAL = 200
"""Training images that tell how far apart two images usually are."""
_LEAST_LEAD = 0.1
"""Smaller leads are drawn there."""


def duplicates(subject: Subject) -> Section:
    """Pairs of a target and the training examples whose weights stand out."""
    count = believed(subject.found.leads.size, subject.found.mirrored.size)
    places = _standing_out(subject, count)
    thing = "example" if subject.dataset is None else "image"
    body = html.paragraph(
        f"{subject.kind.capitalize()} {thing}s that hang on one training {thing}, or on up to {DEPTH}, more than on "
        "all others, as on near-duplicates. A target's lead is the largest gap between one of its "
        f"{DEPTH} largest weights and the next, in units of the root mean square of the weights below the gap (or the "
        "median target's, where that is larger); what is above the gap is shown."
    )
    body += html.paragraph(_believed(subject, count, len(places)))
    if subject.dataset is None:
        body += _numbers(subject, places)
        body += html.paragraph("The images are not at hand: `--data.root` tells where they lie.", "small")
    elif places:
        dataset = subject.dataset
        body += f'<div class="pairs">{"".join(_pair(subject, dataset, place) for place in places)}</div>'
        typical = min(_TYPICAL, subject.store.n_train)
        body += html.paragraph(
            f"Pixels: root mean square difference of values from 0 to 255, beside the median to {typical} training "
            f"images, evenly spaced.{unseen(dataset)}",
            "small",
        )
    return Section("duplicates", "Suspected duplicates", body + html.plots([_lead_plot(subject, count)]))


def _believed(subject: Subject, count: int, shown: int) -> str:
    """How many leads are believed, by which threshold, and how many of them are shown."""
    leads, mirrored = subject.found.leads.size, subject.found.mirrored.size
    n = counted(len(leads), "target")
    judged = (
        "Noise and shared features make leads among negative weights too, where copies make none. Leads are told from "
        f"noise as far down as those of negative weights, times {HEADROOM:g}, are at most {ALLOWED:.0%} as many."
    )
    if not count:
        return f"{judged} Of {n} none is, so that no pair is shown."
    least = float(np.sort(leads)[-count])
    chance = int((HEADROOM * mirrored >= least).sum())
    which = "" if shown == count else f" The {shown} largest of different training examples are shown."
    return (
        f"{judged} Of {n} these are {count:,}, with leads of at least {least:.1f}; among negative weights {chance:,} "
        f"lead by {least / HEADROOM:.1f} or more.{which} They are suspicions: look at them."
    )


def _standing_out(subject: Subject, count: int) -> list[int]:
    """Places of the targets that lead most, of `count`, the most first; none of training examples all shown before."""
    places: list[int] = []
    seen: set[int] = set()
    for place in np.argsort(-subject.found.leads.size, kind="stable")[:count].tolist():
        examples = set(_above(subject, place))
        if not examples <= seen and len(places) < _SHOWN:
            places.append(place)
            seen |= examples
    return places


def _above(subject: Subject, place: int) -> list[int]:
    """The training examples above the gap of a target, largest weight first."""
    found = subject.found
    return found.largest.whose[: found.leads.count[place], place].tolist()


def _weights(subject: Subject, place: int) -> list[str]:
    """Their weights, and the largest one below the gap."""
    found = subject.found
    values = found.largest.values[: found.leads.count[place] + 1, place]
    return [signed(float(value)) for value in np.where(np.isfinite(values), values, 0)]


def _pair(subject: Subject, dataset: Dataset, place: int) -> str:
    target = int(subject.fitted.targets[place])
    ours, name = subject.targets.images[target], name_of(dataset, subject.targets, target)
    images = html.thumbnail(ours, f"{subject.kind} image {target}, {name}", [name, subject.split, f"#{target}"])
    *weights, following = _weights(subject, place)
    distances = []
    for example, weight in zip(_above(subject, place), weights, strict=True):
        theirs, name = dataset.train.images[example], name_of(dataset, dataset.train, example)
        alt = f"training image {example}, {name}, weight {weight}"
        images += html.thumbnail(theirs, alt, [name, "train", f"#{example}"])
        distances.append(f"{_distance(ours, theirs):.1f}")
    lines = [
        f"weight {', '.join(weights)}",
        f"next {following}",
        f"pixels {', '.join(distances)} apart",
        f"usually {_usual(ours, dataset.train):.0f}",
    ]
    return (
        f'<div class="pair"><div class="thumbs">{images}</div><p><b>lead {subject.found.leads.size[place]:.1f}</b><br>'
        f"{'<br>'.join(map(escape, lines))}</p></div>"
    )


def _numbers(subject: Subject, places: list[int]) -> str:
    rows = []
    for place in places:
        *weights, following = _weights(subject, place)
        examples, lead = ", ".join(map(str, _above(subject, place))), f"{subject.found.leads.size[place]:.1f}"
        rows.append((f"{subject.fitted.targets[place]}", examples, ", ".join(weights), following, lead))
    names = [f"{subject.kind} example", "training examples", "weights", "next", "lead"]
    return html.grid("Suspected duplicates", names, rows) if rows else ""


def _lead_plot(subject: Subject, count: int) -> str:
    """Leads on a logarithmic axis, those below the smallest that is drawn in the first bar."""
    values = subject.found.leads.size
    shown = np.maximum(values, _LEAST_LEAD)
    mark = (f"told from noise: {count:,}", float(np.sort(values)[-count])) if count else None
    svg = plots.histogram("leads", shown, "lead", "targets", log=True, mark=mark)
    caption = f"Of every target, by which pairs are ranked; smaller than {_LEAST_LEAD:g} is drawn there."
    return html.plot("Leads of the largest weights", f"n = {counted(len(values), 'target')}", svg, caption)


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
    return html.plot("Mean weights", f"n = {counted(len(effect), 'training example')}", svg, caption)


def _distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Root mean square difference of pixel values."""
    return float(np.sqrt(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2)))


def _usual(image: NDArray[np.uint8], others: Split) -> float:
    """Median distance of an image to others that are evenly spaced."""
    numbers = spread(len(others.labels), _TYPICAL)
    return float(np.median([_distance(image, others.images[int(number)]) for number in numbers]))
