"""Own kernels: run in Triton's interpreter in a process of their own, and compiled for a GPU that is not here."""

import os
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from datamodels.train.config import Recipe
from datamodels.train.data.sources import Dataset, Split
from datamodels.train.kernels import augment, norm, sgd
from datamodels.train.kernels.form import Form, composition
from datamodels.train.kernels.norm import BatchNormAct
from datamodels.train.trainer.augment import Augment
from tests.conftest import PROJECT

if TYPE_CHECKING:
    from tests.train.kernels.compiled import Binary

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
needs_interpreter = pytest.mark.skipif(
    find_spec("triton") is None or version("triton").startswith(("3.5", "3.6")),
    reason="Triton's interpreter works with NumPy 2.4 from 3.7 on",
)

SHARED = 227 * 1024
"""Bytes of shared memory of a Hopper GPU's multiprocessor; two programs at once are wanted."""
BLOCKS = {
    "resnet9": [
        ((512, 64, 32, 32), Form()),
        ((512, 128, 16, 16), Form(residual="after")),
        ((512, 256, 16, 16), Form(pool="2x2")),
        ((512, 128, 6, 6), Form(pool="global")),
    ],
    "resnet18": [
        ((512, 64, 112, 112), Form(pool="3x3")),
        ((512, 64, 56, 56), Form(residual="before")),
        ((512, 512, 7, 7), Form(relu=False)),
    ],
}
COMPILED = [("resnet9", torch.float16), ("resnet9", torch.float32), ("resnet18", torch.bfloat16)]


@needs_interpreter
def test_the_kernels_are_right_in_the_interpreter() -> None:
    """What tests/train/kernels says; on a machine with a GPU the same tests run on it too, in the suite itself."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/train/kernels"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=_interpreting(), timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def _interpreting() -> dict[str, str]:
    return {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(PROJECT)}


@needs_triton
@pytest.mark.parametrize(("network", "dtype"), COMPILED, ids=str)
def test_batch_norm_compiles_well(network: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """For sm_90, at the recipes' sizes: nothing spilled, activations moved 16 bytes at a time (choices: 8)."""
    from tests.train.kernels.compiled import recorded

    monkeypatch.setattr(norm, "usable", lambda device: True)
    with recorded() as binaries:
        for shape, form in BLOCKS[network]:
            x = torch.empty(shape, device="meta", dtype=dtype, requires_grad=True)
            y = BatchNormAct(shape[1], form).to("meta")(x, *[x.detach()] * (form.residual is not None))
            y.backward(torch.empty_like(y))
    names = {binary.name for binary in binaries}
    assert names >= {"statistics", "finalise", "normalise", "backward", "total"}
    for binary in binaries:
        assert _nothing_spilled(binary), binary
        assert 2 * binary.shared <= SHARED, binary
        if "BLOCK_P" in binary.constants:
            assert binary.widths("ld") - ({8} if "choice" in binary.arguments else set()) == {16}, binary
        if binary.name.startswith("backward") and binary.constants.get("APPLY", True):
            assert binary.widths("st") == {16}, binary


@needs_triton
@pytest.mark.parametrize(("network", "dtype"), COMPILED, ids=str)
def test_evaluation_is_one_kernel_of_16_bytes_at_a_time(
    network: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.train.kernels.compiled import recorded

    monkeypatch.setattr(norm, "usable", lambda device: True)
    for shape, form in BLOCKS[network]:
        x = torch.empty(shape, device="meta", dtype=dtype)
        evaluated = BatchNormAct(shape[1], form).to("meta").eval()
        with recorded() as binaries, torch.inference_mode():
            evaluated(x, *[x] * (form.residual is not None))
        (binary,) = binaries
        assert binary.widths("ld") == {16}
        assert _nothing_spilled(binary)


@needs_triton
@pytest.mark.parametrize(("group", "precision"), [(1, torch.float16), (1, torch.bfloat16), (4, None)], ids=str)
def test_the_optimisers_step_compiles_well(
    group: int, precision: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.train.kernels.compiled import recorded

    monkeypatch.setattr(sgd, "usable", lambda device: True)
    value, grad, momentum = torch.empty(3, 2_274_880, device="meta").unbind()
    row = None if group == 1 else torch.empty(2_274_880, device="meta", dtype=torch.int64)
    copy = None if precision is None else torch.empty_like(value, dtype=precision)
    with recorded() as binaries:
        lr = torch.empty(group, device="meta")
        sgd.sgd_step(value, grad, momentum, lr, keep=0.9, decay=5e-4, row=row, copy=copy)
    (binary,) = binaries
    assert binary.widths("st") == {16}
    assert _nothing_spilled(binary)


@needs_triton
@pytest.mark.parametrize(("dtype", "channels"), [(torch.float16, 8), (torch.bfloat16, 8), (torch.float32, 3)], ids=str)
def test_augmentation_compiles_well(dtype: torch.dtype, channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.train.kernels.compiled import recorded

    split = Split(np.zeros((2, 32, 32, 3), np.uint8), np.arange(2))
    data = Dataset(split, split, ("a", "b"), (125.0, 122.0, 113.0), (51.0, 50.0, 51.0), "here")
    fused = augment.FusedAugment(Augment(data, Recipe(), torch.device("cpu")), dtype, channels)
    monkeypatch.setattr(augment, "usable", lambda device: True)
    bordered = torch.empty((50_000, 36, 36, 3), device="meta", dtype=torch.uint8)
    with recorded() as binaries:
        fused(bordered, *torch.empty((2, 1, 512), device="meta", dtype=torch.int64))
    (binary,) = binaries
    assert binary.widths("st") == {16}
    assert _nothing_spilled(binary)


def _nothing_spilled(binary: "Binary") -> bool:
    resources = binary.resources()
    return resources["STACK"] == resources["LOCAL"] == 0


@pytest.mark.parametrize(
    "form", [Form(), Form(residual="after"), Form(pool="2x2"), Form(pool="3x3"), Form(pool="global")], ids=str
)
def test_a_cpu_has_pytorchs_operations(form: Form) -> None:
    x, residual = torch.randn(2, 4, 3, 6, 6)
    inputs = (x, residual) if form.residual else (x,)
    ours, theirs = BatchNormAct(3, form), torch.nn.BatchNorm2d(3)
    assert torch.equal(ours(*inputs), composition(x, theirs, form, *inputs[1:]))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_evaluation_has_the_running_statistics() -> None:
    x, ours = torch.randn(4, 3, 6, 6), BatchNormAct(3).eval()
    torch.testing.assert_close(ours(x), x.relu(), rtol=1e-4, atol=1e-4)


def test_a_form_with_a_pool_and_a_residual_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at most one of them"):
        Form(residual="after", pool="2x2")
