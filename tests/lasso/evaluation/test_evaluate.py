"""Evaluation of datamodels and other scores: figures against plain definitions, ceilings, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import sparse, stats

from datamodels import lasso
from datamodels.lasso import evaluate, fit
from datamodels.lasso.evaluation import EvaluationRows
from datamodels.train.config import Eval, Fit, identity
from datamodels.train.errors import UserError, WorkError
from tests.conftest import DIGITS, PROJECT, in_process
from tests.stores import (
    created_store,
    damage,
    invalidate,
    linear_data,
    published_store,
    rewrite,
    seeded_masks,
    with_fit,
)

PROTOCOL = {
    *("dataset", "alpha", "split", "output", "margin", "mask", "tta", "seed", "runs_per_mask"),
    *("weights", "weight_units", "fit_models"),
}


def save(path, weight, bias):
    torch.save({"weight": torch.tensor(weight).float(), "bias": torch.tensor(bias).float()}, path)
    return path


@pytest.fixture
def store(tmp_path):
    """500 estimation rows and 200 evaluation rows of 10 examples and 6 targets."""
    masks, margins = linear_data(700, 10, 6)
    train_margins = margins[:, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]]
    return published_store(tmp_path, masks, margins, eval_models=200, train_margins=train_margins, fit=Fit(k=30))


@pytest.fixture
def journaled(tmp_path):
    """The same with checksums, journals and a manifest."""
    return created_store(tmp_path / "journaled", *linear_data(700, 10, 6), eval_models=200, fit=Fit(k=30))


def test_scores_equal_plain_definitions(store):
    path = fit(store)
    found = evaluate(store)
    weight, bias = (torch.load(path, weights_only=True)[key].numpy().astype(np.float64) for key in ("weight", "bias"))
    actual = store.margins()[500:].astype(np.float64)
    predicted = store.masks[500:] @ weight + bias
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


def test_the_json_holds_figures_and_protocol(journaled, store):
    path = fit(journaled)
    found = json.loads(json.dumps(evaluate(journaled).to_json()))
    figures = {"lds", "lds_interval", "undefined", "pearson", "mse", "r2", "targets", "models", "masks"}
    assert set(found) == figures | PROTOCOL
    assert set(found["lds_interval"]) == {"low", "high", "level", "replicates"}
    setting = {"dataset": "made-up", "alpha": 0.5, "mask": "bernoulli", "tta": "mirror", "seed": 0, "runs_per_mask": 1}
    weights = {"split": "test", "weights": str(path), "weight_units": "mask", "fit_models": 500}
    assert {**found, **setting, **weights} == found
    text = " ".join((PROJECT / "docs" / "evaluation.md").read_text().replace("`", "").split())
    assert found["margin"][1:] in text
    published = evaluate(store, np.ones((10, 6))).to_json()
    assert {key for key in PROTOCOL if published[key] is None} == {"mask", "tta", "seed", "fit_models"}
    assert published["weights"] == "scores"


def test_values_per_target_come_on_request(store):
    fit(store)
    found = evaluate(store)
    lists = json.loads(json.dumps(found.to_json(per_target=True)))["per_target"]
    assert set(lists) == {"lds", "lds_low", "lds_high", "pearson", "mse", "r2"}
    assert np.mean(lists["lds"]) == pytest.approx(found.lds)
    table = found.to_frame()
    assert (table.index.name, list(table.columns)) == ("target", ["lds", "lds_low", "lds_high", "pearson", "mse", "r2"])
    assert {name: values.tolist() for name, values in table.items()} == lists


def test_intervals_of_targets_and_mean_contain_the_estimates(store):
    fit(store)
    found = evaluate(store)
    interval = found.lds_interval
    assert (interval.level, interval.replicates) == (0.95, 1000)
    assert interval.low < found.lds < interval.high
    assert ((found.target_lds_low < found.target_lds) & (found.target_lds < found.target_lds_high)).all()
    assert interval.high - interval.low < (found.target_lds_high - found.target_lds_low).mean()
    assert evaluate(store).lds_interval == interval


def test_level_and_replicates_are_options_and_not_part_of_the_identity(store):
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


def test_two_methods_are_compared_on_the_same_resamples(store):
    fit(store)
    rng = np.random.default_rng(0)
    whole = evaluate(store)
    weight = lasso.load(store).weight
    nearly, worse = (evaluate(store, weight + noise * rng.normal(size=weight.shape)) for noise in (0.01, 0.3))
    gain = whole.lds_difference(worse)
    assert 0 < gain.low < whole.lds - worse.lds < gain.high
    loss = worse.lds_difference(whole)
    assert (loss.low, loss.high) == pytest.approx((-gain.high, -gain.low), abs=0.01)
    width = whole.lds_interval.high - whole.lds_interval.low
    close = whole.lds_difference(nearly)
    assert close.high - close.low < width / 3
    same = whole.lds_difference(whole)
    assert (same.low, same.high) == (0, 0)


def test_evaluations_of_other_rows_are_not_compared(journaled):
    fit(journaled)
    whole = evaluate(journaled)
    other_split = evaluate(journaled, np.ones((10, 10)), split="train")
    invalidate(journaled, [600])
    for other in (other_split, evaluate(journaled)):
        with pytest.raises(UserError, match="other rows, another split or other resamples"):
            whole.lds_difference(other)
    journaled.setting = replace(journaled.setting, eval=Eval(replicates=0))
    with pytest.raises(UserError, match=r"no resamples, expected eval\.replicates above 0"):
        whole.lds_difference(evaluate(journaled))


def test_a_stale_fit_is_reported(journaled):
    fit(journaled)
    assert evaluate(journaled).notices == ()
    rewrite(journaled, [3])
    (notice,) = evaluate(journaled).notices
    assert "was fitted on other rows or with other options" in notice


def test_a_fit_on_evaluation_rows_is_reported(tmp_path):
    masks, margins = linear_data(700, 10, 6)
    fit(published_store(tmp_path, masks, margins, fit=Fit(k=30)))
    notices = evaluate(published_store(tmp_path, masks, margins, eval_models=200, fit=Fit(k=30))).notices
    assert any("fitted on rows up to 699, evaluation rows from 500 on among them" in notice for notice in notices)


def test_too_little_memory_is_one_line(store, monkeypatch):
    def empty(*_):
        raise MemoryError("Unable to allocate 9.3 GiB\nmore about it")

    monkeypatch.setattr("datamodels.lasso.gram.matrices.differences", empty)
    with pytest.raises(WorkError, match=r"out of memory \(Unable to allocate 9.3 GiB\): 10 examples need"):
        fit(store)


def test_tiles_and_blocks_change_nothing(store, monkeypatch):
    fit(store)
    whole = evaluate(store)
    monkeypatch.setattr(EvaluationRows, "tile_values", 400)
    monkeypatch.setattr("datamodels.lasso.rows._BLOCK_VALUES", 1)
    tiled = evaluate(store)
    np.testing.assert_allclose(tiled.target_lds, whole.target_lds, atol=1e-12)
    np.testing.assert_allclose(tiled.target_lds_low, whole.target_lds_low, atol=1e-9)
    assert tiled.lds_interval.high == pytest.approx(whole.lds_interval.high, abs=1e-9)
    assert tiled.mse == pytest.approx(whole.mse)


def test_targets_without_a_defined_correlation_count_as_zero(tmp_path):
    masks, margins = linear_data(700, 10, 6)
    margins[500:, 4] = 1.5
    weight = np.random.default_rng(0).normal(size=(10, 6))
    weight[:, 2] = 0
    found = evaluate(published_store(tmp_path, masks, margins, eval_models=200), weight)
    assert found.undefined == 2
    assert found.target_lds[[2, 4]].tolist() == [0, 0]
    assert found.lds == pytest.approx(found.target_lds.sum() / 6)


def runs_data(runs, signal=1.0, noise=1.0):
    """Masks, margins and true weights of 400 evaluation masks, each in `runs` rows, after 50 estimation rows.

    The reliability of one run is signal^2 / (signal^2 + noise^2).
    """
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(12, 20))
    weight *= signal / np.sqrt((weight**2).sum(axis=0) / 4)
    masks = seeded_masks(50 + 400 * runs, 12, 400 * runs, runs_per_mask=runs)
    margins = masks @ weight + noise * rng.normal(size=(len(masks), 20))
    return masks, margins, weight


def runs_store(tmp_path, runs, **options):
    masks, margins, weight = runs_data(runs, **options)
    return published_store(tmp_path, masks, margins, eval_models=400 * runs, runs_per_mask=runs), weight


def test_runs_of_one_mask_are_averaged_before_ranking(tmp_path):
    store, weight = runs_store(tmp_path, runs=2)
    found = evaluate(store, weight)
    assert (found.models, found.masks) == (800, 400)
    averaged = store.margins()[50:].astype(np.float64).reshape(400, 2, 20).mean(axis=1)
    predicted = store.masks[50::2] @ weight
    expected = [stats.spearmanr(predicted[:, target], averaged[:, target]).statistic for target in range(20)]
    np.testing.assert_allclose(found.target_lds, expected, atol=1e-12)
    rows = store.margins()[50:].astype(np.float64)
    assert found.mse == pytest.approx(np.mean((rows - store.masks[50:] @ weight) ** 2))


@pytest.mark.parametrize("runs", [2, 3])
@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_the_ceiling_is_what_the_truth_reaches(tmp_path, runs, noise):
    store, truth = runs_store(tmp_path, runs, noise=noise)
    found = evaluate(store, truth)
    assert found.ceiling == pytest.approx(np.sqrt(1 / (1 + noise**2 / runs)), abs=0.03)
    assert found.ceiling == pytest.approx(found.lds, abs=0.03)


def test_pure_noise_has_a_low_ceiling(tmp_path):
    store, truth = runs_store(tmp_path, 2, signal=1e-6)
    assert evaluate(store, truth).ceiling < 0.2


def test_a_mask_that_lacks_a_run_still_counts(tmp_path):
    masks, margins, truth = runs_data(2)
    found = evaluate(created_store(tmp_path, masks, margins, eval_models=800, runs_per_mask=2, missing=[50]), truth)
    assert (found.models, found.masks) == (799, 400)
    assert found.ceiling is not None


@pytest.mark.parametrize("block", [1, 2**24])
def test_runs_that_do_not_share_their_mask_are_never_averaged(tmp_path, monkeypatch, block):
    monkeypatch.setattr("datamodels.lasso.rows._BLOCK_VALUES", block)
    masks, margins, truth = runs_data(2)
    masks[601, 3] ^= True
    expected = r"train_masks_50pct\.npy: row 601 has another mask than row 600, expected 2 rows a mask from row 50 on"
    with pytest.raises(UserError, match=expected):
        evaluate(published_store(tmp_path, masks, margins, eval_models=800, runs_per_mask=2), truth)


def test_no_command_averages_published_rows_of_different_masks(tmp_path, capsys):
    store = published_store(tmp_path, *linear_data(60, 20, 8))
    store.layout.folder.rename(tmp_path / "cifar")
    options = ["--root", tmp_path, "--eval_models", 20, "--runs_per_mask", 2, "--out", tmp_path / "mine"]
    save(tmp_path / "w.pt", np.ones((20, 8)), np.zeros(8))
    for command in (["eval", "--weights", tmp_path / "w.pt"], ["eval", "--curve"], ["export", "--to", "trak"]):
        done = in_process(capsys, command[0], PROJECT / "configs" / "cifar_50pct.yaml", *options, *command[1:])
        assert done.code == 2
        assert "train_masks_50pct.npy: row 41 has another mask than row 40" in done.err.splitlines()[-1]


def test_scores_come_from_files_arrays_tensors_lists_and_datamodels(store, tmp_path):
    scores = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    np.save(tmp_path / "scores.npy", scores)
    found = evaluate(store, tmp_path / "scores.npy")
    saved = save(tmp_path / "scores.pt", scores, np.zeros(6))
    for given in (scores, torch.tensor(scores), scores.tolist(), str(saved), lasso.load(saved)):
        same = evaluate(store, given).to_json(per_target=True)
        assert {**same, "weights": str(tmp_path / "scores.npy")} == found.to_json(per_target=True)
    of_train = evaluate(store, scores[:, [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]], split="train")
    np.testing.assert_array_equal(of_train.target_lds[:6], found.target_lds)


def test_scores_are_read_by_content_whatever_their_file_is_called(store, tmp_path):
    scores = np.random.default_rng(0).integers(-8, 8, (10, 6)).astype(np.float32)
    expected, tensor = evaluate(store, scores).lds, torch.tensor(scores)
    np.lib.format.open_memmap(tmp_path / "TEST.mmap", "w+", np.float32, scores.shape)[:] = scores
    np.save(tmp_path / "scores.npy", np.asfortranarray(scores.astype(">f8")))
    np.savez_compressed(tmp_path / "scores.npz", scores)
    sparse.save_npz(tmp_path / "sparse.npz", sparse.csc_matrix(scores))
    for name, content in {
        "lone.pt": tensor,
        "gradient.bin": tensor.clone().requires_grad_(),
        "half.pt": tensor.bfloat16(),
        "sparse.pt": tensor.to_sparse(),
        "named.npy": {"TEST": tensor},
        "whole": {"weight": tensor, "bias": torch.zeros(6)},
    }.items():
        torch.save(content, tmp_path / name)
    torch.save(tensor, tmp_path / "older.pt", _use_new_zipfile_serialization=False)
    for path in tmp_path.iterdir():
        if path.is_file():
            assert evaluate(store, path).lds == expected, path


def test_unfit_files_are_refused(store, tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(6))
    np.save(tmp_path / "wide.npy", np.zeros((6, 10)))
    np.save(tmp_path / "text.npy", np.full((10, 6), "a"))
    np.save(tmp_path / "nan.npy", np.full((10, 6), np.nan))
    np.save(tmp_path / "vast.npy", np.full((10, 6), 1e308))
    np.save(tmp_path / "complex.npy", np.full((10, 6), 1j))
    np.save(tmp_path / "objects.npy", np.full((10, 6), None))
    np.savez(tmp_path / "two.npz", scores=np.zeros((10, 6)), others=np.zeros((10, 6)))
    np.savez(tmp_path / "objects.npz", np.full((10, 6), None))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:99])
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "folder").mkdir()
    torch.save(torch.zeros(6, 10), tmp_path / "turned.pt")
    torch.save((torch.zeros(6, 10), torch.zeros(6, 10)), tmp_path / "pair.pt")
    torch.save({"scores": torch.zeros(10, 6), "step": 3}, tmp_path / "state.pt")
    torch.save(np.zeros((10, 6)), tmp_path / "array.pt")
    torch.save(torch.zeros(10, 6, device="meta"), tmp_path / "nowhere.pt")
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
        ("two.npz", r"holds scores\.npy, others\.npy, expected one array"),
        ("objects.npz", "not a whole .npz file: Object arrays"),
        ("cut.npz", "not a whole archive"),
        ("pointer.pt", "a pointer of Git LFS: `git lfs pull`"),
        ("folder", "cannot read .*: Is a directory"),
        ("turned.pt", r"shape \(6, 10\), expected \(10, 6\): \[N_train, targets\], of which it is the transpose"),
        ("pair.pt", "holds tuple, expected weight and bias, or one tensor"),
        ("state.pt", "holds scores, step, expected weight and bias, or one tensor"),
        ("array.pt", "expected tensors alone"),
        ("nowhere.pt", "holds a tensor that is no array"),
        ("sparse.pt", "no dense floating-point tensor `weight`"),
        ("complex.pt", "no dense floating-point tensor `weight`"),
        ("meta.pt", "no dense floating-point tensor `weight`"),
        ("deep.pt", r"weight of shape \(10, 6, 1\)"),
        ("junk.npy", "no .npy, .npz or .pt file by its content, but begins with b'junk'"),
        ("empty.npy", "no .npy, .npz or .pt file by its content, but begins with b''"),
        ("none.npy", "cannot read .*: No such file"),
        ("none.pt", "cannot read .*: No such file"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            evaluate(store, tmp_path / name)
        assert name in str(refused.value)
        assert "\n" not in str(refused.value)


def test_unfit_arrays_are_refused(store):
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
            evaluate(store, scores)


def test_standardised_weights_are_read_in_mask_units(journaled, tmp_path):
    plain = lasso.load(fit(journaled))
    expected = evaluate(journaled)
    other = lasso.load(fit(with_fit(journaled, weight_units="standardised")))
    assert other.units == "standardised"
    assert not np.allclose(other.stored_weight, plain.weight, atol=1e-3)
    np.testing.assert_allclose(other.weight, plain.weight, atol=1e-6)
    np.testing.assert_allclose(other.bias, plain.bias, atol=1e-5)
    np.testing.assert_allclose(other.rows(np.array([7, 2])), plain.weight[[7, 2]], atol=1e-6)
    assert evaluate(journaled, other.weight).lds == pytest.approx(expected.lds, abs=1e-9)
    alone = tmp_path / "alone.pt"  # without its .json
    alone.write_bytes(other.path.read_bytes())
    invalidate(journaled, range(100))  # other rows than those that the weights were standardised over
    assert evaluate(journaled, alone).mse == pytest.approx(expected.mse, abs=1e-6)


def test_standardised_weights_without_a_scale_have_that_of_the_estimation_rows(store, tmp_path):
    found, masks = lasso.load(fit(store)), store.masks[:500]
    weight = found.weight
    theirs = save(tmp_path / "theirs.pt", weight * masks.std(axis=0)[:, None], found.bias + masks.mean(axis=0) @ weight)
    judged = evaluate(store, theirs, weight_units="standardised")
    assert judged.mse == pytest.approx(evaluate(store).mse, abs=1e-6)


def test_without_a_fit_or_evaluation_rows_there_is_nothing_to_score(journaled):
    with pytest.raises(UserError, match=r"test_50pct\.pt does not exist: run `datamodels fit`"):
        evaluate(journaled)
    fit(journaled)
    invalidate(journaled, range(502, 700))
    with pytest.raises(UserError, match="2 masks, expected at least 3"):
        evaluate(journaled)
    invalidate(journaled, [500, 501])
    with pytest.raises(UserError, match="none of 200 evaluation rows"):
        evaluate(journaled)


def test_damaged_evaluation_rows_are_named(journaled):
    fit(journaled)
    damage(journaled, "test_margins", [600])
    with pytest.raises(WorkError, match=r"\(600\): run `datamodels repair`"):
        evaluate(journaled)


@pytest.mark.parametrize("option", ["--per_target", "--weight_units=mask", "--weights=w.npy"])
def test_the_curve_takes_no_options_of_weights(capsys, tmp_path, option):
    done = in_process(capsys, "eval", DIGITS, "--root", tmp_path, "--curve", "--json", option)
    name = option.split("=")[0]
    assert done.error == f"error: --curve fits datamodels of its own, expected no {name} with it"
