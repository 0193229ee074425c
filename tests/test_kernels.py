"""Own kernels: run in Triton's interpreter in a process of their own, and compiled for a GPU that is not here."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from tests.conftest import PROJECT
from train.kernels import norm
from train.kernels.form import Form, composition
from train.kernels.norm import BatchNormAct

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

BLOCKS = {
    "resnet9": [
        ((512, 64, 32, 32), Form()),
        ((512, 128, 16, 16), Form(residual="after")),
        ((512, 256, 16, 16), Form(pool="max2")),
        ((512, 128, 6, 6), Form(pool="amax")),
    ],
    "resnet18": [((512, 64, 56, 56), Form(residual="before")), ((512, 512, 7, 7), Form(relu=False))],
}


@needs_triton
def test_the_kernels_are_right_in_the_interpreter() -> None:
    """What tests/kernels says; on a machine with a GPU the same tests run on it too, in the suite itself."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/kernels"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, env=_interpreting(), timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def _interpreting() -> dict[str, str]:
    return {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(PROJECT)}


@needs_triton
@pytest.mark.parametrize(
    ("network", "dtype"),
    [("resnet9", torch.float16), ("resnet9", torch.float32), ("resnet18", torch.bfloat16)],
    ids=str,
)
def test_batch_norm_compiles_well(network: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """For sm_90, at the recipes' sizes: nothing spilled, activations moved 16 bytes at a time."""
    from tests.kernels.compiled import recorded

    monkeypatch.setattr(norm, "usable", lambda device: True)
    with recorded() as binaries:
        for shape, form in BLOCKS[network]:
            x = torch.empty(shape, device="meta", dtype=dtype, requires_grad=True)
            y = BatchNormAct(shape[1], form).to("meta")(x, *[x.detach()] * (form.residual is not None))
            y.backward(torch.empty_like(y))
    names = {binary.name for binary in binaries}
    assert names >= {"statistics", "finalise", "normalise", "backward", "total"}
    for binary in binaries:
        resources = binary.resources()
        assert resources["STACK"] == resources["LOCAL"] == 0, binary
        if "BLOCK_P" in binary.constants:
            assert binary.widths("ld") == {16}, binary
        if binary.name.startswith("backward") and binary.constants["APPLY"]:
            assert binary.widths("st") == {16}, binary


@pytest.mark.parametrize("form", [Form(), Form(residual="after"), Form(pool="max2"), Form(pool="amax")], ids=str)
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
        Form(residual="after", pool="max2")
