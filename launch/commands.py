"""What each command does. Heavy packages are imported by the command that needs them."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from launch.progress import Progress, Stages, notice
from launch.status import report_path
from launch.stop import Stop
from train.config import Setting
from train.data import Dataset, fetch, load, pack
from train.errors import UserError, WorkError
from train.layout import Layout
from train.store import ReadableStore, Store, open_own, open_store

if TYPE_CHECKING:  # they take a while to import
    from lasso import Curve, Evaluation

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """One command as the user gave it."""

    setting: Setting
    root: Path
    config: Path
    options: dict[str, Any]
    explicit_models: bool
    """Whether --models was given on the command line."""

    @property
    def layout(self) -> Layout:
        return Layout(self.root, self.setting.dataset, self.setting.pct)

    def store(self) -> ReadableStore:
        store = open_store(self.layout, self.setting, self.explicit_models)
        if out := self.options.get("out"):
            store.derived = Path(out).expanduser() / self.setting.dataset
        return store

    def own_store(self) -> Store:
        return open_own(self.layout, self.setting)

    def span(self, key: str, stop: int) -> tuple[int, int] | None:
        """The option `A:B` as numbers within [0, stop). Raises UserError."""
        text = self.options.get(key)
        if text is None:
            return None
        text = str(text)
        first, colon, last = text.partition(":")
        numbers = text.isascii() and first.isdecimal() and last.isdecimal()
        if not (colon and numbers and int(first) < int(last) <= stop):
            raise UserError(f"--{key} is {text!r}, expected A:B with 0 <= A < B <= {stop}")
        return int(first), int(last)


def init(request: Request) -> int:
    existed = request.layout.manifest.exists()
    store = _create(request, load(request.setting))
    size = sum(array.bytes for array in store.arrays.values())
    print(
        f"{request.layout.data}: {store.rows} rows, {size / 1e9:.3g} GB{' (it was there already)' if existed else ''}"
    )
    return 0


def _create(request: Request, dataset: Dataset) -> Store:
    from train.create import create_store

    if not request.layout.manifest.exists():
        _refuse_recipe(request.setting, dataset)
    return create_store(request.layout, request.setting, dataset, notice)


def _refuse_recipe(setting: Setting, dataset: Dataset) -> None:
    """Raises UserError where the recipe cannot train on the data set's images."""
    from train.masks import batch_size
    from train.model import check

    images = dataset.train.images
    check(setting.recipe, images.shape[1:], len(dataset.classes), batch_size(setting, len(images)))


def data(request: Request) -> int:
    fetch(request.setting)
    with Stages() as progress:
        pack(request.setting, progress)
    dataset = load(request.setting)
    train, test = dataset.train.images, dataset.test.images
    print(f"{request.setting.dataset}: {dataset.where}")
    print(f"{len(train)} training and {len(test)} test images of {'x'.join(map(str, train.shape[1:]))}")
    print(f"sha256 {dataset.sha256()}")
    return 0


def train(request: Request) -> int:
    store = request.own_store()
    span = request.span("rows", store.rows) or (0, store.rows)
    return _train(request, store, range(*span), Stop())


def _train(request: Request, store: Store, rows: range, stop: Stop) -> int:
    from launch.local import train_here
    from train.manifest import check_data

    if request.options.get("retry_failed"):
        _retry_failed(store, rows)
    if len(store.missing(rows.start, rows.stop)):
        check_data(store.manifest, load(store.setting))
    devices, workers = request.options.get("devices"), request.options.get("workers")
    train_here(store, str(request.root), rows, str(devices).split(",") if devices else None, workers, stop)
    store.sync_flags()
    return _judge_failures(store, rows)


def _retry_failed(store: Store, rows: range) -> None:
    from launch.worker import whereabouts
    from train.rows import retry_failed
    from train.writer import Writer

    writer = Writer(store, whereabouts())
    try:
        retry_failed(store, writer, rows)
    finally:
        writer.close()


def _judge_failures(store: Store, rows: range) -> int:
    failed = store.failed()
    for row in failed[rows.start : rows.stop].nonzero()[0][:5]:
        notice(f"row {rows.start + row} failed: {store.states.reason(rows.start + int(row))}")
    allowed = store.setting.fit.max_failed * store.rows
    if failed.sum() > allowed:
        raise WorkError(
            f"{failed.sum()} of {store.rows} rows failed, at most {allowed:g} may (fit.max_failed): see `status`, and "
            "`train --retry-failed` once the cause is mended"
        )
    return 0


def status(request: Request) -> int:
    from launch.slurm_status import queue
    from launch.status import describe, summary

    store = request.store()
    clear = "\x1b[H\x1b[2J" if request.options.get("watch") and sys.stdout.isatty() else ""
    while True:
        found = summary(store) | (queue(store) if isinstance(store, Store) else {})
        print(clear + (json.dumps(found) if request.options.get("json") else describe(found)), flush=True)
        if not request.options.get("watch") or not _goes_on(found):
            return 0
        time.sleep(5)
        if isinstance(store, Store):
            store.refresh()


def _goes_on(found: dict[str, Any]) -> bool:
    """Whether rows are missing, or jobs queued that come after them."""
    return bool(found["missing"] or found.get("queue") or found.get("gate"))


def verify(request: Request) -> int:
    from train.verify import verify as check

    if request.options["retrain"] < 0:
        raise UserError(f"--retrain is {request.options['retrain']}, expected a number of rows")
    store = request.own_store()
    with Progress("rows checked", store.rows) as progress:
        finding = check(store, progress)
    if len(store.mended_flags):
        rows = ", ".join(map(str, store.mended_flags[:10])) + (", ..." if len(store.mended_flags) > 10 else "")
        notice(f"{store.layout.completed}: the flags of rows {rows} did not match the journals and were put right")
    result: dict[str, Any] = {"checked": finding.checked, "bad": finding.bad, "damaged_files": finding.files}
    if request.options["retrain"]:
        from launch.retrain import retrain

        outcome = retrain(store, request.options["retrain"], set(finding.bad))
        result["retrained"] = outcome
        result["bad"] = sorted({*finding.bad, *outcome["different"]})
    if request.options["json"]:
        print(json.dumps(result))
    else:
        _tell(finding.reasons, result)
    return 1 if result["bad"] or result["damaged_files"] else 0


def _tell(reasons: dict[int, str], result: dict[str, Any]) -> None:
    for row in result["bad"]:
        print(f"row {row}: {reasons.get(row, 'trained again, it comes out different')}")
    for text in result["damaged_files"]:
        print(text)
    if "retrained" in result:
        again = result["retrained"]
        print(
            f"{len(again['equal'])} rows trained again byte-equal, {len(again['different'])} different; "
            f"{len(again['close'])} rows of another environment within tolerance"
        )
    print(f"{result['checked']} rows checked, {len(result['bad'])} bad")


def repair(request: Request) -> int:
    from launch.worker import whereabouts
    from train.verify import repair as mend
    from train.verify import verify as check
    from train.writer import Writer

    store = request.own_store()
    span = request.span("rows", store.rows)
    writer = Writer(store, whereabouts())
    try:
        with Progress("rows checked", store.rows) as progress:
            finding = check(store, progress)
        if span:
            finding.reasons |= {row: "named by --rows" for row in range(*span) if store.completed()[row]}
        for text in mend(store, writer, finding):
            print(text)
    finally:
        writer.close()
    print(f"{len(finding.bad)} rows are missing again; `datamodels train` redoes them")
    return 0


def grow(request: Request) -> int:
    from train.create import grow as lengthen

    if not request.explicit_models:
        raise UserError("--models is missing: expected the new number of estimation rows")
    store = lengthen(request.layout, request.setting, request.setting.models, notice)
    print(f"{request.layout.data}: {store.models} estimation and {store.eval_models} evaluation rows")
    return 0


def fit(request: Request) -> int:
    store = request.store()
    split = request.options["split"]
    print(_fit(store, split, request.span("targets", store.n_test if split == "test" else store.n_train)))
    return 0


def _fit(store: ReadableStore, split: str, targets: tuple[int, int] | None) -> Path:
    from lasso import fit as fit_datamodels

    with Stages() as progress:
        path = fit_datamodels(store, split, targets, progress)
    if left_out := int((store.failed() & ~store.completed()).sum()):
        notice(f"{left_out} of {store.rows} rows failed and were left out (fit.max_failed)")
    return path


def evaluate(request: Request) -> int:
    from lasso import evaluate as judge
    from launch.quality import everything

    if request.options["curve"]:
        return _curve(request)
    weights, units = request.options["weights"], request.options["weight_units"]
    with Stages() as progress:
        path = Path(weights) if weights else None
        result = judge(request.store(), request.options["split"], path, progress, units)
    for text in result.notices:
        notice(text)
    if request.options["json"]:
        print(json.dumps(result.to_json(request.options["per_target"])))
    else:
        print(_aligned(everything(result)))
    return 0


def _curve(request: Request) -> int:
    from lasso import curve

    if request.options["weights"]:
        raise UserError("--curve fits datamodels of its own, expected no --weights beside it")
    store, split = request.store(), request.options["split"]
    with Stages() as progress:
        found = curve(store, split, progress=progress)
    _keep_curve(store, split, found)
    if request.options["json"]:
        print(json.dumps(found.to_json()))
        return 0
    print(f"{'models':>10} {'LDS':>8} {'MSE':>10}")
    for point in found.points:
        print(f"{point.models:10} {point.lds:8.4f} {point.mse:10.4f}")
    print(found.answer())
    return 0


def _keep_curve(store: ReadableStore, split: str, found: "Curve") -> None:
    from launch.report.growth import keep

    try:
        keep(store, split, found)
    except OSError as error:
        notice(f"the curve is not kept for the report: cannot write {error.filename}: {error.strerror}")


def report(request: Request) -> int:
    from launch.report import refuse_unfitted, write_report

    store, split = request.store(), request.options["split"]
    refuse_unfitted(store, split)
    dataset = _dataset_of(store, request.setting)
    with Stages() as progress:
        path = write_report(store, split, dataset, progress=progress)
    print(path)
    return 0


def _dataset_of(store: ReadableStore, setting: Setting) -> Dataset | None:
    """The data set that a store's columns stand for, or None (with a notice) where it is not at hand."""
    try:
        dataset = load(setting)
    except UserError as error:
        notice(f"no images in the report: {error}")
        return None
    sizes = len(dataset.train.labels), len(dataset.test.labels)
    if sizes != (store.n_train, store.n_test):
        notice(f"no images in the report: {dataset.where} has {sizes} images, the store {store.n_train, store.n_test}")
        return None
    return dataset


def export(request: Request) -> int:
    from launch.export import TARGETS, write_export

    if request.options["to"] is None:
        raise UserError(f"--to is missing: expected one of {', '.join(TARGETS)}")
    store, given = request.store(), _given(request, "split", "margin", "threshold", "k")
    for key in ("rows", "checkpoints"):
        if span := request.span(key, store.rows):
            given[key] = span
    with Stages() as progress:
        print(write_export(store, request.options["to"], given, progress))
    return 0


def _given(request: Request, *keys: str) -> dict[str, Any]:
    return {key: request.options[key] for key in keys if request.options[key] is not None}


def run(request: Request) -> int:
    """init, train, fit, eval, report; each step only where something is left to do."""
    from lasso import evaluate as judge
    from lasso import foresee, is_current, path_of

    timings: dict[str, float] = {}
    dataset = load(request.setting)
    store = _timed(timings, "init", lambda: _create(request, dataset))
    foresee(store)
    done_before = int(store.completed().sum())
    stop = Stop()
    code = _timed(timings, "train", lambda: _train(request, store, range(store.rows), stop))
    stop.check()
    trained = int(store.completed().sum()) - done_before
    if is_current(store, "test"):
        notice("nothing to fit: the datamodels are up to date")
    else:
        _timed(timings, "fit", lambda: _fit(store, "test", None))
    quality = _timed(timings, "eval", lambda: judge(store, "test")) if store.eval_models else None
    path = report_path(store, "test")
    if not trained and path.exists() and path.stat().st_mtime >= path_of(store, "test").stat().st_mtime:
        notice("nothing to report: the page is up to date")
    else:
        _timed(timings, "report", lambda: _report(store, dataset, quality))
    print(_table(store, trained, timings, quality))
    print(path)
    return code


def plan(request: Request) -> int:
    """What a setting takes before it is started, and what a budget buys."""
    from launch.plan import Plan, Terms
    from launch.plan_text import describe

    given = {field.name: request.options.get(field.name) for field in fields(Terms)}
    terms = Terms(**{key: value for key, value in given.items() if value is not None})
    found = Plan(request.setting, request.layout, terms).to_json()
    print(json.dumps(found) if request.options["json"] else describe(found))
    return 0


def submit(request: Request) -> int:
    """The same as `run` on SLURM: one stage after the other, each as an array with a gate behind it."""
    from lasso import foresee
    from launch import slurm_submit
    from launch.slurm_cancel import cancel
    from launch.slurm_config import slurm_from
    from launch.slurm_dry import dry_run
    from launch.slurm_queue import require_sbatch
    from launch.slurm_script import require_path

    options = request.options
    cluster, split, plan = slurm_from(options["slurm"]), options["split"], options["gate"]
    layout = Layout(Path(os.path.abspath(request.root)), request.setting.dataset, request.setting.pct)
    if options["dry_run"]:
        return dry_run(request.setting, layout, cluster, split, options["retry_failed"])
    require_sbatch()
    if options["cancel"]:
        return cancel(layout)
    require_path(layout)
    if plan:
        return slurm_submit.pass_gate(request.own_store(), layout, cluster, Path(plan))
    store = request.own_store() if layout.manifest.exists() else _create(request, load(request.setting))
    try:
        foresee(store)
    except UserError as error:
        notice(f"the rows will be trained, but that is all: {error}")
    if options["retry_failed"]:
        _retry_failed(store, range(store.rows))
    return slurm_submit.submit(store, layout, cluster, split)


def _report(store: Store, dataset: Dataset, quality: "Evaluation | None") -> None:
    from launch.report import write_report

    with Stages() as progress:
        write_report(store, "test", dataset, quality, progress)


def _timed(timings: dict[str, float], stage: str, work: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = work()
    timings[stage] = time.perf_counter() - started
    return result


def _table(store: Store, trained: int, timings: dict[str, float], quality: "Evaluation | None") -> str:
    from launch.quality import headline

    rate = f"{trained / timings['train'] * 3600:,.0f}" if trained else "-"
    lines = [("models", f"{store.models} + {store.eval_models} for evaluation"), ("rows/hour", rate)]
    lines += headline(quality) if quality else []
    lines += [(f"{stage}, s", f"{seconds:.1f}") for stage, seconds in timings.items()]
    return _aligned(lines)


def _aligned(lines: list[tuple[str, str]]) -> str:
    return "\n".join(f"{name:12} {value}" for name, value in lines)
