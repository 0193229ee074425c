"""What the source must not do: run code that a data file holds, or write for everyone."""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import DIGITS, PROJECT, TINY, in_process

FOLDERS = ("train", "lasso", "launch", "fmow", "datamodels", "bench")
SOURCES = sorted({path.resolve() for folder in FOLDERS for path in (PROJECT / folder).rglob("*.py")})
"""Every source file, once: datamodels/ holds links to folders beside it."""

RUNS_CODE = {
    *("eval", "exec", "compile", "__import__", "exec_module", "load_module", "spec_from_file_location"),
    *("run_path", "run_module", "SourceFileLoader", "system", "popen", "getoutput", "read_pickle"),
}
"""Functions that run a text, a file or a shell's command, by the last part of their names."""

MODULES = {"pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "runpy", "code", "imp"}
"""Modules that are for such functions."""

ALLOWED = {
    # A Python file of the user's: run from the bytes whose digest the store's manifest holds.
    "train/user_code.py": {"exec", "compile"},
    # A copy of that file in an exported folder, loaded where this package need not be installed; nothing here calls it.
    "launch/export/network.py": {"spec_from_file_location", "exec_module"},
    # CIFAR-10 is published as pickles: read by a class that makes NumPy arrays alone, from files of known sha256.
    "train/data/cifar.py": {"pickle"},
}
"""The files that may run code, and what they use for it."""


def risks(path: Path) -> Iterator[tuple[int, str]]:
    """(line, what) of everything in a file that runs code, or reads data that may hold some."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    bases = {node.name: [*map(ast.unparse, node.bases)] for node in nodes if isinstance(node, ast.ClassDef)}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from ((node.lineno, name) for name in names if name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, risk) for risk in risks_of_call(node, bases))


def risks_of_call(call: ast.Call, bases: dict[str, list[str]]) -> Iterator[str]:
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    options = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if last in RUNS_CODE and name not in ("re.compile", "torch.compile") and (last != "eval" or call.args):
        yield last  # a network's eval() takes no argument
    if name == "torch.load" and options.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if options.get("allow_pickle", "False") != "False":
        yield "allow_pickle"
    if options.get("shell", "False") != "False":
        yield "shell"
    if name == "yaml.load":
        loader = options["Loader"] if "Loader" in options else ast.unparse(call.args[1])
        if bases.get(loader) != ["yaml.SafeLoader"]:
            yield "yaml.load with a loader that is not a subclass of yaml.SafeLoader"
    elif name.startswith("yaml.") and last not in ("safe_load", "safe_dump"):
        yield name
    if last in ("add_constructor", "add_multi_constructor"):
        yield last


def test_nothing_runs_code_that_data_may_hold() -> None:
    found: dict[str, set[str]] = {}
    wrong = []
    for path in SOURCES:
        file = str(path.relative_to(PROJECT))
        for line, what in risks(path):
            found.setdefault(file, set()).add(what)
            if what not in ALLOWED.get(file, ()):
                wrong.append(f"{file}:{line}: {what}")
    assert not wrong, "these run code, or read what may hold code:\n" + "\n".join(wrong)
    assert found == ALLOWED, "a file needs less than it is allowed"


PLANTED = [
    *("eval(text)", "exec(text)", "import pickle", "from joblib import load", "os.system(text)", "torch.load(path)"),
    *("np.load(path, allow_pickle=True)", "subprocess.run(text, shell=True)", "spec.loader.exec_module(module)"),
    *("yaml.unsafe_load(text)", "yaml.load(text, yaml.Loader)", "yaml.load(text, Loader=yaml.FullLoader)"),
]


@pytest.mark.parametrize("text", PLANTED)
def test_the_scan_finds_what_is_planted(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.py").write_text(f"def function():\n    {text}\n")
    ((line, _),) = risks(tmp_path / "x.py")
    assert line == 2


def test_the_one_unpickler_names_what_it_allows_and_reads_hashed_files() -> None:
    text = (PROJECT / "train" / "data" / "cifar.py").read_text()
    assert re.findall(r"pickle\.\w+", text) == ["pickle.Unpickler"], "only as the base of a class"
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
