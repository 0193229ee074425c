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

from datamodels.lasso import files
from datamodels.lasso.gram import Matrices, Statistics, slabs
from datamodels.lasso.rows import Progress, Split, enough_memory, estimation_rows, silent, target_count
from datamodels.lasso.solver import Lot, Solution, device_for, device_name, sums_device
from datamodels.train import UserError, WorkError
from datamodels.train.store import ReadableStore as Store


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
    begun_whole = is_current(store, split)
    with enough_memory(store.n_train):
        path = Fitting(store, split, rows, (first, last), files.path_of(store, split, targets), progress).run()
    if targets and assemble(store, split) is None and not begun_whole and is_current(store, split):
        files.remove_piece(store, split, targets)  # made twice at once, and the other one completed the split
    return path if path.exists() else files.path_of(store, split)


class Fitting:
    """A fit of targets [A, B), lot by lot: of several lots, each is kept as a piece until all are joined."""

    def __init__(
        self, store: Store, split: str, rows: Split, targets: tuple[int, int], path: Path, progress: Progress
    ) -> None:
        self.store, self.split, self.rows, self.targets, self.path = store, split, rows, targets, path
        self.progress, self.clock = progress, _Clock()
        self.lots, self.basis = slabs(store, split, *targets), _basis(store, rows)
        self.device = device_for(store.setting.fit, store.n_train, target_count(store, split))
        self.statistics = Statistics(store, rows, progress, sums_device(self.device))

    def run(self) -> Path:
        """The path of what was fitted: the whole file's where other processes have completed it meanwhile."""
        due = [lot for lot in self.lots if not self._is_done(lot)]
        if due:
            self._fit(due)
        if len(self.lots) == 1:
            return self.path
        whole = files.path_of(self.store, self.split)
        with files.locked(whole):
            found = [path for path in (whole, self.path) if self._is_made(path)]
            if not found:
                return _join(self.store, self.split, self.lots, self.targets, self.path, self.lots)
            for lot in self.lots:  # joined by another process, for which these came too late
                files.remove_piece(self.store, self.split, lot)
        return found[0]

    def _is_made(self, path: Path) -> bool:
        report = files.read_report(path)
        return report is not None and _serves(report, self.store, self.basis)

    def _is_done(self, lot: tuple[int, int]) -> bool:
        """Whether a lot, or what it is to be a part of, is there already; a fit of one lot is always made anew."""
        if len(self.lots) == 1:
            return False
        piece, whole = files.path_of(self.store, self.split, lot), files.path_of(self.store, self.split)
        return any(map(self._is_made, (piece, self.path, whole)))

    def _fit(self, due: list[tuple[int, int]]) -> None:
        """Paths of all lots, then refits of all lots, so that the matrices are made once; failures are told last."""
        self.statistics.make(self.split, due[0][0], due[-1][1])
        matrices = self.statistics.matrices()
        self.clock.lap("statistics")
        solution = None
        for lot in due:
            if not self._is_done(lot) and self._read_paths(lot) is None:
                solution = self._follow_paths(matrices, lot)
                if len(self.lots) > 1:
                    solution = None  # it is in a file
        failures = []
        for lot in due:
            try:
                self._refit(matrices, lot, solution)
            except WorkError as error:
                failures.append(error)
        if failures:
            raise failures[0]

    def _lot(self, matrices: Matrices, lot: tuple[int, int], solution: Solution | None = None) -> Lot:
        crosses = self.statistics.crosses(self.split, *lot)
        fit = self.store.setting.fit
        return Lot(matrices, *crosses, fit, lot[0], solution=solution, device=self.device)

    def _tell(self, stage: str, lot: tuple[int, int]) -> Callable[[int], None]:
        first, last = self.targets
        return lambda done: self.progress(stage, lot[0] - first + done, last - first)

    def _read_paths(self, lot: tuple[int, int]) -> Solution | None:
        """What an interrupted fit, or another process, has found of a lot, if it is of the same rows and options."""
        if len(self.lots) == 1:
            return None
        kept = _read_paths(files.paths_of(self.store, self.split, lot), self.basis)
        sharp = kept is not None and kept.path_gap.max() <= 100 * self.store.setting.fit.tol
        return kept if sharp else None

    def _follow_paths(self, matrices: Matrices, lot: tuple[int, int]) -> Solution:
        """What the paths of a lot give; of several lots it is kept in a file too."""
        work = self._lot(matrices, lot)
        work.follow_paths(self._tell("path", lot))
        self.clock.lap("solve")
        if len(self.lots) > 1:
            _write_paths(files.paths_of(self.store, self.split, lot), self.basis, work.solution)
        return work.solution

    def _refit(self, matrices: Matrices, lot: tuple[int, int], solution: Solution | None) -> None:
        """Refit a lot from its paths, unless another process has done so: it removes the paths then."""
        if not self._is_done(lot):
            solution = solution or self._read_paths(lot) or self._follow_paths(matrices, lot)
            work = self._lot(matrices, lot, solution)
            work.refit(self._tell("refit", lot))
            self.clock.lap("solve")
            work.check()
            self._write(matrices, lot, work.solution)
        files.paths_of(self.store, self.split, lot).unlink(missing_ok=True)

    def _write(self, matrices: Matrices, lot: tuple[int, int], solution: Solution) -> None:
        path = self.path if len(self.lots) == 1 else files.path_of(self.store, self.split, lot)
        draft = files.Draft.of(solution, matrices.whole_scale)
        report = _report(self.store, self.split, self.rows, lot, draft, self.clock.take(), device_name(self.device))
        with files.locked(files.path_of(self.store, self.split)):  # no other process writes it, or joins it, meanwhile
            if not self._is_done(lot):
                files.write(path, draft, solution.weight.T, report)


def _write_paths(path: Path, basis: dict[str, Any], solution: Solution) -> None:
    arrays = {field.name: getattr(solution, field.name) for field in dataclasses.fields(Solution)}
    with files.writing(path), files.replacing(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, basis=np.frombuffer(json.dumps(basis, sort_keys=True).encode(), np.uint8), **arrays)


def _read_paths(path: Path, basis: dict[str, Any]) -> Solution | None:
    """What `_write_paths` kept, if it was of the same rows and options."""
    try:
        with np.load(path) as arrays:
            if json.loads(arrays["basis"].tobytes()) != basis:
                return None
            return Solution(**{field.name: arrays[field.name] for field in dataclasses.fields(Solution)})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def usable(store: Store) -> Split:
    """The estimation rows of a fit, divided; raises UserError where they are too few or may not be used yet."""
    store.check_files()
    rows = Split.of(store.setting, estimation_rows(store))
    rows.refuse_too_few(f"{len(rows.rows)} estimation rows give", store.setting.fit.share)
    return rows


def is_current(store: Store, split: str = "test", targets: tuple[int, int] | None = None) -> bool:
    """Whether a whole fit (or the piece with these targets, or a whole one) exists for today's rows and options.

    Only what `fit` would replace counts, see `is_fresh`: nothing in the root where --out names another folder.
    """
    paths = {files.path_of(store, split), files.path_of(store, split, targets)}
    return any(is_fresh(store, path) for path in paths)


def is_fresh(store: Store, path: Path) -> bool:
    """Whether the datamodels in a .pt are those of today's rows and options."""
    report = files.read_report(path)
    return report is not None and _serves(report, store, _basis(store, _fitted_rows(store)))


def assemble(store: Store, split: str = "test") -> Path | None:
    """Join the pieces of today's rows and options into the whole file, once they cover every target.

    Returns its path, or None where targets are missing. The pieces are removed. Memory does not grow with the file.
    """
    path = files.path_of(store, split)
    width = target_count(store, split)
    if not path.parent.is_dir():
        return None
    with files.locked(path):
        wanted = _basis(store, _fitted_rows(store))
        found = {key: report for key, report in files.pieces(path).items() if _serves(report, store, wanted)}
        chain = _cover(list(found), width)
        if chain is None:
            return None
        return _join(store, split, chain, (0, width), path, list(found))


def _join(
    store: Store,
    split: str,
    chain: list[tuple[int, int]],
    targets: tuple[int, int],
    path: Path,
    done_with: list[tuple[int, int]],
) -> Path:
    """Write the pieces of a chain as one file, and remove the pieces `done_with`."""
    parts = [files.path_of(store, split, piece) for piece in chain]
    ends = [piece[0] for piece in chain[1:]] + [targets[1]]  # the piece that begins later wins where two overlap
    widths = [end - piece[0] for piece, end in zip(chain, ends, strict=True)]
    reports = [files.read_report(part) or {} for part in parts]
    if not all(reports):
        raise WorkError(f"pieces of {path} went away while they were joined: run `datamodels fit` again")
    seconds = {name: sum(report["seconds"][name] for report in reports) for name in reports[0]["seconds"]}
    devices = ", ".join(sorted({report.get("device", "") for report in reports}))
    draft = files.Draft.joined(parts, widths)
    report = _report(store, split, usable(store), targets, draft, seconds, devices)
    files.write_joined(path, draft, parts, widths, report)
    for piece in done_with:
        files.remove_piece(store, split, piece)
    return path


def _fitted_rows(store: Store) -> Split:
    rows = np.flatnonzero(store.completed()[: store.models])
    return Split(rows, np.zeros(len(rows), bool))


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


def _basis(store: Store, rows: Split) -> dict[str, Any]:
    """What a fit of these rows would be made from: a fit made from anything else is stale."""
    return {"stamp": store.row_stamp(rows.rows), "options": _deciding(dataclasses.asdict(store.setting.fit))}


def _deciding(options: dict[str, Any]) -> dict[str, Any]:
    """The options that decide what comes out: not those that say whether to fit, where, and how sharply at least."""
    return {key: value for key, value in options.items() if key not in ("partial", "max_failed", "solver", "tol")}


def _serves(report: dict[str, Any], store: Store, basis: dict[str, Any]) -> bool:
    """Whether a fit was made from this, and to today's tolerance or better: looser ones leave it as it is."""
    options, gap, tol = report.get("options", {}), report.get("relative_gap", {}), store.setting.fit.tol
    if {"stamp": report.get("rows", {}).get("stamp"), "options": _deciding(options)} != basis:
        return False
    met = gap.get("max", np.inf) <= tol and gap.get("path_max", np.inf) <= 100 * tol
    return bool(options.get("tol", np.inf) <= tol or met)


def _report(
    store: Store,
    split: str,
    rows: Split,
    targets: tuple[int, int],
    draft: files.Draft,
    seconds: dict[str, float],
    device: str,
) -> dict[str, Any]:
    """The .json beside a .pt: what was fitted, from what, and how well. Errors are in squared margins."""
    options, vectors = dataclasses.asdict(store.setting.fit), draft.vectors
    for key in ("partial", "max_failed", "solver"):
        del options[key]
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
            "last": int(rows.rows[-1]),
            "training": int((~rows.heldout).sum()),
            "validation": int(rows.heldout.sum()),
            "failed": failed,
            "missing": store.models - len(rows.rows) - failed,
            "stamp": store.row_stamp(rows.rows),
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
        "zero_variance": {"targets": int((~fitted).sum()), "examples": int((draft.examples["deviation"] == 0).sum())},
        "solver": "descent" if device == "cpu" and store.setting.fit.solver != "fista" else "fista",
        "device": device,
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

    def take(self) -> dict[str, float]:
        """The seconds since they were last taken."""
        taken, self.seconds = self.seconds, dict.fromkeys(self.seconds, 0.0)
        return taken
