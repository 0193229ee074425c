"""The LASSO stage: from a store to datamodel files, whole or in pieces of the targets."""

import dataclasses
import importlib.metadata
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from lasso import files
from lasso.rows import Progress, Split, estimation_rows, silent, target_count
from lasso.solver import Matrices, solve
from lasso.statistics import Statistics, slabs
from train.errors import UserError
from train.store import ReadableStore as Store


def fit(
    store: Store,
    split: str = "test",
    targets: tuple[int, int] | None = None,
    progress: Progress = silent,
) -> Path:
    """Fit the datamodels of a split and write them; returns the path of the .pt (contract section 4).

    targets: only the columns [A, B), as a piece; the piece that completes the split also makes the whole file. Weights
    and certificates do not depend on the pieces. Raises UserError for a store that cannot be fitted yet or targets
    outside it, WorkError for damaged rows, margins that are not finite, or a target that does not converge.
    """
    width = target_count(store, split)
    first, last = targets or (0, width)
    if not 0 <= first < last <= width:
        raise UserError(f"targets are {first}:{last}, expected a range within 0:{width} ({split} split)")
    rows = usable(store)
    files.prepare(store, split)
    clock = _Clock()
    statistics = Statistics(store, rows, progress)
    matrices: Matrices | None = None
    with files.drafted(files.path_of(store, split, targets), store.n_train, last - first) as draft:
        for start, stop in slabs(store, split, first, last):
            statistics.make(split, start, stop)
            matrices = matrices or Matrices(*statistics.grams())
            crosses = statistics.crosses(split, start, stop)
            clock.lap("statistics")
            found = solve(matrices, *crosses, store.setting.fit, start, progress)
            draft.put(start - first, found.weight.T, {name: getattr(found, name) for name in files.VECTORS})
            clock.lap("solve")
        assert matrices
        draft.scale(matrices.whole_scale)
        path = draft.write(_report(store, split, rows, (first, last), draft, clock.seconds, matrices.constant_examples))
    if targets:
        assemble(store, split)
    return path


def usable(store: Store) -> Split:
    """The estimation rows of a fit, divided; raises UserError where they are too few or may not be used yet."""
    rows = Split.of(store, estimation_rows(store))
    heldout = int(rows.heldout.sum())
    if len(rows.rows) - heldout < 2 or heldout < 1:
        raise UserError(
            f"{len(rows.rows)} estimation rows give {len(rows.rows) - heldout} training and {heldout} validation rows, "
            f"expected at least 2 and 1 (fit.share {store.setting.fit.share:g}): raise models"
        )
    return rows


def is_current(store: Store, split: str = "test", targets: tuple[int, int] | None = None) -> bool:
    """Whether a whole fit (or the piece with these targets, or a whole one) exists for today's rows and options."""
    wanted = _basis(store, np.flatnonzero(store.completed()[: store.models]))
    paths = {files.path_of(store, split), files.path_of(store, split, targets)}
    return any((report := files.read_report(path)) is not None and _basis_of(report) == wanted for path in paths)


def assemble(store: Store, split: str = "test") -> Path | None:
    """Join the pieces of today's rows and options into the whole file, once they cover every target.

    Returns its path, or None where targets are missing. The pieces are removed. Memory does not grow with the file.
    """
    path = files.path_of(store, split)
    width = target_count(store, split)
    if not path.parent.is_dir():
        return None
    with files.locked(path):
        wanted = _basis(store, np.flatnonzero(store.completed()[: store.models]))
        found = {key: report for key, report in files.pieces(store, split).items() if _basis_of(report) == wanted}
        chain = _cover(list(found), width)
        if chain is None:
            return None
        with files.drafted(path, store.n_train, width) as draft:
            for start, stop in chain:
                piece = files.load(files.path_of(store, split, (start, stop)))
                vectors = {name: piece.tensors[name].numpy() for name in files.VECTORS}
                draft.put(start, piece.weight.numpy(), vectors)
                draft.examples = {name: piece.tensors[name].numpy() for name in files.EXAMPLES}
            reports = [found[key] for key in chain]
            seconds = {name: sum(report["seconds"][name] for report in reports) for name in reports[0]["seconds"]}
            constant = reports[0]["zero_variance"]["examples"]
            draft.write(_report(store, split, usable(store), (0, width), draft, seconds, constant))
        for key in found:
            for suffix in (".json", ".pt"):
                files.path_of(store, split, key).with_suffix(suffix).unlink(missing_ok=True)
    return path


def _cover(ranges: list[tuple[int, int]], width: int) -> list[tuple[int, int]] | None:
    """Ranges that cover [0, width), each reaching further than the one before, or None."""
    chain: list[tuple[int, int]] = []
    reached = 0
    while reached < width:
        longest = max((key for key in ranges if key[0] <= reached < key[1]), key=lambda key: key[1], default=None)
        if longest is None:
            return None
        chain.append(longest)
        reached = longest[1]
    return chain


def _basis(store: Store, rows: np.ndarray) -> dict[str, Any]:
    """What a fit of these rows would be made from: a fit made from anything else is stale."""
    options = dataclasses.asdict(store.setting.fit)
    for key in ("partial", "max_failed", "solver"):  # these decide whether to fit, not what comes out
        del options[key]
    return {"stamp": store.row_stamp(rows), "options": options}


def _basis_of(report: dict[str, Any]) -> dict[str, Any]:
    return {"stamp": report.get("rows", {}).get("stamp"), "options": report.get("options")}


def _report(
    store: Store,
    split: str,
    rows: Split,
    targets: tuple[int, int],
    draft: files.Draft,
    seconds: dict[str, float],
    constant_examples: int,
) -> dict[str, Any]:
    """The .json beside a .pt: what was fitted, from what, and how well. Errors are in squared margins."""
    basis = _basis(store, rows.rows)
    options, vectors = basis["options"], draft.vectors
    fitted = vectors["chosen"] >= 0
    done = store.completed()[: store.models]
    failed = int((store.failed()[: store.models] & ~done).sum())
    return {
        "dataset": store.setting.dataset,
        "pct": store.setting.pct,
        "split": split,
        "targets": list(targets),
        "n_train": store.n_train,
        "weight_units": options["weight_units"],
        "rows": {
            "used": len(rows.rows),
            "training": int((~rows.heldout).sum()),
            "validation": int(rows.heldout.sum()),
            "failed": failed,
            "missing": store.models - len(rows.rows) - failed,
            "stamp": basis["stamp"],
        },
        "options": options,
        "path": {
            **{key: options[key] for key in ("k", "eps", "patience", "min_lambdas")},
            "lambda_max": options["lambda_max"],
            "tried_mean": float(vectors["tried"][fitted].mean()) if fitted.any() else 0.0,
        },
        "validation_mse": {
            "mean": float(vectors["validation_mse"].mean()),
            "median": float(np.median(vectors["validation_mse"])),
        },
        "relative_gap": {
            "max": float(vectors["gap"].max()),
            "median": float(np.median(vectors["gap"])),
            "path_max": float(vectors["path_gap"].max()),
        },
        "kkt_residual": {"max": float(vectors["kkt"].max()), "median": float(np.median(vectors["kkt"]))},
        "boundary_hits": {
            "smallest_lambda": int((vectors["chosen"] == options["k"] - 1).sum()),
            "largest_lambda": int((vectors["chosen"] == 0).sum()),
        },
        "zero_variance": {"targets": int((~fitted).sum()), "examples": constant_examples},
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "scipy", "numba", "torch")},
        },
    }


class _Clock:
    """Seconds per stage; a stage may come several times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
