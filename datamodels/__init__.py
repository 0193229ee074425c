"""Train many small models on random subsets of a data set, and predict their outputs from the subsets.

    import datamodels as dm

    store = dm.open("runs/digits_50pct")     # masks, margins, logits of every trained model
    fitted = dm.load(store)                  # weights of a fit that is there; dm.fit(store) makes one
    print(dm.evaluate(store, fitted).lds)    # rank correlation on held-out models

Importing this package imports nothing heavy: what a name needs is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodels.lasso import Datamodels, Evaluation, curve, evaluate, fit, load
    from datamodels.train import UserError, WorkError
    from datamodels.train.store import ReadableStore, open

_HOMES = {
    "datamodels.lasso": ("Datamodels", "Evaluation", "curve", "evaluate", "fit", "load"),
    "datamodels.train": ("UserError", "WorkError"),
    "datamodels.train.store": ("ReadableStore", "open"),
}

__all__ = [
    "Datamodels",
    "Evaluation",
    "ReadableStore",
    "UserError",
    "WorkError",
    "curve",
    "evaluate",
    "fit",
    "load",
    "open",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(home), name)
            return value
    raise AttributeError(f"module 'datamodels' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
