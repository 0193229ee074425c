"""Ask datamodels what removing examples does, and train models without them to see."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import read_margins, split_and_output, split_name, staleness, target_count
from datamodels.lasso.evaluation import protocol
from datamodels.launch.counterfactual.result import Counterfactuals, Subsets, write_result
from datamodels.launch.counterfactual.retrained import Place, Retrained, digest
from datamodels.launch.counterfactual.subsets import BASELINES, Question, Subset
from datamodels.train import UserError, WorkError
from datamodels.train.store import BaseStore, Store

BASE_RUNS = 5
"""Models of a base set for each model of a subset, since many subsets are compared with them."""


def counterfactual(
    store: BaseStore,
    targets: Sequence[int] | None = None,
    *,
    count: int = 20,
    remove: Sequence[int] = (1, 2, 5, 10, 20, 50),
    by: Sequence[str | Path] | None = None,
    base: str = "full",
    runs: int = 20,
    verify: bool = False,
    split: str = "test",
    output: str | None = None,
    devices: Sequence[str] | None = None,
    workers: int | None = None,
) -> Counterfactuals:
    """What datamodels say that removing training examples does to targets, and what models trained without them say.

        found = dm.counterfactual(store, targets=[3, 17], remove=[1, 5], by=["datamodel", "random"])
        print(found.subsets.predicted, found.subsets.measured, found.subsets.agreement(by="datamodel"))

    targets: columns of the output; None for `count` of them, evenly spaced. remove: how many examples. by: how they are
    chosen, `datamodel`, `random`, `same-class`, or files of scores [N_train, T]; None for the first three, or two where
    there are no labels. base: what is removed from, the `full` training set, or for `alpha` masks of evaluation rows,
    over which changes are averaged. runs: models of each subset, and five times as many of what it is removed from.
    verify: also remove as few as are predicted to turn a target's margin negative. devices, workers: as for `train`.

    Trains what is missing, in stores below {store.derived}/counterfactual_{tag}. Raises UserError, WorkError,
    Interrupted.
    """
    experiment = Experiment(store, targets, count, remove, by, base, runs, split, output)
    return experiment.run(verify, devices, workers)


class Experiment:
    """What a call of `counterfactual` asks, and the models that answer it. Raises UserError."""

    def __init__(
        self,
        store: BaseStore,
        targets: Sequence[int] | None,
        count: int,
        remove: Sequence[int],
        by: Sequence[str | Path] | None,
        base: str,
        runs: int,
        split: str,
        output: str | None,
    ) -> None:
        self.store, self.split, self.base, self.runs = store, split_name(store.arrays, split, output), base, runs
        total, sizes = target_count(store, self.split), sorted({*remove})
        if count < 1 or runs < 2:
            raise UserError(f"--count is {count} and --runs {runs}, expected at least 1 and 2")
        if not sizes or sizes[0] < 1:
            raise UserError(f"--remove is {[*remove]}, expected numbers of at least 1")
        if targets is None:
            targets = np.linspace(0, total - 1, min(count, total)).astype(np.int64).tolist()
        if not targets or not all(0 <= target < total for target in targets):
            raise UserError(f"--targets is {[*targets]}, expected numbers from 0 to {total - 1}")
        self.targets = np.array([*dict.fromkeys(targets)], np.int64)
        self.question = Question(store, self.split, self.targets, by, base, runs)
        self.subsets, self.notes = self.question.subsets(sizes)
        self.notes += staleness(store, self.question.datamodels.path)
        self.bases = [*self.question.masks(np.empty(0, np.int64))]
        self.runs_per_base = -(-runs // len(self.bases))
        self.retrained = Retrained(store, int(min(base.sum() for base in self.bases)))

    def models(self, subsets: Sequence[Subset]) -> dict[str, Place]:
        """Where the models of the base sets, and of these without some subsets, are by the digests of their masks.

        Writes masks and config of a store for those of which there are too few, done or not.
        """
        base = np.empty(0, np.int64)
        masked = {
            digest(mask): (removed, at)
            for removed in (base, *(each.removed for each in subsets), base)  # first, and whatever leaves it as it is
            for at, mask in enumerate(self.question.masks(removed))
        }
        each = self.runs_per_base
        counts = {name: each * (BASE_RUNS if removed is base else 1) for name, (removed, _) in masked.items()}
        there = self.retrained.find()
        lacking = {name: count for name, count in counts.items() if name not in there or len(there[name].rows) < count}
        if lacking:

            def mask_of(name: str) -> NDArray[np.bool_]:
                removed, at = masked[name]
                return next(itertools.islice(self.question.masks(removed), at, None))

            self.retrained.create(lacking, mask_of, each)
            there = self.retrained.find()
        return {name: there[name] for name in counts}

    def stores(self, models: Mapping[str, Place]) -> dict[str, Store]:
        """The stores that models are in, by tag."""
        settings = {place.setting.file_tag: place.setting for place in models.values()}
        return {tag: self.retrained.open(setting) for tag, setting in settings.items()}

    def run(self, verify: bool, devices: Sequence[str] | None, workers: int | None) -> Counterfactuals:
        """Train what is missing, measure, and keep the result for the report."""
        question, outcomes = self.question, self._outcomes(self.subsets, devices, workers)
        base = np.stack([outcomes[digest(base)] for base in self.bases])  # [B, 2, t]
        if np.isnan(base).any():
            raise WorkError(f"fewer than 2 of {BASE_RUNS * self.runs_per_base} models of a base set are done")
        error = np.sqrt(base[:, 1].sum(axis=0)) / len(base)
        margins, brittle, verified = base[:, 0].mean(axis=0), {}, None
        if split_and_output(self.split)[1] == "margins":
            for by in question.by:
                flips = [margin + question.predicted(by, place) < 0 for place, margin in enumerate(margins)]
                first = [int(np.argmax(flip)) + 1 if flip.any() else -1 for flip in flips]
                brittle[by] = np.where(margins > 0, first, 0)
        if verify:
            some = {by: enumerate(ks.tolist()) for by, ks in brittle.items() if by not in BASELINES}
            chosen = [question.subset(place, by, k) for by, ks in some.items() for place, k in ks if k > 0]
            verified = self._changes(chosen, self._outcomes(chosen, devices, workers))
        fitted = question.datamodels.report or {}
        about = {
            **protocol(self.store, self.split),
            "base": self.base,
            "base_sets": len(self.bases),
            "runs": len(self.bases) * self.runs_per_base,
            "base_runs": len(self.bases) * self.runs_per_base * BASE_RUNS,
            "weights": str(question.datamodels.path),
            "fit_models": fitted.get("rows", {}).get("used"),
            "stamp": fitted.get("stamp"),
        }
        subsets = self._changes(self.subsets, outcomes)
        found = Counterfactuals(self.targets, margins, error, subsets, brittle, verified, about, tuple(self.notes))
        write_result(self.store, self.split, found)
        return found

    def _outcomes(
        self, subsets: Sequence[Subset], devices: Sequence[str] | None, workers: int | None
    ) -> dict[str, NDArray[np.float64]]:
        """By the digest of each mask, the mean output of its models for the targets and its variance: [2, t].

        Trains what is missing. nan where no model is done, and no variance where a single one is.
        """
        models = self.models(subsets)
        stores, found = self.stores(models), {}
        for store in stores.values():
            self.retrained.train(store, devices, workers)
        for name, place in models.items():
            store, found[name] = stores[place.setting.file_tag], np.full((2, len(self.targets)), np.nan)
            rows = place.rows[store.completed()[place.rows]]
            if len(rows):
                values = read_margins(store, self.split, rows, self.targets)
                found[name][0] = values.mean(axis=0)
            if len(rows) > 1:
                found[name][1] = values.var(axis=0, ddof=1) / len(rows)
        return found

    def _changes(self, subsets: Sequence[Subset], outcomes: Mapping[str, NDArray[np.float64]]) -> Subsets:
        """Subsets with the changes measured and predicted; those left out whose models failed."""
        base, changes = np.stack([outcomes[digest(base)] for base in self.bases]), np.zeros((len(subsets), 2))
        single = BASE_RUNS * base[:, 1].mean(axis=0)  # what a model a mask varies by, as far as those of base sets tell
        for row, each in enumerate(subsets):
            for at, mask in enumerate(self.question.masks(each.removed)):
                if not np.array_equal(mask, self.bases[at]):
                    mean, variance = outcomes[digest(mask)][:, each.place]
                    variance = single[each.place] if np.isnan(variance) else variance
                    changes[row] += mean - base[at, 0, each.place], variance + base[at, 1, each.place]
        changes[:, 1] = np.sqrt(changes[:, 1])
        changes /= len(base)
        done = np.isfinite(changes.sum(axis=1))
        kept = [each for each, is_done in zip(subsets, done, strict=True) if is_done]
        if len(kept) < len(subsets):
            self.notes.append(f"{len(subsets) - len(kept)} subsets are left out, since models of them failed")
        return Subsets(
            target=self.targets[[each.place for each in kept]],
            k=np.array([each.k for each in kept], np.int64),
            by=np.array([each.by for each in kept], np.str_),
            removed=tuple(each.removed for each in kept),
            predicted=np.array([self.question.predicted(each.by, each.place)[len(each.removed) - 1] for each in kept]),
            measured=changes[done, 0],
            standard_error=changes[done, 1],
        )
