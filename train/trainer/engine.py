"""One network on one device, and all that a group of rows in training needs there.

Every step reads nothing but tensors of the engine, so that a GPU can replay it as a CUDA graph; the host sends a
group's schedule once and waits for nothing. Shape letters: G rows of a group, S steps, B images of a batch, N images of
a split, K classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodels.train.config import Setting
from datamodels.train.errors import Interrupted, WorkError
from datamodels.train.kernels import Augment, Kernels
from datamodels.train.masks import batch_size, largest_subset
from datamodels.train.trainer.cuda_graph import WARM_UP
from datamodels.train.trainer.device import precision
from datamodels.train.trainer.executor import Executor
from datamodels.train.trainer.loader import Loader
from datamodels.train.trainer.models import build, has_units
from datamodels.train.trainer.optimizer import FlatParameters, reset_statistics
from datamodels.train.trainer.schedule import Schedule, most_steps

FP16_LOSS_SCALE = 1024.0
"""Static, so that a row depends on nothing but itself; the recipe's gradients are far from both ends of the range."""

Stop = Callable[[], bool]


@dataclass(frozen=True)
class Shared:
    """What the engines of a device share: a setting, and its data set on the device."""

    setting: Setting
    executor: Executor
    kernels: Kernels
    augment: Augment
    loaders: dict[str, Loader]
    labels: dict[str, Tensor]
    classes: int


class Engine:
    """Trains one group of rows after the other. The network is built once and reset for every group."""

    def __init__(self, shared: Shared) -> None:
        setting, recipe = shared.setting, shared.setting.recipe
        self.shared, self.setting, self.recipe, self.executor = shared, setting, recipe, shared.executor
        device, loader = shared.executor.device, shared.loaders["train"]
        self.precision = precision(recipe, shared.executor)
        self.network = build(recipe, loader.images.shape[1:], shared.classes, shared.kernels).to(device)
        self.parameters = FlatParameters(self.network, recipe.group, device, self.precision, shared.kernels)

        # What a step reads: the schedule of the group, and which of its steps comes next.
        group, batch = recipe.group, batch_size(setting, len(loader.images))
        steps = max(most_steps(recipe, largest_subset(setting, len(loader.images))), WARM_UP + 1)
        self._order, self._draws = (torch.zeros((group, steps, batch), dtype=torch.int64, device=device) for _ in "od")
        self._lr = torch.zeros((group, steps), device=device)
        self._weight = torch.zeros((group, batch), device=device)
        self._next_step = torch.zeros(1, dtype=torch.int64, device=device)

        # Its images: of the whole split, or those that were sent for it, in their order.
        self._images = loader.empty(group * batch) if loader.resident is None else loader.resident
        self._sent_order = torch.arange(group * batch, device=device).view(group, batch)

        # What the captured evaluation of a batch reads and writes.
        shape = recipe.eval_batch, *loader.images.shape[1:]
        self._eval_images = torch.zeros(shape, dtype=loader.dtype, device=device)
        self._eval_logits = torch.zeros((group, recipe.eval_batch, shared.classes), device=device)

        self._train_graph: Callable[[], None] | None = None
        self._eval_graph: Callable[[], None] | None = None

    def capture(self) -> None:
        """Have a GPU capture what it will replay, on the current stream: no custom network, whose code may branch.

        Raises WorkError where a replay does not do what was captured.
        """
        if self.recipe.custom_network:
            return
        self.network.train()
        self._train_graph = self.executor.capture(self._train_step)
        self.network.eval()
        self._eval_graph = self.executor.capture(self._evaluate_batch)
        if self._train_graph != self._train_step:
            self._check_replay(self._train_graph, self._eval_graph)

    def _check_replay(self, train_graph: Callable[[], None], eval_graph: Callable[[], None]) -> None:
        """Raises WorkError unless three replayed steps and an evaluation are the launched ones, bit for bit."""
        random, found = torch.Generator(self.executor.device).manual_seed(0), []
        loaders, count = self.shared.loaders, len(self.shared.labels["train"])
        self._order.random_(count, generator=random)
        self._draws.random_(generator=random)
        self._lr.fill_(1e-3)
        self._weight.fill_(1 / self._weight.shape[1])
        if loaders["train"].resident is None:
            (images,) = loaders["train"].batches([np.arange(len(self._images)) % count])
            loaders["train"].without_border(self._images).copy_(images)
        images = next(loaders["test"].in_order(self.recipe.eval_batch))
        self._eval_images[: len(images)] = images
        start = self.executor.send(self.parameters.initial_values(self.setting.seed, range(self.recipe.group)))
        for step, evaluate in ((self._train_step, self._evaluate_batch), (train_graph, eval_graph)):
            self.parameters.reset(self.setting.seed, range(self.recipe.group), start)
            reset_statistics(self.network)
            self._next_step.zero_()
            self.network.train()
            for _ in range(3):
                step()
            self.network.eval()
            evaluate()
            state = {"parameters": self.parameters.value, "momentum": self.parameters.momentum}
            state |= {**dict(self.network.named_buffers()), "logits of an evaluation": self._eval_logits}
            found.append({name: value.clone() for name, value in state.items()})
        if differing := [name for name, value in found[0].items() if not torch.equal(value, found[1][name])]:
            raise WorkError(
                f"after three replayed steps on {self.executor.device} {differing[0]} is not what three launched steps "
                "give: nothing is trained; please report it with the versions of torch and the driver"
            )

    def begin(self, schedule: Schedule, rows: range, start: Tensor | None = None) -> None:
        """Put the rows' initial state and schedule in place.

        start: the parameters' initial values on the device, where they have been drawn before.
        """
        self.parameters.reset(self.setting.seed, rows, start, self.setting.fixed)
        reset_statistics(self.network)
        self.network.train()
        send, steps = self.executor.send, schedule.steps
        self._order[:, :steps] = send(schedule.order_GSB)
        self._draws[:, :steps] = send(schedule.draws_GSB)
        self._lr[:, :steps] = send(schedule.lr_GS)
        self._weight.copy_(send(schedule.weight_GB))
        self._next_step.zero_()
        self._schedule = schedule

    def train(self, stop: Stop) -> None:
        """Train from the first step to the last. Raises Interrupted."""
        schedule, loader = self._schedule, self.shared.loaders["train"]
        step = self._train_graph or self._train_step
        if loader.resident is not None:
            for _ in range(schedule.steps):
                _check(stop)
                step()
            return
        for images in loader.batches(schedule.order_GSB[:, at].ravel() for at in range(schedule.steps)):
            _check(stop)
            loader.without_border(self._images).copy_(images)
            step()

    def _train_step(self) -> None:
        """Augment the next batch, take the gradient of its loss, and step."""
        recipe, shared = self.recipe, self.shared
        order_GB, draws_GB, lr_G = (
            table.index_select(1, self._next_step).squeeze(1) for table in (self._order, self._draws, self._lr)
        )
        index_GB = self._sent_order if shared.loaders["train"].resident is None else order_GB
        logits_GBK = self._forward(shared.augment(self._images, index_GB, draws_GB))
        labels_GB = shared.labels["train"][order_GB]
        losses = F.cross_entropy(
            logits_GBK.flatten(0, 1), labels_GB.flatten(), reduction="none", label_smoothing=recipe.label_smoothing
        )
        loss = (losses.view_as(labels_GB) * self._weight).sum()
        scale = FP16_LOSS_SCALE if self.precision == torch.float16 else 1.0
        self.parameters.backward(loss * scale)
        self.parameters.step(lr_G, recipe.momentum, recipe.weight_decay, scale)
        self._next_step += 1

    def _forward(self, images_GBHWC: Tensor) -> Tensor:
        """Float32 logits [G, B, K]."""
        if self.precision == torch.float32 or has_units(self.recipe):
            return self.network(images_GBHWC).float()
        with torch.autocast(self.executor.device.type, self.precision):
            return self.network(images_GBHWC).float()

    @torch.inference_mode()
    def evaluate(self, split: str, stop: Stop) -> Tensor:
        """Logits [G, N, K] of a split, float32, averaged over the test-time views. Raises Interrupted."""
        self.network.eval()
        loader, start = self.shared.loaders[split], 0
        size = self.recipe.group, len(loader.images), self.shared.classes
        logits_GNK = torch.empty(size, device=self.executor.device)
        for images_BHWC in loader.in_order(self.recipe.eval_batch):
            _check(stop)
            count = len(images_BHWC)
            if self.executor.overlaps:
                self._eval_images[:count] = images_BHWC
                (self._eval_graph or self._evaluate_batch)()
                logits_GNK[:, start : start + count] = self._eval_logits[:, :count]
            else:
                logits_GNK[:, start : start + count] = self._averaged_logits(images_BHWC)
            start += count
        return logits_GNK

    @torch.inference_mode()
    def _evaluate_batch(self) -> None:
        self._eval_logits.copy_(self._averaged_logits(self._eval_images))

    def _averaged_logits(self, images_BHWC: Tensor) -> Tensor:
        """Logits [G, B, K] of images, averaged over the test-time views."""
        augment = self.shared.augment
        shown = views(augment.normalise(images_BHWC), self.setting.tta)
        return torch.stack([self._forward(augment.formatted(view[None])) for view in shown]).mean(0)


def views(images_BHWC: Tensor, tta: str) -> list[Tensor]:
    """The test-time views whose logits are averaged."""
    if tta == "mirror":
        return [images_BHWC, images_BHWC.flip(2)]
    if tta == "legacy_fliplr":
        return [images_BHWC, images_BHWC.flip(3)]
    return [images_BHWC]


def _check(stop: Stop) -> None:
    if stop():
        raise Interrupted
