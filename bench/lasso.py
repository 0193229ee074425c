"""The LASSO stage against its peers, in one run:
`OMP_NUM_THREADS=1 python -m bench.lasso path --examples 2000 --models 20000`.

Data: truth = 30 large weights a target and small ones on every example (`--small`, their share of the signal's
variance; 1 is a dense truth); margins = signal + noise of the same variance; masks of exact size or Bernoulli
(`--mask`). All times are CPU time of the process. `path` takes several values of `--alpha` and `--small`, a case each.

path    every solver along 100 lambdas down to 0.01 lambda_max without early stopping, on the Gram where it can use one;
        relative duality gap at most 1e-4 at every lambda, re-checked here from integer counts in float64. Peers that
        are not installed are left out: pip install celer adelie (not into your own environment: they ask for
        numpy below 2, but run with a later one that is put back).
agree   chosen lambda and weights of the whole fit against scikit-learn's in float64, solved to a gap of 1e-13.
gram    rows a second of the exact counts X'X, by population count and by float32 products.
sums    X'Y of masks as bits and float16 margins, reading not included, and matrix products that give the same.
fit     the whole `fit` of published files, reading included, imports and compilation not.
memory  CPU time of each stage of `fit` of published files, compilation included, and peak resident memory.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from bench import lasso_agree
from bench import lasso_peers as peers
from bench.gaps import relative_gaps
from datamodels.lasso import fit
from datamodels.lasso.design import Scale
from datamodels.lasso.gram.counts import MemoryCounts
from datamodels.lasso.gram.matrices import MaskBits, Matrices, has_few_rows
from datamodels.lasso.gram.popcount import pack
from datamodels.lasso.gram.sums import Cross, Gram
from datamodels.lasso.solver.path import path as follow_path
from datamodels.lasso.solver.working_set import Design, design_of, with_room, working_set
from datamodels.train.config import Fit, Setting
from datamodels.train.store.layout import Layout
from datamodels.train.store.store import open_store

RATIOS = np.geomspace(1, 0.01, 100)


@dataclass
class Problem:
    """Standardised data of T targets; y is centred."""

    masks: np.ndarray
    margins: np.ndarray

    @cached_property
    def scale(self) -> Scale:
        return Scale.of(len(self.masks), np.count_nonzero(self.masks, axis=0))

    @cached_property
    def counts(self) -> MemoryCounts:
        gram = Gram(self.masks.shape[1])
        for start in range(0, len(self.masks), 8192):
            gram.add(np.packbits(self.masks[start : start + 8192], axis=1))
        return MemoryCounts(gram.finish(), Gram(self.masks.shape[1]))

    def design(self) -> Design:
        """As `fit` makes it."""
        none = np.zeros((self.masks.shape[1], 0), np.uint64)
        few = has_few_rows(*self.masks.shape)
        masks = MaskBits(pack(self.masks.view(np.uint8)), none, (len(self.masks), 0)) if few else self.counts
        return design_of(Matrices(masks, none), whole=False)

    @cached_property
    def corr64(self) -> np.ndarray:
        """Z'Z/n - I in float64, from the integer counts."""
        n = len(self.masks)
        corr = self.counts.grams[0].counts / n - np.outer(self.scale.mean, self.scale.mean)
        corr *= np.outer(self.scale.inv, self.scale.inv)
        np.fill_diagonal(corr, 0)
        return corr

    @cached_property
    def z(self) -> np.ndarray:
        """float32, Fortran order"""
        z = np.asfortranarray(self.masks, dtype=np.float32)
        z -= self.scale.mean.astype(np.float32)
        z *= self.scale.inv.astype(np.float32)
        return z

    @cached_property
    def y(self) -> np.ndarray:
        y = self.margins.astype(np.float64)
        return y - y.mean(axis=0)

    @cached_property
    def cov(self) -> np.ndarray:
        """c = Z'y/n [T, N] in float64"""
        cov = np.zeros((self.y.shape[1], self.masks.shape[1]))
        for start in range(0, len(self.masks), 4096):
            rows = slice(start, start + 4096)
            cov += self.y[rows].T @ self.masks[rows].astype(np.float64)
        return cov / len(self.masks) * self.scale.inv

    def lams(self, target: int) -> np.ndarray:
        return np.abs(self.cov[target]).max() * RATIOS

    def gaps(self, target: int, weights: np.ndarray, lams: np.ndarray | None = None) -> np.ndarray:
        """Relative duality gaps of weights [k, N], from the correlations in float64."""
        lams = self.lams(target) if lams is None else lams
        w = weights.astype(np.float64)
        grad = self.cov[target] - w - w @ self.corr64
        var, norm = self.y[:, target].var(), np.abs(w).sum(axis=1)
        along, squares = var - w @ self.cov[target], var - w @ self.cov[target] - (w * grad).sum(axis=1)
        return relative_gaps(lams, np.abs(grad).max(axis=1), var, along, squares, norm)


def make(rows: int, options: argparse.Namespace, masks: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Bool masks, in an array that is given or a new one, and float16 margins."""
    rng = np.random.default_rng(0)
    n_train, alpha, small = options.examples, options.alpha[0], options.small[0]
    weights = rng.normal(size=(n_train, options.targets)) * np.sqrt(small / n_train)
    for column in weights.T:
        chosen = rng.choice(n_train, min(30, n_train), replace=False)
        column[chosen] += rng.normal(size=len(chosen)) * np.sqrt((1 - small) / len(chosen))
    masks = np.zeros((rows, n_train), bool) if masks is None else masks
    margins = np.empty((rows, options.targets), np.float16)
    for start in range(0, rows, 4096):
        piece = slice(start, start + 4096)
        keys = rng.random(masks[piece].shape, np.float32)
        if options.mask == "exact":
            inside = round(alpha * n_train)
            np.put_along_axis(masks[piece], np.argpartition(keys, inside, axis=1)[:, :inside], True, axis=1)
        else:
            masks[piece] = keys < alpha
        masks[piece][rng.random(len(keys)) < options.empty] = False
        z = (masks[piece] - np.float32(alpha)) / np.float32(np.sqrt(alpha * (1 - alpha)))
        margins[piece] = 3 + z @ weights.astype(np.float32) + rng.normal(size=(len(z), options.targets))
    return masks, margins


def path(options: argparse.Namespace) -> None:
    for alpha in options.alpha:
        for small in options.small:
            case = argparse.Namespace(**{**vars(options), "alpha": [alpha], "small": [small]})
            print(
                f"{case.examples} examples, {case.models} rows, alpha {alpha}, {case.mask} masks, small weights {small}"
            )
            compare(Problem(*make(case.models, case)), case)


def compare(problem: Problem, options: argparse.Namespace) -> None:
    design = problem.design()
    kept = working_set(design, 0)
    print(f"{'solver':34} {'ms/target':>10} {'ratio':>7} {'targets':>7}  largest gap (float64)")

    def ours(target: int) -> np.ndarray:
        weights = np.empty((len(RATIOS), options.examples))
        var = problem.y[:, target].var()
        nonlocal kept
        cov, lams = problem.cov[target], problem.lams(target)
        kept, _ = with_room(design, kept, lambda at: follow_path(design, at, cov, var, lams, 1e-4, weights))
        return weights

    solvers: dict[str, Callable[[int], np.ndarray]] = {"datamodels": ours, **peers.solvers(problem, options.skip)}
    base = None
    for name, solve in solvers.items():
        solve(0)  # compile and warm up
        seconds, worst = [], 0.0
        for target in range(options.targets):
            began = time.process_time()
            weights = solve(target)
            seconds.append(time.process_time() - began)
            worst = max(worst, problem.gaps(target, weights).max())
            if sum(seconds) > options.limit:
                break
        each = 1000 * getattr(solve, "seconds_each", float(np.mean(seconds)))
        base = base or each
        print(f"{name:34} {each:10.2f} {each / base:7.1f} {len(seconds):7}  {worst:.2e}", flush=True)


def agree(options: argparse.Namespace) -> None:
    lasso_agree.run(*make(options.models, options))


def gram(options: argparse.Namespace) -> None:
    masks = np.random.default_rng(0).random((16384, options.examples), np.float32) < options.alpha[0]
    packed = np.packbits(masks, axis=1)
    for route in ("popcount", "product"):
        Gram(options.examples, route).add(packed[:8192])  # compile and warm up
        found = Gram(options.examples, route)
        began = time.process_time()
        found.add(packed)
        found.finish()
        seconds = time.process_time() - began
        print(f"exact counts by {route:9} N={options.examples}: {len(packed) / seconds:,.0f} rows a CPU second")


def sums(options: argparse.Namespace) -> None:
    """X'Y of `--models` rows, 16,320 at a time, and in turn the matrix products that could take its place."""
    rng, shape = np.random.default_rng(0), (options.targets, options.examples)
    cross, total = Cross(options.examples, options.targets), torch.zeros(shape)
    cross.add(np.zeros((30, (options.examples + 7) // 8), np.uint8), np.zeros((30, options.targets), np.float16))

    def pieces(y: torch.Tensor, x: torch.Tensor) -> None:
        y, x, high = y.T, x.bfloat16(), y.T.bfloat16()
        for piece in (high, (y - high.float()).bfloat16()):
            total.add_(piece @ x)

    peers = {
        "float32 product": lambda y, x: total.addmm_(y.T, x),
        "float64 product": lambda y, x: y.T.double() @ x.double(),
        "two bfloat16 products": pieces,
    }
    seconds = dict.fromkeys(["ours", *(name for name in peers if name not in options.skip)], 0.0)
    for start in range(0, options.models, 16320):
        rows = min(16320, options.models - start)
        packed = np.packbits(rng.random((rows, options.examples), np.float32) < options.alpha[0], axis=1)
        margins = (3 + 3 * rng.standard_normal((rows, options.targets), np.float32)).astype(np.float16)
        began = time.process_time()
        cross.add(packed, margins)
        seconds["ours"] += time.process_time() - began
        for at in range(0, rows, 2040):
            x = torch.from_numpy(np.unpackbits(packed[at : at + 2040], axis=1, count=options.examples)).float()
            y = torch.from_numpy(margins[at : at + 2040]).float()
            for name in seconds.keys() - ["ours"]:
                began = time.process_time()
                peers[name](y, x)
                seconds[name] += time.process_time() - began
    for name, taken in seconds.items():
        rate = options.models * options.examples * options.targets / taken / 1e9
        print(f"{name:24} {taken:9.2f} CPU s {rate:7.1f} billion mask entries times margins a second", end=" ")
        print(f"{taken / seconds['ours']:5.2f}x")


def setting_of(options: argparse.Namespace) -> Setting:
    return Setting(
        dataset="digits", alpha=options.alpha[0], mask=options.mask, models=options.models, eval_models=0,
        fit=Fit(eps=options.eps, patience=options.patience),
    )  # fmt: skip


def whole_fit(options: argparse.Namespace) -> None:
    masks, margins = make(options.models, options)
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(Path(folder), "digits", f"{100 * options.alpha[0]:g}pct")
        layout.data.mkdir(parents=True)
        np.save(layout.array("train_masks"), masks)
        np.save(layout.array("test_margins"), margins)
        del masks, margins
        fit(open_store(layout, setting_of(options)), targets=(0, 1))  # imports and compiles
        shutil.rmtree(layout.folder / "datamodels")
        for name in ("first", "on the sums of the first"):
            store = open_store(layout, setting_of(options))
            began = time.process_time()
            report = json.loads(fit(store).with_suffix(".json").read_text("utf-8"))
            seconds = time.process_time() - began
            print(f"fit, {name}: {seconds:.2f} CPU s; wall {json.dumps(report['seconds'])}")
            print(json.dumps({key: report[key] for key in ("path", "relative_gap", "kkt_residual", "boundary_hits")}))


def memory(options: argparse.Namespace) -> None:
    stages, began = dict[str, float](), time.process_time()

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal began
        stages[stage] = stages.get(stage, 0.0) + time.process_time() - began
        began = time.process_time()

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        layout = Layout(Path(folder), "digits", f"{100 * options.alpha[0]:g}pct")
        layout.data.mkdir(parents=True)
        shape = options.models, options.examples
        masks = np.lib.format.open_memmap(layout.array("train_masks"), "w+", bool, shape)
        np.save(layout.array("test_margins"), make(options.models, options, masks)[1])
        del masks
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, began = peak_memory(), time.process_time()
        path = fit(open_store(layout, setting_of(options)), progress=progress)
        progress("files", 1, 1)
        solved = json.loads(path.with_suffix(".json").read_text("utf-8"))
        peak = peak_memory()
    size = 4 * options.examples**2 / 2**30
    print(f"M={options.models} N={options.examples} T={options.targets}, one Gram {size:.2f} GiB: CPU s a stage")
    print(
        ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in stages.items()), f"in all {sum(stages.values()):.0f}"
    )
    print(f"lambdas tried {solved['path']['tried_mean']:.0f}, largest gap {solved['relative_gap']['max']:.1e}")
    print(f"peak {peak / 2**20:.2f} GiB resident, {before / 2**20:.2f} before")


def peak_memory() -> int:
    """Of this process, resident, in KiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = {"path": path, "agree": agree, "gram": gram, "sums": sums, "fit": whole_fit, "memory": memory}
    parser.add_argument("case", choices=cases)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--models", type=int, default=20000)
    parser.add_argument("--targets", type=int, default=200)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.5])
    parser.add_argument("--small", type=float, nargs="+", default=[0.05])
    parser.add_argument("--mask", choices=["exact", "bernoulli"], default="bernoulli")
    parser.add_argument("--empty", type=float, default=0.0, help="share of rows without examples: masks much alike")
    parser.add_argument("--eps", type=float, default=1e-3)
    parser.add_argument("--patience", type=int, default=5)
    parser.add_argument("--limit", type=float, default=20.0, help="stop a solver after this many seconds")
    parser.add_argument("--skip", nargs="*", default=[], help="peers to leave out")
    parser.add_argument("--folder", help="where the memory case lays its store")
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    cases[options.case](options)


if __name__ == "__main__":
    main()
