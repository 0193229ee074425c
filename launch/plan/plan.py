"""What a setting takes before it is started: bytes, hours, money; and what a budget buys.

Every figure says what it was measured from; where nothing was measured, it says what to run.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.lasso import fit_bytes, path_of, read_report
from datamodels.lasso.gram import curve_disk_bytes, disk_bytes
from datamodels.launch.lds_curve import kept
from datamodels.launch.plan.benchmarks import RESULTS, read_tables
from datamodels.launch.plan.rates import Rate, choose, maker_of, of_store, of_tables, probe
from datamodels.launch.plan.sizes import arrays_of, store_as_it_is
from datamodels.launch.progress import notice
from datamodels.train import Setting, UserError, from_dict, identity
from datamodels.train.data import load
from datamodels.train.store import Array, Layout, Store, read_manifest

ALPHAS = (0.1, 0.2, 0.5, 0.75)
"""Those of the published data; a budget is told for each."""


@dataclass(frozen=True)
class Terms:
    """What the user asks with. Hours are of a GPU, or of one CPU core where a CPU trains."""

    budget: float | None = None
    """Hours to spend."""
    money: float | None = None
    """Money to spend."""
    price: float | None = None
    """Price of an hour."""
    watts: float | None = None
    """Power drawn in that hour."""
    workers: int = 1
    """Groups of rows that a GPU has in training at once, as `train --workers` has them."""
    probe: int = 0
    """Groups of rows to train at each alpha in order to find out."""
    device: str | None = None
    """Device to plan for; None for the one that made the store's rows, else the one here."""
    results: Path = RESULTS
    """Folder with tables of benchmarks."""

    def __post_init__(self) -> None:
        for key in ("budget", "money", "price", "watts"):
            value = getattr(self, key)
            if value is not None and not 0 < value < np.inf:
                raise UserError(f"--{key} is {value}, expected a finite number above 0")
        if self.workers < 1 or self.probe < 0:
            key = "workers" if self.workers < 1 else "probe"
            raise UserError(f"--{key} is {getattr(self, key)}, expected at least {int(key == 'workers')}")
        if self.money and not self.price:
            raise UserError("--money is given without --price: what does an hour cost?")
        if self.money and self.budget:
            raise UserError("--budget and --money are both given, expected one of them")
        if self.device and self.probe:
            raise UserError("--probe measures the device here, expected no --device beside it")

    @property
    def hours(self) -> float | None:
        """Hours that the budget allows."""
        return self.money / self.price if self.money and self.price else self.budget


class Plan:
    """Figures for a setting and its store, which need not be there. Raises UserError, WorkError."""

    def __init__(self, setting: Setting, layout: Layout, terms: Terms) -> None:
        self.setting, self.layout, self.terms = setting, layout, terms
        self.store = store_as_it_is(setting, layout)
        notices = list[str]()
        self.arrays: Sequence[Array] = list(self.store.arrays.values()) if self.store else arrays_of(setting, notices)
        for text in notices:
            notice(text)
        self.rows = self.store.rows if self.store else setting.rows
        self.missing = len(self.store.missing()) if self.store else setting.rows
        shapes = {array.name: array.shape for array in self.arrays}
        self.n_train, self.n_test = shapes["train_masks"][1], shapes["test_margins"][1]
        self.alphas = sorted({setting.alpha, *(ALPHAS if terms.hours else ())})
        self.stores = {alpha: store for alpha in sorted({setting.alpha, *ALPHAS}) if (store := self._store_at(alpha))}
        self.tables = read_tables(terms.results)
        self.rates = self._rates()
        """Seconds a row, by alpha, as far as they are known."""

    def _store_at(self, alpha: float) -> Store | None:
        """The store in the root of the same setting at another alpha, however many models it has."""
        if alpha == self.setting.alpha:
            return self.store
        setting = dataclasses.replace(self.setting, alpha=alpha)
        layout = Layout(self.layout.root, setting.dataset, setting.pct)
        if not layout.manifest.exists():
            return None
        manifest = read_manifest(layout.manifest)
        there = from_dict(manifest.config)
        free = ("models", "eval_models", "runs_per_mask", "seed", "mask", "outputs", "fit", "eval")
        same = dataclasses.replace(setting, **{key: getattr(there, key) for key in free})
        if identity(same.to_dict()) != identity(there.to_dict()):
            return None
        return Store(layout, there, manifest)

    def _rates(self) -> dict[float, Rate]:
        workers = self.terms.workers
        if self.terms.probe:
            dataset = load(self.setting)
            settings = [dataclasses.replace(self.setting, alpha=alpha) for alpha in self.alphas]
            return {setting.alpha: probe(setting, dataset, self.terms.probe, workers) for setting in settings}
        device, on_gpu = self._device()
        known = of_tables(self.tables, self.setting, (self.n_train, self.n_test), device)
        for alpha, store in self.stores.items():
            known |= of_store(store, alpha, device, on_gpu)
        return choose(self.setting, self.n_train, known, self.alphas, workers if on_gpu else 1)

    def _device(self) -> tuple[str, bool]:
        """The device to plan for, and whether it is a GPU."""
        for store in (self.store, *self.stores.values()):
            if store and (found := maker_of(store)) and self.terms.device in (None, found[0]):
                return found
        from datamodels.train.trainer import device_name, on_gpu, pick_device

        here = pick_device(self.setting.recipe)
        name = self.terms.device or device_name(here)
        return name, next((table.on_gpu for table in self.tables if table.device == name), on_gpu(here))

    @property
    def rate(self) -> Rate | None:
        return self.rates.get(self.setting.alpha)

    @property
    def models(self) -> int:
        return self.rows - self.setting.eval_models

    def hours(self, rate: Rate, rows: int) -> float:
        """Hours of a GPU, or of a CPU core, that rows take."""
        return rows * rate.seconds / 3600 * self._units(rate)

    def _units(self, rate: Rate) -> int:
        """GPUs or CPU cores that are busy in a rate's seconds."""
        return 1 if rate.on_gpu else self.setting.recipe.threads

    def fit(self) -> dict[str, Any]:
        """What a fit of the test examples takes in bytes, and the seconds that one of this store took.

        On disk that is `bytes`, its .pt, and `statistics_bytes`, sums that are kept, beside the store's own, and
        `curve_bytes` while an `eval --curve` runs.
        """
        report = read_report(path_of(self.store, "test")) if self.store else None
        return {
            "matrix_bytes": 4 * self.n_train**2,
            "bytes": fit_bytes(self.n_train, self.n_test),
            "statistics_bytes": disk_bytes(self.models, self.n_train, self.n_test),
            "curve_bytes": curve_disk_bytes(self.n_train),
            "seconds": sum(report["seconds"].values()) if report else None,
        }

    def lds(self, alpha: float, models: int) -> dict[str, Any] | None:
        """LDS to expect of so many models, by the law of the curve that `eval --curve` kept at that alpha."""
        found = kept(self.stores[alpha], "test") if alpha in self.stores and models > 0 else None
        law = found[0].law if found else None
        if found is None or law is None:
            return None
        curve, current = found
        lds = float(law.at(np.array([float(models)]))[0])
        return {"lds": lds, "error": law.error, "measured_to": curve.points[-1].models, "current": current}

    def purchase(self, alpha: float, hours: float) -> dict[str, Any]:
        """What hours buy at an alpha, from nothing: whole groups, the setting's evaluation models among them."""
        rate, group = self.rates.get(alpha), self.setting.recipe.group
        if rate is None:
            return {"alpha": alpha, "seconds_per_row": None, "models": None, "expected": None}
        rows = int(hours * 3600 / (rate.seconds * self._units(rate))) // group * group
        models = max(0, rows - self.setting.eval_models)
        return {
            "alpha": alpha,
            "seconds_per_row": dataclasses.asdict(rate),
            "models": models,
            "expected": self.lds(alpha, models),
        }

    def _tabled(self) -> list[str]:
        """Devices that a table has seconds of, for this data set."""
        rows = ((table.device, row.measured["dataset"]) for table in self.tables for row in table.rows)
        return sorted({device for device, dataset in rows if dataset == self.setting.dataset})

    def to_json(self) -> dict[str, Any]:
        rate, terms = self.rate, self.terms
        hours = self.hours(rate, self.missing) if rate else None
        return {
            "dataset": self.setting.dataset,
            "alpha": self.setting.alpha,
            "models": self.models,
            "rows": self.rows,
            "missing": self.missing,
            "bytes": {array.name: array.bytes for array in self.arrays},
            "total_bytes": sum(array.bytes for array in self.arrays),
            "seconds_per_row": dataclasses.asdict(rate) if rate else None,
            "hours": hours,
            "hours_in_all": self.hours(rate, self.rows) if rate else None,
            "hours_of": ("GPU" if rate.on_gpu else "CPU core") if rate else None,
            "money": hours * terms.price if hours is not None and terms.price else None,
            "kwh": hours * terms.watts / 1000 if hours is not None and terms.watts else None,
            "tables_of": [] if rate else self._tabled(),
            "fit": self.fit(),
            "expected": self.lds(self.setting.alpha, self.models),
            "budget_hours": terms.hours,
            "budget": [self.purchase(alpha, terms.hours) for alpha in self.alphas] if terms.hours else [],
        }
