"""The command train."""

from contextlib import closing

from datamodels.launch.progress import notice
from datamodels.launch.request import Request
from datamodels.launch.status import refuse_failures
from datamodels.launch.stop import Stop
from datamodels.train import retry_failed
from datamodels.train.store import Store, Writer


def train(request: Request) -> int:
    store = request.own_store()
    for rows in request.ranges("rows", store.rows) or [range(store.rows)]:
        train_missing(request, store, rows, Stop())
    return 0


def train_missing(request: Request, store: Store, rows: range, stop: Stop) -> None:
    """Train what is missing of some rows. Raises Interrupted, UserError, WorkError where more rows failed than may."""
    from datamodels.launch.local import train_here

    if request.options["retry_failed"]:
        retry(store, rows)
    if len(store.missing(rows.start, rows.stop)) and not store.setting.trainer:
        store.dataset()  # refuses another one before any worker starts
    devices = str(request.options["devices"]).split(",") if request.options["devices"] else None
    train_here(store, str(request.root), rows, devices, request.options["workers"], stop)
    store.sync_flags()

    failed = store.failed()
    for row in failed[rows.start : rows.stop].nonzero()[0][:5]:
        notice(f"row {rows.start + row} failed: {store.states.reason(rows.start + int(row))}")
    refuse_failures(store, "train")


def retry(store: Store, rows: range) -> None:
    """Make rows that failed for good missing again."""
    from datamodels.launch.worker import whereabouts

    with closing(Writer(store, whereabouts())) as writer:
        retry_failed(store, writer, rows)
