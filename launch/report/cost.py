"""What the training of a store took: hours of a GPU or of CPU cores, money, and when."""

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from datamodels.launch.status import begun, device_of
from datamodels.train.store import BaseStore, Store


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

    @property
    def seconds(self) -> float:
        return self.gpu + self.cpu

    @property
    def seconds_per_row(self) -> str:
        return f"{self.seconds / self.rows:,.3g} s"

    @property
    def unit(self) -> str:
        """What the seconds are of: `a GPU`, `a CPU core`, `4 CPU cores`, or `a GPU or a CPU core`."""
        worker = "a CPU core" if self.threads == 1 else f"{self.threads} CPU cores"
        return " or ".join(["a GPU"] * bool(self.gpu) + [worker] * bool(self.cpu))

    @property
    def hours(self) -> str:
        """Hours of GPUs and of CPU cores."""
        found = [f"{self.gpu / 3600:,.3g} GPU-hours"] if self.gpu else []
        if self.cpu:
            workers = f" ({self.cpu / 3600:,.3g} of workers with {self.threads} cores)" if self.threads > 1 else ""
            found.append(f"{self.cpu * self.threads / 3600:,.3g} CPU core-hours{workers}")
        return " and ".join(found)

    def cost(self, price: float | None) -> str | None:
        """Money, at the price of a GPU hour or of a CPU core hour; None without one, or if both have trained."""
        if price is None or (self.gpu and self.cpu):
            return None
        money = price * (self.gpu or self.cpu * self.threads) / 3600
        return f"{money:,.2f}" if money >= 1 else f"{money:.2g}"


def work_of(store: BaseStore) -> Work | None:
    """The work of a store; None for published files, which do not record it, and if no row is done."""
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
