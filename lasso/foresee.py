"""What can be said of a fit and its evaluation before any row is trained."""

import numpy as np

from lasso.holdout import LEAST_MASKS
from lasso.rows import Split
from train.errors import UserError
from train.store import ReadableStore as Store

_COUNTED = 1000
"""Models up to which validation rows are counted; a fit of more is left to find out for itself."""


def foresee(store: Store) -> None:
    """Raises UserError where a setting's rows, once they are trained, could be neither fitted nor evaluated."""
    if store.models <= _COUNTED:
        split = Split.of(store, np.arange(store.models))
        split.refuse_too_few(f"{store.models} models would give", store.setting.fit.share)
    evaluation = range(store.models, store.rows)[: LEAST_MASKS * store.setting.runs_per_mask]
    masks = len({store.mask_index(row) for row in evaluation})
    if store.eval_models and masks < LEAST_MASKS:
        raise UserError(
            f"{store.eval_models} evaluation models would have {masks} masks, expected at least {LEAST_MASKS}, or no "
            "evaluation models at all: raise eval_models"
        )
