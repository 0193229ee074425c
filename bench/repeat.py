"""Whether a row comes out with the same bytes twice, at the published sizes, in trainings of two epochs.

Rows of group 0 are trained by one trainer, by it again, and by another one beside group 1 on a second stream, whose
graphs are captured anew. cuDNN chooses its algorithms by shapes, which are those of a whole training.
"""

from typing import Any

import numpy as np
import torch

from bench import cases
from bench.rows import succeeded
from datamodels.launch.text import counted
from datamodels.train.config import Setting
from datamodels.train.data.sources import Dataset
from datamodels.train.store.writer import RowResult
from datamodels.train.trainer.trainer import Trainer

RECIPE: dict[str, object] = {"epochs": 2, "peak_epoch": 1}


def settings(tiny: bool) -> list[Setting]:
    """One a published network, of few steps but whole batches."""
    alpha = 0.5 if tiny else 0.1
    return [
        cases.timed("cifar", alpha, tiny, **RECIPE),
        cases.timed("fmow", alpha, tiny, **RECIPE),
        cases.timed("digits", 0.5, tiny, device="cuda", group=8 if tiny else 64, **RECIPE),
    ]


def repeated(setting: Setting, dataset: Dataset, device: torch.device) -> dict[str, Any]:
    """How many margins and logits there are, and how many came out with other bytes. Raises RuntimeError."""
    trainer = Trainer(setting, dataset, device)
    first, again = succeeded(trainer(0)), succeeded(trainer(0))
    del trainer
    both = Trainer(setting, dataset, device, streams=2)
    pending = [both.start(group) for group in (0, 1)]
    beside, _ = (succeeded(each.result()) for each in pending)
    return {
        "dataset": setting.dataset,
        "network": setting.recipe.network,
        "rows": len(first),
        "steps": setting.recipe.epochs * (int(first[0].arrays["train_masks"].sum()) // both.batch),
        "batch": both.batch,
        "values": sum(value.size for row in first for value in row.arrays.values()),
        "differing_again": differing(first, again),
        "differing_beside_another": differing(first, beside),
    }


def differing(rows: list[RowResult], others: list[RowResult]) -> int:
    """Values whose bytes differ."""
    pairs = [
        (row.arrays[kind], other.arrays[kind]) for row, other in zip(rows, others, strict=True) for kind in row.arrays
    ]
    return sum(int(np.count_nonzero(_bytes(a) != _bytes(b))) for a, b in pairs)


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values).view(f"u{values.itemsize}")


def describe(found: dict[str, Any]) -> str:
    return (
        f"{found['network']}, {counted(found['rows'], 'row')} of {found['steps']} steps twice: of "
        f"{found['values']:,} values {found['differing_again']} differ, {found['differing_beside_another']} beside "
        "another group"
    )
