"""A stand-in for datamodels.train.store.store: three arrays, in memory, with what the LASSO stage asks of a store."""

import hashlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from datamodels.train.config import Fit, Setting
from datamodels.train.masks import Era


class FakeStore:
    def __init__(self, folder: Path, masks, test_margins, eval_models=0, train_margins=None, fit=None, runs=1, seed=0):
        rows = len(masks)
        self.setting = Setting(
            dataset="fake", models=rows - eval_models, eval_models=eval_models, seed=seed, runs_per_mask=runs,
            fit=fit or Fit(),
        )  # fmt: skip
        self.folder = self.derived = folder
        self.layout = SimpleNamespace(folder=folder, array=lambda name: folder / "data" / f"{name}_50pct.npy")
        self.models, self.eval_models, self.rows = rows - eval_models, eval_models, rows
        self.n_train, self.n_test = masks.shape[1], test_margins.shape[1]
        self.arrays = {"train_masks": masks, "test_margins": test_margins.astype(np.float16)}
        if train_margins is not None:
            self.arrays["train_margins"] = train_margins.astype(np.float16)
        self.done, self.lost, self.bad = np.ones(rows, bool), np.zeros(rows, bool), np.zeros(rows, bool)
        self.strange = np.zeros(rows, bool)
        self.generation = np.ones(rows, int)
        self.older: list[Era] = []
        self.reads = 0

    def check_files(self) -> None:
        """Nothing here can be damaged."""

    def array(self, name: str):
        return self.arrays[name]

    def completed(self):
        return self.done.copy()

    def failed(self):
        return self.lost.copy()

    def mask_index(self, row: int) -> int:
        return row if row < self.models else self.models + (row - self.models) // self.setting.runs_per_mask

    @property
    def eras(self):
        return (*self.older, Era(self.models, self.eval_models))

    def read(self, name: str, start: int, stop: int):
        self.reads += 1
        return self.arrays[name][start:stop]

    def mismatches(self, name: str, start: int, content):
        return self.bad[start : start + len(content)].copy()

    def bad_masks(self, start: int, masks):
        return self.strange[start : start + len(masks)].copy()

    def row_stamp(self, rows) -> str:
        return hashlib.sha256(np.asarray(rows).tobytes() + self.generation[rows].tobytes()).hexdigest()

    def with_fit(self, **options) -> "FakeStore":
        self.setting = replace(self.setting, fit=replace(self.setting.fit, **options))
        return self


def linear_data(rows, n_train, targets, seed=0, alpha=0.5, noise=0.3, sparse=5):
    """Masks [rows, n_train] and float16 margins [rows, targets] that are sparse linear functions of them plus noise."""
    rng = np.random.default_rng(seed)
    masks = rng.random((rows, n_train)) < alpha
    weights = np.zeros((n_train, targets))
    for target in range(targets):
        chosen = rng.choice(n_train, min(sparse, n_train), replace=False)
        weights[chosen, target] = rng.normal(size=len(chosen))
    margins = masks @ weights + 2 + noise * rng.normal(size=(rows, targets))
    return masks, margins.astype(np.float16)
