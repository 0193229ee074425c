"""Triton's kernels compile for a GPU that is not here: nothing spilled, activations moved 16 bytes at a time."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from datamodels.train.config import Recipe
from datamodels.train.data import Dataset, Split

if find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

from datamodels.train.kernels import augment_triton, norm_launch, sgd_triton
from tests.train.kernels.compiled import recorded

if TYPE_CHECKING:
    from tests.train.kernels.compiled import Binary

SHARED = 227 * 1024
"""Bytes of shared memory of a Hopper GPU's multiprocessor; two programs at once are wanted."""
BLOCKS = {
    "resnet9": [((512, 64, 32, 32), True, None), ((512, 128, 16, 16), True, "after"), ((512, 128, 6, 6), True, None)],
    "resnet18": [((512, 64, 56, 56), True, "before"), ((512, 512, 7, 7), False, None)],
}
"""Shape of an activation, whether a ReLU follows, and where a residual comes, at the recipes' sizes."""
COMPILED = [("resnet9", torch.float16), ("resnet9", torch.float32), ("resnet18", torch.bfloat16)]


def nothing_spilled(binary: "Binary") -> bool:
    resources = binary.resources()
    return resources["STACK"] == resources["LOCAL"] == 0


@pytest.mark.parametrize(("network", "dtype"), COMPILED, ids=str)
def test_batch_norm_compiles_well(network: str, dtype: torch.dtype) -> None:
    with recorded() as binaries:
        for shape, relu, place in BLOCKS[network]:
            x = torch.empty(shape, device="meta", dtype=dtype, requires_grad=True)
            residual = {place: x.detach()} if place else {}
            y = norm_launch.batch_norm_act(x, nn.BatchNorm2d(shape[1], device="meta"), relu=relu, **residual)
            y.backward(torch.empty_like(y))
    assert {binary.name for binary in binaries} == {"statistics", "finalise", "normalise", "backward", "total"}
    for binary in binaries:
        assert nothing_spilled(binary), binary
        assert 2 * binary.shared <= SHARED, binary
        if "BLOCK_P" in binary.constants:
            assert binary.widths("ld") == {16}, binary
        if binary.name == "backward" and binary.constants["APPLY"]:
            assert binary.widths("st") == {16}, binary


@pytest.mark.parametrize(("network", "dtype"), COMPILED, ids=str)
def test_evaluation_is_one_kernel_of_16_bytes_at_a_time(network: str, dtype: torch.dtype) -> None:
    for shape, relu, place in BLOCKS[network]:
        x, norm = torch.empty(shape, device="meta", dtype=dtype), nn.BatchNorm2d(shape[1], device="meta").eval()
        with recorded() as binaries, torch.inference_mode():
            norm_launch.batch_norm_act(x, norm, relu=relu, **({place: x} if place else {}))
        (binary,) = binaries
        assert binary.widths("ld") == {16}
        assert nothing_spilled(binary)


@pytest.mark.parametrize(("group", "precision"), [(1, torch.float16), (1, torch.bfloat16), (4, None)], ids=str)
def test_the_optimisers_step_compiles_well(group: int, precision: torch.dtype | None) -> None:
    value, grad, momentum = torch.empty(3, 2_274_880, device="meta").unbind()
    row = None if group == 1 else torch.empty(2_274_880, device="meta", dtype=torch.int64)
    copy = None if precision is None else torch.empty_like(value, dtype=precision)
    with recorded() as binaries:
        lr = torch.empty(group, device="meta")
        sgd_triton.sgd_step(value, grad, momentum, lr, keep=0.9, decay=5e-4, row=row, copy=copy)
    (binary,) = binaries
    assert binary.widths("st") == {16}
    assert nothing_spilled(binary)


@pytest.mark.parametrize(("dtype", "channels"), [(torch.float16, 8), (torch.bfloat16, 8), (torch.float32, 3)], ids=str)
def test_augmentation_compiles_well(dtype: torch.dtype, channels: int) -> None:
    meta, split = torch.device("meta"), Split(np.zeros((10, 32, 32, 3), np.uint8), np.arange(10))
    dataset = Dataset(split, split, tuple("abcdefghij"), (125.0,) * 3, (50.0,) * 3, "here")
    augment = augment_triton.TritonAugment(dataset, Recipe(), meta, dtype, channels)
    bordered = torch.empty((50_000, 36, 36, 3), device=meta, dtype=torch.uint8)
    index, draws = torch.empty((2, 1, 512), device=meta, dtype=torch.int64)
    with recorded() as binaries:
        augment(bordered, index, draws)
    (binary,) = binaries
    assert binary.widths("st") == {16}
    assert nothing_spilled(binary)
