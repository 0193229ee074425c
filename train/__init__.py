"""Settings, masks and random streams; below: data sets, the store, the trainer and its kernels.

Importing this package imports neither torch nor numba.
"""

from datamodels.train.config import (
    Eval,
    Fit,
    Parser,
    Recipe,
    Setting,
    flatten,
    from_dict,
    identity,
    load_yaml,
    read_setting,
    read_yaml,
    refuse_null,
)
from datamodels.train.errors import READ_ONLY, Interrupted, UserError, WorkError
from datamodels.train.masks import Era, Masks, batch_size, mask_index
from datamodels.train.npy_file import finite_rows, header, is_pointer, mapped, write_file
from datamodels.train.outputs import Declared, Output, image_outputs
from datamodels.train.rng import Stream, raw, validation_rows
from datamodels.train.run_rows import RowTrainer, retry_failed, train_rows
from datamodels.train.summary import Summary
from datamodels.train.user_code import function_of
from datamodels.train.values import expanded, shown

__all__ = [
    "READ_ONLY",
    "Declared",
    "Era",
    "Eval",
    "Fit",
    "Interrupted",
    "Masks",
    "Output",
    "Parser",
    "Recipe",
    "RowTrainer",
    "Setting",
    "Stream",
    "Summary",
    "UserError",
    "WorkError",
    "batch_size",
    "expanded",
    "finite_rows",
    "flatten",
    "from_dict",
    "function_of",
    "header",
    "identity",
    "image_outputs",
    "is_pointer",
    "load_yaml",
    "mapped",
    "mask_index",
    "raw",
    "read_setting",
    "read_yaml",
    "refuse_null",
    "retry_failed",
    "shown",
    "train_rows",
    "validation_rows",
    "write_file",
]
