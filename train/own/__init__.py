"""Trainers of one's own: a user's Python file that declares what a row holds, and makes it (docs/own_trainer.md).

The file runs in a process of its own alone, so that nothing it does, an end of the process included, takes more with it
than its row. Nothing here imports torch.
"""

from datamodels.train.own.declare import declared
from datamodels.train.own.trainer import OwnTrainer

__all__ = ["OwnTrainer", "declared"]
