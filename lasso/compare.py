"""Where two learning algorithms use the same examples differently (ModelDiff: Shah et al. 2023, arXiv 2211.12491)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.components import Components, Weights, bands, components_of, unit_weights
from datamodels.lasso.datamodels import Datamodels, load
from datamodels.lasso.rows import Progress, silent, split_name, target_count
from datamodels.train import Summary, UserError
from datamodels.train.store import BaseStore, Store


@dataclass(frozen=True, eq=False, repr=False)
class Residual(Components):
    """Components of what is left of one side's weights without the part along the other side's, target by target."""

    shares_of: NDArray[np.float64]
    """[2, k]: share of the variance of A's weights, and of B's, that lies along each direction."""

    def to_json(self) -> list[dict[str, Any]]:
        """Each component's shares, and the training examples and targets at its ends, the outermost first."""
        columns = zip(self.shares, self.shares_of.T, self.examples.T, self.targets.T, strict=True)
        return [
            {
                "share": float(share),
                "share_of_a": float(a),
                "share_of_b": float(b),
                "examples": {"positive": _largest(examples), "negative": _largest(-examples)},
                "targets": {"positive": _largest(targets), "negative": _largest(-targets)},
            }
            for share, (a, b), examples, targets in columns
        ]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Summary):
    """Two sides' weights [N_train, T] for the same targets, A's and B's, each target's scaled to length 1."""

    similarity: NDArray[np.float64]
    """[T]: cosine of a target's weights, from -1 to 1; 0 where one side has none."""
    undefined: int
    """How many targets have no weight on one side."""
    only_a: Residual
    """Directions in which A's weights differ between targets and B's do not; fewer than k where A has fewer."""
    only_b: Residual
    """The reverse."""

    def to_json(self, per_target: bool = False) -> dict[str, Any]:
        """Everything but the arrays as JSON has it; per_target: also the similarity of each target."""
        low, median, high = np.quantile(self.similarity, (0.25, 0.5, 0.75)).tolist()
        return {
            "targets": len(self.similarity),
            "undefined": self.undefined,
            "similarity": {"mean": float(self.similarity.mean()), "q25": low, "median": median, "q75": high},
            "least_similar": self.least_similar.tolist(),
            "only_a": self.only_a.to_json(),
            "only_b": self.only_b.to_json(),
            **({"per_target": {"similarity": self.similarity.tolist()}} if per_target else {}),
        }

    @property
    def least_similar(self) -> NDArray[np.int64]:
        """The targets of least similarity, at most 10, the least first."""
        return np.argsort(self.similarity, kind="stable")[:10]

    def _summary(self) -> dict[str, str]:
        quartiles = ", ".join(f"{value:.3f}" for value in np.quantile(self.similarity, (0.25, 0.5, 0.75)))
        found = {
            "similarity": f"mean {self.similarity.mean():.3f}, quartiles {quartiles}",
            "targets": f"{len(self.similarity):,}; {self.undefined:,} without weights on one side, counted as 0",
        }
        for side, residual in (("A", self.only_a), ("B", self.only_b)):
            a, b = residual.shares_of.sum(axis=1)
            told = f"{a:.1%} of the variance of A's weights, {b:.1%} of B's, in {residual.shares.size} components"
            found[f"only in {side}"] = told if residual.shares.size else "nothing"
        return found


def _largest(values: NDArray[np.float64]) -> list[int]:
    """The places of the largest positive values, at most 10."""
    return [place for place in np.argsort(-values, kind="stable")[:10].tolist() if values[place] > 0]


def compare(
    a: BaseStore | Datamodels,
    b: BaseStore | Datamodels,
    *,
    k: int = 5,
    split: str = "test",
    output: str | None = None,
    progress: Progress = silent,
) -> Comparison:
    """How similarly two settings' datamodels weigh the same training examples, and k directions that tell them apart.

        found = dm.compare(dm.open("runs/narrow"), dm.open("runs/wide"), k=3)
        print(found.similarity.argsort()[:10])               # targets whose weights differ most
        print(np.argsort(-found.only_a.examples[:, 0])[:10])  # training examples that A uses together and B does not

    a, b: stores with fitted datamodels, or datamodels. split, output: as for `load`. Weights are estimates, so that the
    same algorithm with another seed has a similarity below 1 too: docs/evaluation.md. Raises UserError for stores whose
    examples or outputs differ, by name.
    """
    if isinstance(a, BaseStore) and isinstance(b, BaseStore):
        refuse_other_examples(a, b, split, output)
    one, other = (each if isinstance(each, Datamodels) else load(each, output=output, split=split) for each in (a, b))
    shape = one.stored_weight.shape
    if shape != other.stored_weight.shape:
        found = f"{one.path} has weights of shape {shape}, {other.path} of {other.stored_weight.shape}"
        raise UserError(f"{found}: expected those of the same training examples and targets")

    left, right = (unit_weights(each.band, shape, each.own, progress, each.path) for each in (one, other))
    similarity = np.zeros(shape[1])
    for place in bands(shape):
        similarity += np.einsum("ij,ij->j", left.rows(place), right.rows(place))
        progress("similarity", place.stop, shape[0])
    similarity *= left.scale * right.scale

    def residual(of: Weights, without: Weights) -> Residual:
        along = Weights(without.rows, -similarity * without.scale)
        squares = float((1 - similarity[of.scale > 0] ** 2).sum())
        found = components_of([of, along], shape, k, squares, progress)
        shares = [_shares(each, shape, found.examples, progress) for each in (left, right)]
        return Residual(found.examples, found.targets, found.shares, np.array(shares))

    undefined = int(((left.scale == 0) | (right.scale == 0)).sum())
    return Comparison(similarity, undefined, residual(left, right), residual(right, left))


def _shares(
    weights: Weights, shape: tuple[int, int], directions: NDArray[np.float64], progress: Progress
) -> NDArray[np.float64]:
    """[k]: shares of the variance of weights over targets that lie along directions [N_train, k]."""
    along, mean = np.zeros((shape[1], directions.shape[1])), np.zeros(shape[0])
    even = weights.scaled(np.full((shape[1], 1), 1 / shape[1]))
    for place in bands(shape):
        band = weights.rows(place)
        along += band.T @ directions[place].astype(np.float32)
        mean[place] = (band @ even)[:, 0]
        progress("shares", place.stop, shape[0])
    along *= weights.scale[:, None]
    total = np.count_nonzero(weights.scale) - shape[1] * float(mean @ mean)
    return shape[1] * along.var(axis=0) / (total or 1.0)


def refuse_other_examples(a: BaseStore, b: BaseStore, split: str, output: str | None) -> str:
    """The split of both as `split_name` gives it. Raises UserError where examples or outputs differ, by name."""

    def facts(store: BaseStore) -> dict[str, object]:
        name = split_name(store.arrays, split, output)
        data = store.manifest.data_sha256 if isinstance(store, Store) else None
        return {
            "split and output": name,
            "N_train": store.n_train,
            "N_test": store.n_test,
            "targets": target_count(store, name),
            "data_sha256": None if store.setting.trainer else data,  # of a trainer of one's own, its file's
            "names of training examples": store.names("train"),
            "names of test examples": store.names("test"),
            "groups": None if store.groups is None else store.groups.tolist(),
        }

    one, other = facts(a), facts(b)
    for name, value in one.items():
        unknown = None in (value, other[name]) and name != "groups"
        if value != other[name] and not unknown:
            short = name.startswith("names") or name == "groups"
            told = "differ" if short else f"is {value} and {other[name]}"
            raise UserError(
                f"{name} {told} in {a.layout.data} and {b.layout.data}: expected settings with the same examples"
            )
    return str(one["split and output"])
