import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from datamodels import lasso
from datamodels.lasso import fit
from datamodels.lasso.evaluation import curve, evaluate
from datamodels.lasso.files import aside
from datamodels.lasso.gram.cache import folder_of
from datamodels.lasso.gram.nested import disk_bytes
from datamodels.lasso.gram.shard import HEADER
from datamodels.train.config import Eval, Fit, identity
from datamodels.train.errors import UserError, WorkError
from tests.conftest import DIGITS, PROJECT, in_process
from tests.lasso.fake_store import FakeStore, linear_data
from tests.train.store.published import published


def save(path, weight, bias):
    torch.save({"weight": torch.tensor(weight).float(), "bias": torch.tensor(bias).float()}, path)
    return path


@pytest.fixture
def store(tmp_path):
    masks, margins = linear_data(700, 10, 6)
    return FakeStore(tmp_path, masks, margins, eval_models=200, train_margins=margins, fit=Fit(k=30))


def test_scores_equal_plain_definitions(store):
    path = fit(store)
    found = evaluate(store)
    weight, bias = (torch.load(path, weights_only=True)[key].numpy().astype(np.float64) for key in ("weight", "bias"))
    actual = store.arrays["test_margins"][500:].astype(np.float64)
    predicted = store.arrays["train_masks"][500:] @ weight + bias
    lds = [stats.spearmanr(predicted[:, target], actual[:, target]).statistic for target in range(6)]
    r2 = 1 - ((actual - predicted) ** 2).sum(axis=0) / ((actual - actual.mean(axis=0)) ** 2).sum(axis=0)
    pearson = [stats.pearsonr(predicted[:, target], actual[:, target]).statistic for target in range(6)]
    np.testing.assert_allclose(found.target_lds, lds, atol=1e-12)
    np.testing.assert_allclose(found.target_pearson, pearson, atol=1e-12)
    assert found.lds == pytest.approx(np.mean(lds), abs=1e-12)
    assert found.pearson == pytest.approx(np.mean(pearson), abs=1e-12)
    assert found.mse == pytest.approx(np.mean((actual - predicted) ** 2))
    assert found.r2 == pytest.approx(r2.mean())
    assert (found.targets, found.models, found.masks, found.undefined) == (6, 200, 200, 0)


def test_the_json_has_the_keys_of_the_contract_and_no_ceiling_for_single_runs(store):
    fit(store)
    found = json.loads(json.dumps(evaluate(store).to_json()))
    figures = {"lds", "lds_interval", "undefined", "pearson", "mse", "r2", "targets", "models", "masks"}
    assert set(found) == figures | PROTOCOL
    assert set(found["lds_interval"]) == {"low", "high", "level", "replicates"}


PROTOCOL = {
    *("dataset", "alpha", "split", "margin", "mask", "tta", "seed", "runs_per_mask"),
    *("weights", "weight_units", "fit_models"),
}


def test_the_json_says_by_which_protocol_the_figures_were_made(store, tmp_path):
    path = fit(store)
    found = evaluate(store).to_json()
    assert {key: found[key] for key in ("dataset", "alpha", "split", "mask", "tta", "seed", "runs_per_mask")} == {
        "dataset": "fake", "alpha": 0.5, "split": "test", "mask": "exact", "tta": "mirror", "seed": 0,
        "runs_per_mask": 1,
    }  # fmt: skip
    assert (found["weights"], found["weight_units"], found["fit_models"]) == (str(path), "mask", 500)
    text = " ".join((PROJECT / "docs" / "evaluation.md").read_text().replace("`", "").split())
    assert found["margin"][1:] in text
    other = evaluate(store, scores=np.ones((10, 6))).to_json()
    assert (other["weights"], other["fit_models"]) == ("scores", None)


def test_what_published_files_do_not_tell_is_null(tmp_path):
    store = published(tmp_path, runs_per_mask=1, tta="none")
    found = evaluate(store, scores=np.ones((24, 30))).to_json()
    assert {key for key in PROTOCOL if found[key] is None} == {"mask", "tta", "seed", "fit_models"}


@pytest.mark.parametrize("option", ["--per_target", "--weight_units=mask", "--weights=w.npy"])
def test_the_curve_takes_no_options_of_weights(capsys, tmp_path, option):
    done = in_process(capsys, "eval", DIGITS, "--root", tmp_path, "--curve", "--json", option)
    name = option.split("=")[0]
    assert done.error == f"error: --curve fits datamodels of its own, expected no {name} beside it"


def test_intervals_of_targets_and_mean_hold_the_estimates(store):
    fit(store)
    found = evaluate(store)
    interval = found.lds_interval
    assert (interval.level, interval.replicates) == (0.95, 1000)
    assert interval.low < found.lds < interval.high
    assert ((found.target_lds_low < found.target_lds) & (found.target_lds < found.target_lds_high)).all()
    widths = found.target_lds_high - found.target_lds_low
    assert interval.high - interval.low < widths.mean()
    assert evaluate(store).lds_interval == interval


def test_two_methods_are_compared_on_the_same_resamples(store):
    fit(store)
    rng = np.random.default_rng(0)
    whole = evaluate(store)
    weight = lasso.load(store).weight.numpy()
    nearly = evaluate(store, scores=weight + 0.01 * rng.normal(size=weight.shape))
    worse = evaluate(store, scores=weight + 0.3 * rng.normal(size=weight.shape))
    gain = whole.lds_difference(worse)
    assert 0 < gain.low < whole.lds - worse.lds < gain.high
    loss = worse.lds_difference(whole)
    assert (loss.low, loss.high) == pytest.approx((-gain.high, -gain.low), abs=0.01)
    width = whole.lds_interval.high - whole.lds_interval.low
    close = whole.lds_difference(nearly)
    assert close.high - close.low < width / 3
    same = whole.lds_difference(whole)
    assert (same.low, same.high) == (0, 0)


def test_evaluations_of_other_rows_are_not_compared(store):
    fit(store)
    whole = evaluate(store)
    with pytest.raises(UserError, match="other rows, another split or other resamples"):
        whole.lds_difference(evaluate(store, "train", scores=np.ones((10, 6))))
    store.done[600] = False
    with pytest.raises(UserError, match="other rows, another split or other resamples"):
        whole.lds_difference(evaluate(store))
    store.setting = replace(store.setting, eval=Eval(replicates=0))
    with pytest.raises(UserError, match=r"no resamples, expected eval\.replicates above 0"):
        whole.lds_difference(evaluate(store))


def test_level_and_replicates_are_settings_and_no_part_of_a_settings_identity(store):
    fit(store)
    usual = evaluate(store).lds_interval
    store.setting = replace(store.setting, eval=Eval(replicates=200, level=0.5))
    other = evaluate(store).lds_interval
    assert (other.level, other.replicates) == (0.5, 200)
    assert usual.low < other.low < other.high < usual.high
    assert identity(store.setting.to_dict()) == identity(replace(store.setting, eval=Eval()).to_dict())
    store.setting = replace(store.setting, eval=Eval(replicates=0))
    found = evaluate(store)
    assert found.lds_interval is None
    assert "lds_interval" not in found.to_json()
    assert set(found.to_json(per_target=True)["per_target"]) == {"lds", "pearson", "mse", "r2"}


def test_values_per_target_come_on_request(store):
    fit(store)
    found = evaluate(store)
    lists = json.loads(json.dumps(found.to_json(per_target=True)))["per_target"]
    assert set(lists) == {"lds", "lds_low", "lds_high", "pearson", "mse", "r2"}
    assert np.mean(lists["lds"]) == pytest.approx(found.lds)


def test_a_stale_fit_is_told(store):
    fit(store)
    assert evaluate(store).notices == ()
    store.generation[3] += 1
    (notice,) = evaluate(store).notices
    assert "was fitted on other rows or with other options" in notice


def test_a_fit_on_evaluation_rows_is_told(tmp_path):
    masks, margins = linear_data(700, 10, 6)
    fit(FakeStore(tmp_path, masks, margins, fit=Fit(k=30)))
    notices = evaluate(FakeStore(tmp_path, masks, margins, eval_models=200, fit=Fit(k=30))).notices
    assert any("fitted on rows up to 699, evaluation rows from 500 on among them" in notice for notice in notices)


@pytest.mark.parametrize("kind", [MemoryError, torch.OutOfMemoryError])
def test_too_little_memory_is_one_line(store, monkeypatch, kind):
    def empty(*_):
        raise kind("Unable to allocate 9.3 GiB\nmore about it")

    monkeypatch.setattr("datamodels.lasso.gram.matrices.correlations", empty)
    with pytest.raises(WorkError, match=r"out of memory \(Unable to allocate 9.3 GiB\): 10 examples need"):
        fit(store)


def test_other_errors_of_torch_are_not_taken_for_too_little_memory(store, monkeypatch):
    def broken(*_):
        raise RuntimeError("something else")

    monkeypatch.setattr("datamodels.lasso.gram.matrices.correlations", broken)
    with pytest.raises(RuntimeError, match="something else"):
        fit(store)


def test_tiles_and_blocks_change_nothing(store, monkeypatch):
    fit(store)
    whole = evaluate(store)
    monkeypatch.setattr("datamodels.lasso.evaluation.weights._TILE_VALUES", 400)
    monkeypatch.setattr("datamodels.lasso.rows._BLOCK_VALUES", 1)
    tiled = evaluate(store)
    np.testing.assert_allclose(tiled.target_lds, whole.target_lds, atol=1e-12)
    np.testing.assert_allclose(tiled.target_lds_low, whole.target_lds_low, atol=1e-9)
    assert tiled.lds_interval.high == pytest.approx(whole.lds_interval.high, abs=1e-9)
    assert tiled.mse == pytest.approx(whole.mse)


def test_targets_without_a_defined_correlation_count_as_zero(store, tmp_path):
    weight = np.random.default_rng(0).normal(size=(10, 6))
    weight[:, 2] = 0
    store.arrays["test_margins"][500:, 4] = 1.5
    found = evaluate(store, weights=save(tmp_path / "w.pt", weight, np.zeros(6)))
    assert found.undefined == 2
    assert found.target_lds[[2, 4]].tolist() == [0, 0]
    assert found.lds == pytest.approx(found.target_lds.sum() / 6)


def runs_store(tmp_path, runs, masks=400, signal=1.0, noise=1.0):
    """Every evaluation mask in `runs` rows; reliability of one run is signal^2 / (signal^2 + noise^2)."""
    rng = np.random.default_rng(0)
    plain = rng.random((masks, 12)) < 0.5
    weight = rng.normal(size=(12, 20))
    weight *= signal / np.sqrt((weight**2).sum(axis=0) / 4)
    repeated = np.repeat(plain, runs, axis=0)
    margins = repeated @ weight + noise * rng.normal(size=(masks * runs, 20))
    everything = np.concatenate([rng.random((50, 12)) < 0.5, repeated])
    filler = np.zeros((50, 20))
    store = FakeStore(
        tmp_path, everything, np.concatenate([filler, margins]), eval_models=masks * runs, runs=runs
    )  # fmt: skip
    return store, save(tmp_path / "truth.pt", weight, np.zeros(20))


def test_runs_of_one_mask_are_averaged_before_ranking(tmp_path):
    store, truth = runs_store(tmp_path, runs=2)
    found = evaluate(store, weights=truth)
    assert (found.models, found.masks) == (800, 400)
    weight = lasso.load(truth).weight.numpy().astype(np.float64)
    averaged = store.arrays["test_margins"][50:].astype(np.float64).reshape(400, 2, 20).mean(axis=1)
    predicted = store.arrays["train_masks"][50::2] @ weight
    expected = [stats.spearmanr(predicted[:, target], averaged[:, target]).statistic for target in range(20)]
    np.testing.assert_allclose(found.target_lds, expected, atol=1e-12)
    rows = store.arrays["test_margins"][50:].astype(np.float64)
    assert found.mse == pytest.approx(np.mean((rows - store.arrays["train_masks"][50:] @ weight) ** 2))


@pytest.mark.parametrize("runs", [2, 3])
@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_the_ceiling_is_what_the_truth_reaches(tmp_path, runs, noise):
    store, truth = runs_store(tmp_path, runs, noise=noise)
    found = evaluate(store, weights=truth)
    reliability = 1 / (1 + noise**2 / runs)
    assert found.ceiling == pytest.approx(np.sqrt(reliability), abs=0.03)
    assert found.ceiling == pytest.approx(found.lds, abs=0.03)


def test_pure_noise_has_a_low_ceiling(tmp_path):
    store, truth = runs_store(tmp_path, 2, signal=1e-6)
    assert evaluate(store, weights=truth).ceiling < 0.2


def test_a_mask_that_lacks_a_run_still_counts(tmp_path):
    store, truth = runs_store(tmp_path, 2)
    store.done[50] = False
    found = evaluate(store, weights=truth)
    assert (found.models, found.masks) == (799, 400)
    assert found.ceiling is not None


@pytest.mark.parametrize("block", [1, 2**24])
def test_runs_that_do_not_share_their_mask_are_never_averaged(tmp_path, monkeypatch, block):
    monkeypatch.setattr("datamodels.lasso.rows._BLOCK_VALUES", block)
    store, truth = runs_store(tmp_path, 2)
    store.arrays["train_masks"][601, 3] ^= True
    expected = r"train_masks_50pct\.npy: row 601 has not the mask of row 600, expected 2 rows a mask from row 50 on"
    with pytest.raises(UserError, match=expected):
        evaluate(store, weights=truth)


def test_published_rows_of_one_run_a_mask_are_not_taken_for_several(tmp_path, capsys):
    data = tmp_path / "cifar" / "data"
    data.mkdir(parents=True)
    masks, margins = linear_data(60, 20, 8)
    np.save(data / "train_masks_50pct.npy", masks)
    np.save(data / "test_margins_50pct.npy", margins)
    options = ["--root", tmp_path, "--eval_models", 20, "--runs_per_mask", 2, "--out", tmp_path / "mine"]
    save(tmp_path / "w.pt", np.ones((20, 8)), np.zeros(8))
    for command in (["eval", "--weights", tmp_path / "w.pt"], ["eval", "--curve"], ["export", "--to", "trak"]):
        done = in_process(capsys, command[0], PROJECT / "configs" / "cifar_50pct.yaml", *options, *command[1:])
        assert done.code == 2
        assert "train_masks_50pct.npy: row 41 has not the mask of row 40" in done.err.splitlines()[-1]


def test_attribution_scores_of_any_method_are_scored(store, tmp_path):
    scores = np.random.default_rng(0).normal(size=(10, 6))
    np.save(tmp_path / "scores.npy", scores)
    found = evaluate(store, weights=tmp_path / "scores.npy")
    same = evaluate(store, weights=save(tmp_path / "scores.pt", scores, np.zeros(6)))
    assert found.lds == pytest.approx(same.lds, abs=1e-6)
    assert found.lds == pytest.approx(evaluate(store, "train", tmp_path / "scores.npy").lds)
    for given in (scores, torch.tensor(scores), scores.tolist()):
        from_memory = evaluate(store, scores=given)
        same_figures = {**found.to_json(per_target=True), "weights": "scores"}
        assert from_memory.to_json(per_target=True) == same_figures


def test_unfit_weights_are_refused(store, tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(6))
    np.save(tmp_path / "wide.npy", np.zeros((6, 10)))
    np.save(tmp_path / "text.npy", np.full((10, 6), "a"))
    np.save(tmp_path / "nan.npy", np.full((10, 6), np.nan))
    np.save(tmp_path / "vast.npy", np.full((10, 6), 1e308))
    np.save(tmp_path / "complex.npy", np.full((10, 6), 1j))
    np.save(tmp_path / "objects.npy", np.full((10, 6), None))
    with open(tmp_path / "archive.npy", "wb") as file:
        np.savez(file, scores=np.zeros((10, 6)))
    torch.save({"weight": torch.zeros(10, 6).to_sparse(), "bias": torch.zeros(6)}, tmp_path / "sparse.pt")
    torch.save({"weight": torch.zeros(10, 6, dtype=torch.complex64), "bias": torch.zeros(6)}, tmp_path / "complex.pt")
    torch.save({"weight": torch.zeros(10, 6, device="meta"), "bias": torch.zeros(6)}, tmp_path / "meta.pt")
    save(tmp_path / "nan.pt", np.full((10, 6), np.nan), np.zeros(6))
    save(tmp_path / "deep.pt", np.zeros((10, 6, 1)), np.zeros(6))
    (tmp_path / "junk.npy").write_text("junk")
    (tmp_path / "empty.npy").touch()
    save(tmp_path / "wide.pt", np.zeros((6, 10)), np.zeros(10))
    for name, words in (
        ("flat.npy", r"shape \(6,\), expected \(10, 6\)"),
        ("wide.npy", r"shape \(6, 10\), expected \(10, 6\)"),
        ("wide.pt", r"shape \(6, 10\), expected \(10, 6\)"),
        ("text.npy", "expected real numbers"),
        ("nan.npy", "not finite"),
        ("nan.pt", "not finite"),
        ("vast.npy", "beyond 3.4e"),
        ("complex.npy", "holds complex128, expected real numbers"),
        ("objects.npy", "not a whole .npy file .*Python objects"),
        ("archive.npy", "not a whole .npy file"),
        ("sparse.pt", "no dense floating-point tensor `weight`"),
        ("complex.pt", "no dense floating-point tensor `weight`"),
        ("meta.pt", "no dense floating-point tensor `weight`"),
        ("deep.pt", r"weight of shape \(10, 6, 1\)"),
        ("junk.npy", "not a whole .npy file"),
        ("empty.npy", "not a whole .npy file"),
        ("none.npy", "not a whole .npy file"),
        ("none.pt", "does not exist"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            evaluate(store, weights=tmp_path / name)
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)


def test_unfit_scores_are_refused(store, tmp_path):
    for scores, words in (
        (np.zeros(6), r"scores has shape \(6,\), expected \(10, 6\)"),
        (np.zeros((6, 10)), r"scores has shape \(6, 10\), expected \(10, 6\)"),
        (np.full((10, 6), "a"), "scores holds <U1, expected real numbers"),
        (np.full((10, 6), np.inf), "scores holds weights that are not finite"),
        ([[1, 2], [3]], "scores cannot be read as an array"),
        (torch.zeros((10, 6), requires_grad=True), "scores cannot be read as an array"),
        (torch.zeros((10, 6)).to_sparse(), "scores cannot be read as an array"),
        (np.full((10, 6), 1j), "scores holds complex128, expected real numbers"),
        ({"scores": 1}, "scores holds object, expected real numbers"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate(store, scores=scores)
    with pytest.raises(UserError, match="both weights and scores"):
        evaluate(store, weights=tmp_path / "w.pt", scores=np.zeros((10, 6)))


def test_weights_are_of_masks_whatever_the_file_holds(store, tmp_path):
    plain = lasso.load(fit(store))
    expected = evaluate(store)
    store.with_fit(weight_units="standardised")
    other = lasso.load(fit(store))
    assert other.units == "standardised"
    assert not np.allclose(other.stored_weight, plain.weight, atol=1e-3)
    np.testing.assert_allclose(other.weight, plain.weight, atol=1e-6)
    np.testing.assert_allclose(other.bias, plain.bias, atol=1e-5)
    np.testing.assert_allclose(other.rows(np.array([7, 2])), plain.weight[[7, 2]], atol=1e-6)
    assert evaluate(store, scores=other.weight).lds == pytest.approx(expected.lds, abs=1e-9)
    alone = tmp_path / "alone.pt"  # without its .json
    alone.write_bytes(other.path.read_bytes())
    store.done[:100] = False  # other rows than those that the weights were standardised over
    assert evaluate(store, weights=alone).mse == pytest.approx(expected.mse, abs=1e-6)


def test_standardised_weights_that_do_not_tell_their_scale_are_those_of_the_estimation_rows(store, tmp_path):
    found, masks = lasso.load(fit(store)), store.arrays["train_masks"][:500]
    weight, bias = found.weight.numpy(), found.bias.numpy()
    theirs = save(tmp_path / "theirs.pt", weight * masks.std(axis=0)[:, None], bias + masks.mean(axis=0) @ weight)
    judged = evaluate(store, weights=theirs, weight_units="standardised")
    assert judged.mse == pytest.approx(evaluate(store).mse, abs=1e-6)


def test_without_a_fit_or_evaluation_rows_there_is_nothing_to_score(store):
    with pytest.raises(UserError, match=r"test_50pct\.pt does not exist: run `datamodels fit`"):
        evaluate(store)
    fit(store)
    store.done[502:] = False
    with pytest.raises(UserError, match="2 masks, expected at least 3"):
        evaluate(store)
    store.done[500:] = False
    with pytest.raises(UserError, match="none of 200 evaluation rows"):
        evaluate(store)


def test_damaged_evaluation_rows_are_named(store):
    fit(store)
    store.bad[600] = True
    with pytest.raises(WorkError, match=r"\(600\): run `datamodels repair`"):
        evaluate(store)


def test_the_curve_rises_and_ends_at_the_whole_fit(store):
    fit(store)
    found = curve(store)
    assert found.targets == 6
    assert [point.models for point in found.points] == sorted({point.models for point in found.points})
    assert found.points[-1].models == 500
    assert found.points[-1].lds == pytest.approx(evaluate(store).lds, abs=1e-9)
    assert found.points[0].lds < found.points[-1].lds
    json.dumps(found.to_json())


def test_a_point_of_the_curve_is_a_fit_of_that_many_rows(store, tmp_path):
    point = curve(store, points=4).points[1]
    keep = np.r_[0 : point.models, 500:700]
    (tmp_path / "less").mkdir()
    arrays = store.arrays
    less = FakeStore(
        tmp_path / "less", arrays["train_masks"][keep], arrays["test_margins"][keep], eval_models=200, fit=Fit(k=30)
    )
    fit(less)
    assert point.lds == pytest.approx(evaluate(less).lds, abs=1e-9)


def test_the_curve_reads_no_row_that_a_fit_has_summed_however_many_points_it_has(store, monkeypatch):
    fit(store)
    monkeypatch.setattr("datamodels.lasso.gram.nested.read_masks", None)
    for points in (1, 4, 10, 30):
        found = curve(store, points=points).points
        assert found[-1].models == 500
        assert len(found) <= points


def test_what_a_curve_takes_on_disk_is_foreseen(store, monkeypatch):
    sizes, taken = (store.models, store.n_train, store.n_test), set()
    assert disk_bytes(*sizes) == 0
    monkeypatch.setattr("datamodels.lasso.gram.matrices.SMALL_BYTES", 0)
    assert disk_bytes(*sizes) == 0  # the fit's statistics are in parts, and read in place
    monkeypatch.setattr("datamodels.lasso.gram.cache._is_divided", lambda *_: False)
    fit(store)

    def look(stage, *_):
        if stage == "curve":
            found = [path.stat().st_size for path in (store.folder / "datamodels").glob(".*.tmp/*")]
            taken.add(sum(found) - HEADER * len(found))

    curve(store, points=4, progress=look)
    assert taken == {disk_bytes(*sizes)} == {8 * store.n_train**2}


def test_what_a_killed_curve_left_is_removed_by_the_next(store, monkeypatch):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = Path(str(aside(folder_of(store))).replace(f".{os.getpid()}.", f".{ended.pid}."))
    left.mkdir(parents=True)
    monkeypatch.setattr("datamodels.lasso.gram.matrices.SMALL_BYTES", 0)
    curve(store, points=2)
    assert not left.exists()


@pytest.mark.parametrize("parts", [True, False])
def test_a_curve_of_many_examples_keeps_its_counts_on_the_disk(store, monkeypatch, parts):
    if parts:
        fit(store)
    found = curve(store, points=4)
    monkeypatch.setattr("datamodels.lasso.gram.matrices.SMALL_BYTES", 0)
    monkeypatch.setattr("datamodels.lasso.gram.nested.GramCounts", None)
    assert curve(store, points=4) == found
    assert not list((store.folder / "datamodels").glob(".*.tmp"))


def test_a_curve_that_fails_leaves_no_counts(store, monkeypatch):
    def broken(*_, **__):
        raise MemoryError

    monkeypatch.setattr("datamodels.lasso.gram.matrices.SMALL_BYTES", 0)
    monkeypatch.setattr(sys.modules["datamodels.lasso.evaluation.curve"], "solve", broken)
    with pytest.raises(WorkError, match="out of memory"):
        curve(store)
    assert not list((store.folder / "datamodels").iterdir())


def test_sums_of_a_curve_may_be_made_on_a_device(store, monkeypatch):
    found = curve(store, points=3)
    monkeypatch.setattr(sys.modules["datamodels.lasso.evaluation.curve"], "sums_device", lambda _: torch.device("cpu"))
    assert curve(store, points=3) == found


def test_the_curve_can_be_asked_for_some_targets(store):
    assert curve(store, points=2, targets=np.array([1, 4])).targets == 2
    with pytest.raises(UserError, match="within 0:6"):
        curve(store, targets=np.array([6]))
