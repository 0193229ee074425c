"""Which training examples are removed for a target, in which order, and the base sets that they are removed from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import find, load, read_features, read_scores, split_and_output, target_count
from datamodels.lasso.evaluation import as_datamodels
from datamodels.train import UserError
from datamodels.train.store import BaseStore

BASELINES = ("random", "same-class")

ORDERS = 5
"""Random orders. Targets take them in turn, so that fewer models are trained."""


@dataclass(frozen=True)
class Subset:
    """What is removed for a target."""

    place: int
    """Of the target, among those that are asked about."""
    by: str
    k: int
    """Examples to remove; there may be fewer."""
    removed: NDArray[np.int64]
    """Numbers of the examples, or of groups with `mask: groups`, in the order of their removal."""


class Question:
    """Targets, base sets, and the order in which each way of choosing removes examples. Raises UserError."""

    def __init__(
        self,
        store: BaseStore,
        split: str,
        targets: NDArray[np.int64],
        by: Sequence[str | Path] | None,
        base: str,
        runs: int,
    ) -> None:
        """by: None for datamodels and all baselines that the store allows. runs: base sets for `alpha`, at most."""
        self.store, self.split, self.targets = store, split, targets
        self.datamodels = load(find(store, split))
        labelled = not store.setting.trainer and store.groups is None
        usual = ["datamodel", *BASELINES] if labelled else ["datamodel", "random"]
        self.by = usual if by is None else [*dict.fromkeys(map(str, by))]
        shape, self._scores = (store.n_features, target_count(store, split)), {}
        for name in {"datamodel", *self.by}.difference(BASELINES):
            if name != "datamodel" and not (name and Path(name).exists()):
                raise UserError(f"--by has {name!r}, expected datamodel, {', '.join(BASELINES)}, or a file of scores")
            given = self.datamodels if name == "datamodel" else read_scores(Path(name))
            scores = as_datamodels(Path(name), given, shape, None)
            self._scores[name] = scores.columns(targets)[0]
            if not np.isfinite(self._scores[name]).all():
                raise UserError(f"{scores.path} holds values that are not finite for these targets, expected none")
        self.weight = self._scores["datamodel"]
        """[n_features, t]: how much an example raises a target's output, by its datamodel."""
        if "same-class" in self.by:
            if not labelled:
                raise UserError("--by is same-class, but no labels of single training examples are known here")
            dataset = store.dataset()
            self._train_labels = dataset.train.labels
            side = dataset.train if split_and_output(split)[0] == "train" else dataset.test
            self._labels = side.labels[targets]
        if base not in ("full", "alpha"):
            raise UserError(f"--base is {base!r}, expected full or alpha")
        self.bases = np.ones((1, store.n_features), np.bool_)
        """[B, n_features]: the base sets, over which changes are averaged."""
        if base == "alpha":
            rows = {store.mask_index(row): row for row in store.evaluation_rows()[::-1].tolist()}
            if len(rows) < 2:
                raise UserError("--base is alpha, expected evaluation rows of at least 2 masks that are done")
            chosen = sorted(rows.values())[:runs]
            self.bases = np.concatenate([read_features(store, np.array([row])) for row in chosen])
        self._most = int(self.bases.sum(axis=1).min()) - 1

    def order(self, by: str, place: int) -> NDArray[np.int64]:
        """Examples in the order of their removal, so many that some are left; of scores, the positive ones alone."""
        seed = self.store.setting.seed
        if by == "random":
            found = np.random.default_rng([seed, place % ORDERS]).permutation(self.store.n_features)
        elif by == "same-class":
            label = int(self._labels[place])
            found = np.random.default_rng([seed, ORDERS + label]).permutation(
                np.flatnonzero(self._train_labels == label)
            )
        else:
            scores = self._scores[by][:, place]
            found = np.argsort(-scores, kind="stable")[: np.count_nonzero(scores > 0)]
        return found[: self._most]

    def subset(self, place: int, by: str, k: int) -> Subset:
        return Subset(place, by, k, self.order(by, place)[:k])

    def subsets(self, sizes: Sequence[int]) -> tuple[list[Subset], list[str]]:
        """What is removed for all targets, ways and ascending sizes, and what there is to tell of it.

        A size is left out where it would remove no more than the size before it.
        """
        largest = sizes[-1]
        if largest > self._most:
            raise UserError(f"--remove is {largest}, expected fewer than the {self._most + 1} of the smallest base set")
        found, notes, t = [], [], len(self.targets)
        for by in self.by:
            orders = [self.order(by, place)[:largest] for place in range(t)]
            for place, order in enumerate(orders):
                kept = [k for before, k in zip([0, *sizes], sizes, strict=False) if before < len(order)]
                found += [Subset(place, by, k, order[:k]) for k in kept]
            if short := sum(len(order) < largest for order in orders):
                which = "of their class" if by == "same-class" else "with a positive weight or score"
                notes.append(
                    f"{by}: {short} of {t} targets have fewer than {largest} examples {which}: all of these are "
                    "removed, and larger sizes left out"
                )
        return found, notes

    def masks(self, removed: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
        """The training examples [N_train] in each base set without those that are removed."""
        for base in self.bases:
            chosen = base.copy()
            chosen[removed] = False
            yield chosen if self.store.groups is None else chosen[self.store.groups]

    def predicted(self, by: str, place: int) -> NDArray[np.float64]:
        """Change of a target's output by its datamodel, without the first 1, 2, ... examples of an order."""
        order = self.order(by, place)
        return -np.cumsum(self.weight[order, place] * self.bases[:, order].mean(axis=0))
