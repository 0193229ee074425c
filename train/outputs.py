"""What a row holds beside its mask: outputs, each with a name, the shape of one row and a type."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from datamodels.train.config import Outputs

MOST_OUTPUTS = 10
"""A store keeps a checksum of every output of every row in memory."""


@dataclass(frozen=True)
class Output:
    """One output of a row, such as its margins on the test examples."""

    name: str
    """`{split}_{output}`, such as `test_margins`: the stem of its file."""
    shape: tuple[int, ...]
    """Of one row; the first axis counts the targets."""
    dtype: np.dtype
    """float16 or float32."""

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} {list(self.shape)}"


def is_output(name: str) -> bool:
    """Return whether an output may have this name: `train_` or `test_`, and a lower-case word."""
    return re.fullmatch(r"(train|test)_[a-z][a-z0-9]*", name) is not None


@dataclass(frozen=True)
class Declared:
    """What a setting's trainer says of its rows before any is trained."""

    n_train: int
    """Training examples, the columns of the masks."""
    n_test: int
    """Test examples; of a trainer of one's own, the targets of its first test output."""
    classes: tuple[str, ...]
    """Names of the classes of an image data set."""
    outputs: tuple[Output, ...]
    """In the order of a record's checksums."""
    sha256: str
    """Digest of the data set, or of the trainer's file."""
    where: str
    """Where they come from, for people."""
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Names or texts of the training and the test examples, by split, where there are any."""


def image_outputs(kept: Outputs, n_train: int, n_test: int, classes: int) -> tuple[Output, ...]:
    """Return what the image trainer stores of each row: margins, and of logits, loss and correct what is kept."""
    half = np.dtype(np.float16)
    found = [Output("test_margins", (n_test,), half), Output("train_margins", (n_train,), half)]
    if kept.train_logits:
        found.append(Output("train_logits", (n_train, classes), half))
    if kept.test_logits:
        found.append(Output("test_logits", (n_test, classes), half))
    for output, is_kept, kind in (("loss", kept.loss, np.dtype(np.float32)), ("correct", kept.correct, half)):
        if is_kept:
            found += [Output(f"test_{output}", (n_test,), kind), Output(f"train_{output}", (n_train,), kind)]
    return tuple(found)
