"""The keys of a setting, as a YAML file gives them, with their defaults and what each means (shown by `--help`).

Nothing here imports torch, so that `--help` and `status` stay quick.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

from datamodels.train.config.recipe import Recipe
from datamodels.train.user_code import sha256_of
from datamodels.train.values import require


@dataclass
class Data:
    """Where the data set is, and how much of it is used."""

    root: str = "data"
    """Folder that holds the data set: for CIFAR-10 the one with `cifar-10-batches-py` in it, for FMoW the one with
    `fmow_v1.1`, for your own the one with train_images.npy, train_labels.npy, test_images.npy and test_labels.npy.
    `digits` needs none."""
    train: int | None = None
    """Use only the first this many training examples; null uses all."""
    test: int | None = None
    """Use only the first this many test examples; null uses all."""
    size: int | None = None
    """Side in pixels that FMoW's images are resized to, to try things out; null leaves them as they are."""
    python: str | None = None
    """Python file (.py) whose function `dataset()` returns your own data set: a dictionary of the arrays train_images,
    train_labels, test_images and test_labels, and if you like the names of the classes."""
    layout: Literal["auto", "NHWC", "NCHW"] = "auto"
    """Order of the axes of your own images. `NHWC`: [N, height, width, channels]; `NCHW`: [N, channels, height, width],
    as in torch; `auto`: told from the shape, and a shape that may be either is refused."""
    mean: list[float] | None = None
    """Mean of each channel in the images' units (0..255 for uint8), subtracted from the images; null for the data set's
    usual one, and for your own data that of the training images."""
    std: list[float] | None = None
    """Standard deviation of each channel in the same units, which images are divided by; null as for `mean`."""
    split_scheme: str = "official"
    """Splits of FMoW as in WILDS: `official`, `mixed-to-test`, or `time_after_Y`, which trains on the year Y-4."""
    form: Literal["auto", "original", "npy", "beton"] = "auto"
    """Form in which the images are read. `original`: the data set's own files; `npy`: what `datamodels data` packs;
    `beton`: your own FFCV files {dataset}_train.beton and {dataset}_test.beton in data.root, for FMoW beside
    `fmow_v1.1` with its two tables, which give the order; `auto`: `npy` if packed, else `original`."""
    packed: str = "data/packed"
    """Folder of the packed files."""
    resident: bool | None = None
    """Keep all images in the device's memory (true), or read them batch by batch (false); null keeps them if they take
    at most half of the free memory."""

    def __post_init__(self) -> None:
        for key, value in (("data.train", self.train), ("data.test", self.test), ("data.size", self.size)):
            require(value is None or value >= 1, key, value, "at least 1, or null for all")
        require(all(map(math.isfinite, self.mean or [])), "data.mean", self.mean, "finite numbers, or null")
        require(all(0 < std < math.inf for std in self.std or []), "data.std", self.std, "positive numbers, or null")


@dataclass
class Outputs:
    """What is kept of each model besides its mask and margins."""

    train_logits: bool = False
    """Keep the logits of every training example: [models + eval_models, N_train, classes] in float16."""
    test_logits: bool = False
    """Keep the logits of every test example: [models + eval_models, N_test, classes] in float16."""
    loss: bool = False
    """Keep the loss of every training and test example, the cross-entropy of its mean logits, in float32."""
    correct: bool = False
    """Keep whether each training and test example is classified correctly: 1 where its margin is above 0, else 0."""
    preallocate: bool = True
    """Reserve the whole store's disk space at `init`. If false, a full disk is noticed only during training."""


@dataclass
class Fit:
    """How datamodels are fitted."""

    share: float = 0.1
    """Fraction of the estimation rows held out to choose each target's lambda."""
    k: int = 100
    """Lambdas on the path."""
    eps: float = 1e-3
    """Smallest lambda on the path, as a fraction of the largest."""
    patience: int = 5
    """End a target's path after this many lambdas in a row without a smaller validation error."""
    min_lambdas: int = 10
    """Lambdas tried before `patience` counts."""
    tol: float = 1e-6
    """Largest relative duality gap of the refit; along the path it is 100 times this."""
    validation: Literal["random", "last"] = "random"
    """Rows held out to choose lambda. `random`: drawn by each row's own random stream, so that the choice stays the
    same as the store grows; `last`: the last ones, as in fast_l1."""
    lambda_max: Literal[True, "upstream"] = True
    """Start of the path. true: the smallest lambda at which all weights are 0; `upstream`: as in fast_l1, computed from
    the masks before they are standardised, which is smaller by the factor sqrt(alpha (1 - alpha))."""
    weight_units: Literal["mask", "standardised"] = "mask"
    """Units of the weights. `mask`: `mask @ weight + bias` predicts the margin; `standardised`:
    `(mask - mean) / deviation @ weight + bias` does."""
    partial: bool = False
    """Fit on the completed rows even if others are missing."""
    max_failed: float = 1e-3
    """Largest fraction of the setting's rows that may have failed for good; `fit` refuses more."""

    def __post_init__(self) -> None:
        for key in ("share", "eps", "tol"):
            value = getattr(self, key)
            require(0 < value < 1, f"fit.{key}", value, "between 0 and 1")
        require(0 <= self.max_failed <= 1, "fit.max_failed", self.max_failed, "between 0 and 1")
        for key in ("k", "patience", "min_lambdas"):
            require(getattr(self, key) >= 1, f"fit.{key}", getattr(self, key), "at least 1")


@dataclass
class Eval:
    """How datamodels are evaluated."""

    replicates: int = 1000
    """Bootstrap replicates of the evaluation masks, for the confidence intervals of the LDS; 0 for no intervals."""
    level: float = 0.95
    """Confidence level of the intervals."""

    def __post_init__(self) -> None:
        enough = self.replicates == 0 or self.replicates >= 100
        require(enough, "eval.replicates", self.replicates, "0, or at least 100")
        require(0 < self.level < 1, "eval.level", self.level, "between 0 and 1")


@dataclass
class Setting:
    """One setting: a data set, an alpha, a number of models, a recipe and a seed."""

    dataset: str = "cifar"
    """Name of the data set: `cifar`, `digits` or `fmow`, or any other name for your own data in data.root."""
    alpha: float | None = None
    """Fraction of the training set that each model is trained on, above 0 and below 1; null for 0.5, or for masks of a
    file, which say it themselves."""
    models: int = 1000
    """Rows that datamodels are estimated from: rows [0, models). Changes only through `grow`."""
    eval_models: int = 10000
    """Rows for evaluation: rows [models, models + eval_models)."""
    seed: int = 0
    """Seed of every random number, together with the row's number."""
    mask: str = "exact"
    """`exact`: each row has round(alpha * N_train) examples; `bernoulli`: each example is in with probability alpha;
    `groups`: each row has round(alpha * K) of the K groups of `groups`; or a NumPy file (.npy) of bool
    [models + eval_models, N_train], whose row r is the mask of row r."""
    mask_sha256: str | None = None
    """Digest of the masks' file; null for the file as it is now."""
    groups: str | None = None
    """NumPy file (.npy) for `mask: groups`: the group of each training example, integers [N_train] from 0 to K - 1."""
    groups_sha256: str | None = None
    """The same of the groups' file."""
    tag: str | None = None
    """What the names of the setting's files end in where the masks come from a file, in place of the alpha."""
    trainer: str | None = None
    """Python file (.py) that trains the rows in place of the image trainer: docs/own_trainer.md."""
    trainer_sha256: str | None = None
    """Digest of the trainer's file; null for the file as it is now."""
    tta: Literal["mirror", "none", "legacy_fliplr"] = "mirror"
    """Test-time views whose logits are averaged. `mirror`: the image and its mirror image; `none`: the image alone;
    `legacy_fliplr`: the image and its channel-reversed copy, as in the published data."""
    runs_per_mask: int = 1
    """Number of evaluation rows that share one mask; they differ in all other random numbers."""
    fixed: list[str] = field(default_factory=list)
    """What is drawn from row 0's random streams for every row, so that it does not vary between models: any of
    `initialisation`, `order` and `augmentation`."""
    data: Data = field(default_factory=Data)
    recipe: Recipe = field(default_factory=Recipe)
    outputs: Outputs = field(default_factory=Outputs)
    fit: Fit = field(default_factory=Fit)
    eval: Eval = field(default_factory=Eval)

    def __post_init__(self) -> None:
        named = bool(re.fullmatch(r"[a-z0-9_-]+", self.dataset))
        require(named, "dataset", self.dataset, "a name of a-z, 0-9, _ and -")
        self.fixed = sorted(set(self.fixed))
        names = ("initialisation",) if self.trainer else ("augmentation", "initialisation", "order")
        expected = f"a list out of {', '.join(names)}"
        require(all(name in names for name in self.fixed), "fixed", self.fixed, expected)
        self._check_masks()
        require(self.models >= 1, "models", self.models, "at least 1")
        require(self.eval_models >= 0, "eval_models", self.eval_models, "at least 0")
        require(self.models + self.eval_models < 2**40, "models", self.models, "fewer than 2**40 rows in all")
        require(0 <= self.seed < 2**63, "seed", self.seed, "at least 0 and below 2**63")
        require(self.runs_per_mask >= 1, "runs_per_mask", self.runs_per_mask, "at least 1")
        self._check_trainer()

    def _check_masks(self) -> None:
        """Raises UserError where the keys of the masks do not fit together, or their file cannot be read."""
        known = self.own_masks or self.mask in ("exact", "bernoulli", "groups")
        require(known, "mask", self.mask, "exact, bernoulli, groups, or a NumPy file (.npy)")
        for key, path in (("mask", self.mask if self.own_masks else None), ("groups", self.groups)):
            sha256 = getattr(self, f"{key}_sha256")
            require(path is not None or sha256 is None, f"{key}_sha256", sha256, "null: no file is named")
            if path is not None:
                setattr(self, f"{key}_sha256", sha256 or sha256_of(path, key))
        grouped = self.mask == "groups"
        expected = "a NumPy file (.npy)" if grouped else f"null for mask: {self.mask}"
        require(grouped == (self.groups is not None), "groups", self.groups, expected)
        if self.own_masks:
            require(self.alpha is None, "alpha", self.alpha, f"no alpha: the masks are those of {self.mask}")
            named = bool(re.fullmatch(r"(?!\d+pct$)[a-z0-9_-]+", self.tag or ""))
            require(named, "tag", self.tag, "a name of a-z, 0-9, _ and - for the files, unlike `50pct`")
            return
        require(self.tag is None, "tag", self.tag, "null: the names of the files carry the alpha")
        self.alpha = 0.5 if self.alpha is None else self.alpha
        require(0 < self.alpha < 1, "alpha", self.alpha, "above 0 and below 1")
        exact = f"one that its percentage gives back exactly ({self.pct} % does not): the file names carry it"
        require(alpha_of(self.pct) == self.alpha, "alpha", self.alpha, exact)

    def _check_trainer(self) -> None:
        """Raises UserError where a trainer's file cannot be read, or keys of the image trainer are given beside it."""
        if self.trainer is None:
            require(self.trainer_sha256 is None, "trainer_sha256", self.trainer_sha256, "null: no trainer is named")
            return
        require(self.trainer.endswith(".py"), "trainer", self.trainer, "a Python file (.py)")
        self.trainer_sha256 = self.trainer_sha256 or sha256_of(self.trainer, "trainer")
        given, usual = dict(flatten(self.to_dict())), dict(flatten(Setting().to_dict()))
        ours = {"recipe.device", "recipe.threads", "outputs.preallocate", "data.root", "data.packed"}
        for key in usual:
            if key not in ours and (key == "tta" or key.startswith(("data.", "recipe.", "outputs."))):
                require(given[key] == usual[key], key, given[key], f"no such key: {self.trainer} trains the rows")

    @property
    def own_masks(self) -> bool:
        """Whether the masks come from a file of the user."""
        return self.mask.endswith(".npy")

    @property
    def pct(self) -> str:
        """100 * alpha as the file names print it: 0.5 -> `50`, 0.125 -> `12.5`."""
        assert self.alpha is not None
        return f"{100 * self.alpha:g}"

    @property
    def file_tag(self) -> str:
        """What the names of the setting's files end in, such as `50pct`."""
        return self.tag or f"{self.pct}pct"

    @property
    def described(self) -> str:
        """Alpha or tag, for people."""
        return self.tag or f"alpha {self.alpha:g}"

    @property
    def rows(self) -> int:
        return self.models + self.eval_models

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved setting with the keys of the YAML file."""
        return dataclasses.asdict(self)


def alpha_of(pct: str) -> float:
    """Return the alpha that a percentage in a file name stands for, exactly: `12.5` -> 0.125."""
    return float(Decimal(pct).scaleb(-2))


def flatten(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each key of nested dictionaries, with dots between the levels, and its value."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
