"""The LASSO stage: from a store to datamodel files, whole or in pieces of the targets."""

import dataclasses
import importlib.metadata
import json
import platform
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import files
from datamodels.lasso.atomic import replacing
from datamodels.lasso.design import divide
from datamodels.lasso.gram import GramCache, Matrices, target_batches
from datamodels.lasso.rows import (
    FitRows,
    Progress,
    enough_memory,
    estimation_rows,
    silent,
    split_and_output,
    split_name,
    target_count,
)
from datamodels.lasso.solver import Solution, TargetBatch
from datamodels.train import UserError, WorkError
from datamodels.train.store import BaseStore as Store

Range = tuple[int, int]
"""Targets [A, B)."""


def fit(
    store: Store,
    split: str = "test",
    targets: Range | None = None,
    progress: Progress = silent,
    *,
    output: str | None = None,
) -> Path:
    """Fit the datamodels of a split and write them (docs/format.md); returns the path of the .pt.

    output: None for margins, or where a store has none for the split's first output. targets: only the columns [A, B),
    as a piece; the piece that completes the split makes the whole file. Weights and gaps do not depend on the pieces.
    Raises UserError for a store that cannot be fitted yet, WorkError for damaged rows or a target without convergence.
    """
    split = split_name(store.arrays, split, output)
    width = target_count(store, split)
    first, last = targets or (0, width)
    if not 0 <= first < last <= width:
        raise UserError(f"targets are {first}:{last}, expected a range within 0:{width} ({split} split)")
    rows = usable(store)
    files.prepare(store, split)
    had_whole = is_current(store, split)
    with enough_memory(store.n_features):
        path = Fitting(store, split, rows, (first, last), files.path_of(store, split, targets), progress).run()
    if targets and assemble(store, split) is None and not had_whole and is_current(store, split):
        files.remove_piece(store, split, targets)  # another process fitted the same piece and completed the split
    return path if path.exists() else files.path_of(store, split)


class Fitting:
    """A fit of targets [A, B), one target batch after the other.

    Of several batches each is kept as a piece until all are joined, so that a fit that was killed goes on with the
    batches that are done. Other processes may fit the same targets meanwhile.
    """

    def __init__(self, store: Store, split: str, rows: FitRows, targets: Range, path: Path, progress: Progress) -> None:
        self.store, self.split, self.rows, self.targets, self.path = store, split, rows, targets, path
        self.progress, self.clock = progress, _Clock()
        self.batches, self.basis = target_batches(store.n_features, *targets), _basis(store, rows.rows)
        self.cache = GramCache(store, rows, progress)

    def run(self) -> Path:
        """Fit what is missing; returns the path of the .pt that holds the targets, which may be the whole split's."""
        due = [batch for batch in self.batches if not self._is_done(batch)]
        if due:
            self._fit(due)
        if len(self.batches) == 1:
            return self.path
        whole = files.path_of(self.store, self.split)
        with files.locked(whole):
            found = [path for path in (whole, self.path) if self._is_current(path)]
            if not found:
                return _join(self.store, self.split, self.batches, self.targets, self.path, self.batches)
            for batch in self.batches:  # another process joined its own pieces before these were written
                files.remove_piece(self.store, self.split, batch)
        return found[0]

    def _is_current(self, path: Path) -> bool:
        report = files.read_report(path)
        return report is not None and _serves(report, self.store, self.basis)

    def _is_done(self, batch: Range) -> bool:
        """Whether a file with the batch is written; a fit of a single batch is always computed anew."""
        if len(self.batches) == 1:
            return False
        paths = (files.path_of(self.store, self.split, batch), self.path, files.path_of(self.store, self.split))
        return any(map(self._is_current, paths))

    def _fit(self, due: list[Range]) -> None:
        """Choose the lambdas of all batches, then refit all, so that each step makes its matrix of counts once.

        A batch that misses its duality gap does not keep the others from being written.
        """
        self.cache.make(self.split, due[0][0], due[-1][1])
        matrices = self.cache.matrices()
        self.clock.lap("gram")
        if len(self.batches) == 1:
            self._refit(matrices, due[0], self._choose_lambdas(matrices, due[0]))
            return
        for batch in due:
            kept = self._read_paths(batch)
            converged = kept is not None and kept.path_gap.max() <= 100 * self.store.setting.fit.tol
            if not converged and not self._is_done(batch):
                self._write_paths(batch, self._choose_lambdas(matrices, batch))
        failures = []
        for batch in due:
            try:
                if not self._is_done(batch):  # paths are gone where another process has refitted the batch meanwhile
                    self._refit(matrices, batch, self._read_paths(batch) or self._choose_lambdas(matrices, batch))
                files.paths_of(self.store, self.split, batch).unlink(missing_ok=True)
            except WorkError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _choose_lambdas(self, matrices: Matrices, batch: Range) -> Solution:
        work = self._batch(matrices, batch)
        work.choose_lambdas(self._tell("path", batch))
        self.clock.lap("solve")
        return work.solution

    def _refit(self, matrices: Matrices, batch: Range, solution: Solution) -> None:
        """Refit a batch at its lambdas and write it. Raises WorkError where a target misses its gap."""
        work = self._batch(matrices, batch, solution)
        work.refit(self._tell("refit", batch))
        self.clock.lap("solve")
        work.check()

        path = self.path if len(self.batches) == 1 else files.path_of(self.store, self.split, batch)
        scale = matrices.whole_scale
        vectors = {name: getattr(solution, name) for name in files.VECTORS}
        draft = files.Draft(vectors, {"mean": scale.mean, "deviation": divide(np.ones_like(scale.inv), scale.inv)})
        draft.groups = self.store.groups
        report = _report(self.store, self.split, self.rows, batch, draft, self.clock.take())
        with files.locked(files.path_of(self.store, self.split)):  # no other process writes or joins it meanwhile
            if not self._is_done(batch):
                files.write(path, draft, solution.weight.T, report)

    def _batch(self, matrices: Matrices, batch: Range, solution: Solution | None = None) -> TargetBatch:
        sums = self.cache.crosses(self.split, *batch)
        return TargetBatch(matrices, *sums, self.store.setting.fit, batch[0], solution=solution)

    def _tell(self, stage: str, batch: Range) -> Callable[[int], None]:
        first, last = self.targets
        return lambda done: self.progress(stage, batch[0] - first + done, last - first)

    def _write_paths(self, batch: Range, solution: Solution) -> None:
        """Keep what the paths of a batch gave until its refit."""
        basis = np.frombuffer(json.dumps(self.basis, sort_keys=True).encode(), np.uint8)
        arrays = {field.name: getattr(solution, field.name) for field in dataclasses.fields(Solution)}
        with replacing(files.paths_of(self.store, self.split, batch)) as temporary, open(temporary, "wb") as file:
            np.savez(file, basis=basis, **arrays)

    def _read_paths(self, batch: Range) -> Solution | None:
        """What this or another fit kept of a batch, if it was of the same rows and options."""
        try:
            with np.load(files.paths_of(self.store, self.split, batch)) as arrays:
                if json.loads(arrays["basis"].tobytes()) != self.basis:
                    return None
                return Solution(**{field.name: arrays[field.name] for field in dataclasses.fields(Solution)})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None


def usable(store: Store) -> FitRows:
    """The estimation rows of a fit; raises UserError where they are too few or may not be used yet."""
    store.check_files()
    rows = FitRows.of(store.setting, estimation_rows(store))
    rows.refuse_too_few(f"{len(rows.rows)} estimation rows give", store.setting.fit.share)
    return rows


def is_current(store: Store, split: str = "test", targets: Range | None = None) -> bool:
    """Whether the whole fit of a split (or the piece with these targets) exists for today's rows and options.

    Only the files that `fit` would replace count: where --out names another folder, none of the root.
    """
    paths = {files.path_of(store, split), files.path_of(store, split, targets)}
    return any(is_fresh(store, path) for path in paths)


def is_fresh(store: Store, path: Path) -> bool:
    """Whether the datamodels in a .pt were fitted from today's rows with today's options."""
    report = files.read_report(path)
    return report is not None and _serves(report, store, _basis(store))


def assemble(store: Store, split: str = "test") -> Path | None:
    """Join the pieces of today's rows and options into the whole file, once they cover every target.

    Returns its path, or None where targets are missing. Removes the pieces. Memory does not grow with the file.
    """
    path = files.path_of(store, split)
    width = target_count(store, split)
    if not path.parent.is_dir():
        return None
    with files.locked(path):
        wanted = _basis(store)
        found = {key: report for key, report in files.pieces(path).items() if _serves(report, store, wanted)}
        chain = _cover(list(found), width)
        if chain is None:
            return None
        return _join(store, split, chain, (0, width), path, list(found))


def _join(store: Store, split: str, chain: list[Range], targets: Range, path: Path, done_with: list[Range]) -> Path:
    """Write the pieces of a chain as one file, then remove the pieces `done_with`; returns the path."""
    parts = [files.path_of(store, split, piece) for piece in chain]
    ends = [piece[0] for piece in chain[1:]] + [targets[1]]  # the piece that begins later wins where two overlap
    widths = [end - piece[0] for piece, end in zip(chain, ends, strict=True)]
    reports = [files.read_report(part) or {} for part in parts]
    if not all(reports):
        raise WorkError(f"pieces of {path} were removed while they were joined: run `datamodels fit` again")
    names = dict.fromkeys(name for report in reports for name in report["seconds"])
    seconds = {name: sum(report["seconds"].get(name, 0.0) for report in reports) for name in names}
    draft = files.Draft.joined(parts, widths)
    files.write_joined(path, draft, parts, widths, _report(store, split, usable(store), targets, draft, seconds))
    for piece in done_with:
        files.remove_piece(store, split, piece)
    return path


def _cover(ranges: list[Range], width: int) -> list[Range] | None:
    """Ranges that cover [0, width), each reaching further than the one before, or None."""
    chain: list[Range] = []
    reached = 0
    while reached < width:
        longest = max((key for key in ranges if key[0] <= reached < key[1]), key=lambda key: key[1], default=None)
        if longest is None:
            return None
        chain.append(longest)
        reached = longest[1]
    return chain


def _basis(store: Store, rows: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """Rows (the completed ones if not given) and options: a fit of any others is stale."""
    rows = np.flatnonzero(store.completed()[: store.models]) if rows is None else rows
    return {"stamp": store.row_stamp(rows), "options": _deciding(dataclasses.asdict(store.setting.fit))}


def _deciding(options: dict[str, Any]) -> dict[str, Any]:
    """The options that a result depends on; a tighter or looser `tol` gives the same weights within their gap."""
    return {key: value for key, value in options.items() if key not in ("partial", "max_failed", "tol")}


def _serves(report: dict[str, Any], store: Store, basis: dict[str, Any]) -> bool:
    """Whether a fit was made from these rows and options, to today's tolerance or better."""
    options, gap, tol = report.get("options", {}), report.get("relative_gap", {}), store.setting.fit.tol
    if {"stamp": report.get("rows", {}).get("stamp"), "options": _deciding(options)} != basis:
        return False
    met = gap.get("max", np.inf) <= tol and gap.get("path_max", np.inf) <= 100 * tol
    return bool(options.get("tol", np.inf) <= tol or met)


def _report(
    store: Store, split: str, rows: FitRows, targets: Range, draft: files.Draft, seconds: dict[str, float]
) -> dict[str, Any]:
    """The .json beside a .pt: what was fitted, from what, and how well. Errors are in squared margins."""
    options = dataclasses.asdict(store.setting.fit)
    del options["partial"], options["max_failed"]
    done = store.completed()[: store.models]
    failed = int((store.failed()[: store.models] & ~done).sum())
    validation = int(rows.validation.sum())
    return {
        "dataset": store.setting.dataset,
        "tag": store.setting.file_tag,
        **dict(zip(("split", "output"), split_and_output(split), strict=True)),
        "targets": list(targets),
        "n_train": store.n_train,
        "features": store.n_features,
        "weight_units": options["weight_units"],
        "rows": {
            "used": len(rows.rows),
            "last": int(rows.rows[-1]),
            "training": len(rows.rows) - validation,
            "validation": validation,
            "failed": failed,
            "missing": store.models - len(rows.rows) - failed,
            "stamp": store.row_stamp(rows.rows),
        },
        "options": options,
        **_quality(options, draft),
        "seconds": {name: round(value, 3) for name, value in seconds.items()},
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("numpy", "scipy", "numba", "torch")},
        },
    }


def _quality(options: dict[str, Any], draft: files.Draft) -> dict[str, Any]:
    """The part of a report about paths, errors and duality gaps."""
    vectors = draft.vectors
    fitted = vectors["chosen"] >= 0
    gap, kkt, error = vectors["gap"], vectors["kkt"], vectors["validation_mse"]
    return {
        "path": {
            **{key: options[key] for key in ("k", "eps", "patience", "min_lambdas", "lambda_max")},
            "tried_mean": float(vectors["tried"][fitted].mean()) if fitted.any() else 0.0,
        },
        "validation_mse": {"mean": float(error.mean()), "median": float(np.median(error))},
        "relative_gap": {
            "max": float(gap.max()),
            "median": float(np.median(gap)),
            "path_max": float(vectors["path_gap"].max()),
        },
        "kkt_residual": {"max": float(kkt.max()), "median": float(np.median(kkt))},
        "boundary_hits": {
            "smallest_lambda": int((vectors["chosen"] == options["k"] - 1).sum()),
            "largest_lambda": int((vectors["chosen"] == 0).sum()),
        },
        "zero_variance": {"targets": int((~fitted).sum()), "examples": int((draft.examples["deviation"] == 0).sum())},
    }


class _Clock:
    """Seconds per stage; a stage may be timed several times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """The seconds of each stage since this was called last."""
        taken, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return taken
