import importlib
import json
import os
import subprocess
import sys
from itertools import pairwise

import numba
import numpy as np
import pytest
import torch

from datamodels import lasso
from datamodels.lasso import compiled, files, fit
from datamodels.lasso.gram import cache
from datamodels.train import Fit, UserError, WorkError
from tests.stores import created_store, damage, invalidate, linear_data, published_store, rewrite, with_fit

N, TARGETS = 12, 150
WHOLE = [".test_50pct.lock", "test_50pct.json", "test_50pct.pt"]
"""Files of a folder in which a fit of a whole split is all there is."""


@pytest.fixture
def store(tmp_path):
    masks, margins = linear_data(500, N, TARGETS)
    return created_store(tmp_path, masks, margins, train_margins=margins[:, :N], fit=Fit(k=30))


@pytest.fixture
def batches(monkeypatch):
    """Batches of 128 targets at most."""
    monkeypatch.setattr(cache, "TARGETS_PER_FILE", 128)
    monkeypatch.setattr(cache, "BATCH_BYTES", 1)


def tensors(path):
    return torch.load(path, weights_only=True)


def same(a, b):
    """Whether two .pt hold the same, but for the stamps of their reports."""
    a, b = tensors(a) if not isinstance(a, dict) else a, tensors(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a.keys() - {"stamp"})


def names(store):
    """Files in the folder of the datamodels."""
    return sorted(file.name for file in folder(store).iterdir() if file.is_file())


def folder(store):
    return store.layout.folder / "datamodels"


def report(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_the_file_is_in_the_published_format(store):
    path = fit(store)
    assert path == folder(store) / "test_50pct.pt"
    found = tensors(path)
    for key, shape in (("weight", (N, TARGETS)), ("bias", (TARGETS,)), ("lam", (TARGETS,))):
        assert (found[key].dtype, tuple(found[key].shape)) == (torch.float32, shape)
    predicted = store.array("train_masks") @ found["weight"].numpy() + found["bias"].numpy()
    error = np.mean((predicted - store.array("test_margins").astype(np.float64)) ** 2)
    assert error < 0.12  # the noise alone is 0.09


def test_the_report_tells_what_was_fitted_and_how_well(store):
    found = report(fit(store))
    assert found["weight_units"] == "mask"
    assert found["rows"]["used"] == 500 == found["rows"]["training"] + found["rows"]["validation"]
    assert (found["path"]["k"], found["path"]["eps"]) == (30, 1e-3)
    assert 0 < found["relative_gap"]["median"] <= found["relative_gap"]["max"] <= 1e-6
    assert 0.05 < found["validation_mse"]["mean"] < 0.2
    assert found["zero_variance"] == {"targets": 0, "examples": 0}
    assert set(found["seconds"]) == {"gram", "solve"}


def test_training_targets_are_fitted_alike(store):
    found = tensors(fit(store, "train"))
    assert found["weight"].shape == (N, N)
    torch.testing.assert_close(found["weight"], tensors(fit(store))["weight"][:, :N], rtol=0, atol=0)


@pytest.mark.parametrize("cuts", [(0, 1, 150), (0, 64, 127, 129, 150)])
def test_pieces_make_the_whole_bit_for_bit(store, cuts):
    whole = tensors(fit(store))
    files.path_of(store, "test").unlink()
    for piece in reversed(list(pairwise(cuts))):
        assert not files.path_of(store, "test").exists()
        fit(store, targets=piece)
    assert same(whole, files.path_of(store, "test"))
    assert report(files.path_of(store, "test"))["targets"] == [0, TARGETS]
    assert names(store) == WHOLE
    assert lasso.is_current(store)


def test_target_batches_change_nothing_in_whatever_bands_they_are_joined(store, monkeypatch, request):
    whole = tensors(fit(store))
    request.getfixturevalue("batches")
    for band_bytes in (files._BAND_BYTES, 1):
        monkeypatch.setattr(files, "_BAND_BYTES", band_bytes)
        files.path_of(store, "test").unlink()
        joined = fit(store)
        assert same(whole, joined)
        np.testing.assert_array_equal(whole["weight"], lasso.load(joined).weight)
        assert names(store) == WHOLE


class Stop(Exception):
    pass


@pytest.mark.parametrize(
    ("stage", "rest"), [("path", [("path", 150), ("refit", 128), ("refit", 150)]), ("refit", [("refit", 150)])]
)
def test_an_interrupted_fit_goes_on_with_the_batches_that_are_done(store, batches, stage, rest):
    def stop(name, done, total):
        if name == stage and done > 128:
            raise Stop

    with pytest.raises(Stop):
        fit(store, progress=stop)
    told = []
    fit(store, progress=lambda name, done, total: told.append((name, done)))
    assert [(name, done) for name, done in told if name in ("path", "refit") and done in (128, TARGETS)] == rest
    assert lasso.is_current(store)
    assert names(store) == WHOLE


@pytest.fixture
def half(tmp_path, batches):
    """A store in which no target of the second batch varies: its gap is 0 whatever the tolerance."""
    masks, margins = linear_data(500, N, TARGETS)
    margins[:, 128:] = 2
    return created_store(tmp_path, masks, margins, fit=Fit(k=5, tol=1e-19))


def test_a_target_that_does_not_converge_is_named_and_the_other_batches_are_kept(half):
    with pytest.raises(
        WorkError, match=r"target \d+ has a relative duality gap .*raise fit\.tol \(what meets it already"
    ):
        fit(half)
    assert list(files.pieces(files.path_of(half, "test"))) == [(128, TARGETS)]
    assert not lasso.is_current(half)
    told = []
    fit(with_fit(half, tol=1e-6), progress=lambda name, done, total: told.append((name, done)))
    assert ("refit", 128) in told
    assert ("refit", TARGETS) not in told
    assert lasso.is_current(half)


def test_a_looser_tolerance_keeps_a_fit_that_meets_it_and_a_tighter_one_does_not(store):
    fit(store)
    assert lasso.is_current(with_fit(store, tol=1e-4))
    assert not lasso.is_current(with_fit(store, tol=1e-12))


@pytest.mark.parametrize("stage", ["path", "refit"])
@pytest.mark.parametrize("targets", [None, (0, 140)])
def test_the_same_fit_twice_at_once_ends_well_and_leaves_nothing_behind(store, batches, stage, targets):
    others = []

    def other_process(name, done, total):
        if name == stage and not others:
            others.append(fit(store, targets=targets))  # it is faster

    path = fit(store, targets=targets, progress=other_process)
    assert others == [path] == [files.path_of(store, "test", targets)]
    assert names(store) == [".test_50pct.lock", path.with_suffix(".json").name, path.name]
    assert lasso.is_current(store, "test", targets)


def test_a_piece_fitted_twice_at_once_is_not_left_beside_the_whole(store):
    def other_process(name, done, total):
        if name == "refit" and not files.path_of(store, "test").exists():
            fit(store, targets=(0, 100))
            fit(store, targets=(100, TARGETS))

    path = fit(store, targets=(0, 100), progress=other_process)
    assert path == files.path_of(store, "test")
    assert names(store) == WHOLE


def test_paths_that_were_removed_are_followed_again(store, batches):
    def remove(name, done, total):
        if name == "refit":
            for file in folder(store).glob("*.path.npz"):
                file.unlink()

    fit(store, progress=remove)
    assert lasso.is_current(store)


def test_temporary_files_of_dead_processes_are_removed(store):
    folder(store).mkdir()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    ours = [lasso.temporary_beside(folder(store) / "test_50pct.pt").name for _ in range(2)]
    ours[0] = ours[0].replace(f".{os.getpid()}.", f".{dead.stdout.strip()}.")
    elsewhere = f".test_50pct.pt.elsewhere.{dead.stdout.strip()}.0a1b2c3d.tmp"
    for name in (*ours, elsewhere):
        (folder(store) / name).touch()
    fit(store)
    assert [name for name in names(store) if name.endswith(".tmp")] == sorted([ours[1], elsewhere])


def test_pieces_of_other_rows_or_options_are_not_joined(store):
    fit(store, targets=(0, 100))
    margins = np.array(store.array("test_margins"))
    margins[3] += 1
    rewrite(store, [3], test_margins=margins)
    fit(store, targets=(100, TARGETS))
    assert not files.path_of(store, "test").exists()
    fit(store, targets=(0, 100))
    assert lasso.is_current(store)
    fit(with_fit(store, k=29), targets=(0, 100))
    assert not lasso.is_current(store)


def test_overlapping_pieces_make_the_whole(store):
    assert lasso.assemble(store) is None
    for piece in ((0, 80), (20, 50), (60, TARGETS)):
        fit(store, targets=piece)
    assert lasso.is_current(store)


def test_constant_targets_and_examples_are_counted(tmp_path):
    masks, margins = linear_data(200, N, TARGETS)
    masks[:, 5], margins[:, [7, 9]] = True, 2
    found = fit(published_store(tmp_path, masks, margins, fit=Fit(k=5)))
    assert report(found)["zero_variance"] == {"targets": 2, "examples": 1}
    assert tensors(found)["lam"][[7, 9]].tolist() == [0, 0]
    assert tensors(found)["bias"][[7, 9]].tolist() == [2, 2]


def test_a_fit_is_current_until_its_rows_or_options_change(store):
    assert not lasso.is_current(store)
    fit(store)
    assert lasso.is_current(store)
    assert lasso.is_current(store, "test", (3, 5))
    assert not lasso.is_current(store, "train")
    with_fit(store, partial=True)
    assert lasso.is_current(store)
    assert not lasso.is_current(with_fit(store, eps=1e-2))
    with_fit(store, eps=1e-3)
    invalidate(store, [4])
    assert not lasso.is_current(store)


def test_a_mixed_or_broken_pair_is_not_current_and_is_replaced(store):
    path = fit(store)
    other = path.read_bytes()
    fit(with_fit(store, k=29))
    path.write_bytes(other)
    assert not lasso.is_current(store)
    for content in (other, other[:1000]):
        path.write_bytes(content)
        assert not lasso.is_current(store)
        fit(store)
        assert lasso.is_current(store)


def test_somebody_elses_file_is_not_replaced(store):
    path = files.path_of(store, "test")
    path.parent.mkdir()
    torch.save({"weight": torch.zeros(N, TARGETS), "bias": torch.zeros(TARGETS), "lam": torch.zeros(TARGETS)}, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="move it away"):
        fit(store)
    assert path.read_bytes() == before


def test_partial_and_failed_rows_are_told(tmp_path):
    data = linear_data(500, N, 3)
    store = created_store(tmp_path, *data, fit=Fit(max_failed=0.01), missing=[1], failed=[2])
    with pytest.raises(UserError, match="1 of 500 rows are missing"):
        fit(store)
    found = report(fit(with_fit(store, partial=True)))
    assert (found["rows"]["used"], found["rows"]["failed"], found["rows"]["missing"]) == (498, 1, 1)


@pytest.mark.parametrize("targets", [(-1, 3), (3, 3), (5, 3), (0, TARGETS + 1)])
def test_targets_outside_the_split_are_refused(store, targets):
    with pytest.raises(UserError, match=f"expected a range within 0:{TARGETS}"):
        fit(store, targets=targets)
    assert not folder(store).exists()


def test_too_few_rows_are_refused(tmp_path):
    with pytest.raises(UserError, match="validation rows, expected at least 2 and 1"):
        fit(published_store(tmp_path, *linear_data(3, 4, 2)))


def test_damaged_rows_leave_an_earlier_fit_alone(store):
    path = fit(store)
    before = path.read_bytes()
    for file in cache.folder_of(store).iterdir():
        file.unlink()
    damage(store, "train_masks", [9])
    with pytest.raises(WorkError, match=r"\(9\): run `datamodels repair`"):
        fit(store)
    assert path.read_bytes() == before
    assert names(store) == WHOLE


def test_a_folder_that_cannot_be_made_is_told(store):
    folder(store).write_text("a file")
    with pytest.raises(UserError, match=r"cannot write to .*datamodels: .*; --out names another folder"):
        fit(store)


def test_a_full_disk_is_a_work_error(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(WorkError, match=r"cannot write .*test_50pct\.pt: No space left"):
        fit(store)
    assert names(store) == WHOLE[:1]


def test_standardised_weights_are_mask_weights_times_deviation(store):
    plain = tensors(fit(store))
    path = fit(with_fit(store, weight_units="standardised"))
    other = tensors(path)
    expected = (plain["weight"] * plain["deviation"][:, None]).float()
    torch.testing.assert_close(other["weight"], expected, rtol=0, atol=1e-6)
    predicted = plain["mean"].float() @ plain["weight"] + plain["bias"]
    torch.testing.assert_close(other["bias"], predicted, rtol=0, atol=1e-5)
    assert report(path)["weight_units"] == "standardised"


def test_the_path_of_upstream_begins_lower(store):
    plain = tensors(fit(with_fit(store, k=1)))
    other = tensors(fit(with_fit(store, lambda_max="upstream")))
    np.testing.assert_allclose(other["lam"] / plain["lam"], 0.5, rtol=0.05)


def test_what_is_not_a_datamodel_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        lasso.load(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("not a zip file")
    torch.save({"weight": torch.zeros(3, 2)}, tmp_path / "short.pt")
    torch.save({"weight": torch.zeros(3, 2), "bias": torch.zeros(3)}, tmp_path / "odd.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, words in (
        ("text", "cannot be read"),
        ("short", "no dense floating-point tensor `bias`"),
        ("odd", "shape"),
        ("list", "weight"),
    ):
        with pytest.raises(UserError, match=words):
            lasso.load(tmp_path / f"{name}.pt")


def test_kernels_are_compiled_whatever_the_environment_says(monkeypatch):
    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    assert hasattr(importlib.reload(compiled).compiled(linear_data), "signatures")


def test_importing_the_package_imports_neither_torch_nor_numba():
    code = "import sys, datamodels.lasso; print([name for name in ('torch', 'numba', 'scipy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_columns_are_in_mask_units_whatever_the_files(tmp_path):
    masks, margins = linear_data(200, 12, 5)
    found = []
    for units in ("mask", "standardised"):
        store = published_store(tmp_path / units, masks, margins, fit=Fit(weight_units=units))
        found.append(files.load(fit(store)).columns(np.array([1, 4])))
    for mask, standardised in zip(*found, strict=True):
        np.testing.assert_allclose(standardised, mask, atol=1e-6)
