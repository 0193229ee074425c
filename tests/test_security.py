"""What the source must not do: read data that can carry code, or write for everyone."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import DIGITS, PROJECT, TINY, in_process

SOURCES = sorted(
    path for folder in ("train", "fmow", "lasso", "launch", "bench") for path in (PROJECT / folder).glob("*.py")
)


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a module, by its dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def safe_loaders(path: Path) -> set[str]:
    """Classes of a module that only add to yaml.SafeLoader: none of them registers a constructor."""
    text = path.read_text()
    assert "add_constructor" not in text
    assert "add_multi_constructor" not in text
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef)]
    return {node.name for node in found if [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]}


def option(call: ast.Call, name: str) -> object:
    values = [word.value for word in call.keywords if word.arg == name]
    return values[0].value if values and isinstance(values[0], ast.Constant) else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_is_read_that_can_carry_code(path: Path) -> None:
    for name, call in calls(path):
        where = f"{path}:{call.lineno}: {name}"
        last = name.split(".")[-1]
        if name == "torch.load":
            assert option(call, "weights_only") is True, f"{where} without weights_only=True"
        if name in ("np.load", "numpy.load"):
            assert option(call, "allow_pickle") is not True, f"{where} with allow_pickle=True"
        if name == "yaml.load":
            loader = ast.unparse(call.args[1])
            assert loader in safe_loaders(path), f"{where} with {loader}, which does not derive from yaml.SafeLoader"
        elif name.startswith("yaml."):
            assert last in ("safe_load", "safe_dump"), f"{where}: only safe_load and safe_dump"
        assert name not in ("pickle.load", "pickle.loads", "pd.read_pickle", "joblib.load", "eval"), where
        assert name != "exec" or path.name == "user_file.py", f"{where}: only user_file.py runs a file, the user's own"
        assert name != "os.system", where
        assert not option(call, "shell"), f"{where} runs a shell"


def test_the_one_unpickler_names_what_it_allows_and_reads_hashed_files() -> None:
    (path,) = (path for path in SOURCES if re.search(r"^\s*(import|from) c?pickle", path.read_text(), re.MULTILINE))
    text = path.read_text()
    assert re.search(r"pickle\.\w+", text.replace("pickle.Unpickler)", "")) is None, "only a class of its own"
    assert "def find_class" in text
    assert "sha256" in text


def test_nothing_is_writable_by_everyone_whatever_the_umask(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0)
    try:
        assert in_process(capsys, "init", DIGITS, "--root", tmp_path / "root", *TINY).code == 0
    finally:
        os.umask(before)
    for path in (tmp_path / "root").rglob("*"):
        assert path.stat().st_mode & 0o002 == 0, path
        assert path.stat().st_mode & 0o060 == 0o060, f"{path} does not follow the umask"


@pytest.mark.parametrize("value", ["../x", "/etc", "a/../b", "x y"])
def test_a_config_names_no_path_outside_its_root(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    (tmp_path / "x.yaml").write_text(f"dataset: {value}\n")
    assert "dataset" in in_process(capsys, "status", tmp_path / "x.yaml", "--root", tmp_path / "root").error


HOSTILE = [
    "!!python/object/apply:os.system ['true']",
    "dataset: !!python/name:os.system",
    "&a [*a]",
    "[" * 3000,
    "models: 1e400",
    "models: [1, 2]",
    "recipe: 7",
    "seed: 99999999999999999999999999",
    "\x00",
    "a: &a [1]\nb: &b [*a, *a]\n",
    "models: ${oc.env:HOME}",
    "",
    "- 1",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:12]))
def test_a_hostile_config_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert in_process(capsys, "status", tmp_path / "x.yaml", "--root", tmp_path).error.startswith("error: ")
