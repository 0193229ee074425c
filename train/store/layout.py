"""Where the files of a setting lie under a root: ROOT/{dataset}/data/, as published."""

import os
from dataclasses import dataclass
from pathlib import Path

from datamodels.train.errors import UserError

UNFINISHED = ".init"

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
    def arrays(self) -> dict[str, Path]:
        """The published files, or a store's, that are there, by name."""
        return {name: path for name in ARRAY_NAMES if (path := self.array(name)).exists()}

    @property
    def completed(self) -> Path:
        return self.array("_completed")

    @property
    def manifest(self) -> Path:
        return self.data / f"store_{self.pct}pct.json"

    @property
    def intents(self) -> list[Path]:
        """Manifests that are not yet valid: each an `init` that has begun."""
        return sorted(self.data.glob(f"{self.manifest.name}.*{UNFINISHED}"))

    @property
    def journals(self) -> Path:
        return self.data / f"_journal_{self.pct}pct"

    @property
    def lock(self) -> Path:
        return self.data / f"_lock_{self.pct}pct"

    def refuse_links(self) -> None:
        """Raises UserError where a symbolic link leads out of the root, or one of its files is a pipe or a device."""
        root = os.path.realpath(self.root)
        for path in [self.folder, *_entries(self.folder), *_entries(self.data), *_entries(self.folder / "datamodels")]:
            if path.is_symlink() and os.path.commonpath([root, real := os.path.realpath(path)]) != root:
                raise UserError(f"{path} leads to {real}, expected a place below {root}: put --root there instead")
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise UserError(f"{path} is neither a file nor a folder: take it away")


def temporary(path: Path, attempt: str) -> Path:
    """The name a file has until its `init` is complete."""
    return path.with_name(f"{path.name}.{attempt}{UNFINISHED}")


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing where it cannot be looked into: who needs it will tell."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
