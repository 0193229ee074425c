"""A trained and fitted root of digits, and exports of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from datamodels.launch.cli import main
from tests.conftest import DIGITS, TINY, in_process

OPTIONS = [*TINY, "--outputs.test_logits=true"]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/digits_50pct in an empty folder, as the examples of docs/export.md have it: 24 + 8 rows in groups of 8."""
    root = tmp_path_factory.mktemp("export") / "runs" / "digits_50pct"
    for command, *options in (["init"], ["train", "--workers=1"], ["fit"], ["fit", "--split=train"]):
        assert main([command, str(DIGITS), "--root", str(root), *OPTIONS, *options]) == 0
    return root


@pytest.fixture
def export(root: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """Runs `export` on the root with more options, and returns the folder that it prints."""

    def run(*options: object) -> Path:
        done = in_process(capsys, "export", DIGITS, "--root", root, *OPTIONS, *options)
        assert done.code == 0, done.err
        return Path(done.out.strip())

    return run
