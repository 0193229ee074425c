"""The pipeline end to end: interruptions, ranges, workers, growth, published files."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodels.lasso import preflight_check
from datamodels.launch.cli import main
from datamodels.train.config import Data, Fit, Setting
from datamodels.train.data import cifar
from datamodels.train.store.journal import JournalReader, Kind
from tests.conftest import DIGITS, PROJECT, TINY, Outcome, in_process
from tests.launch.slurm.cluster import alive
from tests.stores import linear_data, published_store

LONGER = [*TINY, "--recipe.epochs=150", "--recipe.width=16"]
"""As TINY, but with groups that take long enough to be interrupted."""

Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return partial(in_process, capsys)


def arrays(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "digits" / "data").glob("*.npy"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    for command in (["init"], ["train", "--workers=1"]):
        assert main([*command, str(DIGITS), "--root", str(root), *LONGER]) == 0
    return root


@pytest.fixture
def on_longer(run: Run, tmp_path: Path) -> Run:
    """Runs a command, named first, on a store of LONGER in which no row is done."""
    assert run("init", DIGITS, "--root", tmp_path, *LONGER).code == 0
    return lambda command, *options: run(command, DIGITS, "--root", tmp_path, *LONGER, *options)


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    """A `train` in a process of its own, once its first rows are done."""
    command = [sys.executable, "-m", "datamodels", "train", str(DIGITS), "--root", str(root), *LONGER, *options]
    process = subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True)
    flags = root / "digits" / "data" / "_completed_50pct.npy"
    while process.poll() is None and not np.load(flags, mmap_mode="r").any():
        time.sleep(0.01)
    return process


def test_a_second_run_does_nothing_and_says_so(run: Run, trained: Path) -> None:
    before = arrays(trained)
    second = run("run", DIGITS, "--root", trained, *TINY)
    assert second.code == 0
    assert [line.split(":")[0] for line in second.err.splitlines()] == [
        *("nothing to train", "nothing to fit", "nothing to report")
    ]
    assert arrays(trained) == before
    assert second.out.splitlines()[-1] == str(trained / "digits" / "report_test_50pct.html")


def test_the_store_is_the_published_format(undisturbed: Path) -> None:
    folder = undisturbed / "digits" / "data"
    expected = {"train_masks": bool, "test_margins": np.float16, "train_margins": np.float16, "_completed": bool}
    for name, dtype in expected.items():
        array = np.load(folder / f"{name}_50pct.npy", mmap_mode="r")
        assert (array.dtype, len(array), array.flags.c_contiguous) == (dtype, 32, True)
    assert np.load(folder / "_completed_50pct.npy").all()
    manifest = json.loads((folder / "store_50pct.json").read_text())
    assert manifest["config"]["recipe"]["lr"] == 0.2
    assert manifest["group"] == 8

    masks, margins = (np.load(folder / f"{name}_50pct.npy") for name in ("train_masks", "test_margins"))
    assert (masks.sum(1) == 50).all()
    assert len({mask.tobytes() for mask in masks[:24]}) == 24
    for row in range(24, 32, 2):  # two runs of each evaluation mask
        assert np.array_equal(masks[row], masks[row + 1])
        assert not np.array_equal(margins[row], margins[row + 1])


@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [
        (signal.SIGINT, 130, 2),
        (signal.SIGTERM, 75, 1),
        (signal.SIGUSR1, 75, 2),
        (signal.SIGKILL, -9, 1),
    ],
)
def test_training_that_is_ended_goes_on_to_equal_bytes(
    on_longer: Run, undisturbed: Path, tmp_path: Path, number: int, code: int, workers: int
) -> None:
    process = start(tmp_path, f"--workers={workers}")
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert ("the same command goes on" in told) == (number != signal.SIGKILL)
    assert 0 < json.loads(on_longer("status", "--json").out)["done"] < 32
    assert on_longer("train", "--workers=1").code == 0
    assert arrays(tmp_path) == arrays(undisturbed)


def test_a_worker_does_not_outlive_its_launcher(on_longer: Run, tmp_path: Path) -> None:
    process = start(tmp_path, "--workers=2")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while any(alive(int(child)) for child in children):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.05)


def test_ranges_write_their_rows_alone_and_come_out_equal(on_longer: Run, undisturbed: Path, tmp_path: Path) -> None:
    assert on_longer("train", "--rows=11:12,3:5").code == 0
    flags = np.load(tmp_path / "digits" / "data" / "_completed_50pct.npy")
    assert np.flatnonzero(flags).tolist() == [3, 4, 11]
    assert on_longer("train", "--workers=2").code == 0
    assert arrays(tmp_path) == arrays(undisturbed)


def test_growing_keeps_rows_and_makes_the_fit_stale(run: Run, trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "grown"
    shutil.copytree(trained, root)
    options = [DIGITS, "--root", root, *(option for option in TINY if not option.startswith("--models"))]
    before = {name: np.load(root / "digits" / "data" / name) for name in arrays(root)}
    assert "runs_per_mask" in run("grow", *options, "--models=25").error
    assert "only grow" in run("grow", *options, "--models=16").error
    grown = run("grow", *options, "--models=40")
    assert grown.code == 0, grown.err
    assert "40 estimation and 8 evaluation rows" in grown.out
    assert run("run", *options, "--models=40", "--workers=1").code == 0
    for name, rows in before.items():
        after = np.load(root / "digits" / "data" / name)
        assert len(after) == 48
        np.testing.assert_array_equal(after[:32], rows)
    report = json.loads((root / "digits" / "datamodels" / "test_50pct.json").read_text())
    assert report["rows"]["used"] == 40
    assert run("status", *options, "--models=24").code == 0


def test_examples_in_all_masks_or_in_none_are_told(tmp_path: Path, run: Run) -> None:
    masks, margins = linear_data(60, 8, 3)
    masks[:, 2], masks[:, 5] = True, False
    published_store(tmp_path, masks, margins)
    (tmp_path / "made-up").rename(tmp_path / "digits")
    told = run("fit", DIGITS, "--root", tmp_path, "--eval_models=0").err
    assert "2 of 8 examples are in all masks of the fit or in none: their weights are 0\n" in told


def test_a_root_of_published_files_is_fitted_evaluated_and_reported(run: Run, trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "data"
    folder.mkdir(parents=True)
    for name in ("train_masks", "test_margins", "train_margins"):
        shutil.copy(trained / "digits" / "data" / f"{name}_50pct.npy", folder)
    options = [DIGITS, "--root", tmp_path, "--eval_models=8", "--runs_per_mask=2"]
    for command in ("status", "fit", "eval", "report"):
        found = run(command, *options, *(["--models=24"] if command == "fit" else []))
        assert found.code == 0, found.err
    assert "models is 25" in run("fit", *options, "--models=25").error
    assert "published files" in run("init", *options, *TINY).error
    weights = torch.load(tmp_path / "digits" / "datamodels" / "test_50pct.pt", weights_only=True)
    assert weights["weight"].shape == (100, 60)
    (folder / "_completed_50pct.npy").write_bytes(b"")
    assert "_completed_50pct.npy" in run("fit", *options).error


def test_published_rows_that_do_not_count_are_left_out_by_every_command(
    run: Run, trained: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "digits" / "data"
    folder.mkdir(parents=True)
    made = trained / "digits" / "data"
    arrays = {name: np.load(made / f"{name}_50pct.npy") for name in ("train_masks", "test_margins")}
    arrays["train_masks"][[3, 30]] = False
    arrays["test_margins"][[4, 31], 5] = np.nan
    for name, values in arrays.items():
        np.save(folder / f"{name}_50pct.npy", values)
    options = [DIGITS, "--root", tmp_path, "--eval_models=8", "--runs_per_mask=2"]
    assert "4 of 32 rows have an empty mask or a value that is not finite (first: 3)" in run("fit", *options).error
    assert "2 of 32 rows" in run("eval", *options, "--weights", trained / "digits/datamodels/test_50pct.pt").error
    options.append("--fit.max_failed=0.2")
    found = json.loads(run("status", *options, "--json").out)
    assert (found["done"], found["missing"], found["failed"], found["total"]) == (28, 0, 4, 32)
    assert found["reasons"] == {"empty mask": 2, "value not finite": 2}
    told = run("fit", *options)
    assert "2 of 32 rows are left out: empty mask (first: 3)" in told.err
    assert "2 of 32 rows are left out: value not finite (first: 4)" in told.err
    rows = json.loads((tmp_path / "digits" / "datamodels" / "test_50pct.json").read_text())["rows"]
    assert (rows["used"], rows["failed"], rows["missing"]) == (22, 2, 0)
    assert json.loads(run("eval", *options, "--json").out)["models"] == 6
    points = json.loads(run("eval", *options, "--curve", "--json").out)["points"]
    assert points[-1]["models"] == 22
    assert run("report", *options).code == 0
    assert np.load(folder / "test_margins_50pct.npy").tobytes() == arrays["test_margins"].tobytes()
    exported = Path(run("export", *options, "--to", "trak").out.strip())
    assert np.load(exported / "mask.npy").any(axis=1).all()


def test_rows_that_fail_are_counted_told_and_retried_on_request(run: Run, tmp_path: Path) -> None:
    options = [DIGITS, "--root", tmp_path, *TINY, "--recipe.lr=1.0e+30"]
    rows = [*options, "--rows=0:8", "--workers=1"]
    assert run("init", *options).code == 0
    failed = run("train", *rows)
    assert failed.code == 1
    assert "row 0 failed: train_margins not finite" in failed.err
    assert failed.err.splitlines()[-1].startswith("error: 8 of 32 rows failed")
    found = json.loads(run("status", *options, "--json").out)
    assert (found["done"], found["missing"], found["failed"]) == (0, 24, 8)
    assert found["reasons"] == {"train_margins not finite": 8}
    quick = run("train", *rows, "--fit.max_failed=0.5")
    assert quick.code == 0
    assert "nothing to train" in quick.err
    assert run("train", *rows, "--retry-failed").code == 1
    journals = tmp_path / "digits" / "data" / "_journal_50pct"
    records = [
        record for path in journals.iterdir() for found, _ in JournalReader(path).new_records() for record in found
    ]
    assert sum(record["kind"] == Kind.FAILED for record in records) == 8 * (2 + 2)


def test_cifar_end_to_end_on_the_official_batches(run: Run, tmp_path: Path, real_data: Path) -> None:
    small = ["--data.train=256", "--data.test=64", "--models=12", "--eval_models=4", "--recipe.width=4", "--workers=1"]
    options = ["--data.root", real_data, "--root", tmp_path, *small, "--recipe.epochs=2", "--recipe.peak_epoch=1"]
    done = run("run", PROJECT / "configs" / "cifar_debug.yaml", *options)
    assert done.code == 0, done.err
    folder = tmp_path / "cifar" / "data"
    logits = np.load(folder / "test_logits_50pct.npy", mmap_mode="r")
    assert (logits.shape, logits.dtype) == ((16, 64, 10), np.float16)
    labels = cifar.read(Data(root=str(real_data)))[1].labels[:64]
    others = logits.astype(np.float32)
    others[:, np.arange(64), labels] = -np.inf
    margins = logits[:, np.arange(64), labels].astype(np.float32) - others.max(2)
    np.testing.assert_allclose(np.load(folder / "test_margins_50pct.npy"), margins, atol=0.02)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--models=2"], "2 models would give 2 training and 0 validation rows"),
        (["--eval_models=4", "--runs_per_mask=2"], "4 evaluation models would have 2 masks"),
        (["--recipe.network=resnet9", "--recipe.group=1"], "recipe.network is 'resnet9', which cannot train on"),
    ],
)
def test_what_could_not_be_used_is_refused_before_it_is_trained(
    run: Run, tmp_path: Path, options: list[str], told: str
) -> None:
    assert told in run("run", DIGITS, "--root", tmp_path, *TINY, *options).error
    assert not list(tmp_path.iterdir())


def test_many_models_are_not_refused_for_a_small_share() -> None:
    preflight_check(Setting(models=1500, fit=Fit(share=1e-6)))
