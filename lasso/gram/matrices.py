"""What the solver needs of the masks: correlations, and the held-out rows."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso.design import Counts, Scale, correlations, moments

if TYPE_CHECKING:
    import torch

    from datamodels.lasso.solver.correlations import Correlations

SMALL_BYTES = 2**28
"""Size up to which several matrices [N, N] of 4 bytes are kept in memory; of larger ones there is one at a time."""


def is_small(n_train: int) -> bool:
    """Whether several matrices [N, N] may be in memory."""
    return 4 * n_train**2 <= SMALL_BYTES


class Matrices:
    """What descent needs of the counts. Large correlations take turns in one buffer: ask for them one after the other.

    bits: masks of the held-out rows, [N, words] of 64 rows each, filled up with zeros anywhere.
    """

    def __init__(self, counts: Counts, bits: NDArray[np.uint64]) -> None:
        self.counts, self.bits = counts, bits
        ones, others = counts.ones
        self.scale = Scale.of(counts.rows[0], ones)
        self.whole_scale = Scale.of(sum(counts.rows), ones + others)
        self.held_rows = counts.rows[1]
        self.held_ones = others.astype(np.float64)
        self.n_train = len(ones)
        self.constant_examples = int(np.count_nonzero(self.whole_scale.inv == 0))
        self.moments = np.zeros((0, 0), np.float32)
        if is_small(self.n_train) and self.held_rows > 2 * self.n_train:
            self.moments = moments(self.scale, counts)
        self._found: dict[bool, NDArray[np.float32]] = {}
        self._on_device: dict[bool, Correlations] = {}

    @property
    def corr(self) -> NDArray[np.float32]:
        """Correlations of the training rows."""
        return self._correlations(False)

    @property
    def whole_corr(self) -> NDArray[np.float32]:
        """Correlations of all rows."""
        return self._correlations(True)

    def on_device(self, device: "torch.device", whole: bool) -> "Correlations":
        """Correlations of the training rows, or of all rows, on a device, where one or the other is kept."""
        from datamodels.lasso.solver.correlations import Correlations

        if whole not in self._on_device:
            self._on_device.clear()
            scale, groups = (self.whole_scale, (0, 1)) if whole else (self.scale, (0,))
            self._on_device[whole] = Correlations(scale, self.counts, groups, device)
        return self._on_device[whole]

    def _correlations(self, whole: bool) -> NDArray[np.float32]:
        if whole not in self._found:
            buffer = None
            if not is_small(self.n_train) and self._found:
                buffer = self._found.pop(not whole)
            scale, groups = (self.whole_scale, (0, 1)) if whole else (self.scale, (0,))
            self._found[whole] = correlations(scale, self.counts, groups, buffer)
        return self._found[whole]

    @property
    def held_width(self) -> int:
        """Length of what descent keeps of the held-out rows."""
        return len(self.moments) or 64 * self.bits.shape[1]

    def held_bits(self) -> NDArray[np.uint64]:
        """The bits, or [N, 0] where the moments are the shorter way."""
        return self.bits[:, :0] if len(self.moments) else self.bits
