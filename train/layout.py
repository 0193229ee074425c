"""Where the files of a setting lie under a root: ROOT/{dataset}/data/, as published."""

import os
from dataclasses import dataclass
from pathlib import Path

from train.errors import UserError

ARRAY_NAMES = ("train_masks", "test_margins", "train_margins", "train_logits", "test_logits")


@dataclass(frozen=True)
class Layout:
    root: Path
    dataset: str
    pct: str

    @property
    def folder(self) -> Path:
        return self.root / self.dataset

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def array(self, name: str) -> Path:
        return self.data / f"{name}_{self.pct}pct.npy"

    @property
    def completed(self) -> Path:
        return self.array("_completed")

    @property
    def manifest(self) -> Path:
        return self.data / f"store_{self.pct}pct.json"

    @property
    def intent(self) -> Path:
        """A manifest that is not yet valid: an `init` that has begun."""
        return temporary(self.manifest)

    @property
    def journals(self) -> Path:
        return self.data / f"_journal_{self.pct}pct"

    @property
    def lock(self) -> Path:
        return self.data / f"_lock_{self.pct}pct"

    def refuse_links(self, *paths: Path) -> None:
        """Raises UserError where a symbolic link leads one of the paths out of the root."""
        root = os.path.realpath(self.root)
        for path in paths:
            real = os.path.realpath(path)
            if os.path.commonpath([root, real]) != root:
                raise UserError(f"{path} leads to {real}, expected a place below {root}: put --root there instead")

    @property
    def files(self) -> list[Path]:
        """Everything that `init` creates."""
        return [*map(self.array, ARRAY_NAMES), self.completed, self.manifest, self.journals, self.lock]


def temporary(path: Path) -> Path:
    """The name a file has until `init` is complete."""
    return path.with_name(path.name + ".init")
