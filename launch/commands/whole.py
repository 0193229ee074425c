"""Commands on a setting as a whole: run, plan, submit."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from datamodels.launch.commands.datamodels import fit_split
from datamodels.launch.commands.store import create
from datamodels.launch.commands.train import retry, train_missing
from datamodels.launch.progress import Stages, notice
from datamodels.launch.request import Request
from datamodels.launch.status import report_path
from datamodels.launch.stop import Stop
from datamodels.train import UserError
from datamodels.train.data import Dataset, load
from datamodels.train.store import Layout, Store

if TYPE_CHECKING:  # it takes a while to import
    from datamodels.lasso import Evaluation

T = TypeVar("T")


def run(request: Request) -> int:
    """init, train, fit, eval, report; each step only where something is left to do."""
    from datamodels.lasso import is_current, preflight_check
    from datamodels.lasso.evaluation import evaluate as judge
    from datamodels.launch.report import is_up_to_date

    timings: dict[str, float] = {}
    dataset = load(request.setting)
    if not request.layout.manifest.exists():
        preflight_check(request.setting)
    store = _timed(timings, "init", lambda: create(request, dataset))
    preflight_check(store.setting, store.eras)
    done_before = int(store.completed().sum())
    stop = Stop()
    code = _timed(timings, "train", lambda: train_missing(request, store, range(store.rows), stop))
    stop.check()
    trained = int(store.completed().sum()) - done_before
    if is_current(store, "test"):
        notice("nothing to fit: the datamodels are up to date")
    else:
        _timed(timings, "fit", lambda: fit_split(store, "test", None))
    quality = _timed(timings, "eval", lambda: judge(store)) if store.eval_models else None
    if is_up_to_date(store, "test", dataset):
        notice("nothing to report: the page is up to date")
    else:
        _timed(timings, "report", lambda: _report(store, dataset, quality))
    print(_table(store, trained, timings, quality))
    print(report_path(store, "test"))
    return code


def plan(request: Request) -> int:
    """What a setting takes before it is started, and what a budget buys."""
    from datamodels.launch.plan import Terms, describe
    from datamodels.launch.plan import plan as plan_of

    given = {field.name: request.options[field.name] for field in fields(Terms)}
    terms = Terms(**{key: value for key, value in given.items() if value is not None})
    found = plan_of(request.setting, request.layout, terms)
    print(json.dumps(found) if request.options["json"] else describe(found))
    return 0


def submit(request: Request) -> int:
    """The same as `run` on SLURM: one stage after the other, each as an array with a gate behind it."""
    from datamodels.lasso import preflight_check
    from datamodels.launch.slurm import cancel, dry_run, require_path, require_sbatch, slurm_from
    from datamodels.launch.slurm import submit as slurm_submit

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
    store = request.own_store() if layout.manifest.exists() else create(request, load(request.setting))
    try:
        preflight_check(store.setting, store.eras)
    except UserError as error:
        notice(f"the rows will be trained, but that is all: {error}")
    if options["retry_failed"]:
        retry(store, range(store.rows))
    return slurm_submit.submit(store, layout, cluster, split)


def _report(store: Store, dataset: Dataset, quality: "Evaluation | None") -> None:
    from datamodels.launch.report import write_report

    with Stages() as progress:
        write_report(store, "test", dataset, quality, progress)


def _timed(timings: dict[str, float], stage: str, work: Callable[[], T]) -> T:
    started = time.perf_counter()
    result = work()
    timings[stage] = time.perf_counter() - started
    return result


def _table(store: Store, trained: int, timings: dict[str, float], quality: "Evaluation | None") -> str:
    from datamodels.launch.quality import aligned, headline

    rate = f"{trained / timings['train'] * 3600:,.0f}" if trained else "-"
    lines = [("models", f"{store.models} + {store.eval_models} for evaluation"), ("rows/hour", rate)]
    lines += headline(quality) if quality else []
    lines += [(f"{stage}, s", f"{seconds:.1f}") for stage, seconds in timings.items()]
    return aligned(lines)
