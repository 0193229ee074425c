"""A check, before any row is trained, that a setting can be fitted and evaluated."""

from collections.abc import Sequence

import numpy as np

from datamodels.lasso.evaluation import LEAST_MASKS
from datamodels.lasso.rows import FitRows
from datamodels.train import Era, Setting, UserError, mask_index

_COUNTED = 1000
"""Models up to which validation rows are counted; with more models there are enough, unless fit.share is extreme."""


def preflight_check(setting: Setting, eras: Sequence[Era] = ()) -> None:
    """Raises UserError where a setting's rows, once they are trained, could not be fitted or evaluated.

    eras: the lengths that its store has had; none for a store that does not exist yet.
    """
    eras = list(eras) or [Era(setting.models, setting.eval_models)]
    models, eval_models, rows = eras[-1].models, eras[-1].eval_models, eras[-1].rows
    if models <= _COUNTED:
        FitRows.of(setting, np.arange(models)).refuse_too_few(f"{models} models would give", setting.fit.share)
    evaluation = range(models, rows)[: LEAST_MASKS * setting.runs_per_mask]
    masks = len({mask_index(row, eras, setting.runs_per_mask) for row in evaluation})
    if eval_models and masks < LEAST_MASKS:
        raise UserError(
            f"{eval_models} evaluation models would have {masks} masks, expected at least {LEAST_MASKS}, or no "
            "evaluation models at all: raise eval_models"
        )
