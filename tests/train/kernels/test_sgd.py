"""The optimiser's step by whatever runs here: PyTorch on a CPU, Triton in its interpreter or on a GPU."""

import pytest
import torch

from datamodels.train.kernels import Kernels

SIZE = 5000


@pytest.mark.parametrize("copied", [None, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("group", [1, 3])
def test_steps_equal_torchs_sgd(group: int, copied: torch.dtype | None, device: torch.device, kernels: Kernels) -> None:
    start, lr = torch.randn(SIZE, device=device), torch.rand(group, device=device)
    row = torch.randint(group, (SIZE,), device=device) if group > 1 else None
    ours = [start.clone(), torch.zeros_like(start)]
    copy = None if copied is None else torch.full((SIZE,), torch.nan, dtype=copied, device=device)
    theirs = [start.clone().requires_grad_() for _ in range(group)]
    optimizers = [torch.optim.SGD([p], rate.item(), 0.9, weight_decay=5e-4) for p, rate in zip(theirs, lr, strict=True)]
    for _ in range(3):
        grad = torch.randn(SIZE, device=device)
        constants = {"keep": 0.9, "decay": 5e-4, "scale": 1 / 1024}
        kernels.sgd_step(ours[0], 1024 * grad, ours[1], lr, row=row, copy=copy, **constants)
        for parameter, optimizer in zip(theirs, optimizers, strict=True):
            parameter.grad = grad.clone()
            optimizer.step()
    of_row = torch.zeros(SIZE, dtype=torch.int64, device=device) if row is None else row
    expected = torch.stack([p.detach() for p in theirs])[of_row, torch.arange(SIZE, device=device)]
    torch.testing.assert_close(ours[0], expected, rtol=1e-6, atol=1e-6)
    if copy is not None:
        torch.testing.assert_close(copy, ours[0].to(copy.dtype), rtol=torch.finfo(copy.dtype).eps, atol=0)


def test_a_learning_rate_of_zero_leaves_values_as_they_are(device: torch.device, kernels: Kernels) -> None:
    value, grad, momentum = torch.randn(3, SIZE, device=device)
    before = value.clone()
    kernels.sgd_step(value, grad, momentum, torch.zeros(1, device=device), keep=0.9, decay=5e-4)
    assert torch.equal(value, before)
