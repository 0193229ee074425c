"""Rows of several stores of one setting come together: whose they are, which stay out, and what is refused."""

import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.train.config import Outputs, Recipe, Setting
from datamodels.train.errors import UserError, WorkError
from datamodels.train.exchange import Merged, merge
from datamodels.train.npy_file import HEADER_BYTES, Notice
from datamodels.train.outputs import Declared, Output
from datamodels.train.store import RowFailure, RowState, Store, create_store, grow, verify
from tests.faults.stores import content, create, layout, result, setting, writing
from tests.stores import damage, flip, made_up_data

HALF = np.dtype(np.float16)


def made(root: Path, rows: Iterable[int], salt: int = 0, of: Setting | None = None, **provenance: Any) -> Store:
    """A store, new or not, in which an attempt has done these rows."""
    store = create(root, of)
    put(store, rows, salt, **provenance)
    return store


def put(store: Store, rows: Iterable[int], salt: int = 0, **provenance: Any) -> None:
    with writing(store, **provenance) as writer:
        for group in {row // store.group for row in rows}:
            with writer.leased(group):
                made_at = 1000.0 + group
                results = [result(store, row, salt) for row in rows if row // store.group == group]
                writer.commit([replace(each, time=made_at, seconds=each.row + 0.5) for each in results])
    store.refresh()


def fail(store: Store, row: int, reason: str = "test_margins not finite") -> None:
    """Let a row fail for good."""
    with writing(store, device="where it failed") as writer, writer.leased(row // store.group):
        for _ in range(2):
            writer.commit([RowFailure(row, reason, 2.5, 1234.0)])
    store.refresh()


def bring(
    root: Path, *sources: Store, of: Setting | None = None, notice: Notice = lambda text: None
) -> tuple[Store, list[Merged]]:
    of = of or setting()
    places = [source.layout.root for source in sources]
    return merge(layout(root, of), of, places, {"host": "here", "pid": 1}, lambda *told: None, notice)


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    """What lies below a root: the bytes of every file and when they were written last."""
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def held(store: Store) -> list[int]:
    """The rows that a store has, each of them right."""
    found = np.flatnonzero(store.completed()).tolist()
    for row in found:
        for name, values in content(store, row).items():
            assert np.array_equal(store.read(name, row, row + 1)[0], values), (row, name)
    assert verify(store).fine
    return found


def test_rows_come_together_with_their_records(tmp_path: Path) -> None:
    first = made(tmp_path / "first", [0, 1, 2, 3, 4, 6], device="A")
    second = made(tmp_path / "second", [4, 5, 7], device="B", host="there", pid=7)
    put(second, [8, 13], device="C")
    before = files(first.layout.root) | files(second.layout.root)
    store, (one, two) = bring(tmp_path / "all", first, second)
    assert files(first.layout.root) | files(second.layout.root) == before
    assert held(store) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 13]
    assert (one.merged, one.present, two.merged, two.present) == (6, 0, 4, 1)
    assert np.load(store.layout.completed).tolist() == store.completed().tolist()
    assert store.records().device.tolist() == [*"AAAAABABC", "", "", "", "", "C"]
    for row in (4, 7):
        source, record = (first, second)[row == 7], store.states.record_of(row)
        assert record == source.states.record_of(row)
        assert (record["time"], record["seconds"], record["train_accuracy"]) == (1001, row + 0.5, 0.75)
    provenance = store.states.readers[store.states.journal[5]].provenance
    assert (provenance["host"], provenance["pid"]) == ("there", 7)
    assert provenance["merged"] == {"host": "here", "pid": 1, "store": second.manifest.id}

    put(store, [9, 10, 11, 12])
    after = files(store.layout.root)
    store, (one, two) = bring(tmp_path / "all", first, second)
    assert (one.merged, one.present, two.merged, two.present) == (0, 6, 0, 5)
    assert files(store.layout.root) == after
    assert held(store) == list(range(14))


def test_bad_rows_are_left_out_and_different_ones_stay(tmp_path: Path) -> None:
    store = made(tmp_path / "all", [0, 1, 2])
    source = made(tmp_path / "source", [1, 2], salt=9)
    put(source, [0, 3, 4, 5, 6, 12, 13])
    damage(source, "train_logits", [0, 2, 4])  # what is here and equal need not be read there
    damage(source, "train_masks", [5])
    cut = source.layout.array("test_logits")
    os.truncate(cut, HEADER_BYTES + 13 * source.arrays["test_logits"].bytes // source.rows)
    _, (found,) = bring(tmp_path / "all", source)
    assert (found.merged, found.present, found.differ) == (3, 1, [1])
    assert found.bad == {
        2: "train_logits does not match its checksum",
        4: "train_logits does not match its checksum",
        5: "train_masks does not match its checksum",
        13: f"{cut} ends before row 13: it was cut short",
    }
    store.refresh()
    assert held(store) == [0, 1, 2, 3, 6, 12]


def test_a_lost_journal_is_told(tmp_path: Path) -> None:
    source, told = made(tmp_path / "source", [0, 1]), list[str]()
    put(source, [2], device="B")
    max(source.layout.journals.iterdir(), key=lambda path: path.stat().st_size).unlink()
    store, (found,) = bring(tmp_path / "all", source, notice=told.append)
    assert (found.merged, held(store)) == (1, [2])
    assert told == [f"{source.layout.completed} has 2 rows as done that no journal records: they are left out"]


def test_a_row_that_is_done_wins_over_one_that_failed(tmp_path: Path) -> None:
    first, second = create(tmp_path / "first"), made(tmp_path / "second", [5])
    fail(first, 5)
    fail(first, 6, "empty training subset")
    store, (found,) = bring(tmp_path / "all", first)
    assert (found.merged, found.failed) == (0, 2)
    assert np.flatnonzero(store.failed()).tolist() == [5, 6]
    assert store.states.reasons() == first.states.reasons()
    assert store.states.record_of(6)["time"] == 1234

    store, (_, found) = bring(tmp_path / "all", first, second)
    assert found.merged == 1
    assert held(store) == [5]
    assert np.flatnonzero(store.failed()).tolist() == [6]
    fail(second, 4)
    put(store, [4])
    assert bring(tmp_path / "all", second)[1][0] == Merged(tmp_path / "second", present=1)
    assert held(store) == [4, 5]


def test_a_row_that_came_out_in_two_ways_is_replaced(tmp_path: Path) -> None:
    store, source = create(tmp_path / "all"), made(tmp_path / "source", [4])
    shutil.copytree(tmp_path / "all", tmp_path / "copy")
    put(Store.open(layout(tmp_path / "copy")), [4], salt=1)
    put(store, [4], salt=2)
    (journal,) = layout(tmp_path / "copy").journals.iterdir()
    shutil.copy(journal, store.layout.journals)
    store, (found,) = bring(tmp_path / "all", source)
    assert found.merged == 1
    assert held(store) == [4]


def test_rows_that_another_process_holds_come_later(tmp_path: Path) -> None:
    store, source = create(tmp_path / "all"), made(tmp_path / "source", [3, 4, 5, 8])
    with writing(store) as writer, writer.leased(1):
        _, (found,) = bring(tmp_path / "all", source)
        assert (found.merged, found.held) == (2, [4, 5])
        writer.commit([result(store, 4)])
    _, (found,) = bring(tmp_path / "all", source)
    assert (found.merged, found.present, found.held) == (1, 3, [])
    store.refresh()
    assert held(store) == [3, 4, 5, 8]


def grown(root: Path, *models: int, runs: int = 2) -> Store:
    of = setting(runs_per_mask=runs)
    store = create(root, of)
    for number in models:
        store = grow(store.layout, of, number, lambda text: None)
    put(store, range(store.rows))
    return store


def test_a_longer_history_goes_on_a_shorter_one(tmp_path: Path) -> None:
    short, long = grown(tmp_path / "short"), grown(tmp_path / "long", 14, 20)
    store, (one, two) = bring(tmp_path / "all", short, long)
    assert (store.models, store.rows, store.eras) == (20, 24, long.eras)
    assert (one.merged, two.merged, two.present) == (14, 10, 14)
    assert held(store) == list(range(24))
    assert bring(tmp_path / "long", short)[1][0].present == 14
    with pytest.raises(UserError, match=r"has 20 models, but .* 10: `datamodels grow --models 20` lengthens it"):
        bring(tmp_path / "short", long)
    with pytest.raises(UserError, match=r"models is 11, but .* holds a setting with 20"):
        bring(tmp_path / "new", long, of=setting(models=11))


@pytest.mark.parametrize("runs", [1, 2])
def test_other_histories_are_refused_where_their_masks_differ(tmp_path: Path, runs: int) -> None:
    one, two = grown(tmp_path / "one", 12, 16, runs=runs), grown(tmp_path / "two", 16, runs=runs)
    if runs == 2:
        with pytest.raises(UserError, match=r"grew as in \[10, 16\], but of .* as in \[10, 12, 16\]"):
            bring(tmp_path / "all", one, two)
        assert not (tmp_path / "all").exists()
    else:
        assert bring(tmp_path / "all", one, two, of=setting(runs_per_mask=1))[1][1].present == 20


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"alpha": 0.25}, "alpha is 0.5, but .*store_25pct.json holds a setting with 0.25"),
        ({"dataset": "other"}, "dataset is 'made-up', but .*/other/data/.* holds a setting with 'other'"),
        ({"seed": 7}, "seed is 0, but .* holds a setting with 7"),
        ({"outputs": Outputs(train_logits=True)}, "outputs.test_logits is true, but .* holds a setting with false"),
    ],
    ids=str,
)
def test_another_setting_is_refused_by_its_key(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    source, other = made(tmp_path / "source", [1]), create(tmp_path / "other", setting(**changes))
    with pytest.raises(UserError, match=told):
        bring(tmp_path / "all", source, other)
    assert not (tmp_path / "all").exists()


def test_what_is_no_store_of_the_same_rows_is_refused(tmp_path: Path) -> None:
    source, of = made(tmp_path / "source", [1, 5]), setting()
    with pytest.raises(UserError, match="is both a source and what to merge into"):
        bring(tmp_path / "source", source)
    data = replace(made_up_data(of, 700, 300, 10), sha256="1" * 64)
    other = create_store(layout(tmp_path / "data", of), of, data, print)
    with pytest.raises(UserError, match=r"data/.*json has sha256 0{64}, but the store was created with 1{64}"):
        bring(tmp_path / "all", other, source)
    source.layout.manifest.rename(tmp_path / "manifest")
    with pytest.raises(UserError, match="json does not exist: expected the root of a store"):
        bring(tmp_path / "all", source)
    (tmp_path / "manifest").rename(source.layout.manifest)
    flip(source.states.readers[0].path, 8 * (HEADER_BYTES + 130))
    with pytest.raises(WorkError, match="records 1 do not match their checksum: run `datamodels repair` there"):
        bring(tmp_path / "all", source)
    assert not (tmp_path / "all").exists()


@pytest.mark.parametrize("kind", ["own masks", "groups", "own trainer"])
def test_every_kind_of_setting_is_made_anew_from_a_source(tmp_path: Path, kind: str) -> None:
    changes: dict[str, Any] = {"runs_per_mask": 1, "outputs": Outputs()}
    if kind == "own masks":
        np.save(tmp_path / "masks.npy", np.random.default_rng(0).random((14, 700)) < 0.3)
        changes |= {"mask": str(tmp_path / "masks.npy"), "tag": "mine", "alpha": None}
    elif kind == "groups":
        np.save(tmp_path / "groups.npy", np.arange(700) % 20)
        changes |= {"mask": "groups", "groups": str(tmp_path / "groups.npy")}
    else:
        (tmp_path / "t.py").write_text("n_train = 700\n")
        changes |= {"trainer": str(tmp_path / "t.py"), "recipe": Recipe()}
    of = setting(**changes)
    declared = made_up_data(of, 700, 300, 10)
    if kind == "own trainer":
        outputs = (Output("test_margins", (5,), HALF), *(Output(f"test_{name}", (2, 3), HALF) for name in "abcdef"))
        names = {"test": ["one", "two", "three", "four", "five"]}
        declared = Declared(700, 5, (), outputs, declared.sha256, "t.py", names)
    source = create_store(layout(tmp_path / "source", of), of, declared, print)
    put(source, range(14))
    store, (found,) = bring(tmp_path / "all", source, of=of)
    assert found.merged == 14
    assert held(store) == list(range(14))
    for path in source.layout.data.glob("*.[nt][px][yt]"):
        assert path.read_bytes() == (store.layout.data / path.name).read_bytes(), path.name
    assert (store.manifest.outputs, store.n_features) == (source.manifest.outputs, source.n_features)
    assert store.states.state.tolist() == [RowState.DONE] * 14
