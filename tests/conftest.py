"""What several test modules share: tiny settings, the command line, real data where it is at hand."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from datamodels.launch.cli import main
from datamodels.train.config import Data, Recipe, Setting

collect_ignore = ["extern"]  # for another environment: `make test-extern`

hypothesis.settings.register_profile("busy", deadline=None)  # machines that run tests are shared
hypothesis.settings.load_profile("busy")

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command does; torch reads it on import

PROJECT = Path(__file__).parent.parent
DIGITS = PROJECT / "configs" / "digits_50pct.yaml"
TINY = [
    *("--models=24", "--eval_models=8", "--data.test=60"),
    *("--recipe.epochs=2", "--recipe.peak_epoch=1", "--recipe.width=4", "--recipe.group=8"),
]
"""Options that make a digits setting of 32 rows that trains in a second."""


def tiny(**changes: Any) -> Setting:
    """The setting that TINY makes of the digits config, with changes at its top level."""
    recipe = Recipe(
        network="convnet",
        width=4,
        epochs=2,
        peak_epoch=1,
        batch=50,
        lr=0.2,
        label_smoothing=0.0,
        flip=False,
        translate=0,
        cutout=0,
        precision="float32",
        device="cpu",
        threads=1,
        group=8,
    )
    values = {"alpha": 0.5, "models": 24, "eval_models": 8, "runs_per_mask": 2, "tta": "none"}
    return Setting(dataset="digits", **{**values, "recipe": recipe, "data": Data(test=60), **changes})


@contextlib.contextmanager
def any_algorithm() -> Iterator[None]:
    """Torch's own networks beside the trainer's: some of their gradients on a GPU add by atomics, which would warn."""
    import torch

    asked = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked, warn_only=True)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one `error:` line of a refused command; fails where there is anything else."""
        lines = self.err.splitlines()
        assert self.code == 2, f"exit code {self.code}: {self.err}"
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        assert self.out == ""
        return lines[0]


def run_command(*arguments: object, **options: Any) -> Outcome:
    """Run the command in a process of its own, as a user would."""
    command = [sys.executable, "-m", "datamodels", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, timeout=600, **options)
    return Outcome(done.returncode, done.stdout, done.stderr)


def in_process(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run the command in this process: quicker, and good enough where the process itself is not what is tested."""
    capsys.readouterr()
    code = main([*map(str, arguments)])
    return Outcome(code, *capsys.readouterr())


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real CIFAR-10 and fMoW data; tests that need it are skipped where there is none."""
    folder = Path(os.environ.get("DATAMODELS_TEST_DATA", PROJECT.parent / "shared" / "data"))
    if not (folder / "cifar-10-batches-py" / "data_batch_1").exists():
        pytest.skip(f"no real data in {folder} (DATAMODELS_TEST_DATA)")
    return folder
