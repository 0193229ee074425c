"""Accuracies over rows on real data: the trainer's against a plain float32 loop's, by a permutation test of means.

Ours are rows [0, n) of the setting. The plain loop trains on the masks of rows [n, 2n), so that the samples are
independent; it draws everything else from torch's generator. Both go on in turn, for as long as there is time.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench import peers, plain
from datamodels.train.config import Setting
from datamodels.train.data.sources import Dataset, load
from datamodels.train.store.writer import RowResult
from datamodels.train.trainer.trainer import Trainer

RESAMPLES = 9999


def compare(
    setting: Setting, dataset: Dataset | None, device: torch.device, rows: int, left: Callable[[], float]
) -> dict[str, Any]:
    """Mean and standard deviation of the test accuracies of both, and the p-value of their difference.

    `rows` of each, or fewer where one more pair would take longer than is left, in seconds. Raises RuntimeError where
    that is fewer than two that did not fail.
    """
    dataset = dataset or load(setting)
    trainer = Trainer(setting, dataset, device)
    recipe = setting.recipe
    loop = plain.Loop(peers.on_device(dataset, device), torch.float32, recipe.width, recipe.epochs, recipe.batch)
    ours, theirs, longest = list[float](), list[float](), 0.0
    for row in range(rows):
        if left() < 1.2 * longest:
            break
        began = time.monotonic()
        ours += [result.accuracy for result in trainer(row) if isinstance(result, RowResult)]
        with peers.algorithms(deterministic=False, benchmark=True):
            theirs.append(_accuracy(loop, trainer.masks[rows + row], rows + row))
        longest = max(longest, time.monotonic() - began)
    if len(ours) < 2:
        raise RuntimeError(f"{len(theirs)} rows were trained in the time, {len(ours)} of ours to the end: too few")
    return {
        "alpha": setting.alpha,
        "rows_asked_for": rows,
        "rows": len(theirs),
        "failed": len(theirs) - len(ours),
        "ours": {"mean": float(np.mean(ours)), "deviation": float(np.std(ours, ddof=1))},
        "plain_float32": {"mean": float(np.mean(theirs)), "deviation": float(np.std(theirs, ddof=1))},
        "p_value": permutation_test(np.array(ours), np.array(theirs)),
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
        f"float32 loop {theirs['mean']:.2%} ({theirs['deviation']:.2%}), n = {found['rows']} each of "
        f"{found['rows_asked_for']}, {found['failed']} of ours failed, p = {found['p_value']:.3f}"
    )
