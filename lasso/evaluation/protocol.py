"""What the figures of an evaluation are of, so that a file of them explains itself: docs/evaluation.md."""

from typing import Any

from datamodels.train.store import PublishedStore
from datamodels.train.store import ReadableStore as Store

MARGIN = (
    "correct-class logit minus the largest other logit, of logits averaged over the test-time views (tta), rounded to "
    "float16"
)


def protocol(store: Store, split: str) -> dict[str, Any]:
    """Setting and split, for JSON; None is what published files do not tell of themselves."""
    setting = store.setting
    unknown = isinstance(store, PublishedStore)
    return {
        "dataset": setting.dataset,
        "alpha": setting.alpha,
        "split": split,
        "margin": MARGIN,
        "mask": None if unknown else setting.mask,
        "tta": None if unknown else setting.tta,
        "seed": None if unknown else setting.seed,
        "runs_per_mask": setting.runs_per_mask,
    }
