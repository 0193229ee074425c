import fcntl
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodels.lasso import files, fit
from datamodels.lasso.gram.cache import Statistics, disk_bytes, file_ranges, folder_of, row_cuts
from datamodels.lasso.rows import Split, estimation_rows
from datamodels.lasso.solver import fista
from datamodels.train.config import Fit
from datamodels.train.errors import UserError, WorkError
from datamodels.train.masks import Era
from tests.lasso.fake_store import FakeStore, linear_data

ROWS, N, TARGETS = 600, 12, 30


@pytest.fixture
def store(tmp_path):
    masks, margins = linear_data(ROWS, N, TARGETS)
    return FakeStore(tmp_path, masks, margins, train_margins=margins[:, :N], fit=Fit(k=20))


def weight(path):
    return torch.load(path, weights_only=True)["weight"]


def twin(store, folder):
    """The same rows in a store of its own."""
    folder.mkdir()
    arrays = {name: array.copy() for name, array in store.arrays.items()}
    return FakeStore(folder, arrays["train_masks"], arrays["test_margins"], fit=store.setting.fit)


def statistics(store):
    return Statistics(store, Split.of(store.setting, estimation_rows(store)))


def test_sums_on_disk_are_those_of_the_rows(store):
    found = statistics(store)
    found.make("test", 0, TARGETS)
    masks, margins = store.arrays["train_masks"].astype(int), store.arrays["test_margins"].astype(np.float64)
    held = found.rows.heldout
    for gram, cross, group in zip(found.grams(), found.crosses("test", 5, 9), (~held, held), strict=True):
        np.testing.assert_array_equal(gram.counts, masks[group].T @ masks[group])
        np.testing.assert_array_equal(cross.cross, margins[group, 5:9].T @ masks[group])
        assert gram.rows == group.sum()


def test_a_later_fit_and_another_piece_read_no_row_again(store):
    first = weight(fit(store))
    reads = store.reads
    assert torch.equal(first, weight(fit(store)))
    fit(store.with_fit(eps=1e-2))
    fit(store, targets=(3, 9))
    assert store.reads == reads


def test_rows_that_are_added_leave_the_others_unread(tmp_path):
    masks, margins = linear_data(ROWS, N, TARGETS)
    fit(FakeStore(tmp_path, masks[:400], margins[:400], fit=Fit(k=20)))
    grown = FakeStore(tmp_path, masks, margins, fit=Fit(k=20))
    grown.older = [Era(400, 0)]
    grown.bad[:400] = True
    found = fit(grown)
    (tmp_path / "fresh").mkdir()
    assert torch.equal(weight(found), weight(fit(FakeStore(tmp_path / "fresh", masks, margins, fit=Fit(k=20)))))


class Stop(Exception):
    pass


def stop_at(name, row):
    def progress(stage, done, total):
        if stage.startswith(name) and done >= row:
            raise Stop

    return progress


@pytest.fixture
def one_part(monkeypatch):
    monkeypatch.setattr("datamodels.lasso.gram.cache._DIVIDED_BYTES", 0)
    monkeypatch.setattr("datamodels.lasso.rows._BLOCK_VALUES", 1)  # blocks of 64 rows
    monkeypatch.setattr("datamodels.lasso.gram.shard._AT_ONCE", 1)
    monkeypatch.setattr("datamodels.lasso.gram.temporary._MARKED_ROWS", 64)


def test_an_interrupted_pass_reads_no_mask_again(store, tmp_path, one_part):
    whole = weight(fit(twin(store, tmp_path / "twin")))
    with pytest.raises(Stop):
        fit(store, progress=stop_at("rows", 300))
    store.arrays["train_masks"][:256] = False
    assert torch.equal(weight(fit(store)), whole)


def test_sorting_margins_by_files_changes_nothing_and_an_interrupted_pass_goes_on(tmp_path, one_part, monkeypatch):
    monkeypatch.setattr("datamodels.lasso.gram.cache._COLUMNS", 128)
    store = FakeStore(tmp_path, *linear_data(ROWS, N, 300), fit=Fit(k=20))
    whole = weight(fit(twin(store, tmp_path / "twin")))
    monkeypatch.setattr("datamodels.lasso.gram.shard._DIRECT_BYTES", 0)
    for stage, row in (("rows", 600), ("margins 0:128", 300), ("margins 128:256", 300)):
        with pytest.raises(Stop):
            fit(store, progress=stop_at(stage, row))
    store.arrays["train_masks"][:] = False
    store.arrays["test_margins"][:] = 0
    assert torch.equal(weight(fit(store)), whole)
    assert not list(folder_of(store).glob("*.margins*"))


def test_a_write_that_takes_only_some_bytes_is_gone_on_with(tmp_path, one_part, monkeypatch):
    store = FakeStore(tmp_path, *linear_data(ROWS, N, 300), fit=Fit(k=20))
    whole = weight(fit(twin(store, tmp_path / "twin")))
    plain = os.pwrite
    monkeypatch.setattr("datamodels.lasso.gram.shard._DIRECT_BYTES", 0)
    monkeypatch.setattr("os.pwrite", lambda fd, data, place: plain(fd, memoryview(data).cast("B")[:1000], place))
    assert torch.equal(weight(fit(store)), whole)


def test_a_disk_that_fills_up_while_margins_are_sorted_is_told_in_one_line(sorting, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(WorkError, match=r"cannot write .*\.margins: No space left on device"):
        fit(sorting)
    assert not scratch_files(sorting)


def scratch_files(store):
    return sorted(file.name.split(".", 2)[2] for file in folder_of(store).glob("*.margins"))


@pytest.fixture
def sorting(tmp_path, one_part, monkeypatch):
    """A store whose margins are sorted by files before they are added up."""
    monkeypatch.setattr("datamodels.lasso.gram.cache._COLUMNS", 128)
    monkeypatch.setattr("datamodels.lasso.gram.shard._DIRECT_BYTES", 0)
    return FakeStore(tmp_path, *linear_data(ROWS, N, 300), fit=Fit(k=20))


def test_margins_that_nobody_goes_on_with_are_removed_by_the_next_fit(sorting):
    for targets in ((0, 300), (0, 200)):
        with pytest.raises(Stop):
            fit(sorting, targets=targets, progress=stop_at("margins 0:128", 300))
        assert scratch_files(sorting) == [f"test.{targets[0]}-{targets[1]}.margins"]
    path = next(folder_of(sorting).glob("*.margins"))
    with open(path, "ab") as file:  # another process works at it
        fcntl.flock(file, fcntl.LOCK_EX)
        fit(sorting, targets=(0, 5))
        assert path.exists()
    fit(sorting, targets=(0, 5))
    assert not list(folder_of(sorting).glob("*.margins")) + list(folder_of(sorting).glob("*.margins.reached"))


def test_an_error_leaves_no_sorted_margins(sorting):
    sorting.arrays["test_margins"][500, 7] = np.inf
    with pytest.raises(WorkError, match="row 500 holds a margin that is not finite"):
        fit(sorting)
    assert not scratch_files(sorting)


@pytest.mark.parametrize("kind", ["store", "sorting"])
def test_what_a_fit_takes_on_disk_is_foreseen(kind, request):
    store = request.getfixturevalue(kind)
    fit(store)
    found = list(folder_of(store).glob("*.npy"))
    kept, passing = disk_bytes(store.models, N, store.n_test, store.n_test)
    assert sum(file.stat().st_size for file in found) == kept + 128 * len(found)  # headers
    assert passing == (2 * ROWS * store.n_test if kind == "sorting" else 0)


def test_counts_read_from_files_give_the_same_fit_bit_for_bit(tmp_path, monkeypatch):
    store = FakeStore(tmp_path, *linear_data(ROWS, 40, TARGETS), fit=Fit(k=20))
    whole = torch.load(fit(twin(store, tmp_path / "twin")), weights_only=True)
    monkeypatch.setattr("datamodels.lasso.gram.matrices.SMALL_BYTES", 0)
    found = torch.load(fit(store), weights_only=True)
    for key in whole.keys() - {"stamp"}:
        assert torch.equal(whole[key], found[key]), key


def test_two_processes_that_need_the_same_counts_make_them_once(store):
    found = statistics(store)
    found.make("test", 0, 5)
    part = found.parts[0]
    for group in (0, 1):
        part.gram(group).unlink()
    part.cross("test", 0, 5).unlink()
    with found._locked(part):
        found._count(part, wait=False)  # another process is at it
        assert not part.has_counts()
    found.make("test", 0, 5)
    assert part.has_counts()


def test_what_another_process_is_writing_is_left_alone_and_what_is_not_todays_is_removed(store):
    found = statistics(store)
    part = found.parts[0]
    writing, old = files.aside(part.cross("test", 0, 5)), part.stem.with_name("0-9.0123456789abcdef.test.0-5.npy")
    writing.touch()
    old.touch()
    found.make("test", 0, 5)
    assert writing.exists()
    assert not old.exists()


TWO = """import sys
from pathlib import Path
from datamodels import lasso
from datamodels.lasso.gram import cache
from tests.lasso.fake_store import FakeStore, linear_data
cache._SLAB_BYTES = 8 * 40 * 128  # lots of 128 targets
store = FakeStore(Path(sys.argv[1]), *linear_data(600, 40, 300))
print(lasso.fit(store, targets=(0, 280)).name, lasso.is_current(store, "test", (0, 280)))
"""


def test_processes_with_the_same_piece_all_end_well(tmp_path):
    command = [sys.executable, "-c", TWO, tmp_path]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [process.communicate() for process in running]
    assert ended == [("test_50pct.0-280.pt True\n", "")] * 3
    names = sorted(file.name for file in (tmp_path / "datamodels").iterdir() if file.is_file())
    assert names == [".test_50pct.lock", "test_50pct.0-280.json", "test_50pct.0-280.pt"]


def test_held_out_masks_are_packed_without_gaps_that_matter(store, monkeypatch):
    found = statistics(store)
    found.make("test", 0, 1)
    monkeypatch.setattr("datamodels.lasso.gram.cache._PACKED_ROWS", 1)
    many = found.held_bits()
    held = store.arrays["train_masks"][found.rows.heldout]
    np.testing.assert_array_equal(np.bitwise_count(many).sum(axis=1), held.sum(axis=0))


MEMORY = """import resource, sys
import numpy as np, torch, numba, datamodels.lasso.solver.solve, datamodels.lasso.solver.path, datamodels.lasso.gram.popcount
from pathlib import Path
from datamodels.lasso import fit
from tests.lasso.fake_store import FakeStore
from datamodels.train.config import Fit
n_train = int(sys.argv[2])
datamodels.lasso.gram.matrices.SMALL_BYTES = 0
rng = np.random.default_rng(0)
masks = rng.random((610, n_train), np.float32) < 0.5
margins = masks[:, :4] @ rng.normal(size=(4, 3)) + 0.1 * rng.normal(size=(610, 3))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = FakeStore(Path(sys.argv[1]), masks, margins, eval_models=10, fit=Fit(k=8, eps=0.3))
fit(store) if sys.argv[3] == "fit" else datamodels.lasso.evaluation.curve(store, points=3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("work", ["fit", "curve"])
def test_one_large_matrix_at_a_time_is_in_memory(tmp_path, work):
    command = [sys.executable, "-c", MEMORY, tmp_path, "6016", work]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert 1024 * int(result.stdout) < 4 * 6016**2 + 2**28


def test_counts_that_were_interrupted_go_on_where_they_were_written_down(store, one_part, monkeypatch):
    monkeypatch.setattr("datamodels.lasso.gram.shard._CHECKPOINT", 0.0)
    with pytest.raises(Stop):
        fit(store, progress=stop_at("counts, training", 600))
    (half,) = folder_of(store).glob("*.training.partial")
    assert int(np.fromfile(half, np.int64, 1)[0]) == 512
    read, sizes = sys.modules["datamodels.lasso.gram.shard"].read, []

    def noting(path, *place):
        if path == half:
            sizes.append(place[2])
        return read(path, *place)

    monkeypatch.setattr("datamodels.lasso.gram.shard._STRIP", 5)
    monkeypatch.setattr("datamodels.lasso.gram.shard.read", noting)
    fit(store)
    assert [size for size in sizes if size[1] == N] == [(5, N), (5, N), (2, N)]  # not a whole matrix beside the other
    training, heldout = statistics(store).grams()
    masks, held = store.arrays["train_masks"].astype(int), statistics(store).rows.heldout
    np.testing.assert_array_equal(training.counts, masks[~held].T @ masks[~held])
    np.testing.assert_array_equal(heldout.counts, masks[held].T @ masks[held])
    assert not list(folder_of(store).glob("*.partial"))


def test_a_row_that_was_made_again_is_read_again(store):
    fit(store)
    store.arrays["train_masks"][0] ^= True
    store.generation[0] += 1
    again = weight(fit(store))
    for file in folder_of(store).iterdir():
        file.unlink()
    assert torch.equal(again, weight(fit(store)))


@pytest.mark.parametrize("kind", ["gram", "test"])
def test_a_file_that_was_cut_short_is_named(store, kind):
    fit(store)
    path = sorted(folder_of(store).glob(f"*.{kind}*.npy"))[0]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=f"{path.name} has .* it was cut short; remove it"):
        fit(store)


def test_statistics_of_another_store_are_refused(store):
    fit(store)
    (folder_of(store) / "store.json").write_text(json.dumps({"store": "another", "n_train": N}))
    with pytest.raises(UserError, match="statistics of another store: remove it"):
        fit(store)


def test_large_statistics_are_one_part(store, monkeypatch):
    assert len(row_cuts(store)) == 11
    monkeypatch.setattr("datamodels.lasso.gram.cache._DIVIDED_BYTES", 0)
    store.older = [Era(200, 0)]
    assert row_cuts(store) == [0, 200, 600]


def test_file_ranges_end_where_those_of_a_whole_fit_do(store, monkeypatch):
    monkeypatch.setattr("datamodels.lasso.gram.cache._COLUMNS", 128)
    assert file_ranges(store, "test", 100, 300) == [(100, 128), (128, 256), (256, 300)]


@pytest.mark.parametrize(("n_train", "columns"), [(5_000, 1024), (21_404, 1024), (50_000, 512), (200_000, 128)])
def test_files_cut_no_tile_of_a_gpu_while_they_keep_within_the_slab(n_train, columns):
    store = SimpleNamespace(n_train=n_train)
    assert file_ranges(store, "test", 0, 3000)[0] == (0, columns)
    assert columns % fista.TILE == 0 or n_train == 200_000


def test_the_last_rows_validate_as_upstream_does(store):
    split = Split.of(store.with_fit(validation="last").setting, np.arange(ROWS))
    assert np.flatnonzero(split.heldout).tolist() == list(range(540, 600))


def test_standardised_weights_are_mask_weights_times_deviation(store):
    plain = torch.load(fit(store), weights_only=True)
    other = torch.load(fit(store.with_fit(weight_units="standardised")), weights_only=True)
    torch.testing.assert_close(
        other["weight"], (plain["weight"] * plain["deviation"][:, None]).float(), rtol=0, atol=1e-6
    )
    predicted = plain["mean"].float() @ plain["weight"] + plain["bias"]
    torch.testing.assert_close(other["bias"], predicted, rtol=0, atol=1e-5)
    report = json.loads(files.path_of(store, "test").with_suffix(".json").read_text())
    assert report["weight_units"] == "standardised"


def test_the_path_of_upstream_begins_lower(store):
    plain = torch.load(fit(store.with_fit(k=1)), weights_only=True)
    other = torch.load(fit(store.with_fit(lambda_max="upstream")), weights_only=True)
    np.testing.assert_allclose(other["lam"] / plain["lam"], 0.5, rtol=0.05)


def test_a_fit_of_many_lots_reads_every_row_once(tmp_path, monkeypatch):
    monkeypatch.setattr("cache._SLAB_BYTES", 8 * N * 128)
    monkeypatch.setattr("datamodels.lasso.gram.shard._DIRECT_BYTES", 0)
    store = FakeStore(tmp_path, *linear_data(ROWS, N, 400), fit=Fit(k=5))
    read, plain = {"train_masks": 0, "test_margins": 0}, store.read

    def counted(name, start, stop):
        read[name] += stop - start
        return plain(name, start, stop)

    monkeypatch.setattr(store, "read", counted)
    fit(store)
    assert read == {"train_masks": ROWS, "test_margins": ROWS}
