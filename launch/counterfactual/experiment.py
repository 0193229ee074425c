"""Ask datamodels what removing examples does, and train models without them to see."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import is_fresh, split_and_output, split_name, target_count
from datamodels.lasso.evaluation import protocol
from datamodels.launch.counterfactual.result import Counterfactuals, Subsets, write_result
from datamodels.launch.counterfactual.retrained import Outcome, Place, Retrained, digest, outcome
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
    there are no labels. base: what is removed from, the `full` training set, or for `alpha` masks of evaluation rows.
    runs: models of each subset, and five times as many of each base set. verify: also remove as few as are predicted to
    turn a target's margin negative. devices, workers: as for the command `train`.

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
        self.question = Question(store, self.split, self.targets, by, base)
        self.subsets, self.notes = self.question.subsets(sizes)
        path = self.question.datamodels.path
        if not is_fresh(store, path):
            self.notes.append(f"{path} was fitted on other rows or with other options than today's")
        places = range(min(len(self.targets), len(self.question.bases)))
        self.bases = [self.question.subset(place, "random", 0) for place in places]
        sizes = [int(self.question.mask(base).sum()) for base in self.bases]
        self.retrained = Retrained(store, min(sizes))

    def models(self, subsets: Sequence[Subset]) -> dict[str, Place]:
        """Where the models of the base sets and of some subsets are, done or not, by the digests of their masks.

        Writes masks and config of a store for those of which there are too few.
        """
        masked = {digest(self.question.mask(subset)): subset for subset in (*self.bases, *subsets)}
        counts = {name: self.runs * (1 if subset.k else BASE_RUNS) for name, subset in masked.items()}
        there = self.retrained.find()
        lacking = {name: count for name, count in counts.items() if name not in there or len(there[name].rows) < count}
        if lacking:
            self.retrained.create(lacking, lambda name: self.question.mask(masked[name]), self.runs)
            there = self.retrained.find()
        return {name: there[name] for name in counts}

    def stores(self, models: Mapping[str, Place]) -> dict[str, Store]:
        """The stores that models are in, by tag."""
        settings = {place.setting.file_tag: place.setting for place in models.values()}
        return {tag: self.retrained.open(setting) for tag, setting in settings.items()}

    def run(self, verify: bool, devices: Sequence[str] | None, workers: int | None) -> Counterfactuals:
        """Train what is missing, measure, and keep the result for the report."""

        def measured(subsets: Sequence[Subset]) -> dict[str, Outcome | None]:
            models = self.models(subsets)
            stores = self.stores(models)
            for each in stores.values():
                self.retrained.train(each, devices, workers)
            where = [(name, stores[place.setting.file_tag], place.rows) for name, place in models.items()]
            return {name: outcome(of, rows, self.split, self.targets) for name, of, rows in where}

        question, outcomes = self.question, measured(self.subsets)
        bases = [outcomes[digest(question.mask(base))] for base in self.bases]
        if not all(bases):
            raise WorkError(f"of {BASE_RUNS * self.runs} models of a base set fewer than 2 are done, the others failed")
        own = [bases[place % len(bases)] for place in range(len(self.targets))]
        before = np.array([found.mean[place] for place, found in enumerate(own) if found])
        variance = np.array([found.variance[place] for place, found in enumerate(own) if found])
        brittle, verified = {}, None
        if split_and_output(self.split)[1] == "margins":
            brittle = {
                by: np.array([question.brittle(by, place, margin) for place, margin in enumerate(before)])
                for by in question.by
            }
        if verify:
            some = {by: enumerate(ks.tolist()) for by, ks in brittle.items() if by not in BASELINES}
            chosen = [question.subset(place, by, k) for by, ks in some.items() for place, k in ks if k > 0]
            verified = self._changes(chosen, measured(chosen), before, variance)
        fitted = question.datamodels.report or {}
        about = {
            **protocol(self.store, self.split),
            "base": self.base,
            "runs": self.runs,
            "base_runs": BASE_RUNS * self.runs,
            "weights": str(question.datamodels.path),
            "fit_models": fitted.get("rows", {}).get("used"),
            "stamp": fitted.get("stamp"),
        }
        subsets, error = self._changes(self.subsets, outcomes, before, variance), np.sqrt(variance)
        found = Counterfactuals(self.targets, before, error, subsets, brittle, verified, about, tuple(self.notes))
        write_result(self.store, self.split, found)
        return found

    def _changes(
        self,
        subsets: Sequence[Subset],
        outcomes: Mapping[str, Outcome | None],
        before: NDArray[np.float64],
        variance: NDArray[np.float64],
    ) -> Subsets:
        """Subsets of whose models two or more are done, with the changes from `before` [t] and their errors."""
        question = self.question
        pairs = [(each, found) for each in subsets if (found := outcomes[digest(question.mask(each))])]
        if len(pairs) < len(subsets):
            self.notes.append(f"{len(subsets) - len(pairs)} subsets are left out: all of their models but one failed")
        places = np.array([each.place for each, _ in pairs], np.int64)
        after = np.array([found.mean[each.place] for each, found in pairs])
        return Subsets(
            target=self.targets[places],
            k=np.array([each.k for each, _ in pairs], np.int64),
            by=np.array([each.by for each, _ in pairs], np.str_),
            removed=tuple(each.removed for each, _ in pairs),
            predicted=np.array([question.predicted(each) for each, _ in pairs]),
            measured=after - before[places],
            standard_error=np.sqrt([found.variance[each.place] for each, found in pairs] + variance[places]),
        )
