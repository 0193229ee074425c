"""Other ways of training CIFAR-10's recipe on the same device: seconds a row, evaluation of 60,000 images included.

Not in a peer's time: a store, masks, drawing from a row's own streams, compilation. Its data lie on the device from the
beginning, and its libraries may choose the fastest kernels, deterministic or not.

The compiled loop is as airbench's (KellerJordan/cifar10-airbench): weights in half precision with batch norm in
float32, one compiled network that is reset for every model, a whole epoch of images augmented at once on the device,
batches by index, one fused kernel for the optimiser. The recipe is ours, and so are its augmentation and its two views
in evaluation. Weights have no float32 master copy: what is compared is speed alone.
"""

import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench import plain
from bench.timing import wall
from datamodels.launch.export.network import ResNet9
from datamodels.train.config import Setting
from datamodels.train.data import Dataset
from datamodels.train.kernels import TORCH, Kernels
from datamodels.train.masks import subset_size
from datamodels.train.trainer.device import on_gpu
from datamodels.train.trainer.executor import Executor

Loop = Callable[..., list[Tensor]]
"""From a subset, and epochs after which to stop, to what it computes of all images."""

MODES = ("reduce-overhead", "max-autotune")
"""Of torch.compile; both replay CUDA graphs. airbench94_compiled.py takes the second, which chooses kernels by timing
them, for several minutes.
"""


class Loss(nn.Module):
    def __init__(self, model: ResNet9) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.model.logits(images).float(), labels, label_smoothing=plain.SMOOTHING)


class Logits(nn.Module):
    def __init__(self, model: ResNet9) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """The mean over an image and its mirror image."""
        return (self.model.logits(images) + self.model.logits(images.flip(3))).float() / 2


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


def upstream(images: plain.Images, setting: Setting) -> Loop:
    recipe = setting.recipe
    precision = torch.float16 if on_gpu(images.train.device) else torch.bfloat16
    return plain.Loop(images, precision, recipe.width, recipe.epochs, recipe.batch)


def compiled(images: plain.Images, setting: Setting, mode: str) -> Loop:
    recipe = setting.recipe
    backend = "inductor" if on_gpu(images.train.device) else "aot_eager"  # a CPU's would need a C++ compiler
    return CompiledLoop(images, recipe.width, recipe.epochs, recipe.batch, backend, mode)


def compiled_kernels(executor: Executor) -> Kernels:
    """PyTorch's batch norm with what follows it, and its SGD, each compiled to as few kernels as the compiler can.

    They run within our CUDA graph; nothing is chosen by timing, so that rows have the same bytes every time.
    """
    import torch._dynamo.config
    import torch._inductor.config

    torch._inductor.config.deterministic = True
    torch._dynamo.config.recompile_limit = 64  # a function is compiled for every layer
    backend = "inductor" if on_gpu(executor.device) else "aot_eager"  # a CPU's would need a C++ compiler
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # the compiler's own look
    compiled = partial(torch.compile, backend=backend, fullgraph=True, dynamic=False)
    return Kernels("compiled", compiled(TORCH.batch_norm_act), compiled(TORCH.sgd_step), TORCH.augment)


Maker = Callable[[plain.Images, Setting], Loop]


def makers(mode: str) -> dict[str, Maker]:
    """The peers by name; mode: of torch.compile."""
    return {
        "eager float16 loop as upstream's": upstream,
        f"airbench-style loop, compiled for {mode}": partial(compiled, mode=mode),
    }


def measured(
    make: Maker, setting: Setting, dataset: Dataset, executor: Executor, rows: int, ours: float
) -> dict[str, float]:
    """Seconds of some rows, after one of a single epoch that warms up and compiles, and times ours."""
    arrays = [np.array(part) for split in (dataset.train, dataset.test) for part in (split.images, split.labels)]
    images = plain.Images(*(torch.from_numpy(array).to(executor.device) for array in arrays))
    subset = torch.arange(subset_size(setting.alpha, len(images.train)), device=executor.device)
    with fastest_algorithms():
        loop = make(images, setting)
        loop(subset, 1)
        taken = [wall(lambda: loop(subset), executor) for _ in range(rows)]
    torch.compiler.reset()  # what was compiled would keep its memory
    median = statistics.median(taken)
    return {
        "seconds_per_row": median,
        "rows": rows,
        "fastest": min(taken),
        "slowest": max(taken),
        "over_ours": median / ours,
    }


def describe(found: dict[str, float]) -> str:
    return (
        f"{found['seconds_per_row']:.3f} s a row, the median of {found['rows']} ({found['fastest']:.3f} to "
        f"{found['slowest']:.3f}), {found['over_ours']:.2f} times ours"
    )


@contextmanager
def fastest_algorithms() -> Iterator[None]:
    """The fastest algorithms that cuDNN finds by timing them, where the trainer asks for deterministic ones."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    cudnn.deterministic, cudnn.benchmark = False, True
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before[:2]
        torch.use_deterministic_algorithms(before[2], warn_only=True)
