"""Commands on a store and its data set: init, data, grow, status, verify, repair."""

import json
import sys
import time
from contextlib import closing
from typing import Any

from datamodels.launch.progress import Progress, Stages, counted, notice
from datamodels.launch.request import Request
from datamodels.train import Setting, UserError
from datamodels.train.data import Dataset, fetch, load, pack
from datamodels.train.store import Store


def init(request: Request) -> int:
    existed = " (it was there already)" if request.layout.manifest.exists() else ""
    store = create(request, data_set_of(request.setting))
    size = sum(array.bytes for array in store.arrays.values())
    print(f"{request.layout.data}: {store.rows} rows, {size / 1e9:.3g} GB{existed}")
    return 0


def data_set_of(setting: Setting) -> Dataset | None:
    """The images of a setting; None for one with a trainer of its own. Raises UserError."""
    return None if setting.trainer else load(setting, notice)


def create(request: Request, dataset: Dataset | None) -> Store:
    """The store of a setting, which may be there already. Raises UserError.

    A new one is refused where the recipe cannot train on the data set's images.
    """
    from datamodels.train.own import declared
    from datamodels.train.store import create_store

    setting, exists = request.setting, request.layout.manifest.exists()
    if dataset is None:
        return request.own_store() if exists else create_store(request.layout, setting, declared(setting), notice)
    if not exists:
        from datamodels.train import batch_size
        from datamodels.train.trainer import check

        images = dataset.train.images
        check(setting.recipe, images.shape[1:], len(dataset.classes), batch_size(setting, len(images)))
    return create_store(request.layout, setting, dataset.declared(setting.outputs), notice)


def data(request: Request) -> int:
    if request.setting.trainer:
        raise UserError(f"trainer is {request.setting.trainer!r}: it has its own data, expected none to fetch or check")
    fetch(request.setting)
    with Stages() as progress:
        pack(request.setting, progress)
    dataset = load(request.setting, notice)
    train, test = dataset.train.images, dataset.test.images
    print(f"{request.setting.dataset}: {dataset.where}")
    print(f"{len(train)} training and {len(test)} test images of {'x'.join(map(str, train.shape[1:]))}, {train.dtype}")
    print(f"sha256 {dataset.sha256()}")
    return 0


def grow(request: Request) -> int:
    from datamodels.train.store import grow as lengthen

    if not request.explicit_models:
        raise UserError("--models is missing: expected the new number of estimation rows")
    store = lengthen(request.layout, request.setting, request.setting.models, notice)
    print(f"{request.layout.data}: {store.models} estimation and {store.eval_models} evaluation rows")
    return 0


def status(request: Request) -> int:
    from datamodels.launch.slurm import describe_jobs, job_summary
    from datamodels.launch.status import describe, summary

    store, watch = request.store(), request.options["watch"]
    clear = "\x1b[H\x1b[2J" if watch and sys.stdout.isatty() else ""
    while True:
        found = summary(store) | (job_summary(store) if isinstance(store, Store) else {})
        text = json.dumps(found) if request.options["json"] else "\n".join([describe(found), *describe_jobs(found)])
        print(clear + text, flush=True)
        goes_on = found["missing"] or found.get("queue") or found.get("gate")
        if not (watch and goes_on):
            return 0
        time.sleep(5)
        if isinstance(store, Store):
            store.refresh()


def verify(request: Request) -> int:
    from datamodels.train.store import verify as check

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
        from datamodels.launch.retrain import retrain

        again = result["retrained"] = retrain(store, request.options["retrain"], set(finding.bad))
        result["bad"] = sorted({*finding.bad, *again["different"]})

    if request.options["json"]:
        print(json.dumps(result))
    else:
        for row in result["bad"]:
            print(f"row {row}: {finding.reasons.get(row, 'trained again, it comes out different')}")
        for text in result["damaged_files"]:
            print(text)
        if request.options["retrain"]:
            print(
                f"{counted(len(again['equal']), 'row')} trained again byte-equal, {len(again['different'])} different; "
                f"{counted(len(again['close']), 'row')} of another environment within tolerance"
            )
        print(f"{counted(result['checked'], 'row')} checked, {len(result['bad'])} bad")
    return 1 if result["bad"] or result["damaged_files"] else 0


def repair(request: Request) -> int:
    from datamodels.launch.worker import whereabouts
    from datamodels.train.store import Writer
    from datamodels.train.store import repair as mend
    from datamodels.train.store import verify as check

    store = request.own_store()
    named = [row for rows in request.ranges("rows", store.rows) or [] for row in rows]
    with closing(Writer(store, whereabouts())) as writer:
        with Progress("rows checked", store.rows) as progress:
            finding = check(store, progress)
        finding.reasons |= {row: "named by --rows" for row in named if store.completed()[row]}
        for text in mend(store, writer, finding):
            print(text)
    print(f"{counted(len(finding.bad), 'row')} missing again, for `datamodels train` to redo")
    return 0
