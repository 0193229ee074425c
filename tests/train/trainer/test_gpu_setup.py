"""What a GPU trains with, and what becomes of errors of its set-up: here on a CPU that behaves as a GPU.

PyTorch's operations play Triton's kernels. tests/train/kernels/test_self_check.py checks those themselves.
"""

import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodels.train.config import Recipe
from datamodels.train.data.sources import load
from datamodels.train.errors import UserError, WorkError
from datamodels.train.kernels import TORCH, Kernels
from datamodels.train.kernels.backend import keep_cache_local
from datamodels.train.store import Layout, RowResult, Store, Writer, create_store
from datamodels.train.trainer import choose_kernels
from datamodels.train.trainer.trainer import Trainer
from tests.conftest import tiny
from tests.train.trainer.fake_gpu import FakeGpu

GPU = FakeGpu(capability=(7, 5))
TRITON = replace(TORCH, name="triton")
HALF = Recipe(precision="float16")


def choose(kernels: str, stored: set[str], made: Callable[[], Kernels] = lambda: TRITON) -> str:
    return choose_kernels(replace(HALF, kernels=kernels), GPU, stored, made).name


@pytest.mark.parametrize(
    ("wanted", "stored", "found"),
    [
        ("auto", set(), "triton"),
        ("torch", set(), "torch"),
        ("triton", set(), "triton"),
        ("auto", {"torch"}, "torch"),
        ("auto", {"triton"}, "triton"),
    ],
)
def test_the_first_row_of_a_store_fixes_its_kernels(wanted: str, stored: set[str], found: str) -> None:
    assert choose(wanted, stored) == found


def test_kernels_that_are_not_the_stores_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"recipe\.kernels is 'torch', but rows of this store were trained with 'triton'"
    ):
        choose("torch", {"triton"})
    with pytest.raises(WorkError, match="trained with the kernels torch and triton"):
        choose("auto", {"triton", "torch"})


def test_a_cpu_has_pytorchs_operations_whatever_is_wanted() -> None:
    assert choose_kernels(Recipe(kernels="triton"), FakeGpu()) is TORCH


class OutOfResources(Exception):
    """As Triton's, by its name."""


CALL = ["/usr/bin/gcc", "main.c"]
FAILURES = {
    r"Failed to find C compiler\..*apt install gcc python3-dev": RuntimeError("Failed to find C compiler. Set CC"),
    r"exit code 1: Python.h: No such file; .*apt install gcc python3-dev": subprocess.CalledProcessError(
        1, CALL, stderr="Python.h: No such file"
    ),
    "No module named 'triton' \\(pip install triton\\)": ModuleNotFoundError("No module named 'triton'", name="triton"),
    "shared memory, Required: 300000: this GPU is too small": OutOfResources("shared memory, Required: 300000"),
    "KeyError 'sm_61'": KeyError("sm_61"),
}


@pytest.mark.parametrize("told", FAILURES)
def test_kernels_that_do_not_start_are_told_of_and_done_without(told: str, capsys: pytest.CaptureFixture[str]) -> None:
    def raising(*_: object, **__: object) -> None:
        raise FAILURES[told]

    broken = replace(TRITON, sgd_step=raising)
    assert choose("auto", set(), lambda: broken) == "torch"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Triton's kernels do not start on cpu: ")
    assert line.endswith("; PyTorch's operations train all rows of this store")
    with pytest.raises(WorkError, match=f"{told}.*; or use recipe.kernels: torch"):
        choose("triton", set(), lambda: broken)
    with pytest.raises(WorkError, match=f"{told}.*; rows of this store were trained with them"):
        choose("auto", {"triton"}, lambda: broken)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton starts here")
def test_without_a_gpu_triton_itself_does_not_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_kernels(HALF, GPU) is TORCH
    assert "Triton's kernels do not start on cpu: " in capsys.readouterr().err


def test_wrong_kernels_are_never_done_without() -> None:
    wrong = replace(TRITON, sgd_step=lambda *state, **others: None)
    for wanted in ("auto", "triton"):
        with pytest.raises(WorkError, match="the kernel of SGD is wrong on cpu: values of 1 is off by"):
            choose(wanted, set(), lambda: wrong)


def on_gpu(executor: FakeGpu) -> Trainer:
    return Trainer(tiny(), load(tiny()), executor, kernels=TORCH)


def test_replayed_steps_that_are_not_the_launched_ones_are_refused() -> None:
    class Idle(FakeGpu):
        def capture(self, function: Callable[[], None]) -> Callable[[], None]:
            return lambda: None

    class Replaying(FakeGpu):
        def capture(self, function: Callable[[], None]) -> Callable[[], None]:
            return lambda: function()

    with pytest.raises(WorkError, match="after three replayed steps on cpu parameters is not what three launched"):
        on_gpu(Idle(capability=(8, 0)))
    first, second = on_gpu(Replaying(capability=(8, 0)))(1)[0], on_gpu(FakeGpu())(1)[0]
    assert isinstance(first, RowResult)
    assert isinstance(second, RowResult)
    assert all(np.array_equal(first.arrays[name], second.arrays[name]) for name in first.arrays), "no trace of it"


def test_errors_of_the_set_up_are_one_line_with_a_remedy() -> None:
    class Full(FakeGpu):
        def capture(self, function: Callable[[], None]) -> Callable[[], None]:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.58 GiB of which "
                "1.00 GiB is free. If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF"
            )

    told = (
        r"cpu cannot be set up: CUDA out of memory\. .* 1\.00 GiB is free; use fewer --workers, --data.resident false"
    )
    with pytest.raises(WorkError, match=told):
        on_gpu(Full(capability=(8, 0)))


def test_memory_that_runs_out_under_cudnn_ends_the_training() -> None:
    gpu = FakeGpu(capability=(8, 0))
    used = on_gpu(gpu)
    assert len(used(0)) == 8
    gpu.refused = 1
    with pytest.raises(WorkError, match=r"ran out of memory .* rows come out with other bytes: use fewer --workers"):
        used(1)


def test_rows_with_other_kernels_than_the_first_are_not_written(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "digits", "50pct")
    create_store(layout, tiny(), load(tiny()).declared(tiny().outputs), lambda text: None)
    stores = [Store.open(layout, tiny()) for _ in range(3)]
    writers = [Writer(store, {"kernels": kernels}) for store, kernels in zip(stores, ("triton", "torch"), strict=False)]
    trained = on_gpu(FakeGpu(capability=(8, 0)))
    for group, writer in enumerate(writers):
        assert writer.lease(group)
    writers[0].commit(trained(0))
    with pytest.raises(WorkError, match="were trained with the kernels triton, these with torch"):
        writers[1].commit(trained(1))
    plain = Writer(stores[2], {})  # a CPU's
    assert plain.lease(2)
    plain.commit(trained(2))
    stores[2].refresh()
    assert stores[2].states.made_with("kernels") == {"triton"}
    assert np.flatnonzero(stores[2].completed()).tolist() == [*range(8), *range(16, 24)]
    for writer in (*writers, plain):
        writer.close()


def test_what_triton_compiles_is_kept_in_a_folder_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = tmp_path / f"datamodels-triton-{os.getuid()}"
    for prepare, expected in (
        (lambda: None, own),
        (lambda: own.chmod(0o777), tmp_path),
        (lambda: (own.rmdir(), own.symlink_to("/nowhere")), tmp_path),
    ):
        prepare()
        monkeypatch.setenv("TRITON_CACHE_DIR", "its value is put back")
        keep_cache_local()
        assert os.environ["TRITON_CACHE_DIR"] == "its value is put back", "a user's own folder is left"
        monkeypatch.delenv("TRITON_CACHE_DIR")
        keep_cache_local()
        found = Path(os.environ["TRITON_CACHE_DIR"])
        assert found == own if expected == own else found.parent == tmp_path
        assert found.stat().st_mode & 0o077 == 0
