"""The image trainer: from row numbers to masks, margins and logits.

trainer.py trains a group of rows; engine.py has the training step and the evaluation. The step's parts: schedule.py
(batch order, learning rate), loader.py (images), models.py (networks, initial values), optimizer.py (flat parameters,
SGD); executor.py is how work gets to a CPU or GPU, gpu_setup.py what a GPU trains with. train/run_rows.py calls it for
what a store misses.
"""

from datamodels.train.trainer.device import describe, device_name, on_gpu, pick_device, precision
from datamodels.train.trainer.executor import Executor, executor_of
from datamodels.train.trainer.gpu_setup import choose_kernels, explain
from datamodels.train.trainer.models import check
from datamodels.train.trainer.trainer import Trainer, margin

__all__ = [
    "Executor",
    "Trainer",
    "check",
    "choose_kernels",
    "describe",
    "device_name",
    "executor_of",
    "explain",
    "margin",
    "on_gpu",
    "pick_device",
    "precision",
]
