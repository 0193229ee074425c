"""The choice of lambda for a tile of targets at once, on a device, by the rule of datamodels.lasso.solver.path.

All targets walk down their paths together. Where the end of a path, or the best lambda, hangs on errors that come
close, lambdas are solved further, one a target at a time and those of all targets in one tile. That waits until no
target is left that surely goes on, as the walk then costs those in doubt nothing. No result depends on when it is done.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodels.lasso.solver.correlations import HeldoutMasks
from datamodels.lasso.solver.fista import IDLE, Tile
from datamodels.lasso.solver.path import DOUBT, LEAST_DOUBT, SAFETY

AIMS = np.array([0.1, 1e-3, 1e-5])
"""Relative gaps, over the tolerance: on the way, tighter than descent's, since the tile's products there cost less than
to go back, and as a contender for the best."""

Vector = NDArray[np.float64]
Places = NDArray[np.int64]
Which = NDArray[np.bool_]


class Choice(NamedTuple):
    """What a path gave for each of t targets."""

    chosen: Places
    """[t]: of the lambda chosen"""
    tried: Places
    """[t]: lambdas"""
    squares: Vector
    """[t]: held-out squares"""
    gap: Vector
    """[t]: largest along the path; at the chosen lambda from a product in float64"""
    weights: Vector
    """[N, t]"""


def choose(
    tile: Tile, held: HeldoutMasks, cross: Vector, squares: Vector, lams: Vector, tol: float, patience: int, least: int
) -> Choice:
    """Follow the paths lams [k, t] of a tile and choose each target's lambda by its held-out error.

    cross [N, t], squares [t]: of the held-out rows with the targets.
    """
    walk = _Walk(tile, held, tile.padded(cross), squares, lams, tol)
    contest = _Contest(lams.shape, tol * squares, patience, least)
    worst = np.zeros(lams.shape)
    for i in range(len(lams)):
        worst[i], contest.errors[:, i] = walk.step(i, contest.tried == 0)
        going = contest.advance(i)
        if i + 1 == contest.begins or not going.any() or i + 1 == len(lams):
            walk.sharpen(contest)
            if not contest.advance(i).any():
                break
    contest.tried[contest.tried == 0] = i + 1
    walk.sharpen(contest)
    best = contest.best()[0]
    gaps, errors = walk.solve(best, AIMS[np.maximum(contest.levels[np.arange(len(best)), best], 1)] * tol)
    worst[np.arange(len(lams))[:, None] >= contest.tried] = 0.0
    return Choice(best, contest.tried, errors, np.maximum(worst.max(axis=0), gaps), tile.unpadded(tile.w))


class _Walk:
    """A tile on its way along the path, and the weights it had."""

    def __init__(
        self, tile: Tile, held: HeldoutMasks, cross: Tensor, squares: Vector, lams: Vector, tol: float
    ) -> None:
        self.tile, self.held, self.cross, self.squares, self.lams, self.tol = tile, held, cross, squares, lams, tol
        self.past: list[Tensor] = []
        """float32 [N, TILE] of every lambda"""

    def step(self, i: int, these: Which) -> tuple[Vector, Vector]:
        """Solve lambda i of these targets; returns gaps and held-out squares [t]."""
        steps = np.diff(self.lams[max(i - 2, 0) : i + 1, 0])
        self.tile.foresee(steps[1] / steps[0] if i > 1 else 0.0)
        gaps = self.tile.minimise(self.lams[i], np.where(these, AIMS[0] * self.tol, np.inf), self.tol)
        self.past.append(self.tile.w.float())
        return gaps, self._errors()

    def _errors(self, exactly: bool = False) -> Vector:
        linear = (self.tile.w * self.cross).sum(dim=0)
        return self.squares + self.tile.unpadded(self.held.squares(self.tile.w, exactly) - 2 * linear)

    def sharpen(self, contest: "_Contest") -> None:
        """Solve lambdas further until no decision hangs on one; the walk goes on from where it was."""
        here = self.tile.state()
        while (these := contest.open()).any():
            place, level = contest.looser(these)
            aims = np.where(these, AIMS[level] * self.tol, np.inf)
            _, errors = self.solve(place, aims)
            contest.sharpened(these, place, errors)
        self.tile.restore(here)

    def solve(self, place: Places, aims: Vector) -> tuple[Vector, Vector]:
        """Solve lambda place[t] of every target, from its weights there, further; returns gaps and held-out squares.

        Products are in float64, or count from one that is.
        """
        tile = self.tile
        at = tile.padded(place).long()
        w = torch.zeros_like(tile.w)
        for k in np.unique(place):
            w = torch.where(at == int(k), self.past[k].double(), w)
        tile.begin(w)
        gaps = tile.minimise(self.lams[place, np.arange(len(place))], aims, self.tol, IDLE)
        for k in np.unique(place):
            self.past[k] = torch.where(at == int(k), tile.w.float(), self.past[k])
        return gaps, self._errors(True)


class _Contest:
    """What is known of the held-out errors [t, k] of a tile, and what hangs on them (datamodels.lasso.solver.path has the rule)."""

    def __init__(self, shape: tuple[int, ...], unit: Vector, patience: int, least: int) -> None:
        k, width = shape
        self.unit, self.patience = np.maximum(unit, 1e-300), patience
        self.begins = max(least, patience + 1)
        """lambdas tried before a path may end"""
        self.errors, self.levels = np.full((width, k), np.inf), np.zeros((width, k), np.int64)
        self.seen = np.full(width, -1.0)
        self.tested = np.full(width, self.begins - 1)
        """[t]: lambda at which a path may end next"""
        self.tried = np.zeros(width, np.int64)
        """[t]: lambdas of a path that has ended, else 0"""
        self.reached = -1
        self._each = np.arange(width)

    def advance(self, reached: int) -> Which:
        """End the paths that surely end by lambda `reached`; returns which [t] surely go on."""
        self.reached = reached
        while True:
            *_, ends, goes_on = self._rivals()
            waiting = (self.tried == 0) & (self.tested <= reached)
            self.tried = np.where(waiting & ends, self.tested + 1, self.tried)
            if not (waiting & goes_on).any():
                return (self.tried == 0) & (self.tested > reached)
            self.tested += waiting & goes_on

    def open(self) -> Which:
        """Which [t] have something to decide that hangs on a lambda solved too loosely."""
        self.advance(self.reached)
        _, rival = self.best()
        return np.where(self.tried > 0, rival >= 0, self.tested <= self.reached)

    def looser(self, these: Which) -> tuple[Places, Places]:
        """Of the two lambdas that a decision of these targets hangs on, the one solved less far, and the next aim."""
        best, rival = self.best()
        a, b, *_ = self._rivals()
        a, b = np.where(self.tried > 0, best, a), np.where(self.tried > 0, np.where(rival < 0, best, rival), b)
        place = np.where(self.levels[self._each, a] <= self.levels[self._each, b], a, b)
        place = np.where(these, place, 0)
        return place, np.minimum(self.levels[self._each, place] + 1, len(AIMS) - 1)

    def sharpened(self, these: Which, place: Places, errors: Vector) -> None:
        """Note the errors [t] of lambdas that were solved to their next aim."""
        at = self._each[these], place[these]
        change = abs(errors[these] - self.errors[at]) / (AIMS[self.levels[at]] * self.unit[these])
        self.seen[these] = np.maximum(self.seen[these], change)
        self.errors[at] = errors[these]
        self.levels[at] += 1

    def best(self) -> tuple[Places, Places]:
        """The lambdas with the least error, as far as is known, and their strongest rivals, or -1 where they win."""
        low, high = self._bounds(np.arange(self.errors.shape[1]) < self.tried[:, None])
        best = high.argmin(axis=1)
        sure, places = high[self._each, best][:, None], np.arange(high.shape[1])
        contends = (places != best[:, None]) & ((low < sure) | ((low == sure) & (places < best[:, None])))
        low = np.where(contends, low, np.inf)
        return best, np.where(contends.any(axis=1), low.argmin(axis=1), -1)

    def _rivals(self) -> tuple[Places, Places, Which, Which]:
        """The strongest contenders among the older and the last `patience` lambdas up to `tested`; which [t] paths
        surely end there, and which surely go on."""
        places, last = np.arange(self.errors.shape[1]), self.tested[:, None]
        older_low, older_high = self._bounds(places <= last - self.patience)
        newer_low, newer_high = self._bounds((places > last - self.patience) & (places <= last))
        ends = older_high.min(axis=1) <= newer_low.min(axis=1)
        return (
            older_low.argmin(axis=1),
            newer_low.argmin(axis=1),
            ends,
            ~ends & (newer_high.min(axis=1) < older_low.min(axis=1)),
        )

    def _bounds(self, these: Which) -> tuple[Vector, Vector]:
        """The least and the most [t, k] that an error may be, infinite where it does not count."""
        ratio = np.where(self.seen < 0, DOUBT, np.maximum(SAFETY * self.seen, LEAST_DOUBT))
        doubts = np.where(self.levels < len(AIMS) - 1, AIMS[self.levels] * (ratio * self.unit)[:, None], 0.0)
        return np.where(these, self.errors - doubts, np.inf), np.where(these, self.errors + doubts, np.inf)
