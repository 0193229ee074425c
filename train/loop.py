"""Training a group of rows: one loop for every data set, network and device.

Shape letters: G rows of a group, S steps, B images of a batch, N images of a split, K classes.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from train.augment import Augment, Normalise, views
from train.config import Setting
from train.data import Dataset
from train.device import keep_freed_memory, make_deterministic, precision
from train.errors import Interrupted
from train.feed import Feed
from train.masks import Era, Masks, batch_size
from train.model import build
from train.parameters import Parameters, reset_statistics
from train.tables import Tables, tables
from train.writer import RowFailure, RowResult

FP16_LOSS_SCALE = 1024.0
"""Static, so that a row depends on nothing but itself; the recipe's gradients are far from both ends of the range."""

FLOAT16_MAX = float(np.finfo(np.float16).max)


class Trainer:
    """Trains groups of rows of one setting on one device. The network is built once and reset for every group."""

    def __init__(
        self, setting: Setting, dataset: Dataset, device: torch.device, eras: tuple[Era, ...] | None = None
    ) -> None:
        recipe = setting.recipe
        torch.set_num_threads(recipe.threads)
        keep_freed_memory()
        make_deterministic(device)
        self.setting, self.recipe, self.device = setting, recipe, device
        self.precision = precision(recipe, device)
        self.masks = Masks(setting, len(dataset.train.labels), list(eras) if eras else None)
        self.batch = batch_size(setting, len(dataset.train.labels))
        resident = setting.data.resident
        self.augment = Augment(dataset.train, dataset, recipe, device, resident)
        self.normalise = Normalise(dataset, device)
        self.feeds = {"train": self.augment.feed, "test": Feed(dataset.test.images, device, resident)}
        self.labels = {
            name: torch.from_numpy(split.labels).to(device)
            for name, split in (("train", dataset.train), ("test", dataset.test))
        }
        self.network = build(recipe, dataset.train.images.shape[1:], len(dataset.classes)).to(device)
        self.parameters = Parameters(self.network, recipe.group, device)

    def __call__(self, group: int, stop: Callable[[], bool] = lambda: False) -> list[RowResult | RowFailure]:
        """Train the rows [group * G, (group + 1) * G), whether they are in the setting or beyond its end.

        Raises Interrupted, before any result, once `stop` says so.
        """
        started = time.perf_counter()
        rows = range(group * self.recipe.group, (group + 1) * self.recipe.group)
        masks = [self.masks[row] for row in rows]
        self.fit(rows, masks, stop)
        logits = {name: self.evaluate(name, stop) for name in self.feeds}
        seconds = (time.perf_counter() - started) / len(rows)
        return [
            self._result(row, mask, {name: logits[name][g] for name in logits}, seconds)
            for g, (row, mask) in enumerate(zip(rows, masks, strict=True))
        ]

    def fit(self, rows: range, masks: list[NDArray[np.bool_]], stop: Callable[[], bool] = lambda: False) -> None:
        """Train the network on the rows' subsets, from its initial state to its last step."""
        # A row without any example (possible under `bernoulli`) trains on the first and is failed afterwards.
        subsets = [np.flatnonzero(mask) if mask.any() else np.zeros(1, np.int64) for mask in masks]
        plan = tables(self.recipe, self.setting.seed, rows, subsets, self.batch)
        self.parameters.reset(self.setting.seed, rows)
        reset_statistics(self.network)
        self.network.train()
        self._steps(plan, stop)

    def _steps(self, plan: Tables, stop: Callable[[], bool]) -> None:
        order = torch.from_numpy(plan.order_GSB)
        draws, lr, weight = (
            torch.from_numpy(table).to(self.device) for table in (plan.draws_GSB, plan.lr_GS, plan.weight_GB)
        )
        labels = self.labels["train"][order.to(self.device)]
        for step, images in enumerate(self.augment.batches(order, draws)):
            if stop():
                raise Interrupted
            self._step(images, labels[:, step], weight, lr[:, step])

    def _step(self, images_GBHWC: Tensor, labels_GB: Tensor, weight_GB: Tensor, lr_G: Tensor) -> None:
        loss = (self._loss(self._logits(images_GBHWC), labels_GB) * weight_GB).sum()
        if self.precision == torch.float16:
            (loss * FP16_LOSS_SCALE).backward()
            self.parameters.grad.div_(FP16_LOSS_SCALE)
        else:
            loss.backward()
        self.parameters.step(lr_G, self.recipe.momentum, self.recipe.weight_decay)

    def _logits(self, images_GBHWC: Tensor) -> Tensor:
        reduced = self.precision != torch.float32
        with torch.autocast(self.device.type, self.precision if reduced else None, enabled=reduced):
            return self.network(images_GBHWC).float()

    def _loss(self, logits_GBK: Tensor, labels_GB: Tensor) -> Tensor:
        losses = F.cross_entropy(
            logits_GBK.flatten(0, 1), labels_GB.flatten(), reduction="none", label_smoothing=self.recipe.label_smoothing
        )
        return losses.view_as(labels_GB)

    @torch.inference_mode()
    def evaluate(self, split: str, stop: Callable[[], bool] = lambda: False) -> Tensor:
        """Logits [G, N, K] of a split, float32, averaged over the test-time views."""
        self.network.eval()
        batches = []
        for batch in self.feeds[split].all(self.recipe.eval_batch):
            if stop():
                raise Interrupted
            shown = views(self.normalise(batch), self.setting.tta)
            batches.append(torch.stack([self._logits(view[None]) for view in shown]).mean(0))
        return torch.cat(batches, dim=1)

    def _result(
        self, row: int, mask: NDArray[np.bool_], logits: dict[str, Tensor], seconds: float
    ) -> RowResult | RowFailure:
        if not mask.any():
            return RowFailure(row, "empty training subset", seconds)
        values = {"train_masks": mask}
        for name, logits_NK in logits.items():
            margins = margin(logits_NK, self.labels[name])
            for kind, value in ((f"{name}_margins", margins), (f"{name}_logits", logits_NK)):
                if not torch.isfinite(value).all():
                    return RowFailure(row, f"{kind} not finite", seconds)
                if value.abs().max() > FLOAT16_MAX:
                    return RowFailure(row, f"{kind} outside float16's range", seconds)
                values[kind] = value.half().cpu().numpy()
        return RowResult(
            row=row,
            arrays=values,
            seconds=seconds,
            accuracy=float((values["test_margins"] > 0).mean()),
            train_accuracy=float((values["train_margins"][mask] > 0).mean()),
        )


def margin(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
    """Correct-class logit minus the largest other logit (Ilyas et al. 2022), [N]."""
    correct = logits_NK.gather(1, labels_N[:, None])
    others = logits_NK.scatter(1, labels_N[:, None], -torch.inf)
    return correct[:, 0] - others.amax(1)
