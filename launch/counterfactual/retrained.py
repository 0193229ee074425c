"""Models trained on masks that an experiment asks for, each mask once, in stores of own masks that share a root.

The root is ROOT/{dataset}/counterfactual_{tag}. A store there has a file of masks NAME.npy, and a config NAME.yaml for
every other command; NAME, its tag, is a digest of what it holds. So the same call finds what it began, and another call
adds a store of those masks that no store has.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from datamodels.lasso import write_derived
from datamodels.launch.local import train_here
from datamodels.launch.progress import notice
from datamodels.launch.status import refuse_failures
from datamodels.launch.stop import Stop
from datamodels.train import Setting, header, identity, mapped, read_setting
from datamodels.train.own import declared
from datamodels.train.store import BaseStore, Layout, Store, check_space, create_store


@dataclass(frozen=True)
class Place:
    """Where the models of a mask are, done or not."""

    setting: Setting
    rows: NDArray[np.int64]


def digest(mask: NDArray[np.bool_]) -> str:
    """What tells a mask from others."""
    return hashlib.sha256(mask.tobytes()).hexdigest()


class Retrained:
    """The stores of models that are trained as those of a store, on other masks."""

    def __init__(self, store: BaseStore, smallest_base: int) -> None:
        """smallest_base: training examples in the smallest base set.

        All models take as many steps an epoch as it gives. Where a subset fills one batch less, they would otherwise
        take one step less, and what that does is no effect of the examples removed.
        """
        self.store, recipe = store, store.setting.recipe
        if not store.setting.trainer:
            steps = recipe.steps_per_epoch or max(1, smallest_base // recipe.batch)
            recipe = replace(recipe, steps_per_epoch=steps)
        outputs = replace(store.setting.outputs, train_logits=False, test_logits=False)
        self._usual = replace(store.setting, recipe=recipe, outputs=outputs)
        self.root = store.derived / f"counterfactual_{store.setting.file_tag}"

    def config(self, store: Store) -> Path:
        return self.root / f"{store.setting.tag}.yaml"

    def _setting(self, masks: Path, sha256: str | None, seed: int, rows: int, runs: int) -> Setting:
        """Row 0 has the first mask too: a setting has at least one row for estimation, which is too few to fit to."""
        return replace(
            self._usual,
            alpha=None,
            groups=None,
            groups_sha256=None,
            mask=str(masks),
            mask_sha256=sha256,
            tag=masks.stem,
            seed=seed,
            models=1,
            eval_models=rows - 1,
            runs_per_mask=runs,
        )

    def find(self) -> dict[str, Place]:
        """Where the models of every mask are, by its digest; of several places, the one with most of them."""
        found: dict[str, Place] = {}
        for config in sorted(self.root.glob("*.yaml")):
            kept = read_setting(config)
            path, runs = config.with_suffix(".npy"), kept.runs_per_mask
            setting = self._setting(path, kept.mask_sha256, kept.seed, kept.rows, runs)
            if identity(setting.to_dict()) != identity(kept.to_dict()):
                continue  # trained in another way
            masks, rows = mapped(path), dict[str, list[int]]()
            for first in range(1, len(masks), runs):
                rows.setdefault(digest(masks[first]), []).extend(range(first, first + runs))
            for name, numbers in rows.items():
                if name not in found or len(found[name].rows) < len(numbers):
                    found[name] = Place(setting, np.array(numbers))
        return found

    def create(self, counts: Mapping[str, int], mask_of: Callable[[str], NDArray[np.bool_]], runs: int) -> None:
        """Write masks and config of a store with so many models of each mask, which are multiples of `runs`."""
        content = json.dumps([identity(self._usual.to_dict()), runs, counts], default=str)
        sha256 = hashlib.sha256(content.encode()).hexdigest()
        path, shape = self.root / f"removed-{sha256[:10]}.npy", (1 + sum(counts.values()), self.store.n_train)
        check_space(self.root, shape[0] * shape[1])

        def pieces() -> Iterator[bytes]:
            yield header(shape, np.dtype(bool)) + mask_of(next(iter(counts))).tobytes()
            for name, count in counts.items():
                mask = mask_of(name).tobytes()
                yield from (mask for _ in range(count))

        write_derived(path, pieces())
        # What is fixed stays as in the rows of the fit; else models share no random numbers with these.
        seed = self._usual.seed if self._usual.fixed else int(sha256, 16) >> 193
        setting = self._setting(path, None, seed, shape[0], runs)
        text = yaml.safe_dump(setting.to_dict(), sort_keys=False)
        write_derived(path.with_suffix(".yaml"), text.encode())

    def open(self, setting: Setting) -> Store:
        """The store of a setting, created if it is not there yet."""
        layout = Layout(self.root, setting.dataset, setting.file_tag)
        if layout.manifest.exists():
            return Store.open(layout, setting)
        here = declared(setting) if setting.trainer else self.store.dataset().declared(setting.outputs)
        return create_store(layout, setting, here, notice)

    def train(self, store: Store, devices: Sequence[str] | None, workers: int | None) -> None:
        """Train what is missing. Raises Interrupted, UserError, WorkError."""
        if not len(store.missing()):
            return
        stop = Stop()
        train_here(store, str(self.root), range(store.rows), devices, workers, stop)
        stop.check()
        store.sync_flags()
        refuse_failures(store, f"datamodels train {self.config(store)} --root {self.root}")
