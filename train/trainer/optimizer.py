"""A network's parameters as one flat tensor, which is reset for every group of rows and stepped by SGD."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datamodels.train.errors import UserError
from datamodels.train.kernels import TORCH, Kernels
from datamodels.train.rng import Stream, stream_row, uniform
from datamodels.train.trainer.custom_model import CustomNetwork
from datamodels.train.trainer.models import initialiser

ALIGNMENT = 16
"""Elements of a flat tensor come in multiples of this, so that kernels move 16 bytes at a time to the end."""


@dataclass(frozen=True)
class Section:
    """The part [start, stop) of a row's parameter vector that one parameter takes."""

    name: str
    parameter: nn.Parameter
    start: int
    stop: int


class FlatParameters:
    """All parameters of a network for G rows in one flat tensor, with their gradient and momentum likewise.

    Parameters lie one after another, each with its G rows together, and zeros up to a multiple of ALIGNMENT; weights of
    ungrouped convolutions lie in channels_last order, except in custom networks. If units compute in a lower
    `precision`, their convolutions' weights are a copy of the flat float32 tensor in it, which every step renews.
    """

    def __init__(
        self,
        network: nn.Module,
        group: int,
        device: torch.device,
        precision: torch.dtype = torch.float32,
        kernels: Kernels = TORCH,
    ) -> None:
        self.network, self.group, self.kernels = network, group, kernels
        self.sections = _sections(network, group)
        sizes = [section.stop - section.start for section in self.sections]
        self.per_row = sum(sizes)
        self.size = group * self.per_row
        padded = -(-self.size // ALIGNMENT) * ALIGNMENT
        self.value, self.grad, self.momentum = (torch.zeros(padded, device=device) for _ in range(3))
        self.copy = None if precision == torch.float32 else torch.zeros(padded, device=device, dtype=precision)
        self.grads: list[Tensor] = []
        """The gradient as the parameters see it, in their order."""
        self.row: Tensor | None = None
        """The row in the group that each element belongs to; None where there is one."""
        if group > 1:
            rows = np.tile(np.arange(group), len(sizes)).repeat(np.repeat(sizes, group))
            self.row = torch.from_numpy(np.pad(rows, (0, padded - self.size))).to(device)
        self._attach()

    def _attach(self) -> None:
        """Have the network's parameters lie in the flat tensors."""
        copied = {id(unit.conv.weight) for unit in getattr(self.network, "units", ())}
        view = Tensor.view if isinstance(self.network, CustomNetwork) else _channels_last_view
        self.grads.clear()
        at = 0
        for section in self.sections:
            parameter, shape = section.parameter, section.parameter.shape
            part = slice(at, at + parameter.numel())
            flat = self.copy if self.copy is not None and id(parameter) in copied else self.value
            parameter.data = view(flat[part], shape)
            self.grads.append(view(self.grad[part], shape))
            at = part.stop

    def reset(self, seed: int, rows: range, start: Tensor | None = None, fixed: Collection[str] = ()) -> None:
        """Start the rows afresh, each from its initialisation stream; momentum back to zero. Raises UserError.

        start: what `initial_values` gave for these rows, on the device, if already computed. fixed: as in the setting.
        """
        if isinstance(self.network, CustomNetwork):
            start = self._remake(self.network, seed, rows.start, fixed)
        elif start is None:
            start = torch.from_numpy(self.initial_values(seed, rows, fixed))
        self.value[: self.size].copy_(start)
        self.momentum.zero_()
        if self.copy is not None:
            self.copy.copy_(self.value)

    def _remake(self, network: CustomNetwork, seed: int, row: int, fixed: Collection[str]) -> Tensor:
        """Values of the module that a custom network makes for a row; its parameters then lie in the flat tensors."""
        network.restart(seed, row, self.value.device, fixed)
        self.sections = _sections(network, 1)
        values = torch.cat([section.parameter.detach().flatten() for section in self.sections])
        if len(values) != self.size:
            raise UserError(f"{network.path}: network() makes {len(values)} parameters, but made {self.size} before")
        self._attach()
        return values

    def initial_values(self, seed: int, rows: range, fixed: Collection[str] = ()) -> NDArray[np.float32]:
        """The rows' initial values, as they lie in the flat tensor. Changes nothing; not for custom networks."""
        stream = Stream.INITIALISATION
        draws = [uniform(seed, stream_row(fixed, stream, row), stream, self.per_row) for row in rows]
        values = []
        for section in self.sections:
            fill = initialiser(self.network, section.name)
            values += [fill(draw[section.start : section.stop]) for draw in draws]
        return np.concatenate(values)

    def backward(self, loss: Tensor) -> None:
        """Put the gradient of a loss in the place of the one before."""
        leaves = [section.parameter for section in self.sections]
        found = torch.autograd.grad(loss, leaves, materialize_grads=True)
        for dtype in dict.fromkeys(new.dtype for new in found):  # all of one type take one kernel, mixed ones one each
            pairs = [(place, new) for place, new in zip(self.grads, found, strict=True) if new.dtype == dtype]
            places, new = zip(*pairs, strict=True)
            torch._foreach_copy_(list(places), list(new))

    def step(self, lr: Tensor, momentum: float, weight_decay: float, scale: float = 1.0) -> None:
        """One step of SGD as in torch.optim.SGD, with a learning rate per row (lr: [G]).

        scale: what the loss was multiplied by before its gradient was taken.
        """
        state = self.value, self.grad, self.momentum, lr
        others = {"keep": momentum, "decay": weight_decay, "scale": 1 / scale, "row": self.row, "copy": self.copy}
        self.kernels.sgd_step(*state, **others)


def _channels_last_view(flat: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 4:
        outputs, inputs, height, width = shape
        return flat.view(outputs, height, width, inputs).permute(0, 3, 1, 2)
    return flat.view(shape)


def _sections(network: nn.Module, group: int) -> list[Section]:
    sections: list[Section] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            start = sections[-1].stop if sections else 0
            sections.append(Section(name, parameter, start, start + parameter.numel() // group))
    return sections


def reset_statistics(network: nn.Module) -> None:
    """Running means and variances of batch norm, back to 0 and 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
