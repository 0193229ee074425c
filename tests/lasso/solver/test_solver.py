import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso

from datamodels.lasso import compiled
from datamodels.lasso.gram.counts import MemoryCounts
from datamodels.lasso.gram.matrices import MaskBits, Matrices, has_few_rows
from datamodels.lasso.gram.popcount import pack
from datamodels.lasso.gram.sums import Cross, Gram
from datamodels.lasso.solver import TargetBatch, descent, solve
from datamodels.lasso.solver.active_set import step_on_active_set
from datamodels.lasso.solver.path import choose, path
from datamodels.lasso.solver.working_set import begin, design_of, gradient, product_at, working_set
from datamodels.train import Fit, WorkError
from tests.stores import linear_data


def sums_of(masks, margins, validation, few=None):
    """What `solve` takes: matrices, sums of the training rows, sums of the validation rows.

    few: whether the solver takes masks as bits or counts of all examples; None for what `fit` would do.
    """
    grams, crosses, bits = [], [], []
    for group in (~validation, validation):
        gram, cross = Gram(masks.shape[1]), Cross(masks.shape[1], margins.shape[1])
        packed = np.packbits(masks[group], axis=1)
        gram.add(packed)
        cross.add(packed, margins[group])
        grams.append(gram.finish())
        crosses.append(cross)
        bits.append(pack(masks[group].view(np.uint8)))
    if few is None:
        few = has_few_rows(*masks.shape)
    source = MaskBits(*bits, (grams[0].rows, grams[1].rows)) if few else MemoryCounts(*grams)
    return Matrices(source, bits[1]), *crosses


def standardise(masks, y):
    """Z, its scale (1 for constant columns), its mean, and centred y."""
    x = masks.astype(np.float64)
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale[scale == 0] = 1
    return (x - mean) / scale, scale, mean, y - y.mean()


def sklearn_lasso(masks, y, lam):
    """Weights in mask units and bias, by scikit-learn in float64."""
    z, scale, mean, centred = standardise(masks, y.astype(np.float64))
    fitted = Lasso(alpha=lam, tol=1e-14, max_iter=1_000_000, fit_intercept=False).fit(z, centred).coef_ / scale
    return fitted, y.astype(np.float64).mean() - mean @ fitted


def reference(masks, y, validation, fit):
    """The whole procedure for one target, slow and plain: (index, lambda, validation error, lambdas tried)."""
    y = y.astype(np.float64)
    z, _, _, centred = standardise(masks[~validation], y[~validation])
    path = np.max(np.abs(z.T @ centred)) / len(z) * np.geomspace(1, fit.eps, fit.k)
    errors = []
    for lam in path:
        weights, bias = sklearn_lasso(masks[~validation], y[~validation], lam)
        errors.append(np.mean((y[validation] - masks[validation] @ weights - bias) ** 2))
        since_best = len(errors) - 1 - int(np.argmin(errors))
        if len(errors) >= fit.min_lambdas and since_best >= fit.patience:
            break
    best = int(np.argmin(errors))
    return best, path[best], errors[best], len(errors)


def dense_relative_gap(masks, y, weights, lam):
    """The duality gap of the definition, over P(0), from dense float64 matrices and residuals."""
    z, scale, _, centred = standardise(masks, y.astype(np.float64))
    n, w = len(y), weights * scale
    residual = centred - z @ w
    primal = residual @ residual / (2 * n) + lam * np.abs(w).sum()
    steepest = np.max(np.abs(z.T @ residual)) / n
    best = 0.0
    for scaling in (residual @ centred / (residual @ residual), lam / steepest, -lam / steepest):
        if abs(scaling) * steepest <= lam * (1 + 1e-12):
            point = scaling * residual
            best = max(best, (centred @ centred - (centred - point) @ (centred - point)) / (2 * n))
    return (primal - best) / (centred @ centred / (2 * n))


def make(rows=240, n_train=20, targets=3, seed=0, alpha=0.5, share=0.2, **options):
    masks, margins = linear_data(rows, n_train, targets, seed, alpha, **options)
    return masks, margins, np.random.default_rng(seed + 1).random(rows) < share


@settings(max_examples=12, deadline=None)
@given(
    st.integers(60, 300),
    st.integers(1, 30),
    st.sampled_from([0.1, 0.5, 0.75]),
    st.sampled_from([1, 5, 30]),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_weights_lambda_and_validation_error_agree_with_scikit_learn(rows, n_train, alpha, sparse, seed, few):
    masks, margins, validation = make(rows, n_train, 2, seed, alpha, sparse=sparse)
    fit = Fit(k=30, eps=1e-2)
    found = solve(*sums_of(masks, margins, validation, few), fit)
    for target in range(2):
        y = margins[:, target]
        chosen, lam, error, tried = reference(masks, y, validation, fit)
        assert (found.chosen[target], found.tried[target]) == (chosen, tried)
        assert found.lam[target] == pytest.approx(lam, rel=1e-6)
        assert found.validation_mse[target] == pytest.approx(error, rel=1e-4)
        weights, bias = sklearn_lasso(masks, y, float(found.lam[target]))
        np.testing.assert_allclose(found.weight[target], weights, atol=1e-6)
        assert found.bias[target] == pytest.approx(bias, abs=2e-6)


@pytest.mark.parametrize("few", [True, False])
def test_fewer_rows_than_examples_meet_their_gap(few):
    masks, margins, validation = make(rows=60, n_train=80, targets=4, seed=3, sparse=40)
    found = solve(*sums_of(masks, margins, validation, few), Fit())
    assert found.gap.max() <= 1e-6
    assert found.path_gap.max() <= 1e-4


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.05, 0.5, 0.9]), st.integers(1, 40), st.booleans())
def test_stored_gap_is_that_of_the_stored_weights(seed, alpha, n_train, few):
    masks, margins, validation = make(200, n_train, 3, seed, alpha, sparse=8)
    found = solve(*sums_of(masks, margins, validation, few), Fit(k=40))
    for target in np.flatnonzero(found.lam):
        weights, lam = found.weight[target].astype(np.float64), float(found.lam[target])
        gap = dense_relative_gap(masks, margins[:, target], weights, lam)
        assert found.gap[target] == pytest.approx(gap, abs=1e-12, rel=1e-3)
        assert gap <= 1e-6


def dense_data(rows, n_train, targets, alpha, small, exact):
    """Exact-size or Bernoulli masks; 30 large weights a target, and small ones on every example with a share `small` of
    the variance; as much noise as signal."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(n_train, targets)) * np.sqrt(small / n_train)
    for column in weights.T:
        column[rng.choice(n_train, 30, replace=False)] += rng.normal(size=30) * np.sqrt((1 - small) / 30)
    if exact:
        keys = rng.random((rows, n_train))
        masks = keys <= np.partition(keys, round(alpha * n_train) - 1)[:, [round(alpha * n_train) - 1]]
    else:
        masks = rng.random((rows, n_train)) < alpha
    z = (masks - alpha) / np.sqrt(alpha * (1 - alpha))
    margins = (3 + z @ weights + rng.normal(size=(rows, targets))).astype(np.float16)
    return masks, margins, rng.random(rows) < 0.1


@pytest.mark.parametrize(
    ("rows", "n_train", "alpha", "small", "exact", "few"),
    [
        (400, 300, 0.1, 0.05, True, False),
        (400, 400, 0.75, 1.0, False, True),
        (200, 1000, 0.5, 0.05, False, True),
        (1200, 400, 0.1, 1.0, True, True),
        (1200, 300, 0.5, 0.05, False, False),
        (4000, 300, 0.75, 1.0, True, False),
    ],
)
def test_lambda_and_end_of_the_path_are_those_of_paths_solved_sharply(rows, n_train, alpha, small, exact, few):
    masks, margins, validation = dense_data(rows, n_train, 20, alpha, small, exact)
    sums = sums_of(masks, margins, validation, few)
    fit = Fit()
    found = solve(*sums, fit)
    z_validation = (masks[validation] - masks[~validation].mean(axis=0)) / masks[~validation].std(axis=0)
    design, weights = design_of(sums[0], whole=False), np.zeros((fit.k, n_train))
    for target in range(20):
        y = margins[:, target].astype(np.float64)
        cross = sums[1]
        mean, var, cov = sums[0].scale.target(cross.cross[target], cross.sums[target], cross.squares[target])
        lams = np.abs(cov).max() * np.geomspace(1, fit.eps, fit.k)[: found.tried[target] + 5]
        path(design, working_set(design, 0), cov, var, lams, 1e-11, weights)
        errors = ((y[validation] - mean - weights[: len(lams)] @ z_validation.T) ** 2).sum(axis=1)
        ends = (i for i in range(9, len(lams)) if i - np.argmin(errors[: i + 1]) >= 5 or i == fit.k - 1)
        end = next(ends)
        assert (found.chosen[target], found.tried[target]) == (np.argmin(errors[: end + 1]), end + 1), target
        assert found.validation_mse[target] * validation.sum() == pytest.approx(errors[: end + 1].min(), rel=1e-4)


def test_early_stopping_waits_for_patience_and_for_the_least_number_of_lambdas():
    masks, margins, validation = make(rows=300, n_train=30, targets=5, noise=2.0)
    for fit in (Fit(k=60, patience=2, min_lambdas=1), Fit(k=60, patience=3, min_lambdas=40), Fit(k=5, patience=50)):
        found = solve(*sums_of(masks, margins, validation), fit)
        for target in range(5):
            chosen, _, _, tried = reference(masks, margins[:, target], validation, fit)
            assert (found.chosen[target], found.tried[target]) == (chosen, tried)


def test_a_path_of_one_lambda_is_lambda_max():
    masks, margins, validation = make()
    found = solve(*sums_of(masks, margins, validation), Fit(k=1))
    assert (found.chosen == 0).all()
    assert (found.lam > 0).all()


@pytest.mark.parametrize("few", [True, False])
def test_examples_always_or_never_in_get_weight_zero_and_change_nothing(few):
    masks, margins, validation = make()
    plain = solve(*sums_of(masks, margins, validation, few), Fit())
    wide = np.column_stack([np.ones(len(masks), bool), masks, np.zeros(len(masks), bool)])
    found = solve(*sums_of(wide, margins, validation, few), Fit())
    assert not found.weight[:, [0, -1]].any()
    np.testing.assert_allclose(found.weight[:, 1:-1], plain.weight, atol=1e-7)
    np.testing.assert_allclose(found.bias, plain.bias, atol=1e-6)


def test_an_example_without_variance_among_the_training_rows_alone_is_fitted_in_the_refit():
    masks, margins, validation = make()
    masks[:, 4] = validation
    found = solve(*sums_of(masks, margins, validation), Fit())
    for target in range(3):
        weights, _ = sklearn_lasso(masks, margins[:, target], float(found.lam[target]))
        np.testing.assert_allclose(found.weight[target], weights, atol=1e-6)


def test_a_target_without_variance_gets_its_mean():
    masks, margins, validation = make()
    margins[:, 1] = 3.14
    found = solve(*sums_of(masks, margins, validation), Fit())
    assert not found.weight[1].any()
    assert (found.lam[1], found.chosen[1], found.gap[1]) == (0, -1, 0)
    assert found.bias[1] == np.float16(3.14)
    assert found.weight[0].any()


def test_masks_without_any_variance_leave_the_means():
    _, margins, validation = make()
    found = solve(*sums_of(np.ones((240, 4), bool), margins, validation), Fit())
    assert not found.weight.any()
    np.testing.assert_allclose(found.bias, margins.astype(np.float64).mean(axis=0), rtol=1e-6)


@pytest.mark.parametrize("few", [True, False])
def test_identical_examples_share_a_weight_within_the_gap(few):
    masks, margins, validation = make()
    doubled = np.column_stack([masks, masks])
    found = solve(*sums_of(doubled, margins, validation, few), Fit())
    assert found.gap.max() <= 1e-6
    plain = solve(*sums_of(masks, margins, validation), Fit())
    np.testing.assert_allclose(found.weight[:, :20] + found.weight[:, 20:], plain.weight, atol=1e-4)


def test_a_small_spread_on_a_large_mean_survives_float16_sums():
    masks, _, validation = make(rows=2000, n_train=10)
    margins = (1000 + masks[:, :3] * [1.0, -2.0, 0.5]).astype(np.float16)
    found = solve(*sums_of(masks, margins, validation), Fit(eps=1e-4))
    np.testing.assert_allclose(np.diagonal(found.weight[:, :3]), [1.0, -2.0, 0.5], rtol=2e-2)
    assert found.gap.max() <= 1e-6


def test_results_do_not_depend_on_threads_or_company():
    masks, margins, validation = make(targets=40)
    sums = sums_of(masks, margins, validation)
    whole = solve(*sums, Fit(), threads=2)
    for name in ("weight", "bias", "lam", "gap"):
        np.testing.assert_array_equal(getattr(solve(*sums, Fit(), threads=1), name), getattr(whole, name))
    alone = solve(*sums_of(masks, margins[:, [33]], validation), Fit())
    np.testing.assert_array_equal(alone.weight[0], whole.weight[33])


def test_a_fit_that_misses_its_gap_is_an_error_that_names_the_target():
    sums = sums_of(*make(targets=4))
    with pytest.raises(
        WorkError, match=r"target 1\d has a relative duality gap of .* along its path, expected at most"
    ):
        solve(*sums, Fit(tol=1e-19), first=10)


def test_kernels_compile_without_a_cache_folder(monkeypatch):
    def njit(**options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(compiled, "njit", njit)
    assert compiled.compiled(abs) is abs


def test_kept_code_is_out_of_date_when_any_module_with_kernels_changed(tmp_path):
    folder = Path(descent.__file__).parent
    assert choose._cache._cache_file._version.endswith(compiled.sources_stamp(folder))
    shutil.copytree(folder, tmp_path / "copy")
    with open(tmp_path / "copy" / "gap.py", "a") as file:
        file.write("# changed\n")
    assert compiled.sources_stamp(tmp_path / "copy") != compiled.sources_stamp(folder)


def test_kept_code_of_another_version_is_not_unpickled(tmp_path):
    shutil.copytree(Path(compiled.__file__).parent, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    run = [sys.executable, "-c", "import numpy as np; from kernels.kinds import twice, Kind; print(twice(Kind(2.0)))"]
    text = """from typing import NamedTuple
from kernels.compiled import compiled
class {0}(NamedTuple):
    value: float
{1}
@compiled
def twice(x): return 2 * x.value
"""
    for name, alias in (("Old", "Kind = Old"), ("Kind", "")):  # the first one's index names a class that is gone then
        (tmp_path / "kernels" / "kinds.py").write_text(text.format(name, alias))
        (tmp_path / "kernels" / "__init__.py").write_text("")
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "4.0\n"), done.stderr


def test_a_looser_tolerance_is_still_met():
    masks, margins, validation = make(rows=100, n_train=60, sparse=30)
    assert solve(*sums_of(masks, margins, validation), Fit(tol=1e-3)).gap.max() <= 1e-3


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("seed", [22, 25])
def test_many_more_examples_than_rows_meet_their_gap_too(seed, few):
    """Ten rows of a hundred examples: nearly all masks of an active set are linearly dependent, without noise."""
    rng = np.random.default_rng(seed)
    masks = np.argsort(rng.random((10, 100)), axis=1) < 50
    margins = (masks @ rng.normal(0, 1, (100, 200))).astype(np.float16)
    found = solve(*sums_of(masks, margins, np.arange(10) == 9, few), Fit(eps=1e-4 if seed == 25 else 1e-3))
    assert found.path_gap.max() <= 1e-4
    assert found.gap.max() <= 1e-6


def with_empty_rows(rows, n_train, targets):
    """`make`, after which rows without examples follow, ten times as many: they make all masks alike."""
    masks, margins, validation = make(rows, n_train, targets, sparse=n_train // 4)
    none = np.random.default_rng(2).normal(2, 0.3, size=(10 * rows, targets)).astype(np.float16)
    masks = np.concatenate([masks, np.zeros((10 * rows, n_train), bool)])
    return masks, np.concatenate([margins, none]), np.concatenate([validation, np.arange(10 * rows) % 5 == 0])


@pytest.mark.parametrize("few", [True, False])
def test_masks_that_are_much_alike_are_fitted_as_sharply_as_others(few):
    masks, margins, validation = with_empty_rows(rows=600, n_train=100, targets=3)
    fit = Fit(k=30, eps=1e-2)
    batch = TargetBatch(*sums_of(masks, margins, validation, few), fit)
    batch.choose_lambdas(lambda done: None)
    batch.refit(lambda done: None)
    assert batch.refit_gap.max() <= 1e-11
    found = batch.solution
    assert found.gap.max() <= 1e-6
    for target in range(3):
        weights, _ = sklearn_lasso(masks, margins[:, target], float(found.lam[target]))
        np.testing.assert_allclose(found.weight[target], weights, atol=1e-5)


@pytest.mark.parametrize("near", [True, False])
def test_a_step_on_the_active_set_lowers_the_objective_and_ends_at_the_minimum_where_signs_stay(near):
    masks, margins, validation = with_empty_rows(rows=400, n_train=60, targets=10)
    matrices, cross, _ = sums_of(masks, margins, validation)
    design, z = design_of(matrices, whole=False), standardise(masks[~validation], margins[~validation, 0])[0]
    rng, hessian, at = np.random.default_rng(0), z.T @ z / len(z), working_set(design, 0)
    for target in range(10):
        _, var, cov = matrices.scale.target(cross.cross[target], cross.sums[target], cross.squares[target])
        lam, weights = 0.1 * np.abs(cov).max(), np.zeros((1, 60))
        path(design, at, cov, var, np.array([lam]), 1e-9, weights)
        w = weights[0] * (1 + 0.2 * rng.normal(size=60)) if near else rng.normal(size=60) * (rng.random(60) < 0.5)

        def objective(w, cov=cov, lam=lam):
            return w @ hessian @ w / 2 - cov @ w + lam * np.abs(w).sum()

        set_weights(design, at, cov, w)
        step_on_active_set(design, at, lam, 100)
        assert objective(at.w) < objective(w)
        assert (at.w * w >= 0).all()
        np.testing.assert_allclose([gradient(design, at, j) for j in range(60)], cov - hessian @ at.w, atol=1e-9)
        if near:
            np.testing.assert_allclose(at.w, weights[0], atol=2e-3 * np.abs(weights).max())


def set_weights(design, at, cov, w):
    begin(design, at, cov)
    at.w[:] = w
    at.product[:] = [product_at(design, at, at.w, len(w), j) for j in range(len(w))]
    u = w * design.inv / design.rows
    at.sums[:] = u.sum(), design.rows * design.mean @ u
