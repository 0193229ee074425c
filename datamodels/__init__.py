"""Train many small models on random subsets of a data set, and predict their outputs from the subsets.

    import datamodels as dm

    store = dm.open("runs/digits_50pct")     # masks, margins, logits of every trained model
    fitted = dm.load(store)                  # the datamodels of a fit; dm.fit(store) makes them
    print(dm.evaluate(store, fitted).lds)    # rank correlation with models that no datamodel was fitted to
    print(dm.curve(store).answer())          # how many models are enough
    print(fitted.components(5).shares)       # directions in which the targets' weights differ most
    print(dm.counterfactual(store))          # trains models without the examples of the largest weights

Importing this package imports nothing heavy: the module of a name is imported when the name is first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodels.lasso import (
        Comparison,
        Curve,
        Datamodels,
        Evaluation,
        compare,
        curve,
        evaluate,
        evaluate_arrays,
        fit,
        fit_arrays,
        load,
    )
    from datamodels.launch.counterfactual import Counterfactuals, counterfactual
    from datamodels.train import UserError, WorkError
    from datamodels.train.store import BaseStore, open

    __version__: str

__all__ = [
    "BaseStore",
    "Comparison",
    "Counterfactuals",
    "Curve",
    "Datamodels",
    "Evaluation",
    "UserError",
    "WorkError",
    "__version__",
    "compare",
    "counterfactual",
    "curve",
    "evaluate",
    "evaluate_arrays",
    "fit",
    "fit_arrays",
    "load",
    "open",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return version("datamodels-harness")
        except PackageNotFoundError:
            return "unknown"  # a source tree that was never installed
    if name in ("UserError", "WorkError"):
        module = "datamodels.train"
    elif name in ("BaseStore", "open"):
        module = "datamodels.train.store"
    elif name in ("Counterfactuals", "counterfactual"):
        module = "datamodels.launch.counterfactual"
    elif name in __all__:
        module = "datamodels.lasso"
    else:
        raise AttributeError(f"module 'datamodels' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
