"""Fitted datamodels: where their files lie, reading them, predictions and influences."""

import json
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.lasso.components import Components, principal_components
from datamodels.lasso.design import Scale, divide, product_with
from datamodels.lasso.rows import Progress, silent, split_and_output, split_name
from datamodels.lasso.strongest import COLUMNS, strongest
from datamodels.train import Summary, UserError
from datamodels.train.store import BaseStore as Store

if TYPE_CHECKING:
    import pandas

_TILE_VALUES = 2**23
"""Weights, and mask entries, that `predict` holds at a time: 64 MiB as float64."""


def path_of(store: Store, split: str, targets: tuple[int, int] | None = None) -> Path:
    """The .pt of a split, or of the piece with targets [A, B), that a fit writes: below --out if that is given."""
    path = store.derived / "datamodels" / f"{split}_{store.setting.file_tag}.pt"
    return piece_of(path, targets) if targets else path


def piece_of(path: Path, targets: tuple[int, int]) -> Path:
    """The .pt of the piece with targets [A, B) of a whole .pt."""
    return path.with_name(f"{path.stem}.{targets[0]}-{targets[1]}.pt")


def places(store: Store, split: str) -> list[Path]:
    """The paths at which the .pt of a split is looked for, in this order: below --out, then in the root."""
    path = path_of(store, split)
    return list(dict.fromkeys((path, store.layout.folder / "datamodels" / path.name)))


def find(store: Store, split: str) -> Path:
    """The first of `places` that exists. Raises UserError where none does."""
    tried = places(store, split)
    for path in tried:
        if path.exists():
            return path
    name, output = split_and_output(split)
    which = ("" if name == "test" else f" --split {name}") + ("" if output == "margins" else f" --output {output}")
    beside = "".join(f" (nor {path})" for path in tried[1:])
    raise UserError(f"{tried[0]} does not exist{beside}: run `datamodels fit{which}`")


class Top(NamedTuple):
    """The largest of many weights, largest first."""

    indices: NDArray[np.int64]
    """[k]: of training examples, or of targets"""
    weights: NDArray[np.float64]
    """[k]: how much the example raises the target's margin where it is trained on, in logits"""


Sign = Literal["both", "positive", "negative"]


@dataclass(frozen=True, eq=False, repr=False)
class Datamodels(Summary):
    """Fitted datamodels in mask units: `mask @ weight + bias` is the predicted margin.

    A file may hold weights of standardised masks (`fit.weight_units`): they are converted when they are read. Files are
    mapped: `columns`, `rows` and `predict` read no more of them than they need.
    """

    path: Path
    """The file; of arrays in memory, what messages call them."""
    stored_weight: NDArray[np.floating]
    """[N_train, T], in the units of the file"""
    stored_bias: NDArray[np.floating]
    """[T], in the units of the file"""
    arrays: dict[str, NDArray[Any]]
    """Everything the file holds, by name: docs/format.md."""
    report: dict[str, Any] | None = None
    """The .json beside the file; None where there is none, or one of another fit."""

    @property
    def units(self) -> str:
        """The units of the weights in the file: `mask` or `standardised`."""
        if (standardised := self.arrays.get("standardised")) is not None:
            return "standardised" if np.any(standardised) else "mask"
        return str((self.report or {}).get("weight_units", "mask"))

    @cached_property
    def weight(self) -> NDArray[np.floating]:
        """[N_train, T]: how much an example raises a target's margin where it is trained on, in logits.

        Mapped; of a file with standardised weights a copy in memory.
        """
        if self.units == "mask":
            return self.stored_weight
        weight = np.empty(self.stored_weight.shape, np.float32)
        return np.multiply(
            self.stored_weight, self.scale.inv[:, None], out=weight, dtype=np.float64, casting="same_kind"
        )

    @cached_property
    def bias(self) -> NDArray[np.floating]:
        """[T]: the margin of a model without any of the examples, in logits."""
        if self.units == "mask":
            return self.stored_bias
        shift = np.einsum("i,ij->j", self.scale.mean * self.scale.inv, self.stored_weight)
        return (self.stored_bias - shift).astype(np.float32)

    @property
    def lam(self) -> NDArray[np.float32]:
        """[T]: the lambda that each target was fitted with. Raises UserError where the file does not hold it."""
        return self._vector("lam")

    @property
    def gap(self) -> NDArray[np.float64]:
        """[T]: the relative duality gap of each target's fit. Raises UserError where the file does not hold it."""
        return self._vector("gap")

    def _vector(self, name: str) -> NDArray[Any]:
        if name not in self.arrays:
            raise UserError(f"{self.path} holds no `{name}`: it was not written by `datamodels fit`")
        return self.arrays[name]

    @cached_property
    def scale(self) -> Scale:
        """Mean and deviation of the masks over the rows fitted. Raises UserError where the file does not hold them."""
        mean, deviation = (self.arrays.get(name, np.empty(0)) for name in ("mean", "deviation"))
        if mean.shape != self.stored_weight.shape[:1] or deviation.shape != mean.shape:
            raise UserError(f"{self.path} holds no `mean` and `deviation` [N_train], expected them beside its weights")
        deviation = deviation.astype(np.float64)
        return Scale(float("nan"), mean.astype(np.float64), divide(np.ones_like(deviation), deviation))

    def columns(self, targets: NDArray[np.int64] | slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """weight [N_train, t] and bias [t] of some targets, in mask units."""
        weight = self.stored_weight[:, targets].astype(np.float64)
        bias = self.stored_bias[targets].astype(np.float64)
        return self.scale.unscaled(weight, bias) if self.units == "standardised" else (weight, bias)

    def rows(self, examples: NDArray[np.int64] | slice) -> NDArray[np.float64]:
        """weight [n, T] of some training examples, in mask units."""
        weight = self.stored_weight[examples].astype(np.float64)
        return weight * self.scale.inv[examples, None] if self.units == "standardised" else weight

    def band(self, examples: slice) -> NDArray[np.float32]:
        """weight [n, T] of some training examples in a row, in mask units: a map where the file holds it so."""
        weight = self.stored_weight[examples].astype(np.float32, copy=False)
        return weight * self.scale.inv[examples, None].astype(np.float32) if self.units == "standardised" else weight

    def predict(self, masks: ArrayLike) -> NDArray[np.float32]:
        """Margins [m, T] of models trained on the subsets `masks` [m, N_train]; [T] for a single mask [N_train].

        Of datamodels whose weights are of groups, `masks` may also say which groups are in [m, K]. Raises UserError for
        masks of another width.
        """
        given = np.asarray(masks)
        groups = self.arrays.get("groups")
        if groups is not None and given.shape[-1:] == groups.shape:
            given = given[..., np.unique(groups, return_index=True)[1]]
        n_train, targets = self.stored_weight.shape
        if given.ndim not in (1, 2) or given.shape[-1] != n_train:
            raise UserError(f"the masks have shape {given.shape}, expected [m, {n_train}]")
        rows = np.atleast_2d(given)
        margins = np.empty((len(rows), targets), np.float32)
        step = max(1, _TILE_VALUES // n_train)
        for first in range(0, targets, step):
            weight, bias = self.columns(slice(first, first + step))
            product = product_with(weight)
            for row in range(0, len(rows), step):
                part = rows[row : row + step].astype(np.float64)
                margins[row : row + step, first : first + step] = product(part) + bias
        return margins[0] if given.ndim == 1 else margins

    def top_examples(self, target: int, k: int = 10, sign: Sign = "both") -> Top:
        """The k training examples with the largest weights for a target, by size or (`sign`) of one sign.

        Fewer where fewer have a weight. Raises UserError for a target that does not exist.

            top = fitted.top_examples(3, k=5, sign="positive")
            print(top.indices, top.weights)

        Of datamodels whose weights are of groups, indices are those of groups; `store.groups` [N_train] says who is in:

            print([np.flatnonzero(store.groups == group) for group in top.indices])
        """
        _check_index(target, self.stored_weight.shape[1], "target")
        return _top(self.columns(np.array([target]))[0][:, 0], k, sign)

    def top_targets(self, example: int, k: int = 10, sign: Sign = "both") -> Top:
        """The k targets for which a training example has the largest weights, as `top_examples`."""
        _check_index(example, self.stored_weight.shape[0], "training example")
        return _top(self.rows(slice(example, example + 1))[0], k, sign)

    @property
    def own(self) -> NDArray[np.int64] | None:
        """[T]: the training examples that the targets are; None if they are test examples, or weights are of groups."""
        n_train, targets = self.stored_weight.shape
        split = (self.report or {}).get("split", self.path.name.partition("_")[0])
        are = split == "train" and n_train == targets and "groups" not in self.arrays
        return np.arange(targets) if are else None

    def components(self, k: int = 10, *, progress: Progress = silent) -> Components:
        """The first k principal components of the targets' weights: directions in which they differ most.

            found = dm.load(store).components(5)
            print(found.shares)                         # of the variance
            print(np.argsort(-found.examples[:, 0]))    # training examples, from one end of the first to the other
            embedding = found.targets                   # [T, 5], a row for each target

        Each target's weights are first scaled to length 1 (without the weight for itself, of training examples as
        targets) and centred. Exact to what a few passes over the weights give; the same at every call. Raises
        UserError for weights that are not finite.
        """
        return principal_components(self.band, self.stored_weight.shape, k, self.own, progress, self.path)

    def to_frame(self, targets: ArrayLike | None = None, k: int = 10) -> "pandas.DataFrame":
        """The k strongest training examples of each sign for each target, as a table.

        targets: their numbers; None for all. Columns: `target`; `sign`, 1 for examples that raise the margin, -1 for
        those that lower it; `rank`, from 1; `train_index`; `weight`. Raises UserError for a target that does not exist.

            table = fitted.to_frame([3, 7], k=5)
        """
        import pandas

        n_train, count = self.stored_weight.shape
        chosen = np.arange(count) if targets is None else np.atleast_1d(np.asarray(targets, np.int64))
        for target in chosen.tolist():
            _check_index(target, count, "target")
        if k < 1:
            raise UserError(f"k is {k}, expected at least 1")
        width, tables = max(1, _TILE_VALUES // n_train), []
        for first in range(0, max(1, len(chosen)), width):
            tile = chosen[first : first + width]
            tables.append(strongest(self.columns(tile)[0].astype(np.float32), k))
            tables[-1]["target"] = tile[tables[-1]["target"]]
        return pandas.DataFrame({name: np.concatenate([table[name] for table in tables]) for name in COLUMNS})

    def _summary(self) -> dict[str, str]:
        n_train, targets = self.stored_weight.shape
        features = "groups" if "groups" in self.arrays else "training examples"
        found = {"weight": f"{n_train:,} {features} x {targets:,} targets", "file": str(self.path)}
        if report := self.report:
            found["fitted to"] = f"{report['rows']['used']:,} models, {report['split']} split of {report['dataset']}"
            found["duality gap"] = f"at most {report['relative_gap']['max']:.2g} of the objective at 0"
        return found


def _check_index(index: int, count: int, what: str) -> None:
    if not 0 <= index < count:
        raise UserError(f"there is no {what} {index}, expected one of 0 to {count - 1}")


def _top(weight: NDArray[np.float64], k: int, sign: Sign) -> Top:
    sizes = {"both": np.abs(weight), "positive": weight, "negative": -weight}
    if sign not in sizes:
        raise UserError(f"sign is {sign!r}, expected one of {', '.join(sizes)}")
    order = np.argsort(-sizes[sign], kind="stable")[: max(0, k)]
    order = order[sizes[sign][order] > 0]
    return Top(order, weight[order])


def load(source: str | Path | Store, *, output: str | None = None, split: str = "test") -> Datamodels:
    """The fitted datamodels of a store's split, or those in a .pt file (docs/format.md).

        fitted = dm.load(store, output="loss", split="train")

    output: None for margins, or where a store has none for the first output of the split. Raises UserError where there
    are none, or the file is not of the format.
    """
    if isinstance(source, str | Path):
        path = Path(source)
    else:
        path = find(source, split_name(source.arrays, split, output))
    tensors = load_tensors(path)
    if not isinstance(tensors, dict):
        tensors = {}

    arrays = {name: array for name, tensor in tensors.items() if (array := _as_array(tensor)) is not None}
    for key in ("weight", "bias"):
        if key not in arrays or arrays[key].dtype.kind != "f":
            raise UserError(
                f"{path} holds no dense floating-point tensor `{key}`, expected weight [N_train, T] and bias [T]"
            )
    weight, bias = arrays["weight"], arrays["bias"]
    if weight.ndim != 2 or bias.shape != weight.shape[1:]:
        found = f"weight of shape {weight.shape} and bias of shape {bias.shape}"
        raise UserError(f"{path} holds {found}, expected [N_train, T] and [T]")
    return Datamodels(path, weight, bias, arrays, _report_of(path, arrays))


def load_tensors(path: Path) -> Any:
    """What torch.save has written to a file, mapped where torch can do so. Raises UserError."""
    import torch

    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):  # torch takes names for UTF-8, whatever the locale
                return torch.load(f"/dev/fd/{file.fileno()}", mmap=True, weights_only=True, map_location="cpu")
            file.seek(0)  # torch before 1.6 wrote no archives
            return torch.load(file, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if type(error).__name__ == "UnpicklingError":  # whose text advises to run what the file holds
            reason = "expected tensors alone, saved by torch.save"
        raise UserError(f"{path} cannot be read as datamodels: {reason}") from None


def _as_array(tensor: Any) -> NDArray[Any] | None:
    """A tensor as an array of the same memory; None where it is no dense tensor of numbers that NumPy knows."""
    try:
        array: NDArray[Any] = tensor.detach().numpy()
    except (AttributeError, TypeError, RuntimeError):  # no tensor; bfloat16, quantised; sparse, or of no device
        return None
    return array if array.dtype.kind in "fiub" else None


def _report_of(path: Path, arrays: dict[str, NDArray[Any]]) -> dict[str, Any] | None:
    """The .json beside a .pt, or None where there is none or it carries another stamp."""
    try:
        report = json.loads(path.with_suffix(".json").read_bytes())
        stamp = bytes(arrays["stamp"].tolist()).hex()
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if isinstance(report, dict) and report.get("stamp") == stamp else None


def read_report(path: Path) -> dict[str, Any] | None:
    """The report of the fit in a .pt; None where there is none."""
    try:
        return load(path).report
    except UserError:
        return None
