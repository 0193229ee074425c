"""Every command and Python block of the README runs, on settings that are made smaller."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import PROJECT, TINY, Outcome, in_process

README = (PROJECT / "README.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("datamodels ") and "--help" not in line]
SMALL_CIFAR = [
    *("--data.train=256", "--data.test=64", "--models=12", "--eval_models=4", "--fit.share=0.35"),
    *("--recipe.width=4", "--recipe.batch=64", "--recipe.epochs=2", "--recipe.peak_epoch=1"),
]
SMALLER = {"640": "48", "4000": "48", "64:80": "8:16"}
"""What stands in for the README's own numbers on the digits."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder but for the configs, which is the current one."""
    (tmp_path / "configs").symlink_to(PROJECT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], line: str, *options: object) -> Outcome:
    """A command of the README, with options that come last; it trains in this process, without workers."""
    words = shlex.split(line)[1:]
    return in_process(capsys, *words, *options, *(["--workers=1"] if words[0] in ("run", "train") else []))


def blocks(mention: str) -> list[str]:
    """The Python blocks that mention a word."""
    return [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if mention in block]


def run_python(block: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    subprocess.run([sys.executable, "-W", "error", "-c", block], env=environment, check=True)


def test_digits_commands_run_in_order_and_their_files_are_read_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in COMMANDS if "digits" in line]
    assert len(lines) >= 8
    for line in lines:
        smaller = " ".join(SMALLER.get(word, word) for word in line.split())
        done = run(capsys, smaller, *(TINY[1:] if "--models" in line else TINY))
        assert done.code == 0, done.err
    assert len(blocks("digits")) == 2
    for block in blocks("digits"):
        run_python(block)


def test_cifar_commands_run(capsys: pytest.CaptureFixture[str], real_data: Path) -> None:
    lines = [line for line in COMMANDS if "cifar" in line and "--root published" not in line and " submit " not in line]
    assert len(lines) >= 4
    for line in sorted(lines, key=lambda line: " status " in line):  # of the small version, which is trained by then
        small = ["--outputs.train_logits=false", "--outputs.test_logits=false", "--root=runs/cifar_small"]
        done = run(capsys, line, "--data.root", real_data, *SMALL_CIFAR, *(small if " status " in line else []))
        assert done.code == 0, done.err


def test_published_files_are_fitted_and_evaluated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    data = folder / "published" / "cifar" / "data"
    data.mkdir(parents=True)
    masks = rng.random((10_200, 12)) < 0.5
    np.save(data / "train_masks_50pct.npy", masks)
    np.save(data / "test_margins_50pct.npy", (masks[:, :5] + rng.normal(size=(10_200, 5))).astype(np.float16))
    lines = [line for line in COMMANDS if "--root published" in line]
    assert len(lines) == 2
    for line in lines:
        done = run(capsys, line)
        assert done.code == 0, done.err


def test_submit_plans_without_data_and_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in COMMANDS if " submit " in line]
    assert len(lines) == 2
    for line in lines:  # on a real SLURM: tests/launch/slurm
        done = run(capsys, line)
        assert done.code == (0 if "--dry-run" in line else 2), done.err
        assert "--dry-run" in line or "cifar-10-batches-py" in done.error


def test_the_fmow_class_is_used_as_written(folder: Path, real_data: Path) -> None:
    (folder / "data").symlink_to(real_data)
    (block,) = blocks("fmow")
    run_python(block)


def test_every_command_is_one_of_these() -> None:
    """So that a command that is added to the README is run too."""
    assert all("digits" in line or "cifar" in line for line in COMMANDS)


def test_ci_runs_the_test_command() -> None:
    assert "make test" in (PROJECT / ".ci" / "run").read_text()
