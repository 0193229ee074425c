"""What `verify` finds, and what `repair` makes of it."""

import errno
import json
import os
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from datamodels.train.config import Outputs
from datamodels.train.errors import UserError, WorkError
from datamodels.train.npy_file import HEADER_BYTES, RowFile
from datamodels.train.store.journal import RECORD_BYTES
from datamodels.train.store.layout import Layout
from datamodels.train.store.locks import LockFile
from datamodels.train.store.store import Store
from datamodels.train.store.verify import Finding, is_finite, repair, verify
from datamodels.train.store.writer import RowResult
from datamodels.train.trainer import device
from tests.conftest import DIGITS, TINY, in_process, tiny
from tests.faults.stores import check, content, create, fill, filled, layout, result, setting, writing
from tests.stores import flip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return filled(tmp_path)


def again(store: Store) -> Store:
    return Store.open(store.layout, setting())


def overwrite(store: Store, row: int) -> None:
    """Write other margins, as a process does that has lost its lease."""
    array = store.arrays["train_margins"]
    RowFile(store.layout.array(array.name), array.shape, array.dtype, True).write(row, np.ones((1, 700), np.float16))


def mend(store: Store) -> list[str]:
    store = again(store)
    with writing(store) as writer:
        return repair(store, writer, verify(store))


def redo(store: Store) -> None:
    store = again(store)
    with writing(store) as writer:
        fill(store, writer)


def assert_mended(store: Store) -> None:
    """After a repair, verify passes; after the missing rows are done again, all is there."""
    assert verify(again(store)).fine
    redo(store)
    assert verify(again(store)) == Finding(checked=14)


def test_a_sound_store_is_fine_and_left_alone(store: Store) -> None:
    assert verify(store) == Finding(checked=14)
    before = {path: path.read_bytes() for path in store.layout.root.rglob("*") if path.is_file()}
    assert mend(store) == []
    assert {path: path.read_bytes() for path in store.layout.root.rglob("*") if path.is_file()} == before


def test_rows_that_are_missing_are_not_checked(tmp_path: Path) -> None:
    store = create(tmp_path)
    with writing(store) as writer, writer.leased(1):
        writer.commit([result(store, 5)])
    assert verify(again(store)) == Finding(checked=1)


@pytest.mark.parametrize("name", ["train_masks", "test_margins", "train_margins", "train_logits", "test_logits"])
def test_a_flipped_bit_is_found_and_the_row_redone(store: Store, name: str) -> None:
    array = store.arrays[name]
    row_bytes = (array.bytes - HEADER_BYTES) // store.rows
    flip(store.layout.array(name), 8 * (HEADER_BYTES + 6 * row_bytes + 5) + 3)
    assert verify(again(store)).reasons == {6: f"{name} does not match its checksum"}
    mend(store)
    assert again(store).missing().tolist() == [6]
    assert not np.load(store.layout.completed)[6]
    assert_mended(store)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_bad(tmp_path: Path, value: float) -> None:
    store = create(tmp_path)
    arrays = content(store, 3)
    arrays["train_logits"][5, 2] = value
    with writing(store) as writer, writer.leased(0):
        writer.commit([RowResult(3, arrays, 1.0, 0.5, 0.5)])
    assert "not finite" in verify(again(store)).reasons[3]


def test_float16_values_are_told_finite_or_not() -> None:
    for value in np.arange(0, 2**16, 31, dtype=np.uint16).view(np.float16):
        assert is_finite(np.array([1, value, 2], np.float16)) == bool(np.isfinite(value))


def test_a_mask_that_is_not_the_seeds_is_bad(tmp_path: Path) -> None:
    store = create(tmp_path)
    swapped, longer = content(store, 2), content(store, 3)
    swapped["train_masks"] = content(store, 3)["train_masks"]
    longer["train_masks"] = longer["train_masks"].copy()
    longer["train_masks"][np.flatnonzero(~longer["train_masks"])[0]] = True
    with writing(store) as writer, writer.leased(0):
        writer.commit([RowResult(row, arrays, 1.0, 0.5, 0.5) for row, arrays in ((2, swapped), (3, longer))])
    assert verify(again(store)).reasons == {
        2: "train_masks is not the mask that the seed gives (350 of 700 examples)",
        3: "train_masks is not the mask that the seed gives (351 of 700 examples)",
    }
    masks = store.read("train_masks", 1, 6)
    assert store.bad_masks(1, masks).tolist() == [False, True, True, False, False]
    assert not store.mismatches("train_masks", 1, masks).any(), "checksums match"


def test_a_damaged_header_is_found_and_put_right(store: Store) -> None:
    for path in (store.layout.array("test_margins"), store.layout.completed):
        flip(path, 8 * 30)
    assert len(verify(again(store)).files) == 2
    assert len(mend(store)) == 2
    assert np.load(store.layout.array("test_margins")).shape == (14, 300)
    assert_mended(store)


@pytest.mark.parametrize("at", [5, 60, 4000, HEADER_BYTES + 3 * RECORD_BYTES + 50])
def test_a_damaged_journal_is_found_and_mended(store: Store, at: int) -> None:
    (path,) = store.layout.journals.iterdir()
    flip(path, 8 * at)
    damaged = path.read_bytes()
    (told,) = verify(again(store)).files
    assert told.startswith(f"{path}: ")
    mend(store)
    assert path.with_suffix(".bin.damaged").read_bytes() == damaged
    assert len(path.read_bytes()) == len(damaged), "records keep their places"
    assert len(again(store).missing()) == (at > HEADER_BYTES)
    assert_mended(store)


def test_a_journal_that_lost_an_invalidation_does_not_bring_a_row_back(store: Store) -> None:
    with writing(store) as writer:
        writer.invalidate([3])
    with writing(again(store)) as writer, writer.leased(0):
        overwrite(store, 3)
    invalid = max(store.layout.journals.iterdir())  # names begin with the time
    for copies, at in enumerate((HEADER_BYTES, 2 * HEADER_BYTES)):
        missing = again(store).missing().tolist()
        assert missing == [3], f"one of its two records counts, after {copies} flips"
        flip(invalid, 8 * (at + 16))
    found = verify(again(store))
    assert found.bad == [3], "its first record counts again, but its bytes are no longer those"
    assert len(found.files) == 1
    mend(store)
    assert_mended(store)


@pytest.mark.parametrize("damage", ["flipped", "zeroed"])
def test_an_invalidation_that_is_damaged_is_made_again_by_repair(store: Store, damage: str) -> None:
    """The bytes of a row that only `--retrain` found wrong match their checksums: its records alone keep it away."""
    with writing(store) as writer:
        writer.invalidate([3])
    invalid = max(store.layout.journals.iterdir())
    for at in (HEADER_BYTES, 2 * HEADER_BYTES):
        if damage == "flipped":
            flip(invalid, 8 * (at + 16))
        elif at == HEADER_BYTES:
            with open(invalid, "r+b") as file:
                file.seek(at)
                file.write(bytes(RECORD_BYTES))
    assert again(store).completed()[3] == (damage == "flipped")
    if damage == "flipped":
        with pytest.raises(WorkError, match="do not match their checksum: run `datamodels repair`"):
            again(store).check_files()
    mend(store)
    assert again(store).missing().tolist() == [3]
    assert_mended(store)


def test_a_journal_of_another_store_is_set_aside(store: Store, tmp_path: Path) -> None:
    other = filled(tmp_path / "other")
    (stray,) = other.layout.journals.iterdir()
    target = store.layout.journals / stray.name
    target.write_bytes(stray.read_bytes())
    assert verify(again(store)).files == [f"{target}: it belongs to another store"]
    mend(store)
    assert not target.exists()
    assert_mended(store)


def test_a_damaged_journal_is_left_alone_where_locks_do_not_tell_who_is_at_work(store: Store) -> None:
    (path,) = store.layout.journals.iterdir()
    flip(path, 8 * 20)
    before = path.read_bytes()
    with mock.patch.object(LockFile, "_probe", return_value=False), pytest.raises(WorkError, match="-o localflock"):
        mend(store)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["train_masks", "train_logits"])
def test_an_array_that_was_cut_short_is_told_and_mended(store: Store, name: str) -> None:
    path, array = store.layout.array(name), store.arrays[name]
    os.truncate(path, HEADER_BYTES + 9 * (array.bytes - HEADER_BYTES) // 14 + 5)
    found = verify(again(store))
    assert found.bad == [9, 10, 11, 12, 13]
    assert found.reasons[11] == f"{name} was cut short before it"
    assert found.files == [f"{path}: it holds 9 of 14 rows, since it was cut short"]
    for checked in (again(store).check_arrays, again(store).check_files):
        with pytest.raises(WorkError, match=rf"{name}_50pct\.npy holds 9 of 14 rows: it was cut short"):
            checked()
    assert mend(store) == [f"{path}: lengthened to its 14 rows"]
    assert again(store).missing().tolist() == found.bad
    assert_mended(store)


def test_an_array_that_is_missing_is_begun_anew_only_where_it_is_empty(store: Store) -> None:
    path = store.layout.array("test_logits")
    path.rename(path.with_suffix(".moved"))
    found = verify(again(store))
    assert found.bad == list(range(14))
    assert found.files[0].startswith(f"{path}: it is missing: restore it from a copy, or put an empty file there")
    with pytest.raises(WorkError, match=r"test_logits_50pct\.npy holds 0 of 14 rows"):
        again(store).check_arrays()
    with pytest.raises(UserError, match=r"test_logits_50pct\.npy: No such file"):
        mend(store)
    assert again(store).completed().all(), "nothing is lost if the file comes back"
    path.touch()
    mend(store)
    assert_mended(store)


@pytest.mark.parametrize("size", [None, 0, HEADER_BYTES + 5])
def test_flags_that_are_lost_are_made_again_on_opening(store: Store, size: int | None) -> None:
    with writing(store) as writer:
        writer.invalidate([3])
    path = store.layout.completed
    path.unlink() if size is None else os.truncate(path, size)
    again(store)
    assert np.flatnonzero(~np.load(path)).tolist() == [3]
    assert verify(again(store)) == Finding(checked=13)


def test_nothing_is_opened_where_every_file_is_cut_short(store: Store) -> None:
    for path in store.layout.data.glob("*.npy"):
        os.truncate(path, HEADER_BYTES)
    with pytest.raises(WorkError, match=r"train_masks_50pct\.npy and all other arrays are cut short"):
        again(store)


def test_bad_rows_are_looked_at_again_block_by_block(tmp_path: Path) -> None:
    store = filled(tmp_path, setting(models=200))
    for row in range(10, 150):
        flip(store.layout.array("test_margins"), 8 * (HEADER_BYTES + row * 600))
    reads = []
    real = Store.read
    with mock.patch.object(Store, "read", lambda *given: reads.append(given) or real(*given)):
        assert verify(Store.open(store.layout, setting(models=200))).bad == list(range(10, 150))
    assert len(reads) <= 2 * 2 * len(store.arrays), "two blocks of each array, twice"


def test_the_journal_of_a_process_at_work_is_not_mended(tmp_path: Path) -> None:
    store = create(tmp_path)
    with writing(store) as writer:
        fill(store, writer)
        (path,) = store.layout.journals.iterdir()
        flip(path, 8 * (HEADER_BYTES + 40))
        other = again(store)
        with writing(other) as mender, pytest.raises(WorkError, match="its process still runs"):
            repair(other, mender, verify(other))


def test_a_row_that_cannot_be_read_is_bad(store: Store) -> None:
    real = os.preadv
    row_bytes = 700 * 2

    def bad_sector(fd: int, buffers: list, offset: int) -> int:
        start = HEADER_BYTES + 9 * row_bytes
        hit = offset < start + row_bytes and offset + len(buffers[0]) > start
        if hit and os.readlink(f"/proc/self/fd/{fd}").endswith("train_margins_50pct.npy"):
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, buffers, offset)

    with mock.patch("os.preadv", bad_sector):
        found = verify(again(store))
    assert found.bad == [9]
    assert "train_margins_50pct.npy: Input/output error" in found.reasons[9]
    assert found.checked == 14


def test_a_row_that_is_made_anew_meanwhile_is_not_called_bad(store: Store) -> None:
    other = again(store)
    with writing(store) as writer:
        writer.invalidate([3])
        with writer.leased(0):
            overwrite(store, 3)
    assert verify(other).fine, "it was done when the check began, and is missing at its end"


CONFIG_RECIPE = "recipe: {network: convnet, group: 4}\n"
CONFIG = f"""\
dataset: made-up
models: 10
eval_models: 4
runs_per_mask: 2
{CONFIG_RECIPE}
outputs: {{train_logits: true, test_logits: true}}
"""


def test_the_commands_say_what_is_bad_and_mend_it(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_text(CONFIG)
    command = [tmp_path / "x.yaml", "--root", store.layout.root]
    flip(store.layout.array("test_margins"), 8 * (HEADER_BYTES + 2 * 600))
    flip(store.layout.array("train_masks"), 8 * 20)
    told = in_process(capsys, "verify", *command)
    assert told.code == 1
    assert "row 2: test_margins does not match its checksum" in told.out
    assert "train_masks_50pct.npy: its header" in told.out
    found = json.loads(in_process(capsys, "verify", *command, "--json").out)
    assert (found["checked"], found["bad"]) == (14, [2])
    assert in_process(capsys, "repair", *command).code == 0
    assert in_process(capsys, "verify", *command).code == 0
    assert json.loads(in_process(capsys, "status", *command, "--json").out)["missing"] == 1
    assert in_process(capsys, "repair", *command, "--rows", "7:9").code == 0
    assert json.loads(in_process(capsys, "status", *command, "--json").out)["missing"] == 3
    assert "--retrain is -1" in in_process(capsys, "verify", *command, "--retrain=-1").error
    redo(store)
    assert check(layout(store.layout.root).root) == 14


@pytest.mark.parametrize("name", ["train_masks", "test_margins"])
def test_a_damaged_row_never_enters_a_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    store = filled(tmp_path / "root", setting(models=60, outputs=Outputs()))
    (tmp_path / "x.yaml").write_text("dataset: made-up\nmodels: 60\neval_models: 4\nruns_per_mask: 2\n" + CONFIG_RECIPE)
    row_bytes = (store.arrays[name].bytes - HEADER_BYTES) // store.rows
    flip(store.layout.array(name), 8 * (HEADER_BYTES + 31 * row_bytes + 7))
    told = in_process(capsys, "fit", tmp_path / "x.yaml", "--root", tmp_path / "root")
    assert told.code == 1
    assert f"error: 1 rows of {name}_50pct.npy do not match their checksums (31)" in told.err
    assert not list((tmp_path / "root").rglob("*.pt"))


def falsified(root: Path, row: int) -> None:
    """A row of other margins, recorded as if it had been trained here: nothing but training again tells."""
    store = Store.open(Layout(root, "digits", "50pct"), tiny())
    made = store.states.readers[store.states.journal[row]].provenance
    arrays = {name: store.read(name, row, row + 1)[0].copy() for name in store.arrays}
    arrays["test_margins"][3] += 1
    with writing(store, **{key: value for key, value in made.items() if key != "store"}) as writer:
        writer.invalidate([row])
        group = row // store.group
        with writer.leased(group):
            writer.commit([RowResult(row, arrays, 1.0, 0.5, 0.5)])


def test_a_row_that_comes_out_different_when_it_is_trained_again_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [DIGITS, "--root", tmp_path, *TINY]
    assert in_process(capsys, "init", *command).code == 0
    assert in_process(capsys, "train", *command, "--rows=0:8", "--workers=1").code == 0
    sound = json.loads(in_process(capsys, "verify", *command, "--retrain=1", "--json").out)
    assert (len(sound["retrained"]["equal"]), sound["bad"]) == (1, [])
    with monkeypatch.context() as patch:
        patch.setattr(device, "ARITHMETIC", device.ARITHMETIC + 1)
        older = json.loads(in_process(capsys, "verify", *command, "--retrain=1", "--json").out)
    assert (len(older["retrained"]["close"]), older["bad"]) == (1, []), "rows of an earlier trainer are no damaged rows"
    falsified(tmp_path, 2)
    assert in_process(capsys, "verify", *command).code == 0, "its checksums match"
    told = in_process(capsys, "verify", *command, "--retrain=8", "--json")
    assert told.code == 1
    found = json.loads(told.out)
    assert found["retrained"]["different"] == found["bad"] == [2]
    assert found["retrained"]["equal"] == [0, 1, 3, 4, 5, 6, 7]
    assert in_process(capsys, "repair", *command, "--rows=2:3").code == 0
    assert in_process(capsys, "train", *command, "--rows=0:8", "--workers=1").code == 0
    told = in_process(capsys, "verify", *command, "--retrain=8")
    assert told.code == 0
    assert "8 rows trained again byte-equal, 0 different" in told.out
