"""Every block of docs/tutorial.md runs, in order, and prints what the page shows."""

import contextlib
import io
import json
import re
import shlex
import shutil
from pathlib import Path

import matplotlib
import pytest

from tests.conftest import PROJECT, in_process

PAGE = PROJECT / "docs" / "tutorial.md"
BLOCKS = re.findall(r"^```(sh|python|text)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")


def test_the_tutorial_runs_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(PROJECT / "configs", "configs")
    matplotlib.use("agg")
    printed, namespace = "", {}
    for kind, block in BLOCKS:
        if kind == "text":
            assert_alike(printed, block)
        elif kind == "sh":
            done = in_process(capsys, *shlex.split(block)[1:])
            assert done.code == 0, done.err
            printed = done.out
        else:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block, str(PAGE), "exec"), namespace)
            printed = out.getvalue()


def test_the_notebook_is_the_tutorial() -> None:
    """`make notebook` makes it."""
    notebook = pytest.importorskip("docs.notebook", reason="nbclient is not installed", exc_type=ImportError).notebook()
    kept = json.loads((PROJECT / "examples" / "tour.ipynb").read_text("utf-8"))
    assert ["".join(cell["source"]) for cell in kept["cells"]] == [cell.source for cell in notebook.cells]
    assert not [out for cell in kept["cells"] for out in cell.get("outputs", []) if out["output_type"] == "error"]
    assert "image/png" in json.dumps(kept)


def assert_alike(printed: str, shown: str) -> None:
    """The same words and whole numbers; other numbers to 0.02, or to a unit or two of their last digit.

    Vector instructions of another CPU change margins by 0.004 at most here (ATen and oneDNN held to the oldest ones).
    """
    assert NUMBER.sub("#", printed).split() == NUMBER.sub("#", shown).split(), printed
    for found, expected in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        decimals = len(expected.partition(".")[2])
        allowed = max(0.02, 1.5 * 10**-decimals) if decimals else 0
        assert float(found) == pytest.approx(float(expected), abs=allowed, rel=0), printed


@pytest.mark.parametrize(("printed", "alike"), [("0.65", True), ("0.61", False), ("0.48", False), ("1", False)])
def test_figures_that_are_not_those_of_the_page_are_noticed(printed: str, alike: bool) -> None:
    with contextlib.nullcontext() if alike else pytest.raises(AssertionError):
        assert_alike(f"LDS {printed} of 200", "LDS 0.64 of 200")
