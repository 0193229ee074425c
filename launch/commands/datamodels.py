"""Commands on what rows were trained for: fit, eval, report, export."""

import json
import math
from pathlib import Path

from datamodels.launch.progress import Stages, notice
from datamodels.launch.request import Request
from datamodels.train import UserError, WorkError
from datamodels.train.data import Dataset
from datamodels.train.store import BaseStore, Store
from datamodels.train.store import open as open_setting


def fit(request: Request) -> int:
    from datamodels.lasso import target_count

    store = request.store()
    split = request.split(store.arrays)
    print(fit_split(store, split, request.span("targets", target_count(store, split))))
    return 0


def fit_split(store: BaseStore, split: str, targets: tuple[int, int] | None) -> Path:
    """Fit a split, or only some of its targets; returns the path of the datamodels."""
    from datamodels.lasso import fit as fit_datamodels
    from datamodels.lasso import read_report, split_and_output

    name, output = split_and_output(split)
    with Stages() as progress:
        path = fit_datamodels(store, name, targets, progress, output=output)
    left_out = int((store.failed() & ~store.completed()).sum())
    if left_out and isinstance(store, Store):  # of published files it is told which
        notice(f"{left_out} of {store.rows} rows failed and were left out (fit.max_failed)")
    constant = (read_report(path) or {}).get("zero_variance", {}).get("examples", 0)
    if constant:
        notice(f"{constant} of {store.n_features} examples are in all masks of the fit or in none: their weights are 0")
    return path


def evaluate(request: Request) -> int:
    from datamodels.lasso.evaluation import evaluate as judge
    from datamodels.launch.evaluation_text import aligned, everything

    options = request.options
    if options["curve"]:
        return _curve(request)
    with Stages() as progress:
        found = judge(
            request.store(),
            options["weights"],
            split=options["split"],
            output=options["output"],
            weight_units=options["weight_units"],
            progress=progress,
        )
    for text in found.notices:
        notice(text)
    print(json.dumps(found.to_json(options["per_target"])) if options["json"] else aligned(everything(found)))
    return 0


def _curve(request: Request) -> int:
    from datamodels.lasso.evaluation import curve, protocol, write_curve

    for option in ("weights", "weight_units", "per_target"):
        if request.options[option]:
            raise UserError(f"--curve fits datamodels of its own, expected no --{option} with it")
    store = request.store()
    split, options = request.split(store.arrays), request.options
    with Stages() as progress:
        found = curve(store, split=options["split"], output=options["output"], progress=progress)
    try:
        write_curve(store, split, found)
    except WorkError as error:
        notice(f"the curve is not kept: {error}")
    if request.options["json"]:
        print(json.dumps({**found.to_json(), **protocol(store, split)}))
        return 0
    print(f"{'models':>10} {'LDS':>8} {'MSE':>10}")
    for point in found.points:
        print(f"{point.models:10} {point.lds:8.4f} {point.mse:10.4f}")
    print(found.answer())
    return 0


def report(request: Request) -> int:
    from datamodels.launch.report import refuse_unfitted, write_report

    store, price = request.store(), request.options["price"]
    split = request.split(store.arrays)
    if price is not None and not 0 < price < math.inf:
        raise UserError(f"--price is {price}, expected a finite number above 0")
    refuse_unfitted(store, split)
    dataset = _images(store)
    with Stages() as progress:
        path = write_report(store, split, dataset, progress=progress, price=price)
    print(path)
    return 0


def compare(request: Request) -> int:
    from datamodels.lasso import compare as compare_datamodels
    from datamodels.lasso import find, load, refuse_other_examples, split_and_output, staleness
    from datamodels.launch.report import write_comparison

    options = request.options
    a, b = stores = [open_setting(options[side], root=options[f"root_{side.lower()}"]) for side in "AB"]
    split = refuse_other_examples(a, b, options["split"], options["output"])
    one, other = fitted = [load(find(store, split)) for store in stores]
    for store, each in zip(stores, fitted, strict=True):
        for text in staleness(store, each.path) if each.report else ():
            notice(text)
    if options["out"]:  # of the page alone: datamodels of both would have the same name there
        a.derive_below(options["out"])
    dataset = _images(a, options.get("data", {}).get("root"))
    with Stages() as progress:
        found = compare_datamodels(one, other, k=options["k"], progress=progress)
    page = write_comparison(stores, split, dataset, fitted, found)
    about = {"a": str(a.layout.data), "b": str(b.layout.data)}
    about |= dict(zip(("split", "output"), split_and_output(split), strict=True))
    about |= found.to_json(options["per_target"])
    print(json.dumps({**about, "page": str(page)}) if options["json"] else f"{found}\n{page}")
    return 0


def _images(store: BaseStore, root: str | None = None) -> Dataset | None:
    """The images of a store, None where it has none or, told in a notice, where they are not here or are others."""
    try:
        return None if store.setting.trainer else store.dataset(root)
    except UserError as error:
        notice(f"no images in the report: {error}")
        return None


def export(request: Request) -> int:
    from datamodels.launch.export import TARGETS, options_of, write_export

    options = request.options
    if options["to"] is None:
        raise UserError(f"--to is missing: expected one of {', '.join(TARGETS)}")
    store = request.store()
    given = {key: options[key] for key in ("margin", "threshold", "k", "license") if options[key] is not None}
    if options["split"] or options["output"] or "split" in options_of(options["to"]):
        given["split"] = request.split(store.arrays)
    for key in ("rows", "checkpoints"):
        if ranges := request.ranges(key, store.rows):
            given[key] = sorted({row for rows in ranges for row in rows})
    with Stages() as progress:
        print(write_export(store, options["to"], given, progress))
    return 0
