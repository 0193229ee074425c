import json
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch

from datamodels import lasso
from datamodels.lasso import files, fit
from datamodels.train.config import Fit
from datamodels.train.errors import UserError, WorkError
from tests.lasso.fake_store import FakeStore, linear_data

TARGETS = 150


@pytest.fixture
def store(tmp_path):
    masks, margins = linear_data(500, 12, TARGETS)
    return FakeStore(tmp_path, masks, margins, train_margins=margins[:, :12], fit=Fit(k=30))


def tensors(path):
    return torch.load(path, weights_only=True)


def names(folder):
    return sorted(file.name for file in folder.iterdir() if file.is_file())


def report(path):
    return json.loads(path.with_suffix(".json").read_text())


def test_the_file_is_in_the_published_format(store):
    path = fit(store)
    assert path == store.folder / "datamodels" / "test_50pct.pt"
    found = tensors(path)
    for key, shape in (("weight", (12, TARGETS)), ("bias", (TARGETS,)), ("lam", (TARGETS,))):
        assert (found[key].dtype, tuple(found[key].shape)) == (torch.float32, shape)
    predicted = store.arrays["train_masks"] @ found["weight"].numpy() + found["bias"].numpy()
    error = np.mean((predicted - store.arrays["test_margins"].astype(np.float64)) ** 2)
    assert error < 0.12  # the noise alone is 0.09


def test_the_report_tells_what_was_fitted_and_how_well(store):
    found = report(fit(store))
    assert found["weight_units"] == "mask"
    assert found["rows"]["used"] == 500 == found["rows"]["training"] + found["rows"]["validation"]
    assert found["path"]["k"] == 30
    assert found["path"]["eps"] == 1e-3
    assert 0 < found["relative_gap"]["median"] <= found["relative_gap"]["max"] <= 1e-6
    assert 0.05 < found["validation_mse"]["mean"] < 0.2
    assert found["zero_variance"] == {"targets": 0, "examples": 0}
    assert set(found["seconds"]) == {"statistics", "solve"}


def test_training_targets_are_fitted_alike(store):
    found = tensors(fit(store, "train"))
    assert found["weight"].shape == (12, 12)
    torch.testing.assert_close(found["weight"], tensors(fit(store))["weight"][:, :12], rtol=0, atol=0)


@pytest.mark.parametrize("cuts", [(0, 150), (0, 1, 150), (0, 127, 129, 150), (0, 64, 128, 150)])
def test_pieces_make_the_whole_bit_for_bit(store, cuts):
    whole = tensors(fit(store))
    files.path_of(store, "test").unlink()
    for piece in reversed(list(pairwise(cuts))):
        assert not files.path_of(store, "test").exists()
        fit(store, targets=piece)
    joined = tensors(files.path_of(store, "test"))
    assert {key for key in whole if key != "stamp"} <= set(joined)
    for key in whole.keys() - {"stamp"}:
        assert torch.equal(whole[key], joined[key]), key
    assert report(files.path_of(store, "test"))["targets"] == [0, TARGETS]
    assert not files.pieces(files.path_of(store, "test"))
    assert lasso.is_current(store)


@pytest.fixture
def lots(monkeypatch):
    """Lots of 128 targets at most."""
    monkeypatch.setattr(sys.modules["datamodels.lasso.gram.cache"], "_SLAB_BYTES", 8 * 12 * 37)


def test_lots_of_targets_change_nothing(store, lots, monkeypatch):
    again = tensors(fit(store))
    files.path_of(store, "test").unlink()
    monkeypatch.undo()
    whole = tensors(fit(store))
    for key in whole.keys() - {"stamp"}:
        assert torch.equal(whole[key], again[key]), key
    assert names(store.folder / "datamodels") == [".test_50pct.lock", "test_50pct.json", "test_50pct.pt"]


def test_bands_of_rows_change_nothing(store, lots, monkeypatch):
    whole = tensors(fit(store))
    files.path_of(store, "test").unlink()
    monkeypatch.setattr(files, "_BAND_BYTES", 1)
    joined = fit(store)
    for key in whole.keys() - {"stamp"}:
        assert torch.equal(whole[key], tensors(joined)[key]), key
        assert torch.equal(whole[key], lasso.load(joined).tensors[key]), key


@pytest.mark.parametrize("stage", ["path", "refit"])
def test_an_interrupted_fit_goes_on_at_the_lot_where_it_was(store, lots, monkeypatch, stage):
    class Stop(Exception):
        pass

    def stop(name, done, total):
        if name == stage and done > 128:
            raise Stop

    with pytest.raises(Stop):
        fit(store, progress=stop)
    begun = []
    solver = sys.modules["datamodels.lasso.solver.batch"].Lot
    for name in ("follow_paths", "refit"):
        plain = getattr(solver, name)
        monkeypatch.setattr(
            solver, name, lambda lot, tell, name=name, plain=plain: (begun.append((name, lot.first)), plain(lot, tell))
        )
    fit(store)
    assert begun == ([("follow_paths", 128), ("refit", 0), ("refit", 128)] if stage == "path" else [("refit", 128)])
    assert lasso.is_current(store)
    assert names(store.folder / "datamodels") == [".test_50pct.lock", "test_50pct.json", "test_50pct.pt"]


def test_a_target_that_does_not_converge_is_named_and_the_other_lots_are_kept(store, lots, monkeypatch):
    solver = sys.modules["datamodels.lasso.solver.batch"].Lot
    plain = solver._refined

    def refined(lot, *args):
        weights, gap = plain(lot, *args)
        return weights, 0.5 if lot.first == 0 else gap

    monkeypatch.setattr(solver, "_refined", refined)
    with pytest.raises(WorkError, match=r"target 0 has a relative duality gap of 0\.5 at the refit"):
        fit(store)
    assert list(files.pieces(files.path_of(store, "test"))) == [(128, TARGETS)]
    monkeypatch.undo()
    assert lasso.is_current(store) is False
    fit(store)
    assert lasso.is_current(store)


def test_a_looser_tolerance_keeps_what_meets_it_and_a_sharper_one_does_not(store, lots, monkeypatch):
    solver = sys.modules["datamodels.lasso.solver.batch"].Lot
    plain, refit, begun = solver._refined, solver.refit, []

    def refined(lot, *args):
        weights, gap = plain(lot, *args)
        return weights, 2e-6 if lot.first == 0 else gap

    monkeypatch.setattr(solver, "_refined", refined)
    monkeypatch.setattr(solver, "refit", lambda lot, tell: (begun.append(lot.first), refit(lot, tell)))
    with pytest.raises(WorkError, match=r"raise fit\.tol \(what meets it already is kept\)"):
        fit(store)
    monkeypatch.setattr(solver, "follow_paths", None)
    fit(store.with_fit(tol=3e-6))
    assert begun == [0, 128, 0]
    assert lasso.is_current(store.with_fit(tol=1e-4))
    assert not lasso.is_current(store.with_fit(tol=1e-12))


@pytest.mark.parametrize("stage", ["path", "refit"])
@pytest.mark.parametrize("targets", [None, (0, 140)])
def test_the_same_fit_twice_at_once_ends_well_and_leaves_nothing_behind(store, lots, stage, targets):
    others = []

    def meanwhile(name, done, total):
        if name == stage and not others:
            others.append(fit(store, targets=targets))  # another process is quicker

    path = fit(store, targets=targets, progress=meanwhile)
    assert others == [path] == [files.path_of(store, "test", targets)]
    assert names(path.parent) == [".test_50pct.lock", path.with_suffix(".json").name, path.name]
    assert lasso.is_current(store, "test", targets)


def test_a_piece_fitted_twice_at_once_is_not_left_beside_the_whole(store):
    def meanwhile(name, done, total):
        if name == "refit" and not files.path_of(store, "test").exists():
            fit(store, targets=(0, 100))
            fit(store, targets=(100, TARGETS))

    path = fit(store, targets=(0, 100), progress=meanwhile)
    assert path == files.path_of(store, "test")
    assert names(path.parent) == [".test_50pct.lock", "test_50pct.json", "test_50pct.pt"]


def test_paths_that_went_away_are_followed_again(store, lots):
    folder = store.folder / "datamodels"

    def remove(name, done, total):
        if name == "refit":
            for file in folder.glob("*.path.npz"):
                file.unlink()

    fit(store, progress=remove)
    assert lasso.is_current(store)


def test_a_damaged_file_of_a_fit_is_replaced(store):
    path = fit(store)
    path.write_bytes(path.read_bytes()[:1000])
    fit(store)
    assert lasso.is_current(store)


def test_the_report_tells_solver_and_device_and_neither_makes_a_fit_stale(store):
    found = report(fit(store))
    assert (found["solver"], found["device"]) == ("descent", "cpu")
    store.with_fit(solver="fista")
    assert lasso.is_current(store)
    assert report(fit(store))["solver"] == "fista"


def test_temporary_files_of_dead_processes_are_removed(store):
    path = fit(store)
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    host = files._host()
    (path.parent / f".test_50pct.pt.{host}.{dead.stdout.strip()}.0a1b2c3d.tmp").touch()
    (path.parent / f".test_50pct.pt.{host}.{os.getpid()}.0a1b2c3d.tmp").touch()
    (path.parent / f".test_50pct.pt.elsewhere.{dead.stdout.strip()}.0a1b2c3d.tmp").touch()
    fit(store)
    kept = [name for name in names(path.parent) if name.endswith(".tmp")]
    assert len(kept) == 2
    assert not any(f".{dead.stdout.strip()}." in name and host in name for name in kept)


def test_pieces_of_other_rows_or_options_are_not_joined(store):
    fit(store, targets=(0, 100))
    store.generation[3] += 1
    fit(store, targets=(100, TARGETS))
    assert not files.path_of(store, "test").exists()
    fit(store, targets=(0, 100))
    assert lasso.is_current(store)
    fit(store.with_fit(k=29), targets=(0, 100))
    assert not lasso.is_current(store)


def test_overlapping_pieces_make_the_whole(store):
    assert lasso.assemble(store) is None
    for piece in ((0, 80), (20, 50), (60, TARGETS)):
        fit(store, targets=piece)
    assert lasso.is_current(store)


def test_constant_targets_and_examples_are_counted(store):
    store.arrays["train_masks"][:, 5] = True
    store.arrays["test_margins"][:, [7, 9]] = 2
    found = fit(store)
    assert report(found)["zero_variance"] == {"targets": 2, "examples": 1}
    assert tensors(found)["lam"][[7, 9]].tolist() == [0, 0]
    assert tensors(found)["bias"][[7, 9]].tolist() == [2, 2]


def test_a_fit_is_current_until_its_rows_or_options_change(store):
    assert not lasso.is_current(store)
    fit(store)
    assert lasso.is_current(store)
    assert lasso.is_current(store, "test", (3, 5))
    assert not lasso.is_current(store, "train")
    store.with_fit(partial=True)
    assert lasso.is_current(store)
    store.done[4] = False
    assert not lasso.is_current(store)
    store.done[4] = True
    assert not lasso.is_current(store.with_fit(eps=1e-2))


def test_a_mixed_or_broken_pair_is_not_current(store):
    path = fit(store)
    kept = path.read_bytes()
    store.generation[0] += 1
    fit(store)
    path.write_bytes(kept)
    assert not lasso.is_current(store)
    fit(store)
    path.write_bytes(path.read_bytes()[:1000])
    assert not lasso.is_current(store)


def test_somebody_elses_file_is_not_replaced(store):
    path = files.path_of(store, "test")
    path.parent.mkdir()
    torch.save({"weight": torch.zeros(12, TARGETS), "bias": torch.zeros(TARGETS), "lam": torch.zeros(TARGETS)}, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="move it away"):
        fit(store)
    assert path.read_bytes() == before


def test_partial_and_failed_rows_are_told(store):
    store.done[[1, 2]] = False
    store.lost[2] = True
    with pytest.raises(UserError, match="1 of 500 rows are missing"):
        fit(store.with_fit(max_failed=0.01))
    found = report(fit(store.with_fit(partial=True)))
    assert (found["rows"]["used"], found["rows"]["failed"], found["rows"]["missing"]) == (498, 1, 1)


@pytest.mark.parametrize("targets", [(-1, 3), (3, 3), (5, 3), (0, TARGETS + 1)])
def test_targets_outside_the_split_are_refused(store, targets):
    with pytest.raises(UserError, match=f"expected a range within 0:{TARGETS}"):
        fit(store, targets=targets)
    assert not (store.folder / "datamodels").exists()


def test_too_few_rows_are_refused(tmp_path):
    masks, margins = linear_data(3, 4, 2)
    with pytest.raises(UserError, match="validation rows, expected at least 2 and 1"):
        fit(FakeStore(tmp_path, masks, margins))


def test_damaged_rows_leave_an_earlier_fit_alone(store):
    path = fit(store)
    before = path.read_bytes()
    store.bad[9], store.generation[9] = True, 2
    with pytest.raises(WorkError, match=r"\(9\): run `datamodels repair`"):
        fit(store)
    store.bad[9] = False
    store.generation[20] = 2
    store.arrays["test_margins"][20, 3] = np.inf
    with pytest.raises(WorkError, match=r"test_margins_50pct\.npy: row 20 "):
        fit(store)
    assert path.read_bytes() == before
    assert names(path.parent) == [".test_50pct.lock", "test_50pct.json", "test_50pct.pt"]


def test_a_folder_that_cannot_be_made_is_told(store):
    (store.folder / "datamodels").write_text("a file")
    with pytest.raises(UserError, match="datamodels"):
        fit(store)


def test_a_full_disk_is_a_work_error(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(WorkError, match=r"cannot write .*test_50pct\.pt: No space left"):
        fit(store)
    assert names(store.folder / "datamodels") == [".test_50pct.lock"]


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


def test_importing_the_package_imports_neither_torch_nor_numba():
    code = "import sys, lasso; print([name for name in ('torch', 'numba', 'scipy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_columns_are_in_mask_units_whatever_the_files(tmp_path):
    masks, margins = linear_data(200, 12, 5)
    found = []
    for units in ("mask", "standardised"):
        store = FakeStore(tmp_path / units, masks, margins, fit=Fit(weight_units=units))
        found.append(files.load(fit(store)).columns(np.array([1, 4])))
    for mask, standardised in zip(*found, strict=True):
        np.testing.assert_allclose(standardised, mask, atol=1e-6)
