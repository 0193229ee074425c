"""Batch norm on a CPU in bfloat16, by own kernels: against float64, and against PyTorch where numbers are special."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datamodels.train.kernels import norm, norm_host
from datamodels.train.kernels.form import Form, composition
from datamodels.train.kernels.norm import BatchNormAct
from tests.train.kernels.test_norm import FORMS, block, compare, normal

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """For activations of any size, over several pieces; numbers are the same in every run."""
    torch.manual_seed(0)
    monkeypatch.setattr(norm_host, "CHANNELS", 1)
    monkeypatch.setattr(norm_host, "NUMBERS", 1)
    monkeypatch.setattr(norm_host, "PIECE", 128)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def step(form: Form, x: Tensor, residual: Tensor) -> list[Tensor]:
    """Result and gradients of a block whose parameters are always the same."""
    torch.manual_seed(1)
    given = block(x.shape[1], form, CPU)
    inputs = [t.clone().requires_grad_() for t in ((x, residual) if form.residual else (x,))]
    y = given(*inputs)
    return [y, *torch.autograd.grad(y, [*inputs, given.weight, given.bias], torch.ones_like(y)), given.running_var]


@pytest.mark.parametrize("form", [form for form in FORMS if form.pool != "3x3"], ids=str)  # PyTorch adds in bfloat16
def test_results_and_gradients_equal_those_in_float64(form: Form) -> None:
    compare(form, (2 * normal(9, 20, 7, 9) + 1).bfloat16(), CPU)


@pytest.mark.parametrize(
    "shape", [(2, 1, 3, 4), (2, 3, 3, 4), (5, 65, 4, 6), (3, 256, 2, 2), (6, 40, 1, 1), (1, 8, 9, 9)]
)
@pytest.mark.parametrize("form", [Form(), Form(residual="before"), Form(residual="after")], ids=str)
def test_any_shape(form: Form, shape: tuple[int, ...]) -> None:
    compare(form, normal(*shape).bfloat16(), CPU)


def test_bfloat16_takes_the_kernels_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm, "composition", lambda *arguments: "PyTorch's")
    x = normal(4, 8, 5, 5)
    assert BatchNormAct(8)(x) == BatchNormAct(8).eval()(x.bfloat16()) == "PyTorch's"
    assert BatchNormAct(8)(x.bfloat16()).dtype == torch.bfloat16
    for limit in ("CHANNELS", "NUMBERS"):
        with monkeypatch.context() as patch:
            patch.setattr(norm_host, limit, 10**4)
            assert BatchNormAct(8)(x.bfloat16()) == "PyTorch's"


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_bytes_are_the_same_whichever_threads_there_are(form: Form, threads: None) -> None:
    x, residual = normal(16, 24, 12, 12).bfloat16(), normal(16, 24, 12, 12).bfloat16()
    found = []
    for number in (1, 2, 3, 1):
        torch.set_num_threads(number)
        found.append(step(form, x, residual))
    for other in found[1:]:
        assert all(a.equal(b) for a, b in zip(found[0], other, strict=True))


def test_a_mean_far_from_zero_costs_no_digits_of_the_variance() -> None:
    x = (1000 + 4 * normal(6, 10, 9, 9)).bfloat16()
    given = block(10, Form(), CPU)
    given(x)
    variance = x.double().transpose(0, 1).flatten(1).var(1)
    torch.testing.assert_close(given.running_var.double(), variance, rtol=2e-6, atol=0)


def test_running_statistics_are_torchs() -> None:
    ours, theirs = BatchNormAct(5), nn.BatchNorm2d(5)
    for _ in range(3):
        x = (normal(4, 5, 3, 3) + 2).bfloat16()
        ours(x)
        theirs(x.float())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_not_finite_is_seen_as_in_torch(form: Form) -> None:
    for value in (torch.nan, torch.inf):
        x = normal(3, 4, 6, 6).bfloat16()
        x[1, 2, 3, 4] = value
        y = block(4, form, CPU)(*[x] * (2 if form.residual else 1))
        assert y[:, 2].isnan().all()
        assert y[:, [0, 1, 3]].isfinite().all()
    x, dy = normal(3, 4, 6, 6).bfloat16(), torch.tensor(torch.nan)
    grads = []
    for path in (BatchNormAct.forward, lambda given, x: composition(x, given, given.form)):
        torch.manual_seed(1)
        start = x.clone().requires_grad_()
        y = path(block(4, Form(relu=form.relu), CPU), start)
        grads.append(torch.autograd.grad(y, start, dy.to(y.dtype).expand_as(y))[0].isnan())
    assert grads[0].equal(grads[1])


def test_rounding_is_to_the_nearest_even_and_keeps_what_is_special() -> None:
    from datamodels.train.kernels.host.norm import narrow, wide

    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
    numbers = torch.cat([every.float(), every.float() * 1.003, torch.randn(1000)])
    bits = [narrow(number) for number in numbers.numpy()]
    found = torch.from_numpy(np.array(bits, np.uint16)).view(torch.bfloat16)
    torch.testing.assert_close(found, numbers.bfloat16(), rtol=0, atol=0, equal_nan=True)
    back = torch.from_numpy(np.array([wide(number) for number in bits], np.float32))
    torch.testing.assert_close(back, numbers.bfloat16().float(), rtol=0, atol=0, equal_nan=True)
