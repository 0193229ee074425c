"""Every command and Python block in the README runs, on settings that are made smaller."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import PROJECT, TINY, Outcome, run_command

README = (PROJECT / "README.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("datamodels ") and "--help" not in line]
SMALL_CIFAR = [
    *("--data.train=256", "--data.test=64", "--models=12", "--eval_models=4", "--fit.share=0.35"),
    *("--recipe.width=4", "--recipe.batch=64", "--recipe.epochs=2", "--recipe.peak_epoch=1"),
]
SMALLER = {"640": "48", "4000": "48", "64:80": "8:16"}
"""What stands in for the README's own numbers on the digits."""


def blocks(mention: str) -> list[str]:
    """The Python blocks that mention a word."""
    return [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if mention in block]


def run(line: str, folder: Path, *options: object) -> Outcome:
    """A README's command on another root, with options that come last."""
    name, config, *given = shlex.split(line)[1:]
    root = Path("runs") / Path(config).stem
    if "--root" in given:
        at = given.index("--root")
        root = Path(given[at + 1])
        del given[at : at + 2]
    return run_command(name, config, *given, "--root", folder / root, *options)


def python(block: str, folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    subprocess.run([sys.executable, "-W", "error", "-c", block], cwd=folder, env=environment, check=True)


def test_digits_commands_run_in_order_and_their_files_are_read_as_written(tmp_path: Path) -> None:
    lines = [line for line in COMMANDS if "digits" in line]
    assert len(lines) >= 8
    for line in lines:
        smaller = " ".join(SMALLER.get(word, word) for word in line.split())
        done = run(smaller, tmp_path, *(TINY[1:] if "--models" in line else TINY))
        assert done.code == 0, done.err
    assert len(blocks("digits")) == 2
    for block in blocks("digits"):
        python(block, tmp_path)


def test_cifar_commands_run(tmp_path: Path, real_data: Path) -> None:
    lines = [line for line in COMMANDS if "cifar" in line and "--root published" not in line and " submit " not in line]
    assert len(lines) >= 4
    for line in sorted(lines, key=lambda line: " status " in line):  # its setting is trained by then
        root = ["--root", tmp_path / "runs" / "cifar_small"] if " status " in line else []
        done = run(line, tmp_path, "--data.root", real_data, *SMALL_CIFAR, *_outputs(line), *root)
        assert done.code == 0, done.err


def _outputs(line: str) -> list[str]:
    """`status` of the small version asks for what that was trained with."""
    return ["--outputs.train_logits=false", "--outputs.test_logits=false"] if " status " in line else []


def test_published_files_are_fitted_and_evaluated(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "published" / "cifar" / "data"
    folder.mkdir(parents=True)
    masks = rng.random((10_200, 12)) < 0.5
    np.save(folder / "train_masks_50pct.npy", masks)
    np.save(folder / "test_margins_50pct.npy", (masks[:, :5] + rng.normal(size=(10_200, 5))).astype(np.float16))
    for line in (line for line in COMMANDS if "--root published" in line):
        done = run(line, tmp_path)
        assert done.code == 0, done.err


def test_submit_plans_without_data_and_says_what_it_needs(tmp_path: Path) -> None:
    lines = [line for line in COMMANDS if " submit " in line]
    assert len(lines) == 2
    for line in lines:  # on a real SLURM: tests/launch/slurm
        done = run(line, tmp_path, "--data.root", tmp_path)
        assert done.code == (0 if "--dry-run" in line else 2), done.err
        assert "--dry-run" in line or "cifar-10-batches-py" in done.error


def test_the_fmow_class_is_used_as_written(tmp_path: Path, real_data: Path) -> None:
    (tmp_path / "data").symlink_to(real_data)
    (block,) = blocks("fmow")
    python(block, tmp_path)


def test_every_command_is_one_of_these() -> None:
    """So that a command that is added to the README is run too."""
    kinds = ("digits", "cifar")
    assert all(any(kind in line for kind in kinds) for line in COMMANDS)


@pytest.mark.parametrize(
    "page", [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))], ids=lambda p: p.name
)
def test_make_targets_and_linked_files_exist(page: Path) -> None:
    text = page.read_text()
    makefile = (PROJECT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)$", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link


def test_ci_runs_the_test_command() -> None:
    assert "make test" in (PROJECT / ".ci" / "run").read_text()
