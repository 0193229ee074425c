"""Which training examples stand out among a target's weights, alone or as a few that are alike; and how far by chance.

Copies of a target's image among the training examples share its weight, so that the largest weight alone may lead by
little. The lead of a target is therefore the largest gap between one of its DEPTH largest weights and the next, in
units of the root mean square of the weights below the gap. Few weights other than 0 would make any gap a large one, so
that the median target's counts where it is larger, of the targets that have any. What is above the gap stands out.

Noise and shared features make leads too, but as many among negative weights, where copies make none. So leads are
believed down to where negative weights, looked at in the same way, give ALLOWED of as many, after the counts of decoys
in mass spectrometry (Elias and Gygi, Nature Methods 2007). Of two equal samples either may hold the largest lead: those
of negative weights are taken HEADROOM times, so that it has to be larger by more than chance makes it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DEPTH = 4
"""Training examples that may stand out together."""
ALLOWED = 0.1
"""Share of the leads that are believed which may be chance."""
HEADROOM = 1.5
"""How many times as large as those of negative weights leads have to be."""


class Largest:
    """The DEPTH + 1 largest weights of each of t targets, times `sign`, brought up to date band by band."""

    def __init__(self, targets: int, sign: int) -> None:
        self._sign = sign
        self.values = np.full((DEPTH + 1, targets), -np.inf, np.float32)
        """[DEPTH + 1, t], largest first; -inf where there are fewer training examples"""
        self.whose = np.zeros((DEPTH + 1, targets), np.int64)
        """[DEPTH + 1, t]: training examples"""

    def add(self, first: int, place: slice, band: NDArray[np.float32]) -> None:
        """Take in weights `band` [rows, targets] of the training examples from `first` on for the targets at `place`.

        Few columns of a late band have anything to add.
        """
        best = band.max(axis=0) if self._sign > 0 else -band.min(axis=0)
        columns = np.flatnonzero(best > self.values[-1, place])
        some, into = self._sign * band[:, columns], place.start + columns
        keep = min(len(band), DEPTH + 1)
        rows = np.argpartition(some, len(some) - keep, axis=0)[len(some) - keep :]
        rows.sort(axis=0)  # equal weights: the first training example counts
        values = np.concatenate([self.values[:, into], np.take_along_axis(some, rows, axis=0)])
        whose = np.concatenate([self.whose[:, into], first + rows])
        order = np.argsort(-values, axis=0, kind="stable")[: DEPTH + 1]
        self.values[:, into] = np.take_along_axis(values, order, axis=0)
        self.whose[:, into] = np.take_along_axis(whose, order, axis=0)


@dataclass(frozen=True)
class Leads:
    size: NDArray[np.float64]
    """[t] the lead of each target, 0 without a positive weight"""
    count: NDArray[np.int64]
    """[t] how many of its largest weights are above the gap"""

    @classmethod
    def of(cls, values: NDArray[np.float32], squares: NDArray[np.float64], n_train: int) -> "Leads":
        """From the largest weights [DEPTH + 1, t] of targets and the sum [t] of all their squared weights."""
        largest = np.where(np.isfinite(values), values, 0).astype(np.float64)
        above = np.cumsum(largest[:-1] ** 2, axis=0)
        below = np.maximum(1, n_train - np.arange(1, DEPTH + 1))[:, None]
        rest = np.sqrt(np.maximum(0, squares - above) / below)
        gaps = np.where(largest[:-1] > 0, largest[:-1] - largest[1:], 0)
        usual = np.median(rest[0][rest[0] > 0]) if rest[0].any() else 0.0
        below = np.maximum(rest, usual)
        found = np.divide(gaps, below, out=np.zeros_like(gaps), where=below > 0)
        return cls(found.max(axis=0), found.argmax(axis=0) + 1)


def believed(leads: NDArray[np.float64], mirrored: NDArray[np.float64]) -> int:
    """How many of the largest leads [t] to believe, `mirrored` [t] being those of negative weights."""
    ordered = np.sort(leads[leads > 0])[::-1]
    chance = len(mirrored) - np.searchsorted(np.sort(HEADROOM * mirrored), ordered)
    good = np.flatnonzero(chance <= ALLOWED * np.arange(1, len(ordered) + 1))
    return int(good[-1]) + 1 if len(good) else 0
