"""Checkpoints of rows: trained again, compared with the store, and written for a plain module.

network.py, network.json   the module, and what it is built from (launch/export/network.py)
own_network.py             a user's own network, as its file was
checkpoints/row_R.pt       its state dict after row R's training
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.lasso import Progress
from datamodels.launch.export import network
from datamodels.train import UserError, WorkError
from datamodels.train.data import Dataset, load
from datamodels.train.store import ReadableStore, Store, check_data

if TYPE_CHECKING:
    import torch

    from datamodels.train.store import RowFailure, RowResult
    from datamodels.train.trainer import Trainer

LARGEST_DEVIATION = {"float32": 0.002, "bfloat16": 0.05, "float16": 0.01}
"""Root mean square difference between a plain module's margins, in float32, and the row's, as a share of theirs, by the
precision the row was made in."""


def write_checkpoints(store: ReadableStore, rows: NDArray[np.int64], folder: Path, progress: Progress) -> list[str]:
    """Train the rows again, write the network of each, and return the checkpoints' names.

    Raises UserError for a store of published files or without its data set, WorkError where a row comes out otherwise
    than it is stored.
    """
    from datamodels.train.trainer import Trainer, pick_device

    if not isinstance(store, Store):
        raise UserError(f"{store.layout.manifest} does not exist: rows of published files cannot be trained again")
    recipe, dataset = store.setting.recipe, load(store.setting)
    check_data(store.manifest, dataset)
    trainer = Trainer(store.setting, dataset, pick_device(recipe), store.eras)
    shutil.copyfile(network.__file__, folder / "network.py")
    if recipe.own_network:
        shutil.copyfile(Path(recipe.network).expanduser(), folder / "own_network.py")
    (folder / "network.json").write_text(json.dumps(_describe(store, dataset), indent=1) + "\n")
    plain = network.load(folder)
    (folder / "checkpoints").mkdir()
    names = []
    for group in np.unique(rows // store.group).tolist():
        results = {result.row: result for result in trainer(group)}
        for row in rows[rows // store.group == group].tolist():
            _require_same(store, results[row], trainer)
            trained = trainer.engines[0].network.state_dict()
            plain.load_state_dict(row_state(trained, plain.state_dict(), store.group, row))
            _require_margins(store, plain, dataset, row, trainer)
            names.append(f"checkpoints/row_{row}.pt")
            _save(plain, folder / names[-1])
            progress("checkpoints", len(names), len(rows))
    return names


def _describe(store: Store, dataset: Dataset) -> dict[str, Any]:
    """network.json"""
    recipe = store.setting.recipe
    return {
        "network": "own" if recipe.own_network else recipe.network,
        "width": recipe.width,
        "image": list(dataset.train.images.shape[1:]),
        "classes": len(dataset.classes),
        "mean": list(dataset.mean),
        "std": list(dataset.std),
        "tta": store.setting.tta,
    }


def row_state(
    trained: "dict[str, torch.Tensor]", plain: "dict[str, torch.Tensor]", group: int, row: int
) -> "dict[str, torch.Tensor]":
    """One row's state dict, of the names and shapes of `plain`, from that of a network that trains a group of rows.

    Every tensor of the latter holds the group's rows one after the other.
    """
    state = {}
    for name, like in plain.items():
        source = name if name in trained else _GROUPED[name]
        values = trained[source].detach().cpu()
        if values.is_floating_point():  # convolutions in half precision have their weights in it too
            values = values.float()
        if values.ndim:
            values = values.reshape(group, -1)[row % group]
        if source == "weight":  # [inputs, outputs], where a linear layer has [outputs, inputs]
            values = values.reshape(*reversed(like.shape)).T
        state[name] = values.reshape(like.shape).clone()
    return state


_GROUPED = {"head.weight": "weight", "head.bias": "bias"}
"""The last layer of the grouped network, which is no module of its own."""


def _require_same(store: Store, result: "RowResult | RowFailure", trainer: "Trainer") -> None:
    """Raises WorkError unless a row trained again has the bytes that are stored."""
    from datamodels.train.store import RowResult
    from datamodels.train.trainer import environment

    row = result.row
    if isinstance(result, RowResult) and all(
        store.read(name, row, row + 1).tobytes() == result.arrays[name].tobytes() for name in store.arrays
    ):
        return
    made = store.states.readers[store.states.journal[row]].provenance
    here = environment(store.setting.recipe, trainer.device)
    differing = [f"{key} is {here[key]}, was {made.get(key)}" for key in here if made.get(key) != here[key]]
    cause = f"{'; '.join(differing)}: export its checkpoint there" if differing else "run `datamodels verify`"
    raise WorkError(f"row {row} trained again comes out other than it is stored: {cause}")


def _require_margins(store: Store, plain: network.Network, dataset: Dataset, row: int, trainer: "Trainer") -> None:
    """Raises WorkError unless the plain module gives the row's margins, as far as its precision goes."""
    import torch

    from datamodels.train.trainer import margin

    plain = plain.to(trainer.device)
    with torch.inference_mode():
        batches = trainer.shared.loaders["test"].in_order(store.setting.recipe.eval_batch)
        logits = torch.cat([plain(batch.permute(0, 3, 1, 2)) for batch in batches])
        margins = margin(logits, trainer.shared.labels["test"]).cpu().numpy()
    stored = store.read("test_margins", row, row + 1)[0].astype(np.float32)
    deviation = np.sqrt(((margins - stored) ** 2).mean() / (stored**2).mean())
    allowed = LARGEST_DEVIATION[str(trainer.engines[0].precision).removeprefix("torch.")]
    if not deviation <= allowed:
        raise WorkError(f"row {row}: its plain network's margins deviate by {deviation:.2%}, expected {allowed:.2%}")


def _save(plain: network.Network, path: Path) -> None:
    import torch

    torch.save({name: values.cpu() for name, values in plain.state_dict().items()}, path)
