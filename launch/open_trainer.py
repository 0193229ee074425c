"""Which trainer trains the rows of a store."""

from datamodels.launch.progress import notice
from datamodels.train import RowTrainer
from datamodels.train.store import Store


def open_trainer(store: Store, device: str | None = None, concurrent_groups: int = 1) -> RowTrainer:
    """The trainer of a store's rows on a device, `cpu` or `cuda:0`, by default the recipe's; `close` it in the end.

    Tells what a GPU trains with. Raises UserError where the data set, or what the trainer's file declares, is not that
    of the store, or the kernels are not those of its rows; WorkError where a GPU cannot be set up.
    """
    recipe = store.setting.recipe
    if store.setting.trainer and (device or recipe.device) == "cpu":  # which needs no torch
        from datamodels.train.own import OwnTrainer

        return OwnTrainer(store, "cpu")

    import torch

    from datamodels.train.own import OwnTrainer
    from datamodels.train.trainer import Trainer, choose_kernels, describe, executor_of, pick_device

    place = torch.device(device) if device else pick_device(recipe)
    if store.setting.trainer:
        return OwnTrainer(store, str(place))
    executor = executor_of(place)
    kernels = choose_kernels(recipe, executor, store.states.made_with("kernels"))
    if executor.capability:
        notice(describe(recipe, executor, kernels.name))
    return Trainer(store.setting, store.dataset(), executor, store.eras, concurrent_groups, kernels)
