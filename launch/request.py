"""One command, as the user gave it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodels.launch.progress import notice
from datamodels.train import Setting, UserError
from datamodels.train.store import BaseStore, Layout, Store, open_store


@dataclass(frozen=True)
class Request:
    setting: Setting
    root: Path
    options: dict[str, Any]
    """The options that are no keys of a config, by name: `--retry-failed` is `retry_failed`."""
    explicit_models: bool
    """Whether --models was given on the command line."""

    @property
    def layout(self) -> Layout:
        return Layout(self.root, self.setting.dataset, self.setting.pct)

    def store(self) -> BaseStore:
        """The store, or the published files, for reading. Raises UserError."""
        return open_store(self.layout, self.setting, self.explicit_models, self.options.get("out"), notice)

    def own_store(self) -> Store:
        """The store, for training. Raises UserError where there is none, or published files alone."""
        return Store.open(self.layout, self.setting)

    def span(self, key: str, stop: int) -> tuple[int, int] | None:
        """The option `A:B` as numbers within [0, stop), or None where it is not given. Raises UserError."""
        if self.options.get(key) is None:
            return None
        text = str(self.options[key])
        first, colon, last = text.partition(":")
        numbers = text.isascii() and first.isdecimal() and last.isdecimal()
        if not (colon and numbers and int(first) < int(last) <= stop):
            raise UserError(f"--{key} is {text!r}, expected A:B with 0 <= A < B <= {stop}")
        return int(first), int(last)
