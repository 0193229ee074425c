"""What a setting takes before it is started: bytes, hours, money; and what a budget buys.

Hours and money come from measured rows only: those of the store that are done, or those that `--probe` trains.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodels.lasso import fit_bytes, path_of, read_report, split_and_output, split_name
from datamodels.lasso.evaluation import read_curve
from datamodels.lasso.gram import curve_disk_bytes, disk_bytes, has_few_rows
from datamodels.launch.plan.rates import Rate, main_device, probe, rate_of
from datamodels.launch.plan.sizes import arrays_of, store_as_it_is
from datamodels.launch.progress import notice
from datamodels.train import Setting, UserError, identity
from datamodels.train.data import load
from datamodels.train.own import declared
from datamodels.train.store import Layout, Store

Stores = dict[float | None, Store | None]
"""By alpha, None that of masks of one's own."""

ALPHAS = (0.1, 0.2, 0.5, 0.75)
"""The alphas of the published data; a budget is planned for each of them."""


@dataclass(frozen=True)
class Terms:
    """The options of `plan`. Hours are of one GPU, or of one CPU core where a CPU trains."""

    budget: float | None = None
    """Hours to spend."""
    money: float | None = None
    """Money to spend."""
    price: float | None = None
    """Price of an hour."""
    workers: int = 1
    """Groups of rows that a GPU trains at a time, as `train --workers`."""
    probe: int = 0
    """Groups of rows to train at each alpha, to measure their seconds."""

    def __post_init__(self) -> None:
        for key in ("budget", "money", "price"):
            value = getattr(self, key)
            if value is not None and not 0 < value < np.inf:
                raise UserError(f"--{key} is {value}, expected a finite number above 0")
        for key, least in (("workers", 1), ("probe", 0)):
            if getattr(self, key) < least:
                raise UserError(f"--{key} is {getattr(self, key)}, expected at least {least}")
        if self.money and not self.price:
            raise UserError("--money is given without --price: what does an hour cost?")
        if self.money and self.budget:
            raise UserError("--budget and --money are both given, expected one of them")

    @property
    def hours(self) -> float | None:
        """Hours that the budget pays for."""
        return self.money / self.price if self.money and self.price else self.budget


def plan(setting: Setting, layout: Layout, terms: Terms) -> dict[str, Any]:
    """What `plan --json` prints of a setting, whose store need not exist. Raises UserError, WorkError."""
    store = store_as_it_is(setting, layout)
    notices = list[str]()
    arrays = list(store.arrays.values()) if store else arrays_of(setting, notices)
    shapes = {array.name: array.shape for array in arrays}
    split = split_name(shapes, "test")
    n_train, n_test = shapes["train_masks"][1], shapes["_".join(split_and_output(split))][1]
    rows = store.rows if store else setting.rows
    missing = len(store.missing()) if store else rows
    models = rows - setting.eval_models

    if terms.hours and setting.alpha is None:
        raise UserError(f"--budget is for masks that follow alpha, but those of this setting are in {setting.mask}")
    others = [alpha for alpha in ALPHAS if terms.hours and alpha != setting.alpha]
    stores: Stores = {setting.alpha: store, **{alpha: _store_at(setting, layout, alpha) for alpha in others}}
    alphas = sorted(alpha for alpha in stores if alpha is not None)
    rates = _rates(setting, stores, terms)
    rate = rates.get(setting.alpha)

    per_row = _hours_a_row(setting, rate) if rate else None
    hours = missing * per_row if per_row else None
    for text in notices:  # not before all that may be refused: a refusal is one line
        notice(text)
    budget = [_bought(setting, alpha, rates.get(alpha), stores[alpha], terms.hours) for alpha in alphas if terms.hours]
    return {
        "dataset": setting.dataset,
        "alpha": setting.alpha,
        "models": models,
        "rows": rows,
        "missing": missing,
        "bytes": {array.name: array.bytes for array in arrays},
        "total_bytes": sum(array.bytes for array in arrays),
        "seconds_per_row": dataclasses.asdict(rate) if rate else None,
        "hours": hours,
        "hours_in_all": rows * per_row if per_row else None,
        "hours_of": ("GPU" if rate.on_gpu else "CPU core") if rate else None,
        "money": hours * terms.price if hours is not None and terms.price else None,
        "fit": _fit(store, split, models, n_train, n_test),
        "expected": _expected_lds(store, models),
        "budget_hours": terms.hours,
        "budget": budget,
    }


def _store_at(setting: Setting, layout: Layout, alpha: float) -> Store | None:
    """The store of the same setting at another alpha in the same root, if there is one; its models may differ."""
    setting = dataclasses.replace(setting, alpha=alpha)
    layout = Layout(layout.root, setting.dataset, setting.file_tag)
    if not layout.manifest.exists():
        return None
    store = Store.open(layout, mend=False)
    there = store.setting
    free = ("models", "eval_models", "runs_per_mask", "seed", "mask", "outputs", "fit", "eval")
    same = dataclasses.replace(setting, **{key: getattr(there, key) for key in free})
    return store if identity(same.to_dict()) == identity(there.to_dict()) else None


def _rates(setting: Setting, stores: Stores, terms: Terms) -> dict[float | None, Rate]:
    """Seconds a row by alpha, if measured, all on one device: the one that trained most of the rows."""
    if terms.probe:
        found = declared(setting) if setting.trainer else load(setting).declared(setting.outputs)
        settings = [dataclasses.replace(setting, alpha=alpha) for alpha in stores]
        return {trial.alpha: probe(trial, found, terms.probe, terms.workers) for trial in settings}
    done = {alpha: store for alpha, store in stores.items() if store and store.completed().any()}
    if not done:
        return {}
    device = main_device(next(iter(done.values())))
    rates = {alpha: rate_of(store, device, terms.workers) for alpha, store in done.items()}
    return {alpha: rate for alpha, rate in rates.items() if rate}


def _hours_a_row(setting: Setting, rate: Rate) -> float:
    """Hours of one GPU, or of one CPU core."""
    return rate.seconds / 3600 * (1 if rate.on_gpu else setting.recipe.threads)


def _bought(setting: Setting, alpha: float, rate: Rate | None, store: Store | None, hours: float) -> dict[str, Any]:
    """What the hours buy of a new setting at an alpha: whole groups of rows, the evaluation rows among them."""
    if rate is None:
        return {"alpha": alpha, "seconds_per_row": None, "models": None, "expected": None}
    group = setting.recipe.group
    rows = int(hours / _hours_a_row(setting, rate)) // group * group
    models = max(0, rows - setting.eval_models)
    expected = _expected_lds(store, models)
    return {"alpha": alpha, "seconds_per_row": dataclasses.asdict(rate), "models": models, "expected": expected}


def _expected_lds(store: Store | None, models: int) -> dict[str, Any] | None:
    """LDS of so many models, by the law of the curve that `eval --curve` kept for the test targets of the store."""
    found = read_curve(store, split_name(store.arrays, "test")) if store and models > 0 else None
    if not found or not found[0].law:
        return None
    curve, current = found
    assert curve.law is not None
    lds = float(curve.law.at(np.array([float(models)]))[0])
    return {"lds": lds, "error": curve.law.error, "measured_to": curve.points[-1].models, "current": current}


def _fit(store: Store | None, split: str, models: int, n_train: int, n_test: int) -> dict[str, Any]:
    """Bytes that a fit of the test targets takes, and the seconds that the last one took.

    `bytes` is its .pt and `statistics_bytes` the gram cache beside it; `curve_bytes` are freed at the end of
    `eval --curve`.
    """
    report = read_report(path_of(store, split)) if store else None
    return {
        "matrix_bytes": 0 if has_few_rows(models, n_train) else 4 * n_train**2,
        "bytes": fit_bytes(n_train, n_test),
        "statistics_bytes": disk_bytes(models, n_train, n_test),
        "curve_bytes": curve_disk_bytes(models, n_train),
        "seconds": sum(report["seconds"].values()) if report else None,
    }
