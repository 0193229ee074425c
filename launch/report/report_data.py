"""Everything that a report is about, gathered before anything is written."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import (
    Components,
    Curve,
    Evaluation,
    Progress,
    principal_components,
    split_and_output,
    target_count,
)
from datamodels.lasso.evaluation import EvaluationRows, Tile, curve, evaluate, read_curve, write_curve
from datamodels.launch.progress import counted, notice
from datamodels.launch.report.cost import Work, work_of
from datamodels.launch.report.fitted import Fitted
from datamodels.launch.report.survey import Survey, survey
from datamodels.train import UserError, WorkError
from datamodels.train.data import Dataset, Images
from datamodels.train.store import BaseStore, Store

_SHOWN = 10
"""Targets shown with their training images."""
_NAMED = 3
"""Examples of a group that are named."""
_PLOTTED = 40
"""Targets whose predictions are plotted."""
_COMPONENTS = 4
"""Principal components shown."""
_FEWEST_TARGETS = 20
"""Targets from which components are shown."""
_SAMPLED_IMAGES, _SAMPLED_SIDE = 100, 64
"""Training images whose values say what is shown as black and as full brightness, and most pixels in each direction."""
_CURVE_EXAMPLES = 2500
"""Training examples up to which an LDS curve takes a minute at most."""
ROWS, COLUMNS = 256, 2000
"""Rows and columns of margins that are read, evenly spaced, if all of them would take long."""


@dataclass(frozen=True)
class Examples:
    """The training examples and the targets of a store's split: images, names, or numbers alone."""

    store: BaseStore
    split: str
    """`test` or `train` for margins, `test_loss` for another output: see `split_name`."""
    dataset: Dataset | None
    """Images and labels; None leaves images out."""

    @cached_property
    def names(self) -> dict[str, list[str] | None]:
        """Names or texts of training and test examples, where there are any."""
        return {split: self.store.names(split) for split in ("train", "test")}

    @property
    def illustrated(self) -> bool:
        """Whether more can be shown of what has weights than numbers."""
        return bool(self.dataset or self.names["train"] or self.store.groups is not None)

    def name(self, split: str, number: int) -> str:
        """An example's name or text, or its number; of a group (split `group`) those of its first examples."""
        if split == "group":
            members = self.members(number)
            named = [self.name("train", example) for example in members[:_NAMED].tolist()]
            more = ", ..." if len(members) > _NAMED else ""
            return f"{', '.join(named)}{more} ({counted(len(members), self.thing)})"
        names = self.names[split]
        return f"#{number}" if names is None or number >= len(names) else names[number]

    @property
    def kind(self) -> str:
        """What the targets are, for people."""
        return "training" if self.side == "train" else "test"

    @property
    def side(self) -> str:
        """`test` or `train`: which examples the targets are."""
        return split_and_output(self.split)[0]

    @property
    def output(self) -> str:
        """What is predicted, `margins` or the name of another output."""
        return split_and_output(self.split)[1]

    @property
    def outcome(self) -> str:
        """The same of one target, for people."""
        return self.output.removesuffix("s") if self.output == "margins" else self.output

    @property
    def thing(self) -> str:
        """What an example is, for people."""
        return "image" if self.dataset else "example"

    @property
    def feature(self) -> str:
        """What the weights are of, for people."""
        return f"training {self.thing}" if self.store.groups is None else "group"

    @property
    def feature_split(self) -> str:
        """What the weights are of: `train`, or `group`."""
        return "train" if self.store.groups is None else "group"

    def members(self, group: int) -> NDArray[np.int64]:
        """The training examples of a group."""
        return np.flatnonzero(self.store.groups == group)

    @cached_property
    def shades(self) -> NDArray[np.float64] | None:
        """What `shades_of` gives for the training images."""
        return shades_of(self.dataset.train.images) if self.dataset else None


@dataclass(frozen=True)
class ReportData(Examples):
    """What the sections of a setting's page are made of."""

    fitted: Fitted
    evaluation: Evaluation | None
    """Of the fitted targets; None if there are too few evaluation rows."""
    not_evaluated: str
    """Why there is no evaluation."""
    lds_curve: Curve | str
    """LDS against the number of models, or why it is not known."""
    plotted: NDArray[np.int64]
    """Places in `fitted.targets` of those whose predictions are plotted; `survey.columns` begins with them."""
    shown: NDArray[np.int64]
    """Places of those shown with their training images; `survey.columns` goes on with them."""
    survey: Survey
    components: Components | None
    """Of the weights, without those of training examples for themselves; None if there are too few targets."""
    price: float | None
    """Of an hour of a GPU or of a CPU core."""

    @cached_property
    def work(self) -> Work | None:
        """What training took; None if that is not recorded."""
        return work_of(self.store)

    @cached_property
    def accuracy(self) -> NDArray[np.float64]:
        """Test accuracy of each done row as recorded; of published files that of some rows, on some test examples.

        Empty where no test margins are kept.
        """
        if "test_margins" not in self.store.arrays:
            return np.empty(0)
        if isinstance(self.store, Store):
            return self.store.states.accuracy[self.store.completed()].astype(np.float64)
        done = np.flatnonzero(self.store.completed())
        margins = sample_outputs(self.store, "test_margins", done[spread(len(done), ROWS)])
        return np.mean(margins > 0, axis=1, dtype=np.float64)


def gather(
    store: BaseStore,
    split: str,
    dataset: Dataset | None,
    evaluation: Evaluation | None,
    progress: Progress,
    price: float | None,
) -> ReportData:
    """Raises UserError, WorkError. evaluation: what `evaluate` returns, if that is known already."""
    fitted = Fitted(store, split)
    not_evaluated = ""
    if evaluation is None:
        evaluation, not_evaluated = _evaluate(store, split, fitted, progress)
    plotted, shown = (spread(len(fitted.targets), count) for count in (_PLOTTED, _SHOWN))
    own = _has_own_weights(store, split)
    weights = survey(fitted, np.concatenate([plotted, shown]), own, progress)
    found, shape = None, (fitted.n_train, len(fitted.targets))
    if shape[1] >= _FEWEST_TARGETS:
        themselves, path = fitted.targets if own else None, fitted.parts[0].datamodels.path
        found = principal_components(fitted.rows, shape, _COMPONENTS, themselves, progress, path)
    lds_curve = _lds_curve(store, split, progress) if evaluation else ""
    return ReportData(
        store, split, dataset, fitted, evaluation, not_evaluated, lds_curve, plotted, shown, weights, found, price
    )


def _has_own_weights(store: BaseStore, split: str) -> bool:
    """Whether the targets are the training examples, and so have weights for themselves."""
    is_train, width = split_and_output(split)[0] == "train", target_count(store, split)
    return is_train and store.groups is None and width == store.n_train


def shades_of(images: Images) -> NDArray[np.float64] | None:
    """Values [2, C] shown as black and as full brightness: each channel's 1st and 99th percentiles; None for uint8.

    They are of pixels of some of the images. Where most are equal, it is the least value and the largest.
    """
    if images.dtype == np.uint8:
        return None
    rows, columns = (-(-side // _SAMPLED_SIDE) for side in images.shape[1:3])
    pixels = np.stack([images[number][::rows, ::columns] for number in spread(len(images), _SAMPLED_IMAGES)])
    least, low, high, most = np.percentile(pixels, [0, 1, 99, 100], axis=(0, 1, 2))
    black, full = np.where(low < high, [low, high], [least, most])
    return np.stack([black, np.where(black < full, full, black + 1)])


def spread(total: int, count: int) -> NDArray[np.int64]:
    """Up to `count` of `total` places, evenly spaced."""
    return np.unique(np.linspace(0, total - 1, min(count, total)).astype(np.int64))


def column_step(columns: int) -> int:
    """Every how many-th column is read so that at most COLUMNS are."""
    return -(-columns // COLUMNS)


def sample_outputs(store: BaseStore, name: str, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """An array's values [rows, columns] of some rows and of evenly spaced columns."""
    values = store.array(name)
    return np.stack([values[row, :: column_step(values.shape[1])] for row in rows]).astype(np.float32)


def _evaluate(store: BaseStore, split: str, fitted: Fitted, progress: Progress) -> tuple[Evaluation | None, str]:
    """The evaluation of the fitted targets, or why there is none. Raises WorkError for damaged rows."""
    if not store.eval_models:
        return None, "The setting has no evaluation models (eval_models is 0), so that nothing can be evaluated."
    try:
        if fitted.whole:
            name, output = split_and_output(split)
            return evaluate(store, split=name, output=output, progress=progress), ""
        rows = EvaluationRows(store, split, progress)
    except UserError as error:
        return None, f"Not evaluated: {error}."
    return rows.evaluate(_tiles(fitted, rows.width)), ""


def _tiles(fitted: Fitted, width: int) -> Iterator[Tile]:
    """The fitted targets and their weights, `width` at a time."""
    for part in fitted.parts:
        for start in range(part.first, part.last, width):
            targets = np.arange(start, min(start + width, part.last))
            yield targets, *part.datamodels.columns(targets - part.first + part.columns.start)


def _lds_curve(store: BaseStore, split: str, progress: Progress) -> Curve | str:
    """The curve on disk; else one that is computed and written for the next time; else why there is none."""
    found = read_curve(store, split)
    if found and found[1]:
        return found[0]
    if store.n_features > _CURVE_EXAMPLES:
        return (
            f"No curve of LDS against the number of models: with {store.n_features:,} weights a target it takes as "
            "long as a fit. `datamodels eval CONFIG --curve` computes and keeps it, `datamodels report` then shows it."
        )
    try:
        name, output = split_and_output(split)
        computed = curve(store, split=name, output=output, progress=progress)
    except (UserError, WorkError) as error:  # a fit that fails here is no reason to show nothing else
        return f"No curve of LDS against the number of models: {error}."
    try:
        write_curve(store, split, computed)
    except WorkError as error:
        notice(f"the curve is not kept: {error}")
    return computed
