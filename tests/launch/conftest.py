"""What the tests of commands share."""

import os
from pathlib import Path

import pytest

from datamodels.launch.cli import main
from tests.conftest import DIGITS, TINY
from tests.launch.slurm.fake import FakeSlurm


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a small digits setting that `run` has done; tests that change it copy it."""
    root = tmp_path_factory.mktemp("trained")
    assert main(["run", str(DIGITS), "--root", str(root), *TINY]) == 0
    return root


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    """A SLURM on the PATH that keeps jobs and never runs them."""
    found = FakeSlurm(tmp_path_factory.mktemp("slurm"))
    found.install()
    monkeypatch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return found
