"""Plans: which rows or targets each task of an array gets, kept in ROOT/{dataset}/_slurm_{pct}pct/plan_NNNN/.

A plan is one array (or several, where one would be too long) of one stage. Its folder holds plan.json, the resolved
setting and cluster file, the scripts, the job ids and the logs; nothing but the last two is ever changed.
"""

import dataclasses
import json
import math
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.train import UserError, WorkError
from datamodels.train.store import Layout

FORMAT = "datamodels-plan-3"

GATE = "gate.sh"
"""The script of a gate: the job that asks the store what is left once an array has ended, and submits that."""

PAGE_BYTES = 4096

Range = tuple[int, int]


def folder_of(layout: Layout) -> Path:
    """Where everything that is submitted for a setting is kept."""
    return layout.folder.absolute() / f"_slurm_{layout.tag}"


def clusters_of(folder: Path) -> list[str | None]:
    """The clusters that jobs of a setting were submitted to; None stands for the one that this machine belongs to."""
    file = folder / "_clusters"
    if not file.exists():  # nothing was submitted, or by a version that knew no other cluster
        return [None] if (folder / "_last").exists() else []
    found: list[str | None] = json.loads(file.read_bytes())
    return found


def note_clusters(folder: Path, names: Sequence[str | None]) -> None:
    """Have `clusters_of` name these clusters too. Raises UserError."""
    known = clusters_of(folder)
    if new := [name for name in names if name not in known]:
        draft = folder / "._clusters.tmp"
        try:
            draft.write_text(json.dumps([*known, *new]) + "\n", "utf-8")
            draft.rename(folder / "_clusters")
        except OSError as error:
            raise UserError(f"cannot write {draft}: {error.strerror}") from None


def alignment(group: int, row_bytes: Sequence[int], wanted: int) -> int:
    """Rows that ranges begin and end at multiples of: whole groups always, whole pages of every array where `wanted`
    rows allow it, and otherwise of as many arrays as they do."""
    unit = math.lcm(group, *(PAGE_BYTES // math.gcd(size, PAGE_BYTES) for size in row_bytes))
    while unit > max(wanted, group):
        unit = unit // 2 if unit % 2 == 0 and unit // 2 % group == 0 else group
    return unit


def ranges(missing: NDArray[np.int64], queued: Sequence[Range], unit: int, wanted: int, rows: int) -> list[Range]:
    """Ranges [A, B) that hold every missing row that no queued range does, about `wanted` missing rows each.

    missing: ascending row numbers below `rows`. Ranges begin at multiples of `unit`, end at them or at `rows`, ascend,
    and do not reach over a queued one.
    """
    covered = np.zeros(rows, bool)
    for start, stop in queued:
        covered[start:stop] = True
    units, counts = np.unique(missing[~covered[missing]] // unit, return_counts=True)
    if not len(units):
        return []
    # How many queued ranges begin before each unit: a new range begins where that number grows.
    fence = np.searchsorted(np.sort([start for start, _ in queued]), units * unit, "right")
    before = np.cumsum(counts) - counts
    task = (before - before[np.searchsorted(fence, fence)]) // max(unit, wanted // unit * unit)
    cuts = np.flatnonzero((np.diff(task) != 0) | (np.diff(fence) != 0)) + 1
    first = units[np.concatenate([[0], cuts])] * unit
    last = (units[np.concatenate([cuts - 1, [len(units) - 1]])] + 1) * unit
    return list(zip(first.tolist(), np.minimum(last, rows).tolist(), strict=True))


def pieces(width: int, size: int) -> list[Range]:
    """[0, width) in consecutive ranges of `size`, the last one shorter."""
    return [(start, min(start + size, width)) for start in range(0, width, size)]


@dataclass(frozen=True)
class Plan:
    """Tasks of one stage, in the order of the arrays' elements."""

    store: str
    """The id in the manifest of the store that it was made for."""
    stage: str
    """`train`, `fit` or `eval`."""
    split: str
    round: int
    """How many times what an array left undone had been submitted again before, in a row and without progress."""
    left: int
    """Rows, or pieces of the fit, that were not done when it was made."""
    tasks: tuple[Range, ...]
    """Rows of train, targets of fit and eval; none where all is queued and only a gate is wanted."""
    array: int
    """Elements of the longest array that may be submitted."""
    setting: dict[str, Any]
    cluster: dict[str, Any]

    @cached_property
    def chunks(self) -> list[tuple[Range, ...]]:
        """The tasks of each array."""
        return [self.tasks[start:stop] for start, stop in pieces(len(self.tasks), self.array)]

    def script(self, chunk: int) -> str:
        """The name of an array's script."""
        return f"{self.stage}_{chunk}.sh"

    def list_file(self, chunk: int) -> str:
        """The name of the file with the rows or targets of each element of an array, one line each."""
        return f"{self.stage}_{chunk}.{'rows' if self.stage == 'train' else 'targets'}"

    def task(self, script: str, element: int | None) -> Range | None:
        """The task of one element of the array that a script was submitted as."""
        if (match := re.fullmatch(rf"{self.stage}_(\d+)\.sh", script)) and element is not None:
            index = int(match[1]) * self.array + element
            return self.tasks[index] if index < len(self.tasks) else None
        return None


def numbered(folder: Path) -> dict[int, Path]:
    """The folders of all plans by number, in ascending order."""
    if not folder.is_dir():
        return {}
    found = {int(match[1]): path for path in folder.iterdir() if (match := re.fullmatch(r"plan_(\d+)", path.name))}
    return dict(sorted(found.items()))


def next_folder(folder: Path) -> Path:
    """The folder of the next plan. No number comes twice: a job of a plan that was removed may still turn up."""
    last = folder / "_last"
    numbers = [*numbered(folder), int(last.read_text("utf-8")) if last.exists() else 0]
    return folder / f"plan_{max(numbers) + 1:04}"


def write_plan(plan: Plan, path: Path, files: Mapping[str, str]) -> None:
    """Write a plan and its files to the new folder `path`, completely or not at all. Raises UserError."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    values = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
    content = {"format": FORMAT, "time": time.time(), **values}
    try:
        (draft / "logs").mkdir(parents=True)
        for name, text in {"plan.json": json.dumps(content) + "\n", **files}.items():
            (draft / name).write_text(text, "utf-8")
            (draft / name).chmod(0o555 if name.endswith(".sh") else 0o444)
        os.rename(draft, path)
        (path.parent / "_last").write_text(path.name.removeprefix("plan_") + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def read_plan(path: Path) -> Plan:
    """The plan in a folder. Raises UserError where it is none of this version, WorkError where it is damaged."""
    file = path / "plan.json"
    try:
        content = json.loads(file.read_bytes())
        if content.pop("format") != FORMAT:
            raise UserError(f"{file} is not a plan of the format {FORMAT!r}: was it made by another version?")
        del content["time"]
        content["tasks"] = tuple((int(start), int(stop)) for start, stop in content["tasks"])
        return Plan(**content)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WorkError(f"{file} is damaged: {error!r}") from None
