"""The command counterfactual."""

import json
import shlex

from datamodels.launch.progress import notice
from datamodels.launch.request import Request
from datamodels.train import UserError


def counterfactual(request: Request) -> int:
    from datamodels.launch.counterfactual import Experiment, told

    options = request.options
    experiment = Experiment(
        request.store(),
        _numbers(options, "targets"),
        options["count"],
        _numbers(options, "remove") or [],
        None if options["by"] is None else options["by"].split(","),
        options["base"],
        options["runs"],
        options["split"],
        options["output"],
    )
    if options["prepare"]:
        retrained = experiment.retrained
        for store in experiment.stores(experiment.models(experiment.subsets)).values():
            config, root = (shlex.quote(str(path)) for path in (retrained.config(store), retrained.root))
            if missing := len(store.missing()):
                print(f"datamodels submit {config} --root {root}")
            notice(f"{missing} of {store.rows} models to be trained, by this or by `datamodels train`")
        return 0
    devices = str(options["devices"]).split(",") if options["devices"] else None
    found = experiment.run(options["verify"], devices, options["workers"])
    for text in found.notices:
        notice(text)
    print(json.dumps(found.to_json()) if options["json"] else told(found.to_json()))
    return 0


def _numbers(options: dict[str, object], key: str) -> list[int] | None:
    """The option `3,17` as numbers, or None where it is not given. Raises UserError."""
    if (given := options[key]) is None:
        return None
    texts = str(given).split(",")
    if not all(text.isascii() and text.isdecimal() for text in texts):
        raise UserError(f"--{key} is {given!r}, expected numbers such as 3,17")
    return [*map(int, texts)]
