"""The sections about training data that deserves a look: suspected duplicates of targets, and harmful examples."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.launch.report import plots
from datamodels.launch.report.images import Thumbnail, signed, thumbnail
from datamodels.launch.report.outliers import ALLOWED, DEPTH, HEADROOM, count_above_noise
from datamodels.launch.report.report_data import ReportData, spread

_SHOWN = 12
"""Pairs and images that are shown."""
_TYPICAL = 200
"""Training images from which the usual distance of two images is computed."""
_LEAST_SCORE = 0.1
"""Smaller scores are drawn at this value."""


@dataclass(frozen=True)
class Pair:
    """A target and the training examples that may be its duplicates."""

    target: int
    examples: list[int]
    weights: list[str]
    next_weight: str
    """The largest one below the gap."""
    score: float
    images: list[Thumbnail]
    """Of the target and of the examples; empty without images, as the next."""
    distances: list[float]
    """Root mean square difference of pixel values between the target and each example; empty for groups."""
    usual_distance: float
    """The median of that to evenly spaced training images."""


def duplicates(data: ReportData) -> dict[str, Any]:
    """Pairs of a target and the training examples whose weights are far larger than all others."""
    scores, negative = data.survey.outliers.score, data.survey.negative_outliers.score
    count = count_above_noise(scores, negative)
    least = float(np.sort(scores)[-count]) if count else 0.0
    pairs: list[Pair] = []
    seen: set[int] = set()
    for place in np.argsort(-scores, kind="stable")[:count].tolist():
        examples = data.survey.largest.examples[: data.survey.outliers.count[place], place].tolist()
        if len(pairs) < _SHOWN and not seen.issuperset(examples):
            pairs.append(_pair(data, place, examples))
            seen.update(examples)
    mark = (f"above noise: {count:,}", least) if count else None
    drawn = np.maximum(scores, _LEAST_SCORE)
    return {
        "depth": DEPTH,
        "headroom": HEADROOM,
        "allowed": ALLOWED,
        "count": count,
        "least": least,
        "by_chance": int((HEADROOM * negative >= least).sum()),
        "pairs": pairs,
        "typical": min(_TYPICAL, data.store.n_features),
        "least_drawn": _LEAST_SCORE,
        "score_plot": plots.histogram("scores", drawn, "outlier score", "targets", log=True, mark=mark),
    }


def _pair(data: ReportData, place: int, examples: list[int]) -> Pair:
    target, score = int(data.fitted.targets[place]), float(data.survey.outliers.score[place])
    values = data.survey.largest.values[: len(examples) + 1, place]
    *weights, next_weight = [signed(float(value)) for value in np.where(np.isfinite(values), values, 0)]
    if data.dataset is None:
        return Pair(target, examples, weights, next_weight, score, [], [], 0.0)

    images = [thumbnail(data, data.side, target, [data.side])]
    images += [thumbnail(data, data.feature_split, example, [data.feature_split]) for example in examples]
    if data.store.groups is not None:
        return Pair(target, examples, weights, next_weight, score, images, [], 0.0)
    training = data.dataset.train.images
    image = (training if data.side == "train" else data.dataset.test.images)[target].astype(np.float32)

    def distances(numbers: list[int] | NDArray[np.int64]) -> list[float]:
        return [float(np.sqrt(np.mean((image - training[number]) ** 2))) for number in numbers]

    usual = float(np.median(distances(spread(len(training), _TYPICAL))))
    return Pair(target, examples, weights, next_weight, score, images, distances(examples), usual)


def harmful(data: ReportData) -> dict[str, Any]:
    """Training examples with the most negative mean weight."""
    effect = data.survey.effect
    examples = [example for example in np.argsort(effect, kind="stable")[:_SHOWN].tolist() if effect[example] < 0]
    images = [
        thumbnail(data, data.feature_split, example, weight=effect[example], largest=-effect[examples[0]])
        for example in examples
        if data.dataset
    ]
    return {
        "examples": examples,
        "images": images,
        "effect_plot": plots.histogram("effect", effect, "mean weight, in units of margin", f"{data.feature}s"),
    }
