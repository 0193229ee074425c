"""Accuracies over rows on real data: the trainer's against a plain float32 loop's, by a permutation test of means.

Ours are rows [0, n) of the setting. The plain loop trains on the masks of rows [n, 2n), so that the samples are
independent; it draws everything else from torch's generator.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench import peers, plain
from train.config import Setting
from train.data import Dataset, load
from train.loop import Trainer
from train.writer import RowResult

RESAMPLES = 9999


def compare(setting: Setting, dataset: Dataset | None, device: torch.device, rows: int) -> dict[str, Any]:
    """Mean and standard deviation of the test accuracies of both, and the p-value of their difference."""
    dataset = dataset or load(setting)
    trainer = Trainer(setting, dataset, device)
    results = [result for row in range(rows) for result in trainer(row)]
    ours = np.array([result.accuracy for result in results if isinstance(result, RowResult)])
    recipe = setting.recipe
    loop = plain.Loop(peers.on_device(dataset, device), torch.float32, recipe.width, recipe.epochs, recipe.batch)
    with peers.fastest_kernels():
        theirs = np.array([_accuracy(loop, trainer.masks[row], row) for row in range(rows, 2 * rows)])
    return {
        "alpha": setting.alpha,
        "rows": rows,
        "failed": rows - len(ours),
        "ours": {"mean": float(ours.mean()), "deviation": float(ours.std(ddof=1))},
        "plain_float32": {"mean": float(theirs.mean()), "deviation": float(theirs.std(ddof=1))},
        "p_value": permutation_test(ours, theirs),
    }


def _accuracy(loop: plain.Loop, mask: NDArray[np.bool_], seed: int) -> float:
    torch.manual_seed(seed)
    subset = torch.from_numpy(np.flatnonzero(mask)).to(loop.device)
    return float((loop(subset)[1] > 0).double().mean())


def permutation_test(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Two-sided p-value of a difference of means at least as large, under random exchanges between the samples."""
    rng = np.random.default_rng(0)
    both, found = np.concatenate([a, b]), abs(a.mean() - b.mean())
    shuffled = rng.permuted(np.tile(both, (RESAMPLES, 1)), axis=1)
    apart = np.abs(shuffled[:, : len(a)].mean(axis=1) - shuffled[:, len(a) :].mean(axis=1))
    return float((1 + np.count_nonzero(apart >= found - 1e-12)) / (1 + RESAMPLES))


def describe(found: dict[str, Any]) -> str:
    ours, theirs = found["ours"], found["plain_float32"]
    return (
        f"accuracy at alpha {found['alpha']}: ours {ours['mean']:.2%} (deviation {ours['deviation']:.2%}), plain "
        f"float32 loop {theirs['mean']:.2%} ({theirs['deviation']:.2%}), n = {found['rows']} each, "
        f"p = {found['p_value']:.3f}"
    )
