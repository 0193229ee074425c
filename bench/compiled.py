"""An airbench-style loop of the same network, as a peer (KellerJordan/cifar10-airbench, by its means).

Weights in half precision with batch norm in float32, one compiled network that is reset for every model, a whole epoch
of images augmented at once on the device, batches by index, one fused kernel for the optimiser. The recipe is ours, and
so are its augmentation and its two views of 60,000 images in evaluation. Weights have no float32 master copy: what is
compared is speed alone. Compilation is not timed.

airbench94_compiled.py compiles with mode `max-autotune`, and says that the first run takes several minutes: kernels are
chosen by timing them. `reduce-overhead`, our default, replays CUDA graphs as that does, without the choice, and is
through in a run of minutes on a machine that is lent; `bench.gpu --compile-mode max-autotune` has time for the other.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import plain
from datamodels.train.trainer.device import on_gpu

MODES = ("reduce-overhead", "max-autotune")
"""Of torch.compile; both replay CUDA graphs."""


class Loss(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model(images).float(), labels, label_smoothing=plain.SMOOTHING)


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """The mean over an image and its mirror image."""
        return (self.model(images) + self.model(images.flip(3))).float() / 2


class CompiledLoop:
    """Trains one model after the other. backend: of torch.compile; mode: of `inductor` on a GPU."""

    def __init__(
        self, images: plain.Images, width: int, epochs: int, batch: int, backend: str = "inductor", mode: str = MODES[0]
    ) -> None:
        self.images, self.epochs, self.batch = images, epochs, batch
        self.device = images.train.device
        self.batches = plain.Batches(self.device)
        self.dtype = torch.float16 if on_gpu(self.device) else torch.bfloat16
        self.model = plain.network(width).to(self.device).to(self.dtype)
        for module in self.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.float()
        chosen = mode if backend == "inductor" and on_gpu(self.device) else None
        self._mark = torch.compiler.cudagraph_mark_step_begin if chosen else lambda: None
        """Tells that the step before is through with its memory."""
        self._loss = torch.compile(Loss(self.model), backend=backend, mode=chosen, fullgraph=True)
        self._logits = torch.compile(Logits(self.model), backend=backend, mode=chosen, fullgraph=True)
        self._augment = torch.compile(self._augmented, backend=backend, fullgraph=True)

    def _augmented(self, images: Tensor) -> Tensor:
        return self.batches.normalise(self.batches.augment(images), self.dtype)

    def __call__(self, subset: Tensor, epochs: int | None = None) -> list[Tensor]:
        """Logits of all training and test images after training on a subset; `epochs` ends the training early."""
        for module in self.model.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
                module.reset_parameters()
        self.model.train()
        self._train(subset, self.epochs if epochs is None else epochs)
        self.model.eval()
        with torch.no_grad():
            return [self._all_logits(images) for images in (self.images.train, self.images.test)]

    def _train(self, subset: Tensor, epochs: int) -> None:
        per_epoch = len(subset) // self.batch
        optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.0, momentum=plain.MOMENTUM, weight_decay=plain.DECAY, fused=True
        )
        corners = [0, self.epochs * plain.PEAK / plain.EPOCHS * per_epoch, self.epochs * per_epoch]
        chosen, labels = self.images.train[subset], self.images.train_labels[subset]
        for epoch in range(epochs):
            images = self._augment(chosen)
            order = torch.randperm(len(subset), device=self.device)[: per_epoch * self.batch]
            for step, index in enumerate(order.split(self.batch), epoch * per_epoch):
                self._mark()
                self._loss(images[index], labels[index]).backward()
                optimizer.param_groups[0]["lr"] = plain.LR * float(np.interp(step, corners, [0, 1, 0]))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    def _all_logits(self, images: Tensor) -> Tensor:
        found = []
        for batch in images.split(1000):
            self._mark()
            found.append(self._logits(self.batches.normalise(batch, self.dtype)).clone())
        return torch.cat(found).half().cpu()
