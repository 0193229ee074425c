"""One command, as the user gave it."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodels.lasso import split_name
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
        return Layout(self.root, self.setting.dataset, self.setting.file_tag)

    def store(self) -> BaseStore:
        """The store, or the published files, for reading. Raises UserError."""
        return open_store(self.layout, self.setting, self.explicit_models, self.options.get("out"), notice)

    def own_store(self) -> Store:
        """The store, for training. Raises UserError where there is none, or published files alone."""
        return Store.open(self.layout, self.setting)

    def split(self, arrays: Collection[str]) -> str:
        """The targets that --split and --output name, as `split_name` names them. Raises UserError.

        arrays: names of those that the store has.
        """
        return split_name(arrays, self.options.get("split") or "test", self.options["output"])

    def span(self, key: str, stop: int) -> tuple[int, int] | None:
        """The option `A:B` as numbers within [0, stop), or None where it is not given. Raises UserError."""
        if (found := self.ranges(key, stop)) is None:
            return None
        if len(found) > 1:
            raise UserError(f"--{key} is {self.options[key]!r}, expected a single range A:B")
        return found[0].start, found[0].stop

    def ranges(self, key: str, stop: int) -> list[range] | None:
        """The option `A:B,C:D` as ranges within [0, stop), or None where it is not given. Raises UserError."""
        if self.options.get(key) is None:
            return None
        found, given = [], str(self.options[key])
        for text in given.split(","):
            first, _, last = text.partition(":")
            numbers = text.isascii() and first.isdecimal() and last.isdecimal()
            if not (numbers and int(first) < int(last) <= stop):
                raise UserError(f"--{key} is {given!r}, expected A:B with 0 <= A < B <= {stop}")
            found.append(range(int(first), int(last)))
        return found
