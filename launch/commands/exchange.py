"""Commands that bring rows in from elsewhere: merge, import, fetch."""

import json
import math
import shlex
from typing import Any

from datamodels.launch.progress import Stages, counted, notice
from datamodels.launch.request import Request
from datamodels.launch.status import describe, summary
from datamodels.launch.stop import EXIT_INTERRUPTED
from datamodels.train import UserError, expanded, read_setting


def merge(request: Request) -> int:
    """Bring the rows of other stores of the setting in, and print what became of them."""
    from datamodels.launch.worker import whereabouts
    from datamodels.train.exchange import merge as bring_in

    roots = [expanded(root, "SOURCE") for root in request.options["source"]]
    if not roots:
        raise UserError(
            "SOURCE is missing, expected the roots to bring in: datamodels merge CONFIG SOURCE... --root DST"
        )
    with Stages() as progress:
        store, sources = bring_in(request.layout, request.setting, roots, whereabouts(), progress, notice)
    if request.options["json"]:
        found = [{**vars(each), "source": str(each.source), "bad": sorted(each.bad)} for each in sources]
        print(json.dumps({**summary(store), "sources": found}))
    else:
        for each in sources:
            for row in each.differ:
                print(f"row {row} of {each.source} differs from that in {store.layout.data}, which stays")
            for row, reason in sorted(each.bad.items()):
                print(f"row {row} of {each.source} is left out: {reason}")
            told = [f"{counted(each.merged, 'row')} merged", f"{each.present:,} there already"]
            told += [f"{len(each.differ):,} different"] if each.differ else []
            told += [f"{len(each.bad):,} bad"] if each.bad else []
            told += [f"{each.failed:,} failed"] if each.failed else []
            told += [f"{len(each.held):,} in the hands of another process: merge again later"] if each.held else []
            print(f"{each.source}: {', '.join(told)}")
        print(describe(summary(store)))
    if any(each.differ or each.bad for each in sources):
        return 1
    return EXIT_INTERRUPTED if any(each.held for each in sources) else 0


def import_(request: Request) -> int:
    """Copy the arrays of SOURCE to a new root, and print the command that fits them."""
    from datamodels.launch.export import read_datamodels
    from datamodels.train.exchange import import_arrays, import_huggingface
    from datamodels.train.store import open_store

    options, names = request.options, {}
    for text in filter(None, (options["names"] or "").split(",")):
        name, _, file = text.partition("=")
        if not file or name in names:
            raise UserError(f"--names is {options['names']!r}, expected NAME=FILE[,NAME=FILE], each name once")
        names[name] = file
    keys: dict[str, Any] = {key: options[key] for key in ("dataset", "alpha", "tag", "eval_models") if key in options}
    source = expanded(options["SOURCE"], "SOURCE")
    whole = options["format"] == "huggingface"
    if whole and (names or keys != {"dataset": "imported"}):
        raise UserError("--format huggingface brings its own config, expected no option but --root")
    with Stages() as progress:
        if whole:
            layout, config = import_huggingface(source, request.root, progress)
        else:
            layout, config = import_arrays(source, options["format"], request.root, keys, names, progress, notice)
    store = open_store(layout, read_setting(config), notice=notice)
    size = sum(array.bytes for array in store.arrays.values())
    print(
        f"{layout.data}: {store.models} + {store.eval_models} rows, {store.setting.described}, "
        f"{', '.join(store.arrays)}, {size / 1e9:.3g} GB"
    )
    if whole:
        for path in read_datamodels(source, store):
            print(path)
    print(f"datamodels fit {shlex.quote(str(config))} --root {shlex.quote(str(request.root))}")
    return 0


def fetch(request: Request) -> int:
    """Print bytes and price of the published files; with --yes, download them and print the command that fits them."""
    from datamodels.train.exchange import BUCKET, PRICE, PRICE_SOURCE, fetch_published, published_files

    setting, options = request.setting, request.options
    price, rows = options["price"], request.ranges("rows", setting.rows)
    if price is not None and not 0 <= price < math.inf:
        raise UserError(f"--price is {price}, expected dollars for a GB, at least 0")
    files = published_files(request.layout, setting, options["what"].split(","), rows)
    for file in files:
        held = ", is there already" if file.path.exists() else f", {file.left / 1e9:.3f} left" if file.parts else ""
        print(f"{file.bytes / 1e9:9.3f} GB  s3://{BUCKET}/{file.key}{held}")
    left = sum(file.left for file in files)
    source = PRICE_SOURCE if price is None else "--price"
    price = PRICE if price is None else price
    cost = f"{left / 2**30 * price:,.2f} USD at {price:g} USD for 2^30 bytes out of AWS ({source})"
    print(f"{left / 1e9:9.3f} GB to download to {request.layout.folder}: about {cost}", flush=True)
    if not options["yes"]:
        print("nothing was downloaded: --yes downloads")
        return 0
    with Stages() as progress:
        config = fetch_published(request.layout, setting, files, rows, progress)
    print(f"datamodels fit {shlex.quote(str(config))} --root {shlex.quote(str(request.root))}")
    return 0
