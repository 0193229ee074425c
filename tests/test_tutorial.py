"""Every block of docs/tutorial.md runs, in order, and prints what the page shows."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.conftest import PROJECT, datamodels

PAGE = PROJECT / "docs" / "tutorial.md"
BLOCKS = re.findall(r"^```(sh|python|text)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def test_the_tutorial_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(PROJECT / "configs", "configs")
    printed, namespace = "", {}
    for kind, block in BLOCKS:
        if kind == "text":
            assert_alike(printed, block)
        elif kind == "sh":
            printed = "".join(run(line, tmp_path) for line in block.splitlines())
        else:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block, str(PAGE), "exec"), namespace)
            printed = out.getvalue()


def run(line: str, folder: Path) -> str:
    """A command of the page in its folder."""
    words = [str(folder / word) if word.startswith(("configs/", "runs/")) else word for word in shlex.split(line)[1:]]
    done = datamodels(*words)
    assert done.code == 0, done.err
    return done.out


def assert_alike(printed: str, shown: str) -> None:
    """The same words, and numbers as they may come out on another machine."""
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", shown).split(), printed
    for found, expected in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        assert float(found) == pytest.approx(float(expected), abs=0.06, rel=0.25), printed
