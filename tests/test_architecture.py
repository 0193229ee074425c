"""How the source is laid out: which file may import which, what stays light, and how large files and folders are.

Every import counts, those in functions and under TYPE_CHECKING too. A package's front is its `__init__.py`.
"""

import ast
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import PROJECT

FOLDERS = {"datamodels.train": "train", "datamodels.lasso": "lasso", "datamodels.launch": "launch", "fmow": "fmow"}
"""Folder of each package; datamodels/ itself holds links to the first three, and the front of all."""

MAY_IMPORT = {
    "fmow": {"fmow"},
    "datamodels.train": {"datamodels.train", "fmow"},
    "datamodels.lasso": {"datamodels.lasso", "datamodels.train"},
    "datamodels.launch": {"datamodels.launch", "datamodels.lasso", "datamodels.train", "fmow", "datamodels"},
    "datamodels": {"datamodels", "datamodels.launch", "datamodels.lasso", "datamodels.train"},
}
ELSEWHERE = ("bench", "tests", "train", "lasso", "launch")
"""Top-level names that nothing installed imports: what is not installed, and packages by their folders' names."""

LIGHT = ("datamodels", "datamodels.train", "datamodels.train.store", "datamodels.lasso", "datamodels.launch.parser")
HEAVY = ("torch", "numba", "scipy", "pandas", "matplotlib")

MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_FILES = 350, 60, 14


@dataclass(frozen=True)
class Import:
    """`from module import name`, or `import module` (name is None)."""

    line: int
    module: str
    name: str | None


@cache
def modules() -> dict[str, Path]:
    """Every module of the source by its dotted name; a front has that of its package."""
    found = {"datamodels": PROJECT / "datamodels" / "__init__.py"}
    found["datamodels.__main__"] = PROJECT / "datamodels" / "__main__.py"
    for package, folder in FOLDERS.items():
        for path in sorted((PROJECT / folder).rglob("*.py")):
            inner = path.relative_to(PROJECT / folder).with_suffix("").parts
            found[".".join([package, *inner]).removesuffix(".__init__")] = path
    return found


def is_front(module: str) -> bool:
    return modules()[module].name == "__init__.py"


def folder_of(module: str) -> str:
    """The package whose folder a module's file lies in."""
    return module if is_front(module) else module.rpartition(".")[0]


def top_of(module: str) -> str:
    """The one of MAY_IMPORT's packages that a module belongs to."""
    return next((package for package in FOLDERS if f"{module}.".startswith(f"{package}.")), "datamodels")


def contains(package: str, module: str) -> bool:
    """Whether a package is that of a module's folder, or an ancestor of it."""
    return f"{folder_of(module)}.".startswith(f"{package}.")


def place(module: str, line: int) -> str:
    return f"{modules()[module].relative_to(PROJECT)}:{line}"


@cache
def imports(module: str) -> tuple[Import, ...]:
    """All import statements of a module, one entry for each name."""
    found = []
    for node in ast.walk(ast.parse(modules()[module].read_text())):
        if isinstance(node, ast.Import):
            found += [Import(node.lineno, alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(module, node.lineno)}: a relative import, expected the module's full name"
            found += [Import(node.lineno, node.module or "", alias.name) for alias in node.names]
    return tuple(found)


@cache
def public(module: str) -> tuple[str, ...]:
    """The literal `__all__` of a front; empty if it has none."""
    for node in ast.parse(modules()[module].read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if "__all__" in map(ast.unparse, targets) and node.value is not None:
                return tuple(ast.literal_eval(node.value))
    return ()


def target_of(one: Import) -> str | None:
    """The module of the source that an import names, or None for one of another package.

    `from package import name` names the front if `name` is in its `__all__`, or else the module `package.name`, if any.
    """
    if one.module not in modules():
        return None
    inner = f"{one.module}.{one.name}"
    return inner if inner in modules() and one.name not in public(one.module) else one.module


def targets() -> Iterator[tuple[str, Import, str]]:
    """(module, import, module that it names) of every import within the source."""
    for module in modules():
        for one in imports(module):
            if target := target_of(one):
                yield module, one, target


def shortest_cycle(graph: dict[str, set[str]], start: str) -> list[str]:
    """The shortest way from a module along its imports back to itself; empty if there is none."""
    before, waiting = {}, deque([start])
    while waiting:
        module = waiting.popleft()
        for target in sorted(graph[module]):
            if target == start:
                way = [module]
                while way[-1] != start:
                    way.append(before[way[-1]])
                return way[::-1]
            if target not in before:
                before[target] = module
                waiting.append(target)
    return []


def refuse(wrong: list[str], rule: str) -> None:
    assert not wrong, f"{rule} ({len(wrong)} violations):\n" + "\n".join(sorted(wrong))


def test_packages_import_only_those_below_them() -> None:
    wrong = []
    for module in modules():
        for one in imports(module):
            target = target_of(one)
            strange = one.module.partition(".")[0] in ELSEWHERE
            if strange or (target and top_of(target) not in MAY_IMPORT[top_of(module)]):
                wrong.append(f"{place(module, one.line)}: {top_of(module)} imports {target or one.module}")
            elif target is None and one.module.partition(".")[0] in ("datamodels", "fmow"):
                wrong.append(f"{place(module, one.line)}: {one.module} does not exist")
    refuse(
        wrong, "fmow, train, lasso, launch, datamodels: each imports only what stands before it; none bench or tests"
    )


def test_no_files_import_each_other() -> None:
    """Importing a module runs the fronts of its packages too, except of those that the importing file lies in."""
    graph: dict[str, set[str]] = {module: set() for module in modules()}
    for module, one, target in targets():
        parts = target.split(".")
        passed = [".".join(parts[:end]) for end in range(1, len(parts))]
        graph[module] |= {target, *(front for front in passed if not contains(front, module))}
        if f"{target}.{one.name}" in graph:  # a module that a front names in its __all__
            graph[module].add(f"{target}.{one.name}")
    cycles = [cycle for module in sorted(graph) if (cycle := shortest_cycle(graph, module))]
    distinct = {frozenset(cycle): cycle for cycle in cycles}
    refuse([" -> ".join([*cycle, cycle[0]]) for cycle in distinct.values()], "no two files import each other")


def test_files_import_from_their_folder_from_those_above_and_from_fronts() -> None:
    wrong = []
    for module, one, target in targets():
        if not is_front(target) and not contains(folder_of(target), module):
            wrong.append(
                f"{place(module, one.line)}: imports {target}, expected a name of the front of {folder_of(target)}"
            )
        elif target == one.module and is_front(target) and one.name and one.name not in public(target):
            wrong.append(f"{place(module, one.line)}: {one.name} is not in the __all__ of {target}")
    refuse(wrong, "a file imports from its own folder, from folders above it, or else names in a front's __all__")


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(set({HEAVY}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT, check=True)
    assert done.stdout.split() == [], f"importing {module} imports {done.stdout.strip()}"


def test_no_function_or_file_is_too_long_and_no_folder_too_full() -> None:
    wrong = []
    files = Counter(path.parent for path in modules().values())
    for path in modules().values():
        text, file = path.read_text(), path.relative_to(PROJECT)
        if (lines := len(text.splitlines())) > MOST_LINES:
            wrong.append(f"{file}: {lines} lines, expected at most {MOST_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                lines = node.end_lineno - node.lineno + 1
                if lines > MOST_LINES_OF_A_FUNCTION:
                    wrong.append(
                        f"{file}: {node.name}() has {lines} lines, expected at most {MOST_LINES_OF_A_FUNCTION}"
                    )
    for folder, count in files.items():
        if count > MOST_FILES:
            wrong.append(f"{folder.relative_to(PROJECT)}/: {count} Python files, expected at most {MOST_FILES}")
    refuse(wrong, "a function does one thing, a file holds one idea, a folder one topic")


def test_text_is_read_and_written_in_a_named_encoding() -> None:
    """The user's may be any. What the system has below /proc and /sys is ASCII."""
    wrong = []
    for module, path in modules().items():
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        for call in calls:
            text, name = ast.unparse(call), ast.unparse(call.func)
            given = [*map(ast.unparse, call.args)]
            named = "encoding=" in text or "'/proc/" in text or "'/sys/" in text
            reads = name.endswith(".read_text") and not given
            writes = name.endswith(".write_text") and len(given) < 2
            opens = name == "open" and "b" not in "".join(given[1:2])
            if not named and (reads or writes or opens or "text=True" in text):
                wrong.append(f"{place(module, call.lineno)}: {text}")
    refuse(wrong, "text needs an encoding")
