"""One network on one device, and all that a group of rows in training needs there.

Every step reads nothing but tensors of the lane, so that a GPU can replay it (train/trainer/cuda_graph.py); the host sends a
group's tables once and waits for nothing. Shape letters: G rows of a group, S steps, B images of a batch, N images of a
split, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from datamodels.train.config import Setting
from datamodels.train.errors import Interrupted
from datamodels.train.kernels import FusedAugment
from datamodels.train.masks import batch_size, largest_subset
from datamodels.train.trainer.augment import Augment, views
from datamodels.train.trainer.cuda_graph import WARM_UP, Replay
from datamodels.train.trainer.device import on_gpu, precision, sent
from datamodels.train.trainer.flat_parameters import Parameters, reset_statistics
from datamodels.train.trainer.loader import Feed
from datamodels.train.trainer.models import build
from datamodels.train.trainer.schedule import Tables, most_steps

FP16_LOSS_SCALE = 1024.0
"""Static, so that a row depends on nothing but itself; the recipe's gradients are far from both ends of the range."""

CHANNELS = 8
"""Input channels that half-precision convolutions on a GPU need for their fast path (pytorch #54404)."""

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Shared:
    """What the lanes of a device share: a setting, and its data set on the device."""

    setting: Setting
    device: torch.device
    augment: Augment
    feeds: dict[str, Feed]
    labels: dict[str, Tensor]
    classes: int


class Lane:
    """Trains one group of rows after the other. The network is built once and reset for every group."""

    def __init__(self, shared: Shared) -> None:
        setting, recipe, device = shared.setting, shared.setting.recipe, shared.device
        self.shared, self.setting, self.recipe, self.device = shared, setting, recipe, device
        self.precision = precision(recipe, device)
        feed = shared.feeds["train"]
        self.network = build(recipe, feed.images.shape[1:], shared.classes).to(device)
        self.parameters = Parameters(self.network, recipe.group, device, self.precision)
        n_train = len(feed.images)
        group, batch = recipe.group, batch_size(setting, n_train)
        steps = max(most_steps(recipe, largest_subset(setting, n_train)), WARM_UP + 1)
        self._cast = self.precision != torch.float32 and not hasattr(self.network, "units")
        """Whether torch is to choose what is computed in the lower precision; units say so themselves."""
        dtype, channels = torch.float32 if self._cast else self.precision, feed.images.shape[3]
        if on_gpu(device) and dtype != torch.float32:
            channels = max(channels, CHANNELS)
        self._augment = FusedAugment(shared.augment, dtype, channels)
        self._order, self._draws = (torch.zeros((group, steps, batch), dtype=torch.int64, device=device) for _ in "od")
        self._lr = torch.zeros((group, steps), device=device)
        self._weight = torch.zeros((group, batch), device=device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)
        """The step that comes next."""
        self._place = torch.arange(group * batch, device=device).view(group, batch)
        self._images = feed.empty(group * batch) if feed.kept is None else feed.kept
        """Where a step finds its images: the whole split, or the batch that was sent for it."""
        self._step = Replay(self._one_step, device)
        self._shown = torch.zeros((recipe.eval_batch, *feed.images.shape[1:]), dtype=torch.uint8, device=device)
        self._logits = torch.zeros((group, recipe.eval_batch, shared.classes), device=device)
        self._look = Replay(self._one_look, device)

    def prepare(self) -> None:
        """Have a GPU capture what it will replay, on the current stream: no own network, whose code may branch."""
        if self.recipe.own_network:
            return
        self.network.train()
        self._step.prepare()
        self.network.eval()
        self._look.prepare()

    def begin(self, plan: Tables, rows: range, start: NDArray[np.float32] | None = None) -> None:
        """Put the rows' initial state and tables in place.

        start: the parameters' initial values, where they have been drawn before.
        """
        self.parameters.reset(self.setting.seed, rows, start)
        reset_statistics(self.network)
        self.network.train()
        steps = plan.order_GSB.shape[1]
        self._order[:, :steps] = sent(plan.order_GSB, self.device)
        self._draws[:, :steps] = sent(plan.draws_GSB, self.device)
        self._lr[:, :steps] = sent(plan.lr_GS, self.device)
        self._weight.copy_(sent(plan.weight_GB, self.device))
        self._at.zero_()
        self._plan = plan

    def train(self, stop: Stop) -> None:
        """From the first step to the last. Raises Interrupted."""
        order, feed = self._plan.order_GSB, self.shared.feeds["train"]
        steps = range(order.shape[1])
        if feed.kept is not None:
            for _ in steps:
                _check(stop)
                self._step()
            return
        for images in feed.sent(order[:, step].ravel() for step in steps):
            _check(stop)
            feed.inside(self._images).copy_(images)
            self._step()

    def _one_step(self) -> None:
        order_GB, draws_GB, lr_G = (
            table.index_select(1, self._at).squeeze(1) for table in (self._order, self._draws, self._lr)
        )
        index_GB = self._place if self.shared.feeds["train"].kept is None else order_GB
        images = self._augment(self._images, index_GB, draws_GB)
        loss = (self._losses(self._forward(images), self.shared.labels["train"][order_GB]) * self._weight).sum()
        scale = FP16_LOSS_SCALE if self.precision == torch.float16 else 1.0
        self.parameters.backward(loss * scale)
        self.parameters.step(lr_G, self.recipe.momentum, self.recipe.weight_decay, scale)
        self._at += 1

    def _forward(self, images_GBHWC: Tensor) -> Tensor:
        if not self._cast:
            return self.network(images_GBHWC).float()
        with torch.autocast(self.device.type, self.precision):
            return self.network(images_GBHWC).float()

    def _losses(self, logits_GBK: Tensor, labels_GB: Tensor) -> Tensor:
        losses = F.cross_entropy(
            logits_GBK.flatten(0, 1), labels_GB.flatten(), reduction="none", label_smoothing=self.recipe.label_smoothing
        )
        return losses.view_as(labels_GB)

    @torch.inference_mode()
    def evaluate(self, split: str, stop: Stop) -> Tensor:
        """Logits [G, N, K] of a split, float32, averaged over the test-time views. Raises Interrupted."""
        self.network.eval()
        feed, start = self.shared.feeds[split], 0
        logits = torch.empty((self.recipe.group, len(feed.images), self.shared.classes), device=self.device)
        for images in feed.all(self.recipe.eval_batch):
            _check(stop)
            end = start + len(images)
            logits[:, start:end] = self._logits_of(images)
            start = end
        return logits

    def _logits_of(self, images_BHWC: Tensor) -> Tensor:
        if not on_gpu(self.device):
            return self._views_mean(images_BHWC)
        count = len(images_BHWC)
        self._shown[:count] = images_BHWC
        self._look()
        return self._logits[:, :count]

    @torch.inference_mode()
    def _one_look(self) -> None:
        self._logits.copy_(self._views_mean(self._shown))

    def _views_mean(self, images_BHWC: Tensor) -> Tensor:
        shown = views(self.shared.augment.normalise(images_BHWC), self.setting.tta)
        return torch.stack([self._forward(self._augment.shaped(view[None])) for view in shown]).mean(0)


def _check(stop: Stop) -> None:
    if stop():
        raise Interrupted
