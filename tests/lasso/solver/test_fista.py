import numpy as np
import pytest
import torch

from datamodels.lasso.solver import fista, halves, tiles
from datamodels.lasso.solver import gap as certificate
from datamodels.lasso.solver.correlations import Correlations, HeldoutMasks
from datamodels.lasso.solver.solve import device_for, solve
from datamodels.train.config import Fit
from datamodels.train.errors import UserError
from tests.lasso.solver.test_solver import dense_data, make, sums_of, with_empty_rows

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def narrow_tiles(monkeypatch):
    monkeypatch.setattr(fista, "TILE", 8)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
def test_fista_and_descent_agree(alpha):
    masks, margins, held = make(rows=400, n_train=30, targets=7, alpha=alpha)
    sums, fit = sums_of(masks, margins, held), Fit(k=20, eps=1e-2)
    ours, other = solve(*sums, fit), solve(*sums, fit, device=CPU)
    for name in ("chosen", "tried"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(other, name))
    for name in ("weight", "bias", "lam", "variance", "validation_mse"):
        np.testing.assert_allclose(getattr(ours, name), getattr(other, name), atol=1e-6, rtol=1e-6)
    assert other.gap.max() <= 1e-6
    assert other.path_gap.max() <= 1e-4


@pytest.mark.parametrize(("rows", "alpha", "small", "exact"), [(400, 0.5, 1.0, True), (900, 0.1, 0.05, False)])
def test_lambdas_that_come_close_are_told_apart(rows, alpha, small, exact):
    sums = sums_of(*dense_data(rows, 60, 8, alpha, small, exact))
    ours, other = solve(*sums, Fit()), solve(*sums, Fit(), device=CPU)
    np.testing.assert_array_equal(ours.chosen, other.chosen)
    np.testing.assert_array_equal(ours.tried, other.tried)


@pytest.mark.parametrize("units", ["mask", "standardised"])
def test_certificates_are_those_of_the_counts(units):
    masks, margins, held = make(rows=300, n_train=40, targets=5, sparse=20)
    masks[:, 3], margins[:, 2] = True, 1
    sums = sums_of(masks, margins, held)
    found = solve(*sums, Fit(weight_units=units), device=CPU)
    matrices, scale, grad = sums[0], sums[0].whole_scale, np.zeros(40)
    assert (found.lam[2], found.bias[2]) == (0, 1)
    assert not found.weight[:, 3].any()
    for target in np.flatnonzero(found.lam):
        cross, total, squares = (
            getattr(sums[1], n)[target] + getattr(sums[2], n)[target] for n in ("cross", "sums", "squares")
        )
        _, var, cov = scale.target(cross, total, squares)
        spread = np.divide(1, scale.inv, out=np.zeros(40), where=scale.inv > 0)
        w = found.weight[target].astype(np.float64) * (spread if units == "mask" else 1)
        certificate.exact_gradient(matrices.counts, scale.rows, scale.mean, scale.inv, cov, w, grad)
        gap, kkt = certificate.certify(cov, var, float(found.lam[target]), w, grad)
        assert found.gap[target] == pytest.approx(gap, abs=1e-13)
        assert found.kkt[target] == pytest.approx(kkt, abs=1e-8)


@pytest.mark.parametrize("base", [8, 2048])
@pytest.mark.parametrize("whole", [False, True])
def test_products_with_correlations(monkeypatch, base, whole):
    monkeypatch.setattr("datamodels.lasso.solver.correlations._BASE", base)
    monkeypatch.setattr("datamodels.lasso.solver.correlations._STRIP", 16)
    masks, margins, held = make(rows=500, n_train=50, targets=1, alpha=0.3)
    masks[:, 7] = False
    matrices = sums_of(masks, margins, held)[0]
    scale, groups = (matrices.whole_scale, (0, 1)) if whole else (matrices.scale, (0,))
    rows = masks if whole else masks[~held]
    z = np.divide(rows - rows.mean(axis=0), rows.std(axis=0), out=np.zeros(rows.shape), where=rows.std(axis=0) > 0)
    exact = z.T @ z / len(rows)
    np.fill_diagonal(exact, 0)
    corr = Correlations(scale, matrices.counts, groups, CPU)
    assert (corr._high is not None) == (base == 8)
    w = np.random.default_rng(0).normal(size=(50, 4)) * [1e-6, 1, 1e6, 0]
    error = np.abs(corr.exactly(torch.from_numpy(w)).numpy() - exact @ w).max(axis=0)
    assert (error <= 1e-12 * np.abs(w).max(axis=0)).all()
    error = np.abs(corr(torch.from_numpy(w)).numpy() - exact @ w).max(axis=0)
    assert (error <= 1e-6 * np.abs(w).max(axis=0)).all()
    assert np.linalg.eigvalsh(exact).max() + 1 <= corr.lipschitz <= 1.1 * np.linalg.eigvalsh(exact).max() + 1.1


@pytest.mark.parametrize("stage", ["paths", "refits"])
def test_descent_takes_over_what_the_device_leaves_too_far_off(monkeypatch, caplog, stage):
    """FISTA that stalls at some targets: a path that ends with weights of 0, a refit that is lost."""
    sums, fit = sums_of(*make(rows=400, n_train=30, targets=12)), Fit(k=20, eps=1e-2)
    choose, refit = tiles.choose, fista.refit

    def stalled_choose(*given):
        found = choose(*given)
        found.gap[1:3], found.weights[:, 1:3], found.chosen[1:3] = 0.5, 0, 7
        return found

    def stalled_refit(tile, lams, weights, tol):
        found, gaps = refit(tile, lams, weights, tol)
        found[:, 3], gaps[3] = np.nan, np.nan
        return found, gaps

    monkeypatch.setattr(*((tiles, "choose", stalled_choose) if stage == "paths" else (fista, "refit", stalled_refit)))
    found, expected = solve(*sums, fit, device=CPU), solve(*sums, fit)
    (line,) = caplog.messages
    number = "4 of 12 targets missed a relative duality gap of 0.0001" if stage == "paths" else "2 of 12 targets missed"
    assert line.startswith(number)
    np.testing.assert_array_equal(found.chosen, expected.chosen)
    np.testing.assert_allclose(found.weight, expected.weight, atol=1e-6)
    np.testing.assert_allclose(found.bias, expected.bias, atol=1e-6)
    assert found.gap.max() <= 1e-6
    assert found.path_gap.max() <= 1e-4


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that is said to be there, with so much memory: (free, total)."""
    memory = [10**12, 10**12]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: tuple(memory))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: memory.__setitem__(0, memory[0] + 10**6))
    return memory


def test_without_a_gpu_fista_runs_where_it_is_asked_for():
    assert device_for(Fit(), 20_000, 1_000) is None
    assert device_for(Fit(solver="fista"), 20, 1) == CPU


def test_too_little_memory_of_a_gpu_is_told_with_the_bytes(gpu, caplog):
    assert device_for(Fit(), 20_000, 1_000) == torch.device("cuda", 0)
    assert not caplog.messages
    gpu[0] = 10**9
    assert device_for(Fit(), 20_000, 1_000) is None
    (line,) = caplog.messages
    assert line.startswith("cuda:0 has 1001000000 bytes free, expected ")  # torch's own cache was emptied first
    with pytest.raises(UserError, match=r"cuda:0 has 1002000000 bytes free, expected \d+ for 20000 examples"):
        device_for(Fit(solver="fista"), 20_000, 1_000)


@pytest.mark.parametrize("free", [10**9, 10**12])
def test_small_problems_and_those_who_ask_for_descent_take_the_cpu(gpu, caplog, free):
    gpu[0] = free
    assert device_for(Fit(), 2_000, 1_000) is None
    assert device_for(Fit(), 20_000, 10) is None
    assert device_for(Fit(solver="descent"), 20_000, 1_000) is None
    assert not caplog.messages


def test_fista_does_not_depend_on_how_targets_are_divided():
    masks, margins, held = make(rows=300, n_train=25, targets=6)
    whole = solve(*sums_of(masks, margins, held), Fit(k=12), first=5, device=CPU)
    part = solve(*sums_of(masks, margins[:, 2:5], held), Fit(k=12), first=7, device=CPU)
    np.testing.assert_array_equal(whole.weight[2:5], part.weight)


def test_the_gap_is_met_at_every_lambda():
    matrices, training, _ = sums_of(*make(rows=300, n_train=60, targets=3, sparse=60))
    targets = [matrices.scale.target(training.cross[t], training.sums[t], training.squares[t]) for t in range(3)]
    cov, var = np.stack([target[2] for target in targets], axis=1), np.array([target[1] for target in targets])
    tile = fista.Tile(matrices.on_device(CPU, False), cov, var)
    for ratio in np.geomspace(1, 1e-2, 20):
        assert tile.minimise(np.abs(cov).max(axis=0) * ratio, 1e-5, 1e-5).max() <= 1e-5


def test_masks_that_are_much_alike_are_certified_too():
    found = solve(*sums_of(*with_empty_rows(rows=200, n_train=20, targets=2)), Fit(k=20, eps=0.05), device=CPU)
    assert found.gap.max() <= 1e-6
    assert found.path_gap.max() <= 1e-4


def cutting_product(a, b):
    """What tensor cores make of a @ b at worst: 16 terms at a time, sums cut off after 24 bits instead of rounded."""
    total = torch.zeros((*a.shape[:-1], b.shape[-1]), dtype=torch.float64)
    for start in range(0, a.shape[-1], 16):
        total += a[..., start : start + 16].double() @ b[..., start : start + 16, :].double()
        total = (total.view(torch.int64) & ~(2**29 - 1)).view(torch.float64)
    return total.float()


def test_sums_that_are_cut_off_stay_good(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = torch.from_numpy(rng.random((8, 20_000)) < 0.5).half(), torch.from_numpy(rng.random((20_000, 3))).half()
    exact = a.double() @ b.double()
    monkeypatch.setattr(halves, "product", cutting_product)
    error = ((halves.summed(a, b) - exact).abs() / exact).max()
    assert error <= 1e-5
    assert ((cutting_product(a, b) - exact).abs() / exact).max() > 3 * error


def test_no_product_is_given_more_than_a_library_can_count(monkeypatch):
    monkeypatch.setattr(halves, "_CPU_ROWS", 8)
    monkeypatch.setattr(halves, "_TERMS", 16)
    plain, shapes = halves.product, []
    monkeypatch.setattr(halves, "product", lambda a, b: (shapes.append(a.shape), plain(a, b))[1])
    a, b = torch.arange(21 * 70).reshape(21, 70).remainder(7).half(), torch.arange(70 * 2).reshape(70, 2).half()
    assert torch.equal(halves.summed(a, b), a.double() @ b.double())
    assert {(shape[-2] <= 8, shape[-1] <= 16) for shape in shapes} == {(True, True)}


def test_lambdas_and_certificates_hold_where_sums_are_cut_off(monkeypatch):
    sums = sums_of(*dense_data(900, 60, 8, 0.5, 0.05, True))
    ours = solve(*sums, Fit())
    monkeypatch.setattr(halves, "product", cutting_product)
    other = solve(*sums, Fit(), device=CPU)
    np.testing.assert_array_equal(ours.chosen, other.chosen)
    np.testing.assert_allclose(ours.weight, other.weight, atol=1e-6)
    assert other.gap.max() <= 1e-6
    assert other.path_gap.max() <= 1e-4


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.75])
def test_heldout_squares_of_weights_of_one_sign(monkeypatch, alpha):
    masks, margins, held = make(rows=500, n_train=50, targets=1, alpha=alpha)
    matrices = sums_of(masks, margins, held)[0]
    corr = matrices.on_device(CPU, False)
    w = np.random.default_rng(0).random((50, 3))
    z = (masks[held] - matrices.scale.mean) * matrices.scale.inv
    expected = ((z @ w) ** 2).sum(axis=0)
    monkeypatch.setattr(halves, "product", cutting_product)
    heldout = HeldoutMasks(matrices.bits, matrices.held_rows, matrices.scale.mean, corr)
    np.testing.assert_allclose(heldout.squares(torch.from_numpy(w)), expected, rtol=1e-6)
    np.testing.assert_allclose(heldout.squares(torch.from_numpy(w), exactly=True), expected, rtol=1e-12)


@pytest.mark.parametrize(("largest", "planes"), [(2048, 1), (2049, 2), (100_000, 2)])
def test_integers_that_float16_holds_need_one_matrix(largest, planes):
    corr = Correlations.__new__(Correlations)
    corr._low, corr._high = torch.zeros((2, 4), dtype=torch.float16), None
    values = torch.tensor([[largest, -largest, 1, 0], [1023, -1024, 5, 7]], dtype=torch.int32)
    corr._put(0, values)
    assert (corr._high is None) == (planes == 1)
    found = corr._low.double() + (2048 * corr._high.double() if corr._high is not None else 0)
    assert torch.equal(found, values.double())


def test_few_products_are_made_for_each_lambda_and_each_refit(monkeypatch):
    monkeypatch.setattr(fista, "TILE", 32)
    made, tried, refits = [0], [], []
    for name in ("__call__", "exactly"):
        plain = getattr(Correlations, name)
        counted = lambda corr, w, plain=plain: (made.__setitem__(0, made[0] + 1), plain(corr, w))[1]  # noqa: E731
        monkeypatch.setattr(Correlations, name, counted)
    plain_choose = tiles.choose

    def choose(*given):
        made[0] = 0
        found = plain_choose(*given)
        tried.append((made[0], int(found.tried.max())))
        return found

    plain_refit = fista.refit

    def refit(*given):
        made[0] = 0
        found = plain_refit(*given)
        refits.append(made[0])
        return found

    monkeypatch.setattr(tiles, "choose", choose)
    monkeypatch.setattr(fista, "refit", refit)
    solve(*sums_of(*dense_data(4000, 400, 32, 0.5, 0.05, True)), Fit(), device=CPU)
    (products, lambdas) = tried[0]
    assert lambdas > 50
    assert products <= 7 * lambdas
    assert refits[0] <= 80
