"""What the training of a store took: hours of a GPU or of CPU cores, money, and when."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from datamodels.launch.progress import duration
from datamodels.launch.status import begun, device_of
from datamodels.launch.text import counted
from datamodels.train.store import ReadableStore, Store


@dataclass(frozen=True)
class Work:
    """What the rows that are done took in training and evaluation, by the journals."""

    gpu: float
    """Seconds of a GPU; rows that it trains at the same time share them."""
    cpu: float
    """Seconds of a CPU worker, which keeps `threads` cores busy."""
    threads: int
    rows: int
    first: datetime
    """When the first row was begun."""
    last: datetime
    """When the last row was done."""

    def headline(self, price: float | None) -> tuple[str, str, str]:
        money = self.money(price)
        more = f"of {self._unit}, {self._per_row} a model"
        return "Training", duration(self.gpu + self.cpu), more if money is None else f"{more}; {_amount(money)} in all"

    def table(self, price: float | None, machines: int) -> list[tuple[str, str]]:
        elapsed = duration((self.last - self.first).total_seconds())
        dates = " to ".join(f"{time:%Y-%m-%d %H:%M}" for time in (self.first, self.last))
        where = counted(machines, "machine")
        return [
            ("Cost", f"{self._hours}, {self._per_row} of {self._unit} a model; rows that failed are not counted"),
            *self._priced(price),
            ("Time", f"{elapsed} from the first row to the last, pauses included; {dates} UTC, on {where}"),
        ]

    def money(self, price: float | None) -> float | None:
        """At the price of a GPU hour, or of a CPU core hour; None without one, or where it cannot be that of both."""
        if price is None or (self.gpu and self.cpu):
            return None
        return price * (self.gpu or self.cpu * self.threads) / 3600

    def _priced(self, price: float | None) -> list[tuple[str, str]]:
        if price is None:
            return []
        money, what = self.money(price), "a GPU" if self.gpu else "a CPU core"
        if money is None:
            return [("Money", f"not known: {price:g} an hour is not the price of both a GPU and a CPU core")]
        return [("Money", f"{_amount(money)}, at {price:g} for an hour of {what}")]

    @property
    def _per_row(self) -> str:
        return f"{(self.gpu + self.cpu) / self.rows:,.3g} s"

    @property
    def _hours(self) -> str:
        found = [f"{self.gpu / 3600:,.3g} GPU-hours"] if self.gpu else []
        if self.cpu:
            workers = f" ({self.cpu / 3600:,.3g} of workers with {self.threads} cores)" if self.threads > 1 else ""
            found.append(f"{self.cpu * self.threads / 3600:,.3g} CPU core-hours{workers}")
        return " and ".join(found)

    @property
    def _unit(self) -> str:
        """What the seconds are of."""
        worker = "a CPU core" if self.threads == 1 else f"{self.threads} CPU cores"
        return " or ".join(["a GPU"] * bool(self.gpu) + [worker] * bool(self.cpu))


def _amount(money: float) -> str:
    return f"{money:,.2f}" if money >= 1 else f"{money:.2g}"


def work_of(store: ReadableStore) -> Work | None:
    """None for published files, which say nothing of it, and where no row is done."""
    if not isinstance(store, Store) or not store.completed().any():
        return None
    done, states = store.completed(), store.states
    seconds, times, journals = states.seconds[done].astype(np.float64), states.time[done], states.journal[done]
    on_gpu = np.array([device_of(reader.provenance)[1] for reader in states.readers])[journals]
    return Work(
        gpu=float(seconds[on_gpu].sum()),
        cpu=float(seconds[~on_gpu].sum()),
        threads=store.setting.recipe.threads,
        rows=len(seconds),
        first=datetime.fromtimestamp(float(begun(store, done).min()), UTC),
        last=datetime.fromtimestamp(float(times.max()), UTC),
    )
