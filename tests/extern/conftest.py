"""Exports of a digits setting, made by the project's own environment and read here by the libraries themselves."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).parents[2]
DOCS = (PROJECT / "docs" / "export.md").read_text()
SMALLER = ["--models=600", "--eval_models=80", "--data.test=200", "--outputs.test_logits=true"]
ROWS = (600, 640)
"""Stands in for the docs' 3000:3020."""

sys.path.insert(0, str(PROJECT))  # fmow.torchvision_compat alone, which imports nothing but torch

from fmow import torchvision  # noqa: E402

torchvision()  # quanda imports it, which fails beside a CPU torch without this


def run_command(folder: Path, *arguments: str) -> str:
    """Run the command in its own environment; returns what it prints."""
    command = [PROJECT / ".venv" / "bin" / "python", "-m", "datamodels", *arguments]
    root = ["--root", folder / "runs" / "digits_50pct", *SMALLER]
    done = subprocess.run([*command, *root], capture_output=True, text=True, cwd=PROJECT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where runs/digits_50pct is trained, fitted, and exported by every command of the docs."""
    folder = tmp_path_factory.mktemp("extern")
    for command in ("init", "train", "fit"):
        run_command(folder, command, "configs/digits_50pct.yaml")
    for line in re.findall(r"^datamodels (export configs.*)$", DOCS, re.MULTILINE):
        run_command(folder, *shlex.split(line.replace("3000:3020", "{}:{}".format(*ROWS))))
    return folder


@pytest.fixture(scope="session")
def evaluated(folder: Path) -> dict:
    """What `eval` finds on the same rows."""
    return json.loads(run_command(folder, "eval", "configs/digits_50pct.yaml", "--json"))


@pytest.fixture
def block(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the one Python block of the docs that mentions something, and returns the names that it defines."""

    def run(mention: str) -> dict:
        (found,) = [text for text in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if mention in text]
        monkeypatch.chdir(folder)
        names: dict = {}
        exec(found, names)
        return names

    return run


@pytest.fixture(scope="session")
def export(folder: Path):
    """The folder of an export by its name."""
    return lambda name: folder / "runs" / "digits_50pct" / "digits" / "export" / name


@pytest.fixture(scope="session")
def stored(folder: Path):
    """An array of the store by its name."""
    return lambda name: np.load(folder / "runs" / "digits_50pct" / "digits" / "data" / f"{name}_50pct.npy")
