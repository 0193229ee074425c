"""Fitted datamodels as their users have them: read from a file, asked for predictions and influences."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.lasso.design import Scale, divide, product_with
from datamodels.train import UserError
from datamodels.train.store import ReadableStore as Store

if TYPE_CHECKING:  # torch is slow to import
    import torch

_TILE_VALUES = 2**23
"""Weights, and mask entries, that are in memory at a time: 64 MiB as float64."""


def path_of(store: Store, split: str, targets: tuple[int, int] | None = None) -> Path:
    """The .pt of a split, or of the piece with targets [A, B), that a fit writes: below --out if that is given."""
    path = store.derived / "datamodels" / f"{split}_{store.setting.pct}pct.pt"
    return piece_of(path, targets) if targets else path


def piece_of(path: Path, targets: tuple[int, int]) -> Path:
    """The piece with targets [A, B) of the whole .pt at a path."""
    return path.with_name(f"{path.stem}.{targets[0]}-{targets[1]}.pt")


def places(store: Store, split: str) -> list[Path]:
    """Where the .pt of a split may lie, in the order in which it is looked for: below --out, then in the root."""
    path = path_of(store, split)
    return list(dict.fromkeys((path, store.layout.folder / "datamodels" / path.name)))


def find(store: Store, split: str) -> Path:
    """The .pt of a split to read: the first that there is. Raises UserError where there is none."""
    tried = places(store, split)
    for path in tried:
        if path.exists():
            return path
    which = "" if split == "test" else f" --split {split}"
    beside = "".join(f" (nor {path})" for path in tried[1:])
    raise UserError(f"{tried[0]} does not exist{beside}: run `datamodels fit{which}`")


class Top(NamedTuple):
    """The largest of many weights, largest first."""

    indices: NDArray[np.int64]
    """[k]: of training examples, or of targets"""
    weights: NDArray[np.float64]
    """[k]: how much the example raises the target's margin where it is trained on, in logits"""


Sign = Literal["both", "positive", "negative"]


@dataclass(frozen=True)
class Datamodels:
    """Fitted datamodels in mask units: mask @ weight + bias is the predicted margin.

    A file may hold weights of standardised masks (`fit.weight_units`): they are converted as they are read. Files are
    mapped, and the methods hold no more of them in memory than they are asked for.
    """

    path: Path
    stored_weight: "torch.Tensor"
    """float [N_train, T], in the units of the file"""
    stored_bias: "torch.Tensor"
    """float [T], in the units of the file"""
    tensors: "dict[str, torch.Tensor]"
    """Everything the file holds: `lam` [T], the diagnostics in files.VECTORS, and those in files.EXAMPLES."""
    report: dict[str, Any] | None = None
    """The .json beside the file, None where there is none that belongs to it."""

    @property
    def units(self) -> str:
        """What the weights in the file are of: `mask` or `standardised`."""
        if (standardised := self.tensors.get("standardised")) is not None:
            return "standardised" if bool(standardised.any()) else "mask"
        return str((self.report or {}).get("weight_units", "mask"))

    @cached_property
    def weight(self) -> "torch.Tensor":
        """[N_train, T]: how much an example raises a target's margin where it is trained on, in logits.

        Mapped; from a file of standardised weights a copy in memory, where `columns` and `rows` need less.
        """
        if self.units == "mask":
            return self.stored_weight
        import torch

        weight = np.empty(tuple(self.stored_weight.shape), np.float32)
        for examples in self._bands():
            weight[examples] = self.rows(examples)
        return torch.from_numpy(weight)

    @cached_property
    def bias(self) -> "torch.Tensor":
        """[T]: the margin of a model without any of the examples, in logits. Reads a file of standardised weights."""
        if self.units == "mask":
            return self.stored_bias
        import torch

        shift = sum(self.scale.mean[examples] @ self.rows(examples) for examples in self._bands())
        return torch.from_numpy((self.stored_bias.numpy() - shift).astype(np.float32))

    @cached_property
    def scale(self) -> Scale:
        """Mean and deviation of the masks over the rows fitted. Raises UserError where the file does not tell."""
        found = [self.tensors.get(name) for name in ("mean", "deviation")]
        if any(tensor is None or tensor.shape != self.stored_weight.shape[:1] for tensor in found):
            raise UserError(f"{self.path} holds no `mean` and `deviation` [N_train], expected them beside its weights")
        mean, deviation = (tensor.double().numpy() for tensor in found if tensor is not None)
        return Scale(float("nan"), mean, divide(np.ones_like(deviation), deviation))

    def columns(self, targets: NDArray[np.int64] | slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """weight [N_train, t] and bias [t] of some targets."""
        weight = self.stored_weight[:, targets].numpy().astype(np.float64)
        bias = self.stored_bias[targets].numpy().astype(np.float64)
        return self.scale.unscaled(weight, bias) if self.units == "standardised" else (weight, bias)

    def rows(self, examples: NDArray[np.int64] | slice) -> NDArray[np.float64]:
        """weight [n, T] of some training examples."""
        weight = self.stored_weight[examples].numpy().astype(np.float64)
        return weight * self.scale.inv[examples, None] if self.units == "standardised" else weight

    def _bands(self) -> Iterator[slice]:
        """All training examples, some at a time."""
        n_train, targets = self.stored_weight.shape
        height = max(1, _TILE_VALUES // max(1, targets))
        yield from (slice(start, min(start + height, n_train)) for start in range(0, n_train, height))

    def predict(self, masks: ArrayLike) -> NDArray[np.float32]:
        """Margins [m, T] of models that would be trained on the subsets `masks` [m, N_train]; [T] for a single mask.

        Raises UserError for masks of another width.
        """
        given = np.asarray(masks)
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
        """The k training examples that move a target's margin most, up or down or (`both`) whichever way.

        Fewer where fewer have a weight. Reads the whole file where it is mapped. Raises UserError for no such target.
        """
        _require(target, self.stored_weight.shape[1], "target")
        return _top(self.columns(np.array([target]))[0][:, 0], k, sign)

    def top_targets(self, example: int, k: int = 10, sign: Sign = "both") -> Top:
        """The k targets whose margin a training example moves most, as `top_examples`."""
        _require(example, self.stored_weight.shape[0], "training example")
        return _top(self.rows(slice(example, example + 1))[0], k, sign)


def _require(index: int, count: int, what: str) -> None:
    if not 0 <= index < count:
        raise UserError(f"there is no {what} {index}, expected one of 0 to {count - 1}")


def _top(weight: NDArray[np.float64], k: int, sign: Sign) -> Top:
    sizes = {"both": np.abs(weight), "positive": weight, "negative": -weight}
    if sign not in sizes:
        raise UserError(f"sign is {sign!r}, expected one of {', '.join(sizes)}")
    order = np.argsort(-sizes[sign], kind="stable")[: max(0, k)]
    order = order[sizes[sign][order] > 0]
    return Top(order, weight[order])


def load(source: str | Path | Store, split: str = "test") -> Datamodels:
    """Map the datamodels of a store's split, or a .pt in the format of the contract; raises UserError for others."""
    if isinstance(source, str | Path):
        return _load(Path(source))
    return _load(find(source, split))


def _load(path: Path) -> Datamodels:
    import torch

    try:
        tensors = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except Exception as error:  # torch raises many kinds for a file that is not one of its own
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path} cannot be read as datamodels: {reason}") from None
    for key in ("weight", "bias"):
        tensor = tensors.get(key) if isinstance(tensors, dict) else None
        if not _is_plain(tensor):
            raise UserError(
                f"{path} holds no dense floating-point tensor `{key}`, expected weight [N_train, T] and bias [T]"
            )
    weight, bias = tensors["weight"].detach(), tensors["bias"].detach()
    if weight.ndim != 2 or bias.shape != weight.shape[1:]:
        found = f"weight of shape {tuple(weight.shape)} and bias of shape {tuple(bias.shape)}"
        raise UserError(f"{path} holds {found}, expected [N_train, T] and [T]")
    others = {key: tensor for key, tensor in tensors.items() if _is_plain(tensor, floating=False)}
    return Datamodels(path, weight, bias, others, _report_of(path, others))


def _is_plain(tensor: Any, floating: bool = True) -> bool:
    """Whether this is a dense tensor of numbers (of floating-point ones) in memory or a file, which NumPy can read."""
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != "cpu":
        return False
    kinds = (torch.float16, torch.float32, torch.float64)
    return tensor.dtype in kinds or not (floating or tensor.is_complex() or tensor.is_quantized)


def _report_of(path: Path, tensors: "dict[str, torch.Tensor]") -> dict[str, Any] | None:
    """The .json beside a .pt, or None where there is none or the pair does not belong together."""
    try:
        report = json.loads(path.with_suffix(".json").read_bytes())
        stamp = bytes(tensors["stamp"].tolist()).hex()
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    return report if isinstance(report, dict) and report.get("stamp") == stamp else None


def read_report(path: Path) -> dict[str, Any] | None:
    """How the datamodels in a .pt were fitted; None where nothing tells."""
    try:
        return load(path).report
    except UserError:
        return None
