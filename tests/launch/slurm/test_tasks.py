"""Planning: ranges, their alignment, written plans."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodels.launch.slurm.tasks import Plan, Range, alignment, next_folder, numbered, ranges, read_plan, write_plan
from datamodels.train.errors import UserError, WorkError


def plan(**changes: object) -> Plan:
    tasks = ((0, 8), (8, 16), (16, 24))
    values = {"store": "abc", "stage": "train", "split": "test", "round": 0, "left": 24, "tasks": tasks, "array": 2}
    return Plan(**{**values, "setting": {}, "cluster": {}, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("group", "wanted", "unit"), [(64, 4096, 2048), (64, 256, 256), (64, 8, 64), (3, 100, 96), (3, 2, 3), (1, 1, 1)]
)
def test_the_alignment_gives_way_to_short_tasks_but_never_divides_a_group(group: int, wanted: int, unit: int) -> None:
    assert alignment(group, [100, 2 * 1697, 200], wanted) == unit
    cifar = [50000, 20000, 100000, 1000000, 200000]
    assert alignment(1, cifar, 500) == 256
    assert all(256 * size % 4096 == 0 for size in cifar)


@pytest.mark.parametrize(
    ("missing", "queued", "wanted", "expected"),
    [
        (range(100), [], 40, [(0, 40), (40, 80), (80, 100)]),
        (range(0), [], 40, []),
        (range(16, 32), [(0, 64)], 40, []),
        (range(100), [(16, 24)], 80, [(0, 16), (24, 100)]),  # a range does not reach over a queued one
        ([3, 50, 97], [], 16, [(0, 100)]),  # scattered rows share a task
    ],
)
def test_ranges_hold_what_is_neither_done_nor_queued(
    missing: Sequence[int], queued: list[Range], wanted: int, expected: list[Range]
) -> None:
    assert ranges(np.array(missing, np.int64), queued, 8, wanted, 100) == expected


@given(
    missing=st.sets(st.integers(0, 199)),
    queued=st.lists(st.tuples(st.integers(0, 199), st.integers(1, 40)), max_size=4),
    unit=st.integers(1, 16),
    wanted=st.integers(1, 64),
)
def test_every_missing_row_is_in_one_range_or_queued(
    missing: set[int], queued: list[tuple[int, int]], unit: int, wanted: int
) -> None:
    waiting = [(start, start + length) for start, length in queued]
    found = ranges(np.array(sorted(missing), np.int64), waiting, unit, wanted, 200)
    rows = [row for start, stop in found for row in range(start, stop)]
    assert len(rows) == len(set(rows))
    assert found == sorted(found)
    assert all(start % unit == 0 and (stop % unit == 0 or stop == 200) for start, stop in found)
    assert missing - {row for start, stop in waiting for row in range(start, stop)} <= set(rows)


def test_planning_1510000_rows_takes_less_than_two_seconds() -> None:
    missing = np.flatnonzero(np.arange(1_510_000) % 7)
    started = time.perf_counter()
    found = ranges(missing, [(256 * n, 256 * (n + 1)) for n in range(0, 2000, 2)], 256, 256, 1_510_000)
    assert time.perf_counter() - started < 2
    assert len(found) > 4000


def test_an_element_of_a_later_array_has_the_tasks_that_follow() -> None:
    assert plan().chunks == [((0, 8), (8, 16)), ((16, 24),)]
    assert plan().task("train_1.sh", 0) == (16, 24)
    assert plan().task("train_1.sh", 1) is None
    assert plan().task("gate.sh", None) is None


def test_a_written_plan_is_read_again_and_numbered_and_cannot_be_written(tmp_path: Path) -> None:
    path = next_folder(tmp_path)
    write_plan(plan(), path, {"train_0.sh": "#!/bin/bash\n"})
    assert path.name == "plan_0001"
    assert read_plan(path) == plan()
    assert next_folder(tmp_path).name == "plan_0002"
    path.rename(tmp_path / "gone")
    assert next_folder(tmp_path).name == "plan_0002"
    (tmp_path / "gone").rename(path)
    assert list(numbered(tmp_path)) == [1]
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in path.iterdir() if file.is_file()} == {
        "plan.json": "0o444",
        "train_0.sh": "0o555",
    }
    with pytest.raises(UserError, match="cannot write"):
        write_plan(plan(), path, {})


@pytest.mark.parametrize(
    ("content", "kind"), [('{"format": "other"}', UserError), ("{}", WorkError), ("{", WorkError), ("[]", WorkError)]
)
def test_a_plan_of_another_version_or_damaged_is_named(tmp_path: Path, content: str, kind: type[Exception]) -> None:
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(kind, match=r"plan\.json"):
        read_plan(tmp_path)
