"""The command run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from datamodels.launch.commands.datamodels import fit_split
from datamodels.launch.commands.store import create, data_set_of
from datamodels.launch.commands.train import train_missing
from datamodels.launch.progress import Stages, notice
from datamodels.launch.request import Request
from datamodels.launch.status import report_path
from datamodels.launch.stop import Stop


def run(request: Request) -> int:
    """init, train, fit, eval, report; each step only where something is left to do."""
    from datamodels.lasso import is_current, preflight_check, split_and_output
    from datamodels.lasso.evaluation import evaluate
    from datamodels.launch.evaluation_text import aligned, headline
    from datamodels.launch.report import is_up_to_date, write_report

    seconds: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - started

    dataset = data_set_of(request.setting)
    existed = request.layout.manifest.exists()
    if not existed:
        preflight_check(request.setting)
    with timed("init"):
        store = create(request, dataset)
    if existed:
        preflight_check(store.setting, store.eras)

    done_before = int(store.completed().sum())
    stop = Stop()
    with timed("train"):
        train_missing(request, store, range(store.rows), stop)
    stop.check()
    trained = int(store.completed().sum()) - done_before

    split = request.split(store.arrays)
    if is_current(store, split):
        notice("nothing to fit: the datamodels are up to date")
    else:
        with timed("fit"):
            fit_split(store, split, None)

    quality = None
    if store.eval_models:
        with timed("eval"):
            quality = evaluate(store, output=split_and_output(split)[1])

    if is_up_to_date(store, split, dataset):
        notice("nothing to report: the page is up to date")
    else:
        with timed("report"), Stages() as progress:
            write_report(store, split, dataset, quality, progress)

    rate = f"{trained / seconds['train'] * 3600:,.0f}" if trained else "-"
    lines = [("models", f"{store.models} + {store.eval_models} for evaluation"), ("rows/hour", rate)]
    lines += headline(quality) if quality else []
    print(aligned([*lines, *((f"{stage}, s", f"{taken:.1f}") for stage, taken in seconds.items())]))
    print(report_path(store, split))
    return 0
