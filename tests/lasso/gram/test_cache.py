import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from datamodels.lasso import FitRows, fit, temporary_beside
from datamodels.lasso.gram import GramCache, cache, disk_bytes, target_batches
from datamodels.lasso.rows import estimation_rows
from datamodels.train import Fit, UserError
from datamodels.train.store import grow
from tests.stores import created_store, damage, linear_data, published_store, rewrite, with_fit

ROWS, N, TARGETS = 600, 12, 30


@pytest.fixture
def store(tmp_path):
    masks, margins = linear_data(ROWS, N, TARGETS)
    return created_store(tmp_path / "store", masks, margins, train_margins=margins[:, :N], fit=Fit(k=20))


@pytest.fixture
def small_files(monkeypatch):
    """Files and batches of 128 targets, and a pass over the margins for each file."""
    monkeypatch.setattr(cache, "TARGETS_PER_FILE", 128)
    monkeypatch.setattr(cache, "BATCH_BYTES", 1)
    monkeypatch.setattr("datamodels.lasso.gram.shard.PASS_BYTES", 1)
    monkeypatch.setattr("datamodels.lasso.gram.shard._AT_ONCE", 1)  # masks are read 512 rows at a time
    monkeypatch.setattr("datamodels.lasso.gram.sums._PIECE", 90)
    monkeypatch.setattr("datamodels.lasso.rows._BLOCK_VALUES", 1)  # rows are read 64 at a time


def weight(path):
    return torch.load(path, weights_only=True)["weight"]


def sums_of(store):
    return GramCache(store, FitRows.of(store.setting, estimation_rows(store)))


@pytest.mark.parametrize("size", ["small", "large"])
def test_sums_on_disk_are_those_of_the_rows(store, size, request):
    if size == "small":
        request.getfixturevalue("small_files")
    found = sums_of(store)
    found.make("test", 0, TARGETS)
    masks, margins = store.array("train_masks").astype(int), store.array("test_margins").astype(np.float64)
    validation = found.rows.validation
    for gram, cross, group in zip(found.grams(), found.crosses("test", 5, 9), (~validation, validation), strict=True):
        np.testing.assert_array_equal(gram.counts, masks[group].T @ masks[group])
        np.testing.assert_array_equal(cross.cross, margins[group, 5:9].T @ masks[group])
        assert gram.rows == group.sum()
    bits = found.bits(1)
    np.testing.assert_array_equal(np.bitwise_count(bits).sum(axis=1), masks[validation].sum(axis=0))


def test_several_files_and_passes_change_nothing_and_each_mask_is_read_once(tmp_path, small_files, monkeypatch):
    data = linear_data(ROWS, N, 300)
    store = created_store(tmp_path / "a", *data, fit=Fit(k=5))
    read, plain = {"train_masks": 0, "test_margins": 0}, store.read

    def counted(name, start, stop):
        read[name] += stop - start
        return plain(name, start, stop)

    monkeypatch.setattr(store, "read", counted)
    found = weight(fit(store))
    assert read == {"train_masks": ROWS, "test_margins": 3 * ROWS}
    monkeypatch.undo()
    assert torch.equal(found, weight(fit(created_store(tmp_path / "b", *data, fit=Fit(k=5)))))


def test_a_later_fit_and_another_piece_read_no_row_again(store, monkeypatch):
    first = weight(fit(store))
    monkeypatch.setattr(store, "read", None)
    assert torch.equal(first, weight(fit(store)))
    fit(with_fit(store, eps=1e-2))
    fit(store, targets=(3, 9))


def test_rows_that_are_added_leave_the_others_unread(tmp_path):
    masks, margins = linear_data(ROWS, N, TARGETS)
    old = created_store(tmp_path / "old", masks, margins, 200, fit=Fit(k=20))
    fit(old)
    grown = with_fit(grow(old.layout, old.setting, ROWS - 100, print), partial=True)
    damage(grown, "train_masks", range(400))
    found = weight(fit(grown))
    fresh = created_store(tmp_path / "new", masks[:500], margins[:500], fit=Fit(k=20))
    assert torch.equal(found, weight(fit(fresh)))


class Stop(Exception):
    pass


@pytest.mark.parametrize("stage", ["rows", "margins", "counts, training", "counts, validation"])
def test_an_interrupted_pass_leaves_no_file_and_begins_again(store, small_files, stage):
    def stop(name, done, total):
        if name.startswith(stage) and done >= 300:
            raise Stop

    with pytest.raises(Stop):
        fit(store, progress=stop)
    assert not list(cache.folder_of(store).glob(".*"))
    found = weight(fit(store))
    for file in cache.folder_of(store).iterdir():
        file.unlink()
    assert torch.equal(found, weight(fit(store)))


@pytest.mark.parametrize("n_train", [N, 2 * ROWS + 1])  # with twice as many examples as rows, no counts are kept
def test_what_a_fit_keeps_on_disk_is_foretold(tmp_path, n_train):
    store = created_store(tmp_path, *linear_data(ROWS, n_train, 3), fit=Fit(k=20))
    fit(store)
    found = list(cache.folder_of(store).glob("*.npy"))
    assert len(found) == (4 if n_train == N else 2)
    assert sum(file.stat().st_size for file in found) == disk_bytes(ROWS, n_train, 3) + 128 * len(found)  # headers


def test_counts_read_from_files_give_the_same_fit_bit_for_bit(tmp_path, monkeypatch):
    store = published_store(tmp_path, *linear_data(ROWS, 40, TARGETS), fit=Fit(k=20))
    whole = torch.load(fit(store), weights_only=True)
    monkeypatch.setattr("datamodels.lasso.gram.matrices.SMALL_BYTES", 0)
    found = torch.load(fit(store), weights_only=True)
    for key in whole.keys() - {"stamp"}:
        assert torch.equal(whole[key], found[key]), key


def test_what_another_process_is_writing_is_left_alone_and_stale_files_are_removed(store):
    found = sums_of(store)
    (shard,) = found.shards
    writing, old = temporary_beside(shard.masks), shard.stem.with_name("0-9.0123456789abcdef.test.0-5.npy")
    earlier = found.folder.with_name("statistics_50pct")
    writing.touch()
    old.touch()
    earlier.mkdir()
    (found.folder / "store.json").unlink()
    found = sums_of(store)
    found.make("test", 0, 5)
    assert writing.exists()
    assert not old.exists()
    assert not earlier.exists()


PIECE = """import sys
from datamodels import lasso
from datamodels.lasso.gram import cache
from datamodels.train.store import open
cache.TARGETS_PER_FILE, cache.BATCH_BYTES = 128, 1
store = open(sys.argv[1], eval_models=0)
print(lasso.fit(store, targets=(0, 280)).name, lasso.is_current(store, "test", (0, 280)))
"""


def test_processes_with_the_same_piece_all_end_well(tmp_path):
    published_store(tmp_path, *linear_data(600, 40, 300))
    command = [sys.executable, "-c", PIECE, tmp_path]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [process.communicate() for process in running]
    assert ended == [("test_50pct.0-280.pt True\n", "")] * 2
    names = {file.name for file in (tmp_path / "made-up" / "datamodels").iterdir() if file.is_file()}
    names.discard("rows_50pct.json")  # which is there where one process came late
    assert names == {".test_50pct.lock", "test_50pct.0-280.json", "test_50pct.0-280.pt"}


MEMORY = """import sys
import numba, torch
from datamodels.lasso import curve, fit
from datamodels.lasso.gram import matrices, popcount
from datamodels.lasso.solver import path
from datamodels.train.store import open
from tests.memory import peak
matrices.SMALL_BYTES = 0
store = open(sys.argv[1], eval_models=10)
store.setting.fit.k, store.setting.fit.eps = 8, 0.3
before = peak()
fit(store) if sys.argv[2] == "fit" else curve(store, points=3)
print(peak() - before)
"""


@pytest.mark.parametrize("work", ["fit", "curve"])
def test_one_large_matrix_at_a_time_is_in_memory(tmp_path, work):
    n_train, rng = 6016, np.random.default_rng(0)
    masks = rng.random((610, n_train), np.float32) < 0.5
    margins = masks[:, :4] @ rng.normal(size=(4, 3)) + 0.1 * rng.normal(size=(610, 3))
    published_store(tmp_path, masks, margins)
    result = subprocess.run([sys.executable, "-c", MEMORY, tmp_path, work], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 4 * n_train**2 + 2**28


def test_a_row_that_was_made_again_is_read_again(store):
    before = weight(fit(store))
    margins = np.array(store.array("test_margins"))
    margins[0] += 30
    rewrite(store, [0], test_margins=margins)
    again = weight(fit(store))
    assert not torch.equal(again, before)
    for file in cache.folder_of(store).iterdir():
        file.unlink()
    assert torch.equal(again, weight(fit(store)))


@pytest.mark.parametrize("kind", ["gram", "test"])
def test_a_file_that_was_cut_short_is_named(store, kind):
    fit(store)
    path = sorted(cache.folder_of(store).glob(f"*.{kind}*.npy"))[0]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=f"{path.name} has .* it was cut short; remove it"):
        fit(store)


def test_sums_of_another_store_are_refused(store):
    fit(store)
    (cache.folder_of(store) / "store.json").write_text(json.dumps({"store": "another", "n_train": N}))
    with pytest.raises(UserError, match="sums of another store: remove it"):
        fit(store)


def test_batches_end_where_files_do_and_keep_within_memory():
    assert target_batches(50_000, 100, 1300) == [(100, 512), (512, 1024), (1024, 1300)]
    assert target_batches(2000, 0, 20_000) == [(0, 16_384), (16_384, 20_000)]
    assert target_batches(10**6, 0, 600) == [(0, 512), (512, 600)]
    assert cache.file_ranges(1200, 100, 1100) == [(0, 512), (512, 1024), (1024, 1200)]
