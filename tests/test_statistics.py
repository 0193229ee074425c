import json

import numpy as np
import pytest
import torch

from lasso import files, fit
from lasso.rows import Split, estimation_rows
from lasso.statistics import Statistics, file_ranges, folder_of, row_cuts
from tests.fake_store import FakeStore, linear_data
from train.config import Fit
from train.errors import UserError
from train.masks import Era

ROWS, N, TARGETS = 600, 12, 30


@pytest.fixture
def store(tmp_path):
    masks, margins = linear_data(ROWS, N, TARGETS)
    return FakeStore(tmp_path, masks, margins, train_margins=margins[:, :N], fit=Fit(k=20))


def weight(path):
    return torch.load(path, weights_only=True)["weight"]


def statistics(store):
    return Statistics(store, Split.of(store, estimation_rows(store)))


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


def test_an_interrupted_pass_goes_on_where_it_was(store, monkeypatch):
    class Stop(Exception):
        pass

    def stop(stage, done, total):
        if done > 100:
            raise Stop

    with pytest.raises(Stop):
        fit(store, progress=stop)
    reads = store.reads
    fit(store)
    assert store.reads < 2 * reads + 2 * len(row_cuts(store))
    kept = sorted(folder_of(store).glob("0-*.gram.npy"))
    assert len(kept) == 1


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
    monkeypatch.setattr("lasso.statistics._DIVIDED_BYTES", 0)
    store.older = [Era(200, 0)]
    assert row_cuts(store) == [0, 200, 600]


def test_file_ranges_end_where_those_of_a_whole_fit_do(store, monkeypatch):
    monkeypatch.setattr("lasso.statistics._COLUMNS", 128)
    assert file_ranges(store, "test", 100, 300) == [(100, 128), (128, 256), (256, 300)]


def test_the_last_rows_validate_as_upstream_does(store):
    split = Split.of(store.with_fit(validation="last"), np.arange(ROWS))
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
