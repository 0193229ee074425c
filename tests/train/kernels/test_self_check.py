"""The check of kernels before they train: it passes what is right, and names what is wrong."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from datamodels.train.config import Recipe
from datamodels.train.errors import UserError, WorkError
from datamodels.train.kernels import TORCH, Augment, Kernels, check_kernels
from datamodels.train.kernels.tiling import require_indices
from datamodels.train.trainer import choose_kernels
from tests.train.trainer.fake_gpu import FakeGpu

HALF = torch.float16


def test_right_kernels_pass_and_are_chosen(device: torch.device, kernels: Kernels) -> None:
    executor = FakeGpu(device, (8, 0))
    assert choose_kernels(Recipe(precision="float16"), executor, triton=lambda: kernels) is kernels


def test_kernels_that_raise_are_done_without(
    device: torch.device, kernels: Kernels, capsys: pytest.CaptureFixture[str]
) -> None:
    def raising(*_: object, **__: object) -> None:
        raise RuntimeError("PassManager::run failed\nat line 3")

    broken = replace(kernels, batch_norm_act=raising)
    assert choose_kernels(Recipe(), FakeGpu(device, (8, 0)), triton=lambda: broken) is TORCH
    told = f"Triton's kernels do not start on {device}: PassManager::run failed; PyTorch's operations train "
    assert capsys.readouterr().err == f"{told}all rows of this store\n"


def wrong_batch_norm(kernels: Kernels, change: Callable[[Tensor], Tensor], when: Callable[..., bool]) -> Kernels:
    def batch_norm_act(x: Tensor, norm: nn.BatchNorm2d, **options: Any) -> Tensor:
        y = kernels.batch_norm_act(x, norm, **options)
        return change(y) if x.dtype == HALF and when(norm, options) else y

    return replace(kernels, batch_norm_act=batch_norm_act)


class Shifted(Augment):
    """Takes the image beside the one that it should take."""

    def __call__(self, bordered: Tensor, index_GB: Tensor, draws_GB: Tensor) -> Tensor:
        return super().__call__(bordered.roll(1, 0), index_GB, draws_GB)


WRONG: dict[str, Callable[[Kernels], Kernels]] = {
    "batch norm \\+ ReLU is wrong on .*: its result is off by": lambda kernels: wrong_batch_norm(
        kernels, lambda y: y * 1.01, lambda norm, options: norm.training
    ),
    "batch norm \\+ ReLU, residual after it is wrong on .*: its result in evaluation": lambda kernels: wrong_batch_norm(
        kernels, lambda y: y * 1.01, lambda norm, options: not norm.training and "after" in options
    ),
    "batch norm \\+ ReLU is wrong on .*: the gradient of x": lambda kernels: wrong_batch_norm(
        kernels, lambda y: y.detach() + 2 * (y - y.detach()), lambda norm, options: norm.training
    ),
    "SGD is wrong on .*: values of 1 is off by": lambda kernels: replace(
        kernels, sgd_step=lambda *state, **others: kernels.sgd_step(*state, **{**others, "decay": 0.0})
    ),
    "augmentation is wrong on": lambda kernels: replace(kernels, augment=Shifted),
}


@pytest.mark.parametrize("named", WRONG)
def test_a_wrong_kernel_is_named(named: str, device: torch.device, kernels: Kernels) -> None:
    with pytest.raises(WorkError, match=named + r".*recipe\.kernels: torch"):
        check_kernels(WRONG[named](kernels), device, HALF)


def test_a_tensor_beyond_the_kernels_indices_is_refused() -> None:
    require_indices(torch.empty(2**31 - 1, device="meta"))
    with pytest.raises(UserError, match=r"\[65536, 32768\] of 2,147,483,648 numbers.*recipe\.batch"):
        require_indices(torch.empty(2**16, 2**15, device="meta"))
