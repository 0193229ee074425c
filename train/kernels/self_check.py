"""A check of the kernels on the device that they are to run on: small inputs, against float64 or bit for bit."""

import copy
import math

import numpy as np
import torch
from torch import Tensor, nn

from datamodels.train.config import Recipe
from datamodels.train.data import Dataset, Split
from datamodels.train.errors import WorkError
from datamodels.train.kernels.augment import Augment
from datamodels.train.kernels.backend import TORCH, Kernels

STORED = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3}
"""Largest relative error of activations that are stored in a precision, which the interpreter's bfloat16 cuts off."""
SUMMED = 1e-6
"""That of statistics and of the parameters' gradients, which are summed in float32."""
FORMS = [(True, None), (False, None), (True, "before"), (True, "after")]
"""Whether a ReLU follows a batch norm, and where a residual comes: all that the networks have."""


def check_kernels(kernels: Kernels, device: torch.device, precision: torch.dtype) -> None:
    """Raises WorkError, which names the kernel, where one computes something wrong; and what starting one raises."""
    for relu, place in FORMS:
        name = f"batch norm{' + ReLU' if relu else ''}{f', residual {place} it' if place else ''}"
        _require_bounds(name, batch_norm_errors(kernels, device, precision, relu, place), device)
    _require_bounds("SGD", sgd_errors(kernels, device, precision), device)
    _require_bounds("augmentation", augmentation_errors(kernels, device, precision), device)


Errors = dict[str, tuple[float, float]]
"""By result: its relative error, and the largest that is right."""


def _require_bounds(kernel: str, errors: Errors, device: torch.device) -> None:
    for result, (error, most) in errors.items():
        if not error <= most:
            raise WorkError(
                f"the kernel of {kernel} is wrong on {device}: {result} is off by {error:.2g}, expected at most "
                f"{most:.2g}; nothing is trained with it; recipe.kernels: torch does without"
            )


def batch_norm_errors(
    kernels: Kernels,
    device: torch.device,
    precision: torch.dtype,
    relu: bool,
    place: str | None,
    x: Tensor | None = None,
    stored: float | None = None,
    summed: float = SUMMED,
) -> Errors:
    """Errors of results, gradients and running statistics, against PyTorch in float64.

    x: [B, C, H, W], or a small random one; stored, summed: other bounds, for an x that is hard. Errors are relative to
    the norm of the values, those of a gradient to that of dy if larger: a ReLU may leave little of it.
    """
    random = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(3, 20, 7, 9, generator=random) + 1 if x is None else x
    x = x.contiguous(memory_format=torch.channels_last).to(device, precision)
    dy, residual = (torch.randn(x.shape, generator=random).to(x) for _ in range(2))
    norm = nn.BatchNorm2d(x.shape[1], momentum=1.0)  # the running statistics are the batch's
    nn.init.uniform_(norm.weight, -1, 2, generator=random)
    nn.init.normal_(norm.bias, generator=random)
    norm = norm.to(device)

    def results(used: Kernels, norm: nn.BatchNorm2d, dtype: torch.dtype) -> dict[str, Tensor]:
        inputs = {"x": x.to(dtype).requires_grad_()}
        if place:
            inputs["the residual"] = residual.to(dtype).requires_grad_()
        others = {} if place is None else {place: inputs["the residual"]}
        y = used.batch_norm_act(inputs["x"], norm, relu=relu, **others)
        names = [*inputs, "the weight", "the bias"]
        gradients = torch.autograd.grad(y, [*inputs.values(), norm.weight, norm.bias], dy.to(dtype))
        found = {"its result": y.detach()}
        found |= {f"the gradient of {name}": value for name, value in zip(names, gradients, strict=True)}
        found |= {f"the {name}": value for name, value in norm.named_buffers() if "running" in name}
        with torch.no_grad():
            found["its result in evaluation"] = used.batch_norm_act(inputs["x"], norm.eval(), relu=relu, **others)
        return found

    exact = results(TORCH, copy.deepcopy(norm).double(), torch.float64)
    errors: Errors = {}
    for name, value in results(kernels, norm, precision).items():
        expected = exact[name]
        least = math.sqrt(expected.numel()) if "result" in name else 0.0
        scale = max(float(expected.norm()), float(dy.double().norm()) if "gradient" in name else least)
        if name == "the running_mean":
            scale = float((expected.square() + exact["the running_var"]).sqrt().norm())
        most = (stored or STORED[precision]) if value.shape == x.shape else summed
        errors[name] = float((value.double() - expected).norm()) / scale, most
    return errors


def sgd_errors(kernels: Kernels, device: torch.device, precision: torch.dtype) -> Errors:
    """Errors of values, momentum and the copy in less precision after a step, with one learning rate and with three."""
    errors: Errors = {}
    random = torch.Generator().manual_seed(0)
    for group in (1, 3):
        value, momentum, grad = torch.randn(3, 5000, generator=random).to(device).unbind()
        row = torch.randint(group, (5000,), generator=random).to(device) if group > 1 else None
        lr = torch.rand(group, generator=random).to(device)
        constants = {"keep": 0.9, "decay": 5e-4, "scale": 1 / 1024, "row": row}
        exact, exact_momentum = value.double(), momentum.double()
        TORCH.sgd_step(exact, 1024 * grad.double(), exact_momentum, lr.double(), **constants)
        lower = None if precision == torch.float32 else torch.full_like(value, torch.nan, dtype=precision)
        kernels.sgd_step(value, 1024 * grad, momentum, lr, **constants, copy=lower)
        found = {"values": (value, exact, 1e-6), "momentum": (momentum, exact_momentum, 1e-6)}
        if lower is not None:
            found["values in less precision"] = lower, exact, STORED[precision]
        for name, (result, expected, most) in found.items():
            errors[f"{name} of {group}"] = float((result.double() - expected).norm() / expected.norm()), most
    return errors


def augmentation_errors(kernels: Kernels, device: torch.device, precision: torch.dtype) -> Errors:
    """Errors of a batch, whose bits are those of PyTorch's operations: 0, or the number of values that differ."""
    random = np.random.default_rng(0)
    split = Split(random.integers(0, 256, (6, 12, 10, 3), dtype=np.uint8), np.arange(6))
    dataset = Dataset(split, split, tuple("abcdef"), (125.3, 123.0, 113.9), (51.6, 50.8, 51.3), "random numbers")
    recipe = Recipe(flip=True, translate=2, cutout=4)
    bordered = torch.from_numpy(random.integers(0, 256, (6, 16, 14, 3), dtype=np.uint8)).to(device)
    index = torch.from_numpy(random.integers(0, 6, (2, 20))).to(device)
    draws = torch.from_numpy(random.integers(-(2**63), 2**63, (2, 20))).to(device)
    batches = [
        augment(dataset, recipe, device, precision, 8)(bordered, index, draws) for augment in (kernels.augment, Augment)
    ]
    return {"the number of its values": (float((batches[0] != batches[1]).sum()), 0.0)}
