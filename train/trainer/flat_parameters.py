"""A network's parameters as one flat tensor, which is reset for every group of rows, and how each of them starts."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datamodels.train.errors import UserError
from datamodels.train.kernels import sgd_step
from datamodels.train.rng import Stream, uniform
from datamodels.train.trainer.device import sent
from datamodels.train.trainer.models import ConvNet, ResNet18
from datamodels.train.trainer.own_model import OwnNetwork

ALIGNMENT = 16
"""Elements of a flat tensor come in multiples of this, so that kernels move 16 bytes at a time to the end."""


@dataclass(frozen=True)
class Section:
    """The part [start, stop) of a row's parameter vector that one parameter takes, and how it starts."""

    parameter: nn.Parameter
    start: int
    stop: int
    fill: Callable[[NDArray[np.float32]], NDArray[np.float32] | float]
    """From uniform numbers in [0, 1) to initial values."""


class Parameters:
    """All parameters of a network for G rows in one flat tensor, with their gradient and momentum likewise.

    Parameters lie one after another, each with its G rows together, and zeros up to a multiple of ALIGNMENT; weights of
    ungrouped convolutions lie in channels_last order, but in own networks. Where the network computes in `precision`,
    its convolutions' weights are that precision's copy of the flat float32 tensor, which every step renews.
    """

    def __init__(
        self, network: nn.Module, group: int, device: torch.device, precision: torch.dtype = torch.float32
    ) -> None:
        self.network, self.group = network, group
        self.sections = list(_sections(network, group))
        self.size = sum(section.parameter.numel() for section in self.sections)
        padded = -(-self.size // ALIGNMENT) * ALIGNMENT
        self.value, self.grad, self.momentum = (torch.zeros(padded, device=device) for _ in range(3))
        self.copy = None if precision == torch.float32 else torch.zeros(padded, device=device, dtype=precision)
        self.grads: list[Tensor] = []
        """The gradient as the parameters see it, in their order."""
        self._attach()
        self.row = None if group == 1 else torch.from_numpy(self._row_of_each()).to(device)
        """The row in the group that each element belongs to; None where there is one."""

    def _row_of_each(self) -> NDArray[np.int64]:
        sizes = [section.stop - section.start for section in self.sections]
        rows = np.tile(np.arange(self.group), len(sizes)).repeat(np.repeat(sizes, self.group))
        return np.pad(rows, (0, len(self.value) - self.size))

    def _attach(self) -> None:
        """Have the network's parameters lie in the flat tensors."""
        copied = {id(unit.conv.weight) for unit in getattr(self.network, "units", ())}
        view = Tensor.view if isinstance(self.network, OwnNetwork) else _view
        self.grads.clear()
        at = 0
        for section in self.sections:
            parameter, count = section.parameter, section.parameter.numel()
            shape = parameter.shape
            home = self.copy if self.copy is not None and id(parameter) in copied else self.value
            parameter.data = view(home[at : at + count], shape)
            self.grads.append(view(self.grad[at : at + count], shape))
            at += count

    @property
    def per_row(self) -> int:
        return self.sections[-1].stop

    def reset(self, seed: int, rows: range, start: NDArray[np.float32] | None = None) -> None:
        """Start the rows afresh, each from its own initialisation stream; momentum back to zero. Raises UserError.

        start: what `start` gave for these rows, where it has been asked before.
        """
        if isinstance(self.network, OwnNetwork):
            self._take_over(self.network, seed, rows.start)
        else:
            start = self.start(seed, rows) if start is None else start
            self.value[: self.size].copy_(sent(start, self.value.device))
        self.momentum.zero_()
        self._renew_copy()

    def _take_over(self, network: OwnNetwork, seed: int, row: int) -> None:
        """The parameters of the module that an own network makes for a row, and their values."""
        network.restart(seed, row, self.value.device)
        self.sections = list(_sections(network, 1))
        values = torch.cat([section.parameter.detach().flatten() for section in self.sections])
        if len(values) != self.size:
            raise UserError(f"{network.path}: network() makes {len(values)} parameters, but made {self.size} before")
        self.value[: self.size].copy_(values)
        self._attach()

    def start(self, seed: int, rows: range) -> NDArray[np.float32]:
        """The rows' initial values, as they lie in the flat tensor. Changes nothing; not for own networks."""
        starts = [uniform(seed, row, Stream.INITIALISATION, self.per_row) for row in rows]
        flat = [section.fill(start[section.start : section.stop]) for section in self.sections for start in starts]
        sizes = [section.stop - section.start for section in self.sections for _ in starts]
        values = [np.broadcast_to(np.float32(part), size) for part, size in zip(flat, sizes, strict=True)]
        return np.concatenate(values)

    def backward(self, loss: Tensor) -> None:
        """Put the gradient of a loss in the place of the one before."""
        leaves = [section.parameter for section in self.sections]
        found = torch.autograd.grad(loss, leaves, materialize_grads=True)
        for dtype in dict.fromkeys(new.dtype for new in found):  # all of one type take one kernel, mixed ones one each
            pairs = [(home, new) for home, new in zip(self.grads, found, strict=True) if new.dtype == dtype]
            homes, new = zip(*pairs, strict=True)
            torch._foreach_copy_(list(homes), list(new))

    def step(self, lr: Tensor, momentum: float, weight_decay: float, scale: float = 1.0) -> None:
        """One step of SGD as in torch.optim.SGD, with a learning rate per row (lr: [G]).

        scale: what the loss was multiplied by before its gradient was taken.
        """
        state = self.value, self.grad, self.momentum, lr
        sgd_step(*state, keep=momentum, decay=weight_decay, scale=1 / scale, row=self.row, copy=self.copy)

    def _renew_copy(self) -> None:
        if self.copy is not None:
            self.copy.copy_(self.value)


def _view(flat: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 4:
        outputs, inputs, height, breadth = shape
        return flat.view(outputs, height, breadth, inputs).permute(0, 3, 1, 2)
    return flat.view(shape)


def _sections(network: nn.Module, group: int) -> list[Section]:
    sections: list[Section] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        start = sections[-1].stop if sections else 0
        stop = start + parameter.numel() // group
        sections.append(Section(parameter, start, stop, _initialiser(network, name, parameter)))
    return sections


def _initialiser(
    network: nn.Module, name: str, parameter: nn.Parameter
) -> Callable[[NDArray[np.float32]], NDArray[np.float32] | float]:
    """PyTorch's default: uniform within 1/sqrt(fan_in); 1 and 0 for batch norm; torchvision's own for its ResNet."""
    if isinstance(network, OwnNetwork):
        return lambda u: u  # never asked: its module starts them
    owner, _, kind = name.rpartition(".")
    module = network.get_submodule(owner)
    if isinstance(module, nn.BatchNorm2d):
        return lambda u: 1.0 if kind == "weight" else 0.0
    if isinstance(network, ResNet18) and isinstance(module, nn.Conv2d):
        return _normal(math.sqrt(2 / (parameter.shape[0] * parameter[0, 0].numel())))
    if isinstance(module, nn.Conv2d):
        return _symmetric(1 / math.sqrt(module.weight[0].numel()))
    if isinstance(module, nn.Linear):
        return _symmetric(1 / math.sqrt(module.in_features))
    assert isinstance(module, ConvNet)
    return _symmetric(1 / math.sqrt(module.weight.shape[1]))


def _symmetric(bound: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    return lambda u: (2 * u - 1) * np.float32(bound)


def _normal(std: float) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    from scipy.special import ndtri

    # In float64, since the largest u plus half its spacing rounds to 1 in float32, whose quantile is infinite.
    return lambda u: (ndtri(u + np.float64(2**-25)) * std).astype(np.float32)


def reset_statistics(network: nn.Module) -> None:
    """Running means and variances of batch norm, back to 0 and 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
