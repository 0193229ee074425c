"""The image trainer: from row numbers to masks, margins and logits."""

from datamodels.train.trainer.device import device_name, environment, on_gpu, pick_device
from datamodels.train.trainer.models import check
from datamodels.train.trainer.run_rows import retry_failed, train_rows
from datamodels.train.trainer.trainer import Trainer, margin

__all__ = [
    "Trainer",
    "check",
    "device_name",
    "environment",
    "margin",
    "on_gpu",
    "pick_device",
    "retry_failed",
    "train_rows",
]
