from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodels.train.kernels import Kernels, tiling
from datamodels.train.kernels.self_check import FORMS, STORED, batch_norm_errors
from tests.train.kernels.conftest import INTERPRETED

Form = tuple[bool, str | None]
"""Whether a ReLU follows, and where a residual comes."""


def normal(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def batch_norm(channels: int, device: torch.device) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels).to(device)
    nn.init.uniform_(norm.weight, -1, 2)
    nn.init.normal_(norm.bias)
    return norm


def options(form: Form, residual: Tensor) -> dict[str, Any]:
    relu, place = form
    return {"relu": relu, **({place: residual} if place else {})}


def compare(kernels: Kernels, form: Form, x: Tensor, device: torch.device, **bounds: float) -> None:
    """One forward and backward of x, and an evaluation, against float64."""
    errors = batch_norm_errors(kernels, device, x.dtype, *form, x, **bounds)
    assert not {name: error for name, (error, most) in errors.items() if not error <= most}


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("form", [*FORMS, (False, "before")], ids=str)
def test_results_and_gradients_equal_those_in_float64(
    form: Form, dtype: torch.dtype, device: torch.device, kernels: Kernels
) -> None:
    compare(kernels, form, (2 * normal(3, 20, 7, 9) + 1).to(dtype), device)


@pytest.mark.parametrize("channels", [1, 3, 65, 256])
def test_any_number_of_channels(channels: int, device: torch.device, kernels: Kernels) -> None:
    compare(kernels, (True, "before"), normal(2, channels, 3, 4), device)


def test_many_programs_with_many_steps_each(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, kernels: Kernels
) -> None:
    monkeypatch.setattr(tiling, "PROGRAMS", 3)
    monkeypatch.setattr(tiling, "TILE", 128)
    compare(kernels, (True, "before"), normal(7, 6, 7, 5), device)


def test_a_mean_far_from_zero_costs_only_what_its_own_rounding_costs(device: torch.device, kernels: Kernels) -> None:
    x = 1000 + normal(6, 10, 9, 9)
    compare(kernels, (False, None), x, device, stored=2e-4, summed=2e-4)
    norm = batch_norm(10, device)
    norm.momentum = 1.0  # the running statistics are the batch's
    kernels.batch_norm_act(x.to(device), norm)
    variance = x.double().transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(norm.running_var.cpu().double(), variance, rtol=2e-6, atol=0)


def test_an_outlier_costs_a_digit_at_most(device: torch.device, kernels: Kernels) -> None:
    x = normal(6, 10, 9, 9)
    x[0, :, 0, 0] = 1e5
    compare(kernels, (False, None), x, device, stored=1e-5, summed=1e-5)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_constant_channel_becomes_its_bias(form: Form, device: torch.device, kernels: Kernels) -> None:
    x = normal(3, 4, 6, 6)
    x[:, 1] = 7.7
    norm = batch_norm(4, device)
    assert (kernels.batch_norm_act(x.to(device), norm, relu=False)[:, 1] == norm.bias[1]).all()
    compare(kernels, form, x, device, stored=2e-6, summed=2e-6)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_not_finite_is_seen(form: Form, device: torch.device, kernels: Kernels) -> None:
    for value in (torch.nan, torch.inf):
        x = normal(3, 4, 6, 6).to(device)
        x[1, 2, 3, 4] = value
        y = kernels.batch_norm_act(x, batch_norm(4, device), **options(form, x))
        assert y[:, 2].isnan().all()
        assert y[:, [0, 1, 3]].isfinite().all()
    norm, x = batch_norm(4, device), normal(3, 4, 6, 6).to(device)
    norm.bias.data[1] = torch.nan
    assert kernels.batch_norm_act(x, norm, **options(form, x))[:, 1].isnan().all()


def test_running_statistics_are_torchs(device: torch.device, kernels: Kernels) -> None:
    ours, theirs = nn.BatchNorm2d(5).to(device), nn.BatchNorm2d(5).to(device)
    for _ in range(3):
        x = (normal(4, 5, 3, 3) + 2).to(device)
        kernels.batch_norm_act(x, ours)
        theirs(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_evaluation_leaves_statistics_as_they_are(device: torch.device, kernels: Kernels) -> None:
    norm = batch_norm(5, device).eval()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    with torch.inference_mode():
        kernels.batch_norm_act(normal(4, 5, 3, 3).to(device), norm)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_any_order_in_memory(device: torch.device, kernels: Kernels) -> None:
    x = torch.randn(3, 6, 5, 5, device=device, requires_grad=True)
    y = kernels.batch_norm_act(x, batch_norm(6, device), relu=False, after=x.detach().flip(0))
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert x.grad.abs().max() < 1e-3


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_same_bytes_every_time(form: Form, device: torch.device, kernels: Kernels) -> None:
    shape = (2, 5, 6, 6) if INTERPRETED else (64, 128, 20, 20)
    x, residual, dy = (normal(*shape).to(device) for _ in range(3))
    norm = batch_norm(shape[1], device)

    def run() -> tuple[Tensor, ...]:
        inputs = [each.clone().requires_grad_() for each in (x, residual)]
        y = kernels.batch_norm_act(inputs[0], norm, **options(form, inputs[1]))
        found = torch.autograd.grad(y, [*inputs, norm.weight, norm.bias], dy, materialize_grads=True)
        return y, *found

    assert all(torch.equal(*pair) for pair in zip(run(), run(), strict=True))


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_cuda_graph_gives_what_launches_give(form: Form, device: torch.device, kernels: Kernels) -> None:
    norm = batch_norm(64, device)
    x, residual = (normal(32, 64, 12, 12).to(device, torch.float16) for _ in range(2))
    x.requires_grad_()

    def run() -> tuple[Tensor, ...]:
        y = kernels.batch_norm_act(x, norm, **options(form, residual))
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
