"""What can be said of a fit and its evaluation before any row is trained."""

import numpy as np

from lasso.rows import Split
from train.errors import UserError
from train.store import ReadableStore as Store

_ENOUGH = 1000
"""Rows among which validation rows are looked for: that many have some, whatever the seed."""
_MASKS = 3
"""Evaluation masks that a rank correlation needs at least."""


def foresee(store: Store) -> None:
    """Raises UserError where a setting's rows, once they are trained, could be neither fitted nor evaluated."""
    split = Split.of(store, np.arange(min(store.models, _ENOUGH)))
    heldout = int(split.heldout.sum())
    if heldout < 1 or len(split.rows) - heldout < 2:
        raise UserError(
            f"{store.models} models would give {len(split.rows) - heldout} training and {heldout} validation rows, "
            f"expected at least 2 and 1 (fit.share {store.setting.fit.share:g}): raise models or fit.share"
        )
    evaluation = range(store.models, store.rows)[: _MASKS * store.setting.runs_per_mask]
    masks = len({store.mask_index(row) for row in evaluation})
    if store.eval_models and masks < _MASKS:
        raise UserError(
            f"{store.eval_models} evaluation models would have {masks} masks, expected at least {_MASKS}, or no "
            "evaluation models at all: raise eval_models"
        )
