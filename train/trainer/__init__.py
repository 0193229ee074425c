"""The image trainer: from row numbers to masks, margins and logits.

trainer.py trains a group of rows; engine.py has the training step and the evaluation. The step's parts: schedule.py
(batch order, learning rate), loader.py (images), models.py (networks, initial values), optimizer.py (flat parameters,
SGD); executor.py is how work gets to a CPU or GPU. train/run_rows.py calls it for what a store misses.
"""

from datamodels.train.trainer.device import device_name, environment, on_gpu, pick_device
from datamodels.train.trainer.models import check
from datamodels.train.trainer.trainer import Trainer, margin

__all__ = [
    "Trainer",
    "check",
    "device_name",
    "environment",
    "margin",
    "on_gpu",
    "pick_device",
]
