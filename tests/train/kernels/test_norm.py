import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodels.train.kernels import norm_launch, runtime
from datamodels.train.kernels.form import Form, composition, finish
from datamodels.train.kernels.norm import BatchNormAct
from tests.train.kernels.conftest import INTERPRETED

FORMS = [
    Form(),
    Form(relu=False),
    Form(residual="before"),
    Form(residual="before", relu=False),
    Form(residual="after"),
    Form(pool="2x2"),
    Form(pool="2x2", relu=False),
    Form(pool="3x3"),
    Form(pool="3x3", relu=False),
    Form(pool="global"),
    Form(pool="global", relu=False),
]
STORED = {torch.float32: 1e-6, torch.float16: 5e-4, torch.bfloat16: 8e-3 if INTERPRETED else 4e-3}
"""Bounds of what is stored in a precision. The interpreter cuts bfloat16 off where a GPU rounds."""


def normal(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def block(channels: int, form: Form, device: torch.device) -> BatchNormAct:
    norm = BatchNormAct(channels, form).to(device)
    norm.momentum = 1.0  # the running statistics are the batch's
    nn.init.uniform_(norm.weight, -1, 2)
    nn.init.normal_(norm.bias)
    return norm


def rounded(y: Tensor, dtype: torch.dtype) -> Tensor:
    """y as it is stored in a precision, with the gradient of y."""
    stored = y.detach().to(dtype).double()
    if dtype == torch.bfloat16 and INTERPRETED:
        stored = (y.detach().float().view(torch.int32) & -65536).view(torch.float32).double()
    return y + (stored - y).detach()


def reference(norm: BatchNormAct, x: Tensor, residual: Tensor | None, dy: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Result, gradients and running statistics in float64; a pool chooses among activations in x's precision."""
    exact = nn.BatchNorm2d(norm.num_features, momentum=norm.momentum).to(x.device, torch.float64)
    exact.load_state_dict(norm.state_dict())
    inputs = [t.detach().double().requires_grad_() for t in (x, residual) if t is not None]
    y = exact(inputs[0])
    y = finish(rounded(y, x.dtype) if norm.form.pool else y, norm.form, *inputs[1:])
    y.backward(dy(y).double())
    return [y.detach(), *(t.grad for t in inputs), exact.weight.grad, exact.bias.grad, *_running(exact)]


def found(norm: BatchNormAct, x: Tensor, residual: Tensor | None, dy: Callable[[Tensor], Tensor]) -> list[Tensor]:
    inputs = [t.detach().clone().requires_grad_() for t in (x, residual) if t is not None]
    norm.zero_grad()
    y = norm(*inputs)
    y.backward(dy(y).to(y.dtype))
    assert {t.dtype for t in (y, *(t.grad for t in inputs))} == {x.dtype}
    return [y.detach(), *(t.grad for t in inputs), norm.weight.grad, norm.bias.grad, *_running(norm)]


def _running(norm: nn.BatchNorm2d) -> list[Tensor]:
    return [norm.running_mean.clone(), norm.running_var.clone()]


def compare(form: Form, x: Tensor, device: torch.device, bound: float = 1e-6, stored: float | None = None) -> None:
    """One forward and backward against float64, with fresh parameters, residual and gradient."""
    x, norm = x.to(device), block(x.shape[1], form, device)
    residual = normal(*x.shape).to(device, x.dtype) if form.residual else None
    gradient: list[Tensor] = []

    def dy(y: Tensor) -> Tensor:
        if not gradient:
            gradient.append(torch.randn_like(y).to(x.dtype))
        return gradient[0]

    expected = reference(norm, x, residual, dy)
    results = found(norm, x, residual, dy)
    scales = [t.norm() for t in expected]
    scales[0] = scales[0].clamp_min(expected[0].numel() ** 0.5)  # a ReLU may leave little or nothing
    scales[1:-2] = [scale.maximum(gradient[0].double().norm()) for scale in scales[1:-2]]
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
def test_evaluation_equals_the_composition_in_float64(form: Form, dtype: torch.dtype, device: torch.device) -> None:
    norm, x = block(20, form, device).eval(), (2 * normal(3, 20, 7, 9) + 1).to(device, dtype)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.1, 9)
    residual = [normal(*x.shape).to(device, dtype)] if form.residual else []
    before = copy.deepcopy(norm.state_dict())
    with torch.inference_mode():
        y = norm(x, *residual)
    expected = composition(x.double(), copy.deepcopy(norm).double(), form, *(each.double() for each in residual))
    assert y.dtype == dtype
    assert (y.double() - expected).norm() <= STORED[dtype] * expected.norm().clamp_min(expected.numel() ** 0.5)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)


def test_evaluation_has_a_gradient_where_one_is_wanted(device: torch.device) -> None:
    norm = block(5, Form(), device).eval()
    x = normal(2, 5, 4, 4).to(device).requires_grad_()
    with torch.no_grad():
        shown = norm(x)
    y = norm(x)
    torch.testing.assert_close(y, shown)
    y.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("channels", [1, 3, 65, 256])
@pytest.mark.parametrize("form", [Form(), Form(pool="2x2"), Form(pool="global")], ids=str)
def test_any_number_of_channels(form: Form, channels: int, device: torch.device) -> None:
    compare(form, normal(2, channels, 3, 4), device)


@pytest.mark.parametrize(
    "form", [Form(residual="before"), Form(pool="2x2"), Form(pool="3x3"), Form(pool="global")], ids=str
)
def test_many_programs_with_many_steps_each(form: Form, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "PROGRAMS", 3)
    monkeypatch.setattr(norm_launch, "TILE", 128)
    monkeypatch.setattr(norm_launch, "POOL_TILE", 64)
    compare(form, normal(7, 6, 7, 5), device)


@pytest.mark.parametrize("shape", [(3, 5, 1, 1), (2, 3, 1, 6), (2, 3, 5, 2), (3, 4, 8, 8)])
def test_windows_that_overlap_at_any_size(shape: tuple[int, ...], device: torch.device) -> None:
    compare(Form(pool="3x3"), normal(*shape), device)


def test_a_pixel_gathers_from_all_windows_that_chose_it(device: torch.device) -> None:
    x = torch.zeros(2, 3, 6, 6, device=device)
    x[:, :, 3, 3] = 1  # in four windows, as the only one above 0
    results = []
    for path in (BatchNormAct.forward, lambda norm, x: composition(x, norm, norm.form)):
        torch.manual_seed(0)
        start, norm = x.clone().requires_grad_(), block(3, Form(pool="3x3"), device)
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)
        y = path(norm, start)
        results.append((y, *torch.autograd.grad(y, [start, norm.weight, norm.bias], torch.ones_like(y))))
    torch.testing.assert_close(*results)
    assert (results[0][-1] == 2 * 4).all()


def test_a_mean_far_from_zero_costs_only_what_its_own_rounding_costs(device: torch.device) -> None:
    x = 1000 + normal(6, 10, 9, 9)
    compare(Form(relu=False), x, device, bound=2e-4, stored=2e-4)
    norm = block(10, Form(), device)
    norm(x.to(device))
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
    norm = block(4, Form(relu=False), device)
    assert (norm(x.to(device))[:, 1] == norm.bias[1]).all()
    compare(form, x, device, 2e-6, 2e-6)


@pytest.mark.parametrize("form", [form for form in FORMS if form.pool], ids=str)
def test_ties_go_as_in_torch(form: Form, device: torch.device) -> None:
    x = torch.randint(0, 3, (6, 8, 7, 6)).float().to(device)
    ours = block(8, form, device)
    theirs = nn.BatchNorm2d(8).to(device)
    theirs.load_state_dict(ours.state_dict())
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    dy = torch.randn_like(ours(x))
    ours(inputs[0]).backward(dy)
    composition(inputs[1], theirs, form).backward(dy)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_not_finite_is_seen(form: Form, device: torch.device) -> None:
    for value in (torch.nan, torch.inf):
        x = normal(3, 4, 6, 6).to(device)
        x[1, 2, 3, 4] = value
        y = block(4, form, device)(*[x] * (2 if form.residual else 1))
        assert y[:, 2].isnan().all()
        assert y[:, [0, 1, 3]].isfinite().all()
    norm = block(4, Form(pool=form.pool, relu=form.relu), device)
    norm.bias.data[1] = torch.nan
    assert norm(normal(3, 4, 6, 6).to(device))[:, 1].isnan().all()


def test_running_statistics_are_torchs(device: torch.device) -> None:
    ours, theirs = BatchNormAct(5).to(device), nn.BatchNorm2d(5).to(device)
    for _ in range(3):
        x = (normal(4, 5, 3, 3) + 2).to(device)
        ours(x)
        theirs(x)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_any_order_in_memory(device: torch.device) -> None:
    x = torch.randn(3, 6, 5, 5, device=device, requires_grad=True)
    norm = block(6, Form(residual="after", relu=False), device)
    y = norm(x, x.detach().flip(0))
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert x.grad.abs().max() < 1e-3


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_same_bytes_every_time(form: Form, device: torch.device) -> None:
    shape = (2, 5, 6, 6) if INTERPRETED else (64, 128, 20, 20)
    x, residual = (normal(*shape).to(device) for _ in range(2))
    norm, start = block(shape[1], form, device), torch.randn(1).item()
    runs = []
    for _ in range(2):
        norm.reset_running_stats()
        runs.append(found(norm, x, residual if form.residual else None, lambda y: torch.full_like(y, start)))
    assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))


@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_cuda_graph_gives_what_launches_give(form: Form, device: torch.device) -> None:
    norm = block(64, form, device)
    x, residual = (normal(32, 64, 12, 12).to(device, torch.float16) for _ in range(2))
    x.requires_grad_()

    def step() -> tuple[Any, ...]:
        y = norm(x, *[residual] * (form.residual is not None))
        return y, *torch.autograd.grad(y, [x, norm.weight, norm.bias], torch.ones_like(y))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.data.normal_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, step(), strict=True))


@pytest.mark.parametrize(
    ("form", "residuals"), [(Form(residual="after"), 0), (Form(), 1)], ids=["missing", "one too many"]
)
def test_a_residual_must_be_there_where_the_form_has_one(form: Form, residuals: int) -> None:
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match=r"^form\.residual is"):
        BatchNormAct(3, form)(x, *[x] * residuals)
