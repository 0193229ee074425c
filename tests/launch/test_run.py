"""The pipeline end to end, in processes of its own: interruptions, ranges, workers, growth, published files."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodels.lasso import preflight_check
from datamodels.train.config import Data, Fit, Setting
from datamodels.train.data import cifar
from datamodels.train.store.journal import JournalReader, Kind
from tests.conftest import DIGITS, PROJECT, TINY, in_process, run_command

LONGER = [*TINY, "--recipe.epochs=250", "--recipe.width=16"]
"""As TINY, but with groups that take long enough to be interrupted."""


def arrays(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "digits" / "data").glob("*.npy"))}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("undisturbed")
    assert run_command("init", DIGITS, "--root", root, *LONGER).code == 0
    assert run_command("train", DIGITS, "--root", root, *LONGER, "--workers=1").code == 0
    return root


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "datamodels.launch.cli",
        "train",
        str(DIGITS),
        "--root",
        str(root),
        *LONGER,
        *options,
    ]
    return subprocess.Popen(command, cwd=PROJECT, stderr=subprocess.PIPE, text=True)


def wait_for_rows(root: Path, process: subprocess.Popen[str]) -> None:
    """Until the first rows are done."""
    flags = root / "digits" / "data" / "_completed_50pct.npy"
    while process.poll() is None and not np.load(flags, mmap_mode="r").any():
        time.sleep(0.01)


def test_a_second_run_does_nothing_and_says_so(tmp_path: Path) -> None:
    first = run_command("run", DIGITS, "--root", tmp_path, *TINY)
    assert first.code == 0, first.err
    before = arrays(tmp_path)
    second = run_command("run", DIGITS, "--root", tmp_path, *TINY)
    assert second.code == 0
    assert [line.split(":")[0] for line in second.err.splitlines()] == [
        *("nothing to train", "nothing to fit", "nothing to report")
    ]
    assert arrays(tmp_path) == before
    assert second.out.splitlines()[-1] == first.out.splitlines()[-1]


def test_the_store_is_the_published_format(undisturbed: Path) -> None:
    folder = undisturbed / "digits" / "data"
    expected = {"train_masks": bool, "test_margins": np.float16, "train_margins": np.float16, "_completed": bool}
    for name, dtype in expected.items():
        array = np.load(folder / f"{name}_50pct.npy", mmap_mode="r")
        assert array.dtype == dtype
        assert len(array) == 32
        assert array.flags.c_contiguous
    assert np.load(folder / "_completed_50pct.npy").all()
    assert (np.load(folder / "train_masks_50pct.npy").sum(1) == 50).all()
    manifest = json.loads((folder / "store_50pct.json").read_text())
    assert manifest["config"]["recipe"]["lr"] == 0.2
    assert manifest["group"] == 8


def test_evaluation_rows_share_masks_in_runs(undisturbed: Path) -> None:
    masks = np.load(undisturbed / "digits" / "data" / "train_masks_50pct.npy")
    margins = np.load(undisturbed / "digits" / "data" / "test_margins_50pct.npy")
    assert len({mask.tobytes() for mask in masks[:24]}) == 24
    for row in range(24, 32, 2):
        assert np.array_equal(masks[row], masks[row + 1])
        assert not np.array_equal(margins[row], margins[row + 1])


def test_killing_the_training_and_going_on_gives_equal_bytes(undisturbed: Path, tmp_path: Path) -> None:
    assert run_command("init", DIGITS, "--root", tmp_path, *LONGER).code == 0
    process = start(tmp_path, "--workers=1")
    wait_for_rows(tmp_path, process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert run_command("train", DIGITS, "--root", tmp_path, *LONGER, "--workers=1").code == 0
    assert arrays(tmp_path) == arrays(undisturbed)


@pytest.mark.parametrize(
    ("number", "code", "workers"),
    [(signal.SIGINT, 130, 1), (signal.SIGINT, 130, 2), (signal.SIGTERM, 75, 1), (signal.SIGUSR1, 75, 2)],
)
def test_a_signal_ends_it_cleanly_and_says_how_to_go_on(
    undisturbed: Path, tmp_path: Path, number: int, code: int, workers: int
) -> None:
    assert run_command("init", DIGITS, "--root", tmp_path, *LONGER).code == 0
    process = start(tmp_path, f"--workers={workers}")
    wait_for_rows(tmp_path, process)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert "the same command goes on" in told
    done = json.loads(run_command("status", DIGITS, "--root", tmp_path, *LONGER, "--json").out)["done"]
    assert 0 < done < 32
    assert run_command("train", DIGITS, "--root", tmp_path, *LONGER).code == 0
    assert arrays(tmp_path) == arrays(undisturbed)


def test_a_worker_does_not_outlive_its_launcher(tmp_path: Path) -> None:
    assert run_command("init", DIGITS, "--root", tmp_path, *LONGER).code == 0
    process = start(tmp_path, "--workers=2")
    wait_for_rows(tmp_path, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while any(_alive(int(child)) for child in children):
        assert time.monotonic() < deadline, "a worker is still there"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_ranges_write_their_rows_alone_and_come_out_equal(undisturbed: Path, tmp_path: Path) -> None:
    assert run_command("init", DIGITS, "--root", tmp_path, *LONGER).code == 0
    assert run_command("train", DIGITS, "--root", tmp_path, *LONGER, "--rows=11:12").code == 0
    flags = np.load(tmp_path / "digits" / "data" / "_completed_50pct.npy")
    assert np.flatnonzero(flags).tolist() == [11]
    assert run_command("train", DIGITS, "--root", tmp_path, *LONGER, "--workers=2").code == 0
    assert arrays(tmp_path) == arrays(undisturbed)


def test_growing_keeps_rows_and_makes_the_fit_stale(undisturbed: Path, tmp_path: Path) -> None:
    root = tmp_path / "grown"
    shutil.copytree(undisturbed, root)
    assert run_command("fit", DIGITS, "--root", root, *LONGER).code == 0
    before = {name: np.load(root / "digits" / "data" / name) for name in arrays(root)}
    longer = [option for option in LONGER if not option.startswith("--models")]
    assert "runs_per_mask" in run_command("grow", DIGITS, "--root", root, *longer, "--models=25").error
    assert "only grow" in run_command("grow", DIGITS, "--root", root, *longer, "--models=16").error
    grown = run_command("grow", DIGITS, "--root", root, *longer, "--models=40")
    assert grown.code == 0, grown.err
    assert "40 estimation and 8 evaluation rows" in grown.out
    assert run_command("run", DIGITS, "--root", root, *longer, "--models=40").code == 0
    for name, rows in before.items():
        after = np.load(root / "digits" / "data" / name)
        assert len(after) == 48
        np.testing.assert_array_equal(after[:32], rows)
    report = json.loads((root / "digits" / "datamodels" / "test_50pct.json").read_text())
    assert report["rows"]["used"] == 40
    assert run_command("status", DIGITS, "--root", root, *LONGER).code == 0


def test_a_root_of_published_files_is_fitted_evaluated_and_reported(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "data"
    folder.mkdir(parents=True)
    for name in ("train_masks", "test_margins", "train_margins"):
        np.save(folder / f"{name}_50pct.npy", np.load(undisturbed / "digits" / "data" / f"{name}_50pct.npy"))
    options = ["--root", tmp_path, "--eval_models=8", "--runs_per_mask=2"]
    for command in ("status", "fit", "eval", "report"):
        found = run_command(command, DIGITS, *options, *(["--models=24"] if command == "fit" else []))
        assert found.code == 0, found.err
    assert "models is 25" in run_command("fit", DIGITS, *options, "--models=25").error
    assert "published files" in run_command("init", DIGITS, *options, *TINY).error
    weights = torch.load(tmp_path / "digits" / "datamodels" / "test_50pct.pt", weights_only=True)
    assert weights["weight"].shape == (100, 60)
    (folder / "_completed_50pct.npy").write_bytes(b"")
    assert "_completed_50pct.npy" in run_command("fit", DIGITS, *options).error


def test_rows_that_fail_are_counted_told_and_retried_on_request(tmp_path: Path) -> None:
    wild = [*TINY, "--recipe.lr=1.0e+30"]
    assert run_command("init", DIGITS, "--root", tmp_path, *wild).code == 0
    failed = run_command("train", DIGITS, "--root", tmp_path, *wild, "--rows=0:8", "--workers=1")
    assert failed.code == 1
    assert "row 0 failed: train_margins not finite" in failed.err
    assert failed.err.splitlines()[-1].startswith("error: 8 of 32 rows failed")
    found = json.loads(run_command("status", DIGITS, "--root", tmp_path, *wild, "--json").out)
    assert (found["done"], found["missing"], found["failed"]) == (0, 24, 8)
    assert found["reasons"] == {"train_margins not finite": 8}
    quick = run_command("train", DIGITS, "--root", tmp_path, *wild, "--rows=0:8", "--fit.max_failed=0.5")
    assert quick.code == 0
    assert "nothing to train" in quick.err
    again = run_command("train", DIGITS, "--root", tmp_path, *wild, "--rows=0:8", "--retry-failed", "--workers=1")
    assert again.code == 1
    journals = tmp_path / "digits" / "data" / "_journal_50pct"
    records = [record for path in journals.iterdir() for news, _ in JournalReader(path).news() for record in news]
    assert sum(record["kind"] == Kind.FAILED for record in records) == 8 * (2 + 2)


def test_cifar_end_to_end_on_the_official_batches(tmp_path: Path, real_data: Path) -> None:
    small = ["--data.train=256", "--data.test=64", "--models=12", "--eval_models=4", "--recipe.width=4"]
    options = ["--data.root", real_data, "--root", tmp_path, *small, "--recipe.epochs=2", "--recipe.peak_epoch=1"]
    config = PROJECT / "configs" / "cifar_debug.yaml"
    done = run_command("run", config, *options)
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    assert told in in_process(capsys, "run", DIGITS, "--root", tmp_path, *TINY, *options).error
    assert not list(tmp_path.iterdir())


def test_many_models_are_not_refused_for_a_small_share() -> None:
    preflight_check(Setting(models=1500, fit=Fit(share=1e-6)))
