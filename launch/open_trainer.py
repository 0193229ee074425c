"""Which trainer trains the rows of a store."""

from datamodels.train import RowTrainer
from datamodels.train.store import Store


def open_trainer(store: Store, device: str | None = None, concurrent_groups: int = 1) -> RowTrainer:
    """The trainer of a store's rows on a device, `cpu` or `cuda:0`, by default the recipe's; `close` it in the end.

    Raises UserError where the data set, or what the trainer's file declares, is not that of the store.
    """
    recipe = store.setting.recipe
    if store.setting.trainer and (device or recipe.device) == "cpu":  # which needs no torch
        from datamodels.train.own import OwnTrainer

        return OwnTrainer(store, "cpu")

    import torch

    from datamodels.train.own import OwnTrainer
    from datamodels.train.trainer import Trainer, pick_device

    place = torch.device(device) if device else pick_device(recipe)
    if store.setting.trainer:
        return OwnTrainer(store, str(place))
    return Trainer(store.setting, store.dataset(), place, store.eras, concurrent_groups)
