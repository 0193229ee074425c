"""Checkpoints of rows: the rows are trained again, compared with the store, and written for a plain module.

network.py, network.json   the module, and what it is built from (launch/export/network.py)
custom_network.py             a copy of the user's network file, if recipe.network is one
checkpoints/row_R.pt       its state dict after row R's training
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Progress
from datamodels.launch.retrain import has_stored_bytes
from datamodels.train import UserError, WorkError, expanded, function_of
from datamodels.train.data import Dataset, Images
from datamodels.train.store import BaseStore, Store

if TYPE_CHECKING:
    import torch

    from datamodels.launch.export.network import Network
    from datamodels.train.trainer import Trainer

LARGEST_DEVIATION = {"float32": 0.002, "bfloat16": 0.05, "float16": 0.01}
"""Allowed root mean square difference between the plain module's margins, in float32, and the row's, as a share of the
row's; by the precision that the row was trained in."""


def write_checkpoints(store: BaseStore, rows: NDArray[np.int64], folder: Path, progress: Progress) -> list[str]:
    """Train the rows again, write the network of each, and return the checkpoints' names.

    Raises UserError for published files or without the data set, WorkError if a row differs from what is stored.
    """
    import torch

    from datamodels.launch.open_trainer import open_trainer
    from datamodels.train.trainer import Trainer

    if not isinstance(store, Store):
        raise UserError(f"{store.layout.manifest} does not exist: rows of published files cannot be trained again")
    dataset, trainer = store.dataset(), open_trainer(store)
    assert isinstance(trainer, Trainer), "a trainer of one's own has no checkpoints"
    here = trainer.environment()
    plain = _write_network(store, dataset, folder)
    (folder / "checkpoints").mkdir()
    names = list[str]()
    for group in np.unique(rows // store.group).tolist():
        results = {result.row: result for result in trainer(group)}
        trained = trainer.engines[0].network.state_dict()
        for row in rows[rows // store.group == group].tolist():
            if not has_stored_bytes(store, results[row]):
                made = store.states.readers[store.states.journal[row]].provenance
                differing = [f"{key} is {here[key]}, was {made.get(key)}" for key in here if made.get(key) != here[key]]
                cause = (
                    f"{'; '.join(differing)}: export its checkpoint there" if differing else "run `datamodels verify`"
                )
                raise WorkError(f"row {row}, trained again, differs from the stored row: {cause}")
            plain.load_state_dict(row_state(trained, plain.state_dict(), store.group, row))
            _require_margins(store, row, plain, trainer, dataset.test.images)
            names.append(f"checkpoints/row_{row}.pt")
            torch.save({name: values.cpu() for name, values in plain.state_dict().items()}, folder / names[-1])
            progress("checkpoints", len(names), len(rows))
    return names


def _write_network(store: Store, dataset: Dataset, folder: Path) -> "Network":
    """Write network.py, network.json and custom_network.py; returns the module, its parameters yet to be loaded."""
    from datamodels.launch.export import network

    recipe = store.setting.recipe
    about = {
        "network": "own" if recipe.custom_network else recipe.network,
        "width": recipe.width,
        "image": list(dataset.train.images.shape[1:]),
        "dtype": str(dataset.train.images.dtype),
        "classes": len(dataset.classes),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "tta": store.setting.tta,
    }
    (folder / "network.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")
    shutil.copyfile(network.__file__, folder / "network.py")
    if not recipe.custom_network:
        return network.build(about)
    copy = folder / "custom_network.py"
    shutil.copyfile(expanded(recipe.network, "recipe.network"), copy)
    return network.build(about, function_of(str(copy), "recipe.network", "network", recipe.network_sha256))


def row_state(
    trained: "dict[str, torch.Tensor]", plain: "dict[str, torch.Tensor]", group: int, row: int
) -> "dict[str, torch.Tensor]":
    """One row's state dict, with the names and shapes of `plain`, from that of the network that trained its group.

    Every tensor of `trained` holds the group's rows one after the other. The grouped network's last layer is no module
    of its own: `weight` [G, inputs, outputs] and `bias` are `head.weight` [outputs, inputs] and `head.bias`.
    """
    state = {}
    for name, like in plain.items():
        source = name if name in trained else name.removeprefix("head.")
        values = trained[source].detach().cpu()
        if values.is_floating_point():  # weights of convolutions in half precision are in half precision too
            values = values.float()
        if values.ndim:
            values = values.reshape(group, -1)[row % group]
        if source == "weight":
            values = values.reshape(*reversed(like.shape)).T
        state[name] = values.reshape(like.shape).clone()
    return state


def _require_margins(store: Store, row: int, plain: "Network", trainer: "Trainer", images: Images) -> None:
    """Raises WorkError unless the plain module gives the row's margins, but for rounding."""
    import torch

    from datamodels.train.trainer import margin

    plain.to(trainer.device)
    with torch.inference_mode():
        size = store.setting.recipe.eval_batch
        batches = (torch.from_numpy(images[at : at + size]).to(trainer.device) for at in range(0, len(images), size))
        logits = torch.cat([plain(batch.permute(0, 3, 1, 2)) for batch in batches])
        margins = margin(logits, trainer.shared.labels["test"]).cpu().numpy()
    stored = store.read("test_margins", row, row + 1)[0].astype(np.float32)
    deviation = np.sqrt(((margins - stored) ** 2).mean() / (stored**2).mean())
    allowed = LARGEST_DEVIATION[str(trainer.engines[0].precision).removeprefix("torch.")]
    if not deviation <= allowed:
        raise WorkError(f"row {row}: its plain network's margins deviate by {deviation:.2%}, expected {allowed:.2%}")
