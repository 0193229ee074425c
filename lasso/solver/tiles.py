"""The solver's way through torch: a lot's targets in tiles of fixed width, aligned to absolute targets."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from datamodels.lasso.solver import fista
from datamodels.lasso.solver.batch import Lot
from datamodels.lasso.solver.choice import choose
from datamodels.lasso.solver.correlations import HeldoutMasks


def follow_paths(lot: Lot, device: torch.device, progress: Callable[[int], None]) -> None:
    """What `Lot.choose` does for each target."""
    at, fit = lot.matrices, lot.fit
    corr = at.on_device(device, False)
    held = HeldoutMasks(at.bits, at.held_rows, at.scale.mean, corr)
    for start, stop in _cuts(lot):
        begun = [(target, found) for target in range(start, stop) if (found := lot.begin(target))]
        if begun:
            _, paths = zip(*begun, strict=True)
            lams = np.stack([path.lams for path in paths]).T
            cross = np.stack([path.heldout.cross for path in paths]).T
            squares = np.array([path.heldout.squares for path in paths])
            cov, var = np.stack([path.cov for path in paths]).T, np.array([path.var for path in paths])
            tile = fista.Tile(corr, cov, var, (lot.first + start) % fista.TILE)
            best = choose(tile, held, cross, squares, lams, 100 * fit.tol, fit.patience, fit.min_lambdas)
            for place, (target, path) in enumerate(begun):
                index, tried, error, gap = (part[place] for part in best[:4])
                lot.record(target, path, int(index), int(tried), float(error), float(gap), best.weights[:, place])
        progress(stop)


def refit(lot: Lot, device: torch.device, progress: Callable[[int], None]) -> None:
    """What `Lot.refit_one` does for each target."""
    corr, found = lot.matrices.on_device(device, True), lot.solution
    for start, stop in _cuts(lot):
        sums = [(target, *lot.whole(target)) for target in range(start, stop)]
        due = [(target, var, cov) for target, var, cov in sums if found.lam[target] != 0.0]
        if due:
            these = np.array([target for target, _, _ in due])
            var, cov = np.array([var for _, var, _ in due]), np.stack([cov for _, _, cov in due]).T
            lams, begun = found.lam[these].astype(np.float64), [lot.begin_refit(int(target)) for target in these]
            tile = fista.Tile(corr, cov, var, (lot.first + start) % fista.TILE)
            weights, lot.refit_gap[these] = fista.refit(tile, lams, np.stack(begun).T, lot.fit.tol)
            stored = [lot.store(int(target), w) for target, w in zip(these, weights.T, strict=True)]
            found.gap[these], found.kkt[these] = fista.certify(tile, lams, np.stack(stored).T)
        progress(stop)


def _cuts(lot: Lot) -> Iterator[tuple[int, int]]:
    targets = len(lot.solution.lam)
    inside = range(fista.TILE - lot.first % fista.TILE, targets, fista.TILE)
    return itertools.pairwise([0, *inside, targets])
