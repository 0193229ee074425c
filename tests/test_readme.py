"""Every command in the README runs, and what it shows is what is there."""

import re
import shlex
from pathlib import Path

import pytest

from launch.parser import COMMANDS
from tests.conftest import PROJECT, TINY, datamodels

README = (PROJECT / "README.md").read_text()
LINES = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
DIGITS = [line for line in LINES if line.startswith("datamodels ") and "digits" in line]


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the roots that the README's commands name."""
    return tmp_path_factory.mktemp("readme")


@pytest.mark.parametrize("line", DIGITS)
def test_digits_commands_run_as_written(line: str, elsewhere: Path) -> None:
    """In order, on a smaller setting."""
    arguments = shlex.split(line)[1:]
    root = arguments[arguments.index("--root") + 1] if "--root" in arguments else "runs/digits_50pct"
    arguments = [argument for argument in arguments if argument not in ("--root", root)]
    small = TINY[1:] if "--models" in arguments else TINY
    arguments = ["48" if argument in ("640", "4000") else argument for argument in arguments]
    arguments = ["8:16" if argument == "64:80" else argument for argument in arguments]
    done = datamodels(*arguments, "--root", elsewhere / root, *small)
    assert done.code == 0, done.err


def test_the_other_commands_are_known_and_their_configs_valid(tmp_path: Path) -> None:
    others = [line for line in LINES if line.startswith("datamodels ") and line not in DIGITS]
    assert len(others) >= 5
    for line in others:
        name, *arguments = shlex.split(line)[1:]
        if name == "--help":
            continue
        assert name in COMMANDS
        assert (PROJECT / arguments[0]).exists()
        refused = datamodels(name, *arguments, "--root", tmp_path / "none", "--data.root", tmp_path / "none")
        # a dry run needs no data; everything else must say that there is none
        assert refused.code == (0 if "--dry-run" in arguments else 2), refused.err
        assert "not accepted" not in refused.err
        assert "unrecognized" not in refused.err


def test_make_targets_and_files_exist() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)$", "\n".join(LINES), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (PROJECT / link).exists(), link
    assert "make test" in (PROJECT / ".ci" / "run").read_text()
