"""Exported networks: plain modules that give the rows' margins without this package."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodels.launch.export import network
from datamodels.launch.export.checkpoints import row_state
from datamodels.train.data import Split, load
from datamodels.train.kernels import Augment, as_tensor
from datamodels.train.store import open as open_store
from datamodels.train.trainer import margin
from datamodels.train.trainer.engine import views
from datamodels.train.trainer.models import build
from tests.conftest import DIGITS, TINY, in_process, tiny
from tests.launch.export.conftest import OPTIONS
from tests.stores import damage


def test_checkpoints_give_the_stored_margins_without_this_package(
    root: Path, export: Callable[..., Path], tmp_path: Path
) -> None:
    made = export("--to", "quanda", "--checkpoints", "5:12")
    about = json.loads((made / "export.json").read_text())
    masks = np.load(root / "digits" / "data" / "train_masks_50pct.npy")
    subsets = json.loads((made / "subset_ids.json").read_text())
    assert subsets == [np.flatnonzero(mask).tolist() for mask in masks[5:12]]
    program = (
        "import json, network, numpy as np, sys, torch\n"
        "images, model = torch.from_numpy(np.load(sys.argv[1])), network.load('.')\n"
        "for name in json.load(open('export.json'))['checkpoints']:\n"
        "    model.load_state_dict(torch.load(name, weights_only=True))\n"
        "    for shown in (images, images.float() / 255):\n"
        "        print(json.dumps(model(shown).tolist()))\n"
        "assert 'datamodels' not in sys.modules\n"
    )
    test = load(tiny()).test
    np.save(tmp_path / "images.npy", test.images.transpose(0, 3, 1, 2))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-W", "error", "-c", program, tmp_path / "images.npy"]
    done = subprocess.run(command, cwd=made, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    logits = [torch.tensor(json.loads(line)) for line in done.stdout.splitlines()]
    margins = torch.stack([margin(each, torch.from_numpy(test.labels)) for each in logits])
    stored = np.load(root / "digits" / "data" / "test_margins_50pct.npy")[about["rows"]].astype(np.float32)
    assert np.abs(margins.numpy() - stored.repeat(2, axis=0)).max() < 2e-3


@pytest.mark.parametrize(
    ("name", "tta", "dtype", "channels"),
    [
        ("convnet", "legacy_fliplr", "uint8", 3),
        ("resnet9", "mirror", "uint16", 5),
        ("resnet18", "none", "float32", 13),
        ("convnet", "legacy_fliplr", "float32", 2),
    ],
)
def test_plain_networks_are_those_that_are_trained(name: str, tta: str, dtype: str, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, channels)).astype(dtype)
    splits = {"train": Split(images, np.arange(5)), "test": Split(images, np.arange(5))}
    dataset = replace(
        load(tiny()), **splits, mean=(100.0,) * channels, std=tuple(50.0 + channel for channel in range(channels))
    )
    recipe = replace(tiny().recipe, network=name, group=3 if name == "convnet" else 1)
    trained = build(recipe, (32, 32, channels), 7).eval()
    generator = torch.Generator().manual_seed(0)
    for values in trained.state_dict().values():
        if values.ndim:
            values.copy_(0.05 + 0.1 * torch.rand(values.shape, generator=generator))
    about = {"network": name, "width": 4, "image": [32, 32, channels], "classes": 7, "tta": tta}
    plain = network.build({**about, "dtype": dtype, "mean": dataset.mean, "std": dataset.std})
    shown = views(Augment(dataset, recipe, torch.device("cpu")).normalise(as_tensor(images)), tta)
    with torch.inference_mode():
        wanted = torch.stack([trained(view[None]) for view in shown]).mean(0)
        for place in range(recipe.group):
            plain.load_state_dict(row_state(trained.state_dict(), plain.state_dict(), recipe.group, 30 + place))
            torch.testing.assert_close(
                plain(torch.from_numpy(images).permute(0, 3, 1, 2)), wanted[place], rtol=1e-4, atol=1e-4
            )


def test_a_row_that_comes_out_different_is_not_exported(
    root: Path, export: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    made, store = export("--to", "quanda", "--rows", "0:2"), open_store(root)
    damage(store, "test_margins", [9])
    done = in_process(capsys, "export", DIGITS, "--root", root, *OPTIONS, "--to=quanda", "--checkpoints=8:10")
    damage(store, "test_margins", [9])  # undoes it
    assert done.code == 1
    assert "error: row 9, trained again, differs from the stored row: run `datamodels verify`" in done.err
    assert json.loads((made / "export.json").read_text())["rows"] == [0, 1]  # the former export


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(shape[0])
        self.head = nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, x):
        return self.head(self.norm(x.view(len(x), -1).view_as(x)).flatten(1))  # view wants images that are contiguous

def network(shape, classes):
    return Net(shape, classes)
"""


def test_own_networks_are_exported_with_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "mine.py"
    own.write_text(OWN)
    options = ["--root", tmp_path / "root", *TINY, "--recipe.group=1", f"--recipe.network={own}"]
    for command in (["init"], ["train", "--rows=0:3", "--workers=1"]):
        assert in_process(capsys, command[0], DIGITS, *options, *command[1:]).code == 0
    done = in_process(capsys, "export", DIGITS, *options, "--to=quanda", "--checkpoints=0:3")
    assert done.code == 0, done.err
    made, test = Path(done.out.strip()), load(tiny()).test
    assert (made / "custom_network.py").read_text() == OWN
    own.unlink()
    model = network.load(made)
    model.load_state_dict(torch.load(made / "checkpoints" / "row_2.pt", weights_only=True))
    margins = margin(model(torch.from_numpy(test.images).permute(0, 3, 1, 2)), torch.from_numpy(test.labels)).detach()
    stored = np.load(tmp_path / "root" / "digits" / "data" / "test_margins_50pct.npy")[2]
    np.testing.assert_allclose(margins, stored, rtol=2e-3, atol=2e-3)
