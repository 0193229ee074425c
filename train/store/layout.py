"""Where the files of a setting lie: ROOT/{dataset}/data/, as docs/format.md describes them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodels.train.errors import UserError
from datamodels.train.outputs import is_output

UNFINISHED = ".init"

FIRST_ARRAYS = ("train_masks", "test_margins", "train_margins")


@dataclass(frozen=True)
class Layout:
    root: Path
    dataset: str
    tag: str
    """What the names of its files end in: `50pct`, or the setting's own tag."""

    @property
    def folder(self) -> Path:
        return self.root / self.dataset

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def array(self, name: str) -> Path:
        return self.data / f"{name}_{self.tag}.npy"

    @property
    def arrays(self) -> dict[str, Path]:
        """The files of masks, margins and other outputs that exist, by name."""
        return {name: path for name in self._names() if (path := self.array(name)).exists()}

    @property
    def published(self) -> dict[str, Path]:
        """The arrays of published files, by name: `arrays`, links that lead nowhere, and archives (.npz)."""
        found: dict[str, Path] = {}
        for name in self._names():
            for each in (self.array(name), self.array(name).with_suffix(".npz")):
                if os.path.lexists(each):
                    found.setdefault(name, each)
        return found

    def _names(self) -> list[str]:
        """Names of arrays that may be there: masks, margins, and outputs whose file, or archive, is in the folder."""
        files = sorted(path.name[: -len(".npy")] for path in self.data.glob(f"*_{self.tag}.np[yz]"))
        outputs = filter(is_output, (name.removesuffix(f"_{self.tag}") for name in files))
        return list(dict.fromkeys([*FIRST_ARRAYS, *outputs]))

    @property
    def groups(self) -> Path:
        """A copy of the user's file, for `mask: groups`."""
        return self.array("groups")

    def names(self, split: str) -> Path:
        """Names or texts of the data set's examples, one a line; the settings of a folder share them."""
        return self.data / f"{split}_names.txt"

    @property
    def completed(self) -> Path:
        return self.array("_completed")

    @property
    def other_flags(self) -> Path:
        """What MadryLab/datamodels calls `completed`."""
        return self.data / "_completed.npy"

    @property
    def manifest(self) -> Path:
        return self.data / f"store_{self.tag}.json"

    @property
    def intents(self) -> list[Path]:
        """Manifests under a name that is not final: each is an `init` that has begun."""
        return sorted(self.data.glob(f"{self.manifest.name}.*{UNFINISHED}"))

    @property
    def journals(self) -> Path:
        return self.data / f"_journal_{self.tag}"

    @property
    def lock(self) -> Path:
        return self.data / f"_lock_{self.tag}"

    def refuse_links(self, only_read: Sequence[Path] = ()) -> None:
        """Raises UserError where a symbolic link leads out of the root, or a file is a pipe or a device.

        only_read: folders in which nothing is written; they, and what is in them, may be links to anywhere.
        """
        root = os.path.realpath(self.root)
        paths = [self.folder]
        for folder in (self.folder, self.data, self.folder / "datamodels"):
            try:
                paths += sorted(folder.iterdir())
            except OSError:
                continue  # whoever needs what is in it will say so
        for path in paths:
            leads_out = path.is_symlink() and os.path.commonpath([root, real := os.path.realpath(path)]) != root
            if leads_out and path not in only_read and path.parent not in only_read:
                raise UserError(f"{path} leads to {real}, expected a place below {root}: put --root there instead")
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise UserError(f"{path} is neither a file nor a folder: remove it")

    def refuse_orphans(self) -> None:
        """Raises UserError for parts of a store without its manifest."""
        for path in self.intents:
            raise UserError(f"{path} is of an interrupted `init`: run `datamodels init` again")
        for path in (self.journals,) if self.published else (self.completed, self.journals):
            if path.exists():
                raise UserError(f"{path} was found without {self.manifest.name}: restore the manifest from a copy")

    def refuse_published(self) -> None:
        """Raises UserError for arrays without a manifest: no row is trained into them."""
        for path in self.published.values():
            raise UserError(
                f"{path} exists without a manifest: published files are never overwritten, use another --root"
            )


def temporary(path: Path, attempt: str) -> Path:
    """Return the name that a file has until its `init` is complete."""
    return path.with_name(f"{path.name}.{attempt}{UNFINISHED}")
