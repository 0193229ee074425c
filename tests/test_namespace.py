"""Everything works from a wheel, and in a folder whose own modules have the names of our folders."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import DIGITS, PROJECT, TINY

PACKAGES = {"train": "datamodels/train", "lasso": "datamodels/lasso", "launch": "datamodels/launch", "fmow": "fmow"}
"""Folders of the source, and where a wheel has them."""

OWN = ("train", "lasso", "launch", "bench", "config", "tests", "fmow_")
"""Modules that a user's folder may hold, most of them named as folders of the source."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages as a wheel brings them, unpacked."""
    pytest.importorskip("setuptools", "77", reason="a wheel is built with setuptools 77 or newer")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()  # a build leaves files where it builds
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    for name in ("datamodels", *PACKAGES):
        unneeded = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / name, source / name, symlinks=True, ignore=unneeded)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", folder, source], check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_brings_two_packages_with_all_modules_and_types(wheel: Path) -> None:
    assert sorted(path.name for path in wheel.iterdir() if path.suffix != ".dist-info") == ["datamodels", "fmow"]
    for name, place in PACKAGES.items():
        for pattern in ("*.py", "*.html", "*.css"):
            files = {path.relative_to(PROJECT / name) for path in (PROJECT / name).rglob(pattern)}
            assert files == {path.relative_to(wheel / place) for path in (wheel / place).rglob(pattern)}
    assert (wheel / "datamodels" / "py.typed").exists()
    assert (wheel / "fmow" / "py.typed").exists()


def users_folder(folder: Path) -> Path:
    """A folder with the digits config and modules that raise where they are imported."""
    for name in OWN:
        (folder / f"{name}.py").write_text(f"raise RuntimeError('the user\\'s own {name}.py was imported')\n")
    shutil.copy(DIGITS, folder / "mine.yaml")
    return folder


NOTEBOOK = """
import sys
import datamodels as dm, fmow
assert all(module.__file__.startswith(sys.argv[1]) for module in (dm, fmow)), (dm, fmow)
store = dm.open("runs/mine")
fitted = dm.load(store)
rows = store.evaluation_rows()
assert fitted.predict(store.masks[rows]).shape == store.margins()[rows].shape == (8, 60)
dataset = store.dataset()
scores = dataset.train.labels[:, None] == dataset.test.labels
print(dm.evaluate(store).lds, dm.evaluate(store, scores).lds, len(fitted.top_examples(0).indices))
"""


def test_modules_of_the_user_are_never_imported(wheel: Path, tmp_path: Path) -> None:
    """Every command, its worker processes and a notebook work beside the user's train.py, lasso.py and others.

    What needs the solver is run from the source, where its kernels are compiled already.
    """
    folder = users_folder(tmp_path)

    def start(*arguments: str, source: Path = wheel) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-W", "error", *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(source)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(name: str, *options: str, source: Path = wheel) -> subprocess.Popen:
        return start("-m", "datamodels", name, "mine.yaml", *TINY, *options, source=source)

    def output(process: subprocess.Popen) -> str:
        out, err = process.communicate()
        assert process.returncode == 0, err
        return out

    output(command("run", "--workers=2", source=PROJECT))
    others = {
        "fit": command("fit", "--split=train", source=PROJECT),
        "eval": command("eval", "--json", source=PROJECT),
        "report": command("report"),
        "submit": command("submit", "--dry-run"),
    }
    found = {name: output(process) for name, process in others.items()}
    lds, *_ = output(start("-c", NOTEBOOK, str(wheel))).split()
    assert found["fit"].endswith("train_50pct.pt\n")
    assert Path(folder, found["report"].strip()).exists()
    assert "#SBATCH" in found["submit"]
    assert f'"lds": {lds}' in found["eval"]
