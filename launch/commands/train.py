"""The command train."""

from datamodels.launch.progress import notice
from datamodels.launch.request import Request
from datamodels.launch.stop import Stop
from datamodels.train import WorkError
from datamodels.train.data import load
from datamodels.train.store import Store


def train(request: Request) -> int:
    store = request.own_store()
    span = request.span("rows", store.rows) or (0, store.rows)
    return train_missing(request, store, range(*span), Stop())


def train_missing(request: Request, store: Store, rows: range, stop: Stop) -> int:
    """The exit code; raises WorkError where more rows have failed than may."""
    from datamodels.launch.local import train_here
    from datamodels.train.store import check_data

    if request.options.get("retry_failed"):
        retry(store, rows)
    if len(store.missing(rows.start, rows.stop)):
        check_data(store.manifest, load(store.setting))
    devices, workers = request.options.get("devices"), request.options.get("workers")
    train_here(store, str(request.root), rows, str(devices).split(",") if devices else None, workers, stop)
    store.sync_flags()
    return _judge_failures(store, rows)


def retry(store: Store, rows: range) -> None:
    """Make rows that failed for good missing again."""
    from datamodels.launch.worker import whereabouts
    from datamodels.train.store import Writer
    from datamodels.train.trainer import retry_failed

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
