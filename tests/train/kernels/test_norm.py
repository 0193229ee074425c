import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodels.train.kernels import batch_norm_act, tiling
from datamodels.train.kernels.norm import plain_batch_norm_act
from tests.train.kernels.conftest import INTERPRETED


@dataclass(frozen=True)
class Form:
    """What follows a batch norm."""

    relu: bool = True
    residual: str | None = None

    def __call__(self, x: Tensor, norm: nn.BatchNorm2d, residual: Tensor | None = None) -> Tensor:
        return batch_norm_act(x, norm, **self.options(residual))

    def plainly(self, x: Tensor, norm: nn.BatchNorm2d, residual: Tensor | None = None) -> Tensor:
        return plain_batch_norm_act(x, norm, **self.options(residual))

    def options(self, residual: Tensor | None) -> dict[str, Any]:
        return {"relu": self.relu, **({self.residual: residual} if self.residual else {})}


FORMS = [Form(), Form(False), Form(True, "before"), Form(False, "before"), Form(True, "after")]
STORED = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3 if INTERPRETED else 4e-3}
"""Bounds of what is stored in a precision. The interpreter cuts bfloat16 off where a GPU rounds."""


def normal(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def batch_norm(channels: int, device: torch.device) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).to(device)
    norm.momentum = 1.0  # the running statistics are the batch's
    nn.init.uniform_(norm.weight, -1, 2)
    nn.init.normal_(norm.bias)
    return norm


def step(
    run: Callable[..., Tensor], norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None, dy: Tensor
) -> list[Tensor]:
    """Result, gradients of x, the residual, weight and bias, and running statistics."""
    inputs = [each.detach().clone().requires_grad_() for each in (x, residual) if each is not None]
    y = run(inputs[0], norm, *inputs[1:])
    gradients = torch.autograd.grad(y, [*inputs, norm.weight, norm.bias], dy.to(y.dtype))
    assert {each.dtype for each in (y, *gradients[: len(inputs)])} == {x.dtype}
    return [y.detach(), *gradients, norm.running_mean.clone(), norm.running_var.clone()]


def compare(form: Form, x: Tensor, device: torch.device, bound: float = 1e-6, stored: float | None = None) -> None:
    """One forward and backward against float64, with fresh parameters, residual and gradient."""
    x, norm = x.to(device), batch_norm(x.shape[1], device)
    residual = normal(*x.shape).to(device, x.dtype) if form.residual else None
    dy, exact = torch.randn_like(x), copy.deepcopy(norm).double()
    expected = step(form.plainly, exact, x.double(), None if residual is None else residual.double(), dy.double())
    results = step(form, norm, x, residual, dy)
    scales = [each.norm() for each in expected]
    scales[0] = scales[0].clamp_min(expected[0].numel() ** 0.5)  # a ReLU may leave little or nothing
    scales[1:-2] = [scale.maximum(dy.double().norm()) for scale in scales[1:-2]]
    scales[-2] = (expected[-2].square() + expected[-1]).sqrt().norm()  # of a mean: the root mean square
    limits = [stored or STORED[x.dtype]] * (3 if form.residual else 2) + [bound] * 4
    errors = [(a.double() - b).norm() / scale for a, b, scale in zip(results, expected, scales, strict=True)]
    assert [a.shape for a in results] == [b.shape for b in expected]
    assert all(error <= limit for error, limit in zip(errors, limits, strict=True)), errors


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_results_and_gradients_equal_those_in_float64(form: Form, dtype: torch.dtype, device: torch.device) -> None:
    compare(form, (2 * normal(3, 20, 7, 9) + 1).to(dtype), device)


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_evaluation_equals_the_plain_one_in_float64(form: Form, dtype: torch.dtype, device: torch.device) -> None:
    norm, x = batch_norm(20, device).eval(), (2 * normal(3, 20, 7, 9) + 1).to(device, dtype)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.1, 9)
    residual = [normal(*x.shape).to(device, dtype)] if form.residual else []
    before = copy.deepcopy(norm.state_dict())
    with torch.inference_mode():
        y = form(x, norm, *residual)
    expected = form.plainly(x.double(), copy.deepcopy(norm).double(), *(each.double() for each in residual))
    assert y.dtype == dtype
    assert (y.double() - expected).norm() <= STORED[dtype] * expected.norm().clamp_min(expected.numel() ** 0.5)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_evaluation_has_a_gradient_where_one_is_wanted(device: torch.device) -> None:
    norm = batch_norm(5, device).eval()
    x = normal(2, 5, 4, 4).to(device).requires_grad_()
    with torch.no_grad():
        shown = batch_norm_act(x, norm)
    y = batch_norm_act(x, norm)
    torch.testing.assert_close(y, shown)
    y.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 3, 65, 256])
def test_any_number_of_channels(channels: int, device: torch.device) -> None:
    compare(Form(True, "before"), normal(2, channels, 3, 4), device)


def test_many_programs_with_many_steps_each(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "PROGRAMS", 3)
    monkeypatch.setattr(tiling, "TILE", 128)
    compare(Form(True, "before"), normal(7, 6, 7, 5), device)


def test_a_mean_far_from_zero_costs_only_what_its_own_rounding_costs(device: torch.device) -> None:
    x = 1000 + normal(6, 10, 9, 9)
    compare(Form(relu=False), x, device, bound=2e-4, stored=2e-4)
    norm = batch_norm(10, device)
    batch_norm_act(x.to(device), norm)
    variance = x.double().transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(norm.running_var.cpu().double(), variance, rtol=2e-6, atol=0)


def test_an_outlier_costs_a_digit_at_most(device: torch.device) -> None:
    x = normal(6, 10, 9, 9)
    x[0, :, 0, 0] = 1e5
    compare(Form(relu=False), x, device, 1e-5, 1e-5)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_constant_channel_becomes_its_bias(form: Form, device: torch.device) -> None:
    x = normal(3, 4, 6, 6)
    x[:, 1] = 7.7
    norm = batch_norm(4, device)
    assert (batch_norm_act(x.to(device), norm, relu=False)[:, 1] == norm.bias[1]).all()
    compare(form, x, device, 2e-6, 2e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_not_finite_is_seen(form: Form, device: torch.device) -> None:
    for value in (torch.nan, torch.inf):
        x = normal(3, 4, 6, 6).to(device)
        x[1, 2, 3, 4] = value
        y = form(x, batch_norm(4, device), x if form.residual else None)
        assert y[:, 2].isnan().all()
        assert y[:, [0, 1, 3]].isfinite().all()
    norm, x = batch_norm(4, device), normal(3, 4, 6, 6).to(device)
    norm.bias.data[1] = torch.nan
    assert form(x, norm, x if form.residual else None)[:, 1].isnan().all()


def test_running_statistics_are_torchs(device: torch.device) -> None:
    ours, theirs = nn.BatchNorm2d(5).to(device), nn.BatchNorm2d(5).to(device)
    for _ in range(3):
        x = (normal(4, 5, 3, 3) + 2).to(device)
        batch_norm_act(x, ours)
        theirs(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_any_order_in_memory(device: torch.device) -> None:
    x = torch.randn(3, 6, 5, 5, device=device, requires_grad=True)
    y = batch_norm_act(x, batch_norm(6, device), relu=False, after=x.detach().flip(0))
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert x.grad.abs().max() < 1e-3


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_same_bytes_every_time(form: Form, device: torch.device) -> None:
    shape = (2, 5, 6, 6) if INTERPRETED else (64, 128, 20, 20)
    x, residual, dy = (normal(*shape).to(device) for _ in range(3))
    norm = batch_norm(shape[1], device)
    runs = [step(form, norm, x, residual if form.residual else None, dy) for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_cuda_graph_gives_what_launches_give(form: Form, device: torch.device) -> None:
    norm = batch_norm(64, device)
    x, residual = (normal(32, 64, 12, 12).to(device, torch.float16) for _ in range(2))
    x.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        y = form(x, norm, residual if form.residual else None)
        return y, *torch.autograd.grad(y, [x, norm.weight, norm.bias], torch.ones_like(y))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    x.data.normal_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, run(), strict=True))
