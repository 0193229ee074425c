"""Peers of the LASSO path, each set to a relative duality gap of 1e-4 at every lambda."""

import importlib.util
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

Solver = Callable[[int], np.ndarray]


def solvers(problem: Any, skip: list[str]) -> dict[str, Solver]:
    """Name -> weights [k, N] of one target, for the peers that are installed."""
    makers = {
        "scikit-learn Gram kernel, f32": (lambda: _kernel(problem, np.float32), "sklearn"),
        "scikit-learn Gram kernel, f64": (lambda: _kernel(problem, np.float64), "sklearn"),
        "scikit-learn lasso_path(Gram), f32": (lambda: _lasso_path(problem, np.float32), "sklearn"),
        "scikit-learn lasso_path(Gram), f64": (lambda: _lasso_path(problem, np.float64), "sklearn"),
        "adelie on the Gram": (lambda: _adelie(problem), "adelie"),
        "celer_path, f32": (lambda: _celer(problem), "celer"),
        "port of fast_l1's SAGA, f32": (lambda: _saga(problem), "numpy"),
    }
    return {
        name: make()
        for name, (make, package) in makers.items()
        if importlib.util.find_spec(package) and not any(word in name for word in skip)
    }


def _kernel(problem: Any, dtype: type) -> Solver:
    """enet_coordinate_descent_gram called directly, warm-started along the path."""
    from sklearn.linear_model import _cd_fast

    n = len(problem.masks)
    gram: np.ndarray = np.asarray((problem.corr64 + np.eye(len(problem.corr64))) * n, dtype=dtype, order="C")

    def solve(target: int) -> np.ndarray:
        y = problem.y[:, target].astype(dtype)
        q = (problem.cov[target] * n).astype(dtype)
        w: np.ndarray = np.zeros(len(gram), dtype)
        found: np.ndarray = np.empty((100, len(gram)), dtype)
        rng = np.random.RandomState(0)
        for i, lam in enumerate(problem.lams(target)):
            result = _cd_fast.enet_coordinate_descent_gram(
                w, lam * n, 0.0, gram, q, y, 100000, 0.45e-4, rng, False, False
            )
            w = result[0]
            found[i] = w
        return found

    return solve


def _lasso_path(problem: Any, dtype: type) -> Solver:
    from sklearn.linear_model import lasso_path

    n = len(problem.masks)
    gram: np.ndarray = np.ascontiguousarray((problem.corr64 + np.eye(len(problem.corr64))) * n, dtype=dtype)
    z = problem.z.astype(dtype)

    def solve(target: int) -> np.ndarray:
        cov = (problem.cov[target] * n).astype(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return lasso_path(
                z, problem.y[:, target].astype(dtype), alphas=problem.lams(target), precompute=gram, Xy=cov,
                tol=0.45e-4, max_iter=100000,
            )[1].T  # fmt: skip

    return solve


def _adelie(problem: Any) -> Solver:
    import adelie

    gram = np.asfortranarray(problem.corr64 + np.eye(len(problem.corr64)))

    def solve(target: int) -> np.ndarray:
        state = adelie.gaussian_cov(
            A=gram, v=problem.cov[target].copy(), lmda_path=problem.lams(target), early_exit=False, progress_bar=False,
            tol=1e-8, n_threads=1,
        )  # fmt: skip
        return np.asarray(state.betas.toarray())

    return solve


def _celer(problem: Any) -> Solver:
    from celer import celer_path

    def solve(target: int) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = np.ascontiguousarray(problem.y[:, target], dtype=np.float32)
            weights, lams = np.ones(problem.z.shape[1], np.float32), problem.lams(target).astype(np.float32)
            return celer_path(problem.z, y, "lasso", alphas=lams, weights=weights, tol=0.45e-4, max_iter=1000)[1].T

    return solve


def _saga(problem: Any, together: int = 64, minibatch: int = 100) -> Solver:
    """Many targets together, as on a GPU: SAGA on minibatches with a table of residuals (fast_l1), warm-started along
    the path; a target's time is its share of the whole."""
    z = np.ascontiguousarray(problem.z)
    n = len(z) // minibatch * minibatch
    together = min(together, problem.y.shape[1])
    targets = slice(0, together)
    y = problem.y[:n, targets].astype(np.float32)
    lams = np.stack([problem.lams(target) for target in range(together)], axis=1)
    made: list[np.ndarray] = []

    def run() -> list[np.ndarray]:
        w = np.zeros((z.shape[1], together), np.float32)
        residual = -y
        mean = (z[:n].T @ residual) / n
        step = np.float32(1 / (3 * (1 + np.sqrt(z.shape[1] / minibatch)) ** 2))
        rng = np.random.default_rng(0)
        found = []
        for i in range(len(lams)):
            for _ in range(1000):
                for first in rng.permutation(n // minibatch) * minibatch:
                    rows = slice(first, first + minibatch)
                    change = z[rows] @ w - y[rows] - residual[rows]
                    residual[rows] += change
                    delta = z[rows].T @ change
                    w -= step * (delta / minibatch + mean)
                    mean += delta / n
                    shrink = step * lams[i].astype(np.float32)
                    np.subtract(w, np.clip(w, -shrink, shrink), out=w)
                if all(
                    problem.gaps(target, w[:, [target]].T, lams[i, [target]])[0] <= 1e-4 for target in range(together)
                ):
                    break
            found.append(w.T.copy())
        return found

    def solve(target: int) -> np.ndarray:
        if not made:
            began = time.process_time()
            made.extend(run())
            solve.seconds_each = (time.process_time() - began) / together  # type: ignore[attr-defined]
        return np.stack([weights[target % together] for weights in made])

    return solve
