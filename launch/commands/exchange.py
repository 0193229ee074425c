"""Commands that bring rows in from elsewhere: import."""

import shlex
from typing import Any

from datamodels.launch.progress import Stages, notice
from datamodels.launch.request import Request
from datamodels.train import UserError, expanded, read_setting


def import_(request: Request) -> int:
    """Copy the arrays of SOURCE to a new root, and print the command that fits them."""
    from datamodels.train.exchange import import_arrays
    from datamodels.train.store import open_store

    options, names = request.options, {}
    for text in filter(None, (options["names"] or "").split(",")):
        name, _, file = text.partition("=")
        if not file or name in names:
            raise UserError(f"--names is {options['names']!r}, expected NAME=FILE[,NAME=FILE], each name once")
        names[name] = file
    keys: dict[str, Any] = {key: options[key] for key in ("dataset", "alpha", "tag", "eval_models") if key in options}
    source = expanded(options["source"], "SOURCE")
    with Stages() as progress:
        layout, config = import_arrays(source, options["format"], request.root, keys, names, progress, notice)
    store = open_store(layout, read_setting(config), notice=notice)
    size = sum(array.bytes for array in store.arrays.values())
    print(
        f"{layout.data}: {store.models} + {store.eval_models} rows, {store.setting.described}, "
        f"{', '.join(store.arrays)}, {size / 1e9:.3g} GB"
    )
    print(f"datamodels fit {shlex.quote(str(config))} --root {shlex.quote(str(request.root))}")
    return 0
