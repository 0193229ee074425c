"""Notices and progress on standard error: a bar on a terminal, else a line every half minute."""

import sys
import time


def notice(text: str) -> None:
    """Print one line for people on standard error; standard output is kept for results."""
    print(text, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds for people: `42 s`, `3 min 20 s`, `5 h 12 min`, `3 d 4 h`."""
    total = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= size:
            return f"{total // size} {unit} {total % size // smaller_size} {smaller}"
    return f"{total} s"


def counted(number: int, thing: str) -> str:
    """`1 target`, `2,000 targets`."""
    return f"{number:,} {thing}" if number == 1 else f"{number:,} {thing}s"


class Progress:
    """Counts `total` things of a kind. Use as a context manager; call with how many more are done."""

    def __init__(self, what: str, total: int, interval: float = 30.0) -> None:
        self.what, self.total, self.done = what, total, 0
        self._started = self._told = time.monotonic()
        self._told_done = 0
        self._interval = interval
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, desc=what, unit="", smoothing=0.1, dynamic_ncols=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __call__(self, count: int) -> None:
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._told >= self._interval:
            self._tell()

    def expect(self, total: int) -> None:
        """Count up to another total from now on."""
        self.total = total
        if self._bar is not None:
            self._bar.total = total

    def _tell(self) -> None:
        self._told, self._told_done = time.monotonic(), self.done
        elapsed = self._told - self._started
        rate = self.done / elapsed if elapsed > 0 else 0.0
        left = f", about {duration((self.total - self.done) / rate)} left" if 0 < self.done < self.total else ""
        shown = f"{rate:,.0f} a second" if rate >= 100 else f"{rate * 3600:,.0f} an hour"
        notice(f"{self.what}: {self.done} of {self.total}, {shown}{left}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.done > self._told_done:
            self._tell()


class Stages:
    """Progress of work that reports (stage, done, total); one Progress a stage."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def __enter__(self) -> "Stages":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if self._progress is None or self._progress.what != stage:
            self.close()
            self._progress = Progress(stage, total)
        self._progress.expect(total)
        self._progress(done - self._progress.done)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None
