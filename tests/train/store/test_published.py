"""Roots of published files alone: what of them is read, which rows count, and what is refused in one line."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.train.config import Fit
from datamodels.train.errors import UserError
from datamodels.train.npy_file import header
from datamodels.train.store import BaseStore, PublishedStore, open_store
from datamodels.train.store import open as open_anything
from tests.faults.stores import N_TEST, N_TRAIN, filled, layout, setting, workplace

LEFT_OUT = ["empty mask (first: 12)", "empty mask (first: 2)", "value not finite (first: 5)"]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A root that holds nothing but published files."""
    place = filled(tmp_path / "made").layout
    target = layout(tmp_path / "published")
    target.data.mkdir(parents=True)
    for path in place.data.glob("t*.npy"):
        shutil.copy(path, target.data)
    return target.root


def test_files_alone_are_a_store_with_every_row_done(published: Path) -> None:
    store = open_store(layout(published), setting())
    assert isinstance(store, PublishedStore)
    assert (store.models, store.eval_models, store.rows) == (10, 4, 14)
    assert (store.n_train, store.n_test) == (N_TRAIN, N_TEST)
    assert store.completed().all()
    assert not store.failed().any()
    assert not store.bad_rows(["train_masks"], 0, 14).any()
    assert not store.bad_masks(3, store.array("train_masks")[3:14]).any()
    store.check_files()
    assert store.array("train_logits").shape == (14, N_TRAIN, 10)


def test_files_are_counted_and_not_taken_from_the_config(published: Path) -> None:
    assert open_store(layout(published), setting(models=3)).models == 10
    with pytest.raises(UserError, match=r"models is 3, but .* holds 14 rows, 10 without"):
        open_store(layout(published), setting(models=3), explicit_models=True)
    with pytest.raises(UserError, match="eval_models is 14"):
        open_store(layout(published), setting(eval_models=14))


def contents(store: BaseStore) -> dict[str, np.ndarray]:
    return {name: store.read(name, 0, store.rows).copy() for name in store.arrays}


def change(path: Path, rows: Any, value: float) -> None:
    values = np.load(path)
    values[rows] = value
    np.save(path, values)


def left_out(store: BaseStore) -> list[int]:
    return np.flatnonzero(~store.completed()).tolist()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("masks", "outputs"), [("?", "<f4"), ("u1", ">f2"), ("<i8", ">f8"), (">u4", "<f2"), ("i1", "g"), (">i2", "<f8")]
)
def test_files_of_every_type_that_numpy_maps_are_read(published: Path, masks: str, outputs: str, order: Any) -> None:
    plain = contents(open_store(layout(published), setting()))
    for name, values in plain.items():
        np.save(layout(published).array(name), values.astype(masks if name == "train_masks" else outputs, order))
    store = open_store(layout(published), setting())
    assert store.completed().all()
    for name, values in contents(store).items():
        assert np.array_equal(values, plain[name])
        assert np.array_equal(store.array(name), plain[name])
        assert values.dtype.isnative
        assert values.flags.c_contiguous
        assert not store.array(name).flags.writeable
        assert store.array(name).dtype == (bool if name == "train_masks" else outputs)
    if "f8" in outputs:
        change(layout(published).array("test_margins"), 3, 1e39)  # beyond float32, which datamodels are kept in
        assert left_out(open_store(layout(published), setting())) == [3]


def test_rows_never_written_or_not_finite_are_left_out_and_told(published: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("datamodels.train.store.published._BLOCK_BYTES", 1)
    place, told = layout(published), []
    change(place.array("train_masks"), [2, 12], 0)
    change(place.array("test_margins"), [2, 12], 0)
    change(place.array("train_margins"), 5, np.nan)
    change(place.array("train_logits"), 6, np.inf)  # not looked at
    store = open_store(place, setting(fit=Fit(max_failed=0.22)), notice=told.append)
    assert left_out(store) == np.flatnonzero(store.failed()).tolist() == [2, 5, 12]
    assert store.estimation_rows().tolist() == [0, 1, 3, 4, 6, 7, 8, 9]
    assert isinstance(store, PublishedStore)
    assert store.reasons() == {"empty mask": 2, "value not finite": 1}
    store.leave_out(10, 14)
    store.leave_out(0, 14)
    assert told == [f"1 of 14 rows are left out: {text}" for text in LEFT_OUT]
    strict = open_store(place, setting(fit=Fit(max_failed=0.2)))
    assert isinstance(strict, PublishedStore)
    with pytest.raises(UserError, match=r"3 of 14 rows have an empty mask .* \(first: 2\), expected at most 0\.2 of"):
        strict.leave_out(0, 14)


@pytest.mark.parametrize("name", ["_completed_50pct.npy", "_completed.npy"])
@pytest.mark.parametrize("dtype", [bool, np.int64])
def test_a_completed_array_says_which_rows_count(published: Path, name: str, dtype: Any) -> None:
    place, told = layout(published), []
    change(place.array("train_masks"), [2, 12], 0)
    np.save(place.data / name, (~np.isin(np.arange(14), [2, 12])).astype(dtype))
    store = open_store(place, setting(), notice=told.append)
    assert left_out(store) == [2, 12]
    assert not store.failed().any()
    assert isinstance(store, PublishedStore)
    store.leave_out(0, 14)
    assert told == [f"2 of 14 rows are left out: {place.data / name} does not mark them"]
    np.save(place.data / name, np.ones(13, dtype))
    with pytest.raises(UserError, match=rf"{name} holds \w+ of shape \(13,\), expected a bool for each of 14 rows"):
        open_store(place, setting())


def test_what_was_found_is_kept_beside_datamodels_until_an_array_changes(published: Path, monkeypatch: Any) -> None:
    place = layout(published)
    change(place.array("train_masks"), 2, 0)
    kept = place.folder / "datamodels" / "rows_50pct.json"
    open_store(place, setting()).completed()
    assert not kept.parent.exists(), "nothing is written where nothing was fitted"
    kept.parent.mkdir()
    assert left_out(open_store(place, setting())) == [2]
    with monkeypatch.context() as patched:
        patched.setattr(PublishedStore, "_examine", None)
        assert left_out(open_store(place, setting())) == [2]
        assert left_out(open_store(place, setting(), out=published / "out")) == [2]
    change(place.array("train_masks"), 3, 0)
    assert left_out(open_store(place, setting())) == [2, 3]
    for text in ("", "[]", "{}", '{"empty mask": [99], "value not finite": []}'):
        kept.write_text(text)
        assert left_out(open_store(place, setting())) == [2, 3]


@pytest.mark.parametrize("linked", ["files", "data", "made-up", "."])
def test_files_may_be_links_to_another_disk(published: Path, tmp_path: Path, linked: str) -> None:
    place, there, out = layout(tmp_path / "links"), layout(published), None
    if linked == "files":
        place.data.mkdir(parents=True)
        for path in there.data.iterdir():
            (place.data / path.name).symlink_to(path)
    else:
        link, target = {"data": (place.data, there.data), "made-up": (place.folder, there.folder)}.get(
            linked, (place.root, there.root)
        )
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    if linked == "made-up":  # datamodels would be written there
        with pytest.raises(UserError, match=r"made-up leads to .*: put --root there instead"):
            open_store(place, setting())
        out = tmp_path / "out"
    assert open_store(place, setting(), out=out).completed().all()
    assert open_anything(place.root, eval_models=4, out=out).rows == 14
    (place.data / "test_margins_50pct.npy").unlink()
    (place.data / "test_margins_50pct.npy").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"test_margins_50pct\.npy .*a link to .*gone, which does not exist"):
        open_store(place, setting(), out=out)


def test_archives_are_unpacked_once_below_out(published: Path, tmp_path: Path) -> None:
    place, out, told = layout(published), tmp_path / "out", []
    plain = contents(open_store(place, setting()))
    for name, values in plain.items():
        np.savez_compressed(place.array(name).with_suffix(".npz"), values)
        place.array(name).unlink()
    with pytest.raises(UserError, match=r"train_masks_50pct\.npz is an archive.*: --out DIR"):
        open_store(place, setting())
    for _ in range(2):
        store = open_store(place, setting(), out=out, notice=told.append)
        assert store.completed().all()
        assert all(np.array_equal(values, plain[name]) for name, values in contents(store).items())
        assert open_anything(published, eval_models=4, out=out).rows == 14
    assert [text.partition(" is unpacked once, to ")[0] for text in told] == [*map(str, place.published.values())]
    before = store.row_stamp(np.arange(14))
    np.savez(place.array("train_masks").with_suffix(".npz"), masks=~plain["train_masks"])
    store = open_store(place, setting(), out=out, notice=told.append)
    assert np.array_equal(store.masks, ~plain["train_masks"])
    assert store.row_stamp(np.arange(14)) != before
    assert len([*(out / "made-up" / "data").iterdir()]) == len(plain), "the former copy is removed"
    assert {path.suffix for path in place.data.iterdir()} == {".npz"}


@pytest.mark.parametrize(("content", "told"), [(b"", "holds a.npy, b.npy, expected one"), (b"PK\3\4", "not a whole")])
def test_archives_that_hold_no_single_array_are_refused(published: Path, content: bytes, told: str) -> None:
    path = layout(published).array("train_logits").with_suffix(".npz")
    np.savez(path, a=np.zeros(3), b=np.zeros(3))
    path.with_suffix(".npy").unlink()
    if content:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"train_logits_50pct\.npz .*{told}"):
        open_store(layout(published), setting(), out=published / "out", notice=print)


@pytest.mark.parametrize(("dtype", "value"), [("u1", 255), ("<i8", 256), ("i1", -1), ("?", 255)])
def test_masks_that_hold_other_numbers_are_refused(published: Path, dtype: str, value: int) -> None:
    path = layout(published).array("train_masks")
    masks = np.load(path).astype(dtype)
    (masks.view(np.uint8) if dtype == "?" else masks)[3, 1] = value
    np.save(path, masks)
    store = open_store(layout(published), setting())
    for reading in (lambda: store.read("train_masks", 2, 5), store.completed):
        with pytest.raises(UserError, match=rf"train_masks_50pct\.npy: row 3 holds {value}, expected 0 and 1"):
            reading()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (np.zeros((14, N_TEST), np.int16), "holds int16"),
        (np.zeros((14, N_TEST), "V2"), r"holds \|V2"),
        (np.zeros((14, N_TEST, 2), np.float16), "with 2 dimensions"),
        (np.zeros((13, N_TEST), np.float16), "has 13 rows"),
        (np.zeros((0, N_TEST), np.float16), r"empty file|dimensions above 0"),
        (np.array([{}] * 14, object), "Python objects"),
    ],
)
def test_files_of_another_kind_are_refused(published: Path, content: np.ndarray, told: str) -> None:
    np.save(layout(published).array("test_margins"), content)
    with pytest.raises(UserError, match=told) as error:
        open_store(layout(published), setting())
    assert "test_margins_50pct.npy" in str(error.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a pointer of Git LFS: `git lfs pull`"),
        (b"", "No data left in file|EOF"),
        (b"<!DOCTYPE html>", "magic string is not correct"),
        (header((14, N_TEST), np.dtype(np.float16)) + bytes(99), "mmap length is greater than file size"),
    ],
)
def test_what_a_download_leaves_instead_of_an_array_is_told(published: Path, content: bytes, told: str) -> None:
    layout(published).array("test_margins").write_bytes(content)
    with pytest.raises(UserError, match=rf"test_margins_50pct\.npy is not a whole \.npy file \(.*({told})"):
        open_store(layout(published), setting())


@pytest.mark.parametrize(
    ("name", "shape", "other"),
    [
        ("train_margins", (14, N_TRAIN - 1), "train_masks"),
        ("train_logits", (14, N_TRAIN + 1, 10), "train_masks"),
        ("test_logits", (14, N_TEST - 1, 10), "test_margins"),
    ],
)
def test_files_of_other_examples_are_refused(published: Path, name: str, shape: tuple[int, ...], other: str) -> None:
    np.save(layout(published).array(name), np.zeros(shape, np.float16))
    with pytest.raises(UserError, match=rf"{name}_50pct.npy has {shape[1]} columns, but .*{other}_50pct.npy "):
        open_store(layout(published), setting())


@settings(max_examples=300)
@given(
    st.binary(max_size=120), st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x02\x00", b"\x93NUMPY\x03\x00"])
)
def test_no_content_of_a_file_breaks_its_reader(content: bytes, magic: bytes) -> None:
    length = len(content).to_bytes(2 if magic[-2:] == b"\x01\x00" else 4, "little") if magic else b""
    _refuse_published(magic + length + content)


SHAPES = ["(10**9, 10**9)", "(-1, 5)", f"(2, {10**29})", "(2.5, 3)", "2", "(" * 200 + "1", "()", "(2, 'x')", "{}"]


@pytest.mark.parametrize("shape", [*SHAPES, f"(1, {2**62})", "(True, 1)"])
def test_hostile_headers_are_refused(shape: str) -> None:
    for dtype in ("'<f2'", "'|O'", "[('x', '<f2')]", "'<f2', 'x': 1", "'nonsense'", "7"):
        text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        _refuse_published(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text)


def _refuse_published(content: bytes) -> None:
    with workplace() as root:
        place = layout(root)
        place.data.mkdir(parents=True)
        np.save(place.array("train_masks"), np.zeros((14, 5), bool))
        place.array("test_margins").write_bytes(content)
        with pytest.raises(UserError, match=r"test_margins_50pct\.npy"):
            open_store(place, setting())
