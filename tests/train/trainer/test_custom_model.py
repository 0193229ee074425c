"""A custom network: its rows are as reproducible as any, its errors are told with their line."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodels.launch.slurm.script import portable
from datamodels.train.config import Data, Recipe, Setting, from_dict, identity
from datamodels.train.data.sources import load
from datamodels.train.errors import UserError
from datamodels.train.rng import Stream, raw
from datamodels.train.store.writer import RowResult
from datamodels.train.trainer.models import build, check
from datamodels.train.trainer.trainer import Trainer
from tests.conftest import DIGITS, TINY, Outcome, in_process, tiny

CPU = torch.device("cpu")
PLAIN = """
from torch import nn

def network(shape, classes):
    channels, height, width = shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))
"""
WILD = """
import random
import numpy as np
import torch
from torch import nn


class Wild(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.conv = nn.Conv2d(shape[0], 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.query = nn.Linear(4, 4)
        self.query.weight.data = torch.from_numpy(np.random.randn(4, 4).astype(np.float32) / 2)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.register_buffer("shift", torch.randn(4))
        self.frozen = nn.Parameter(torch.rand(4), requires_grad=False)
        self.head = nn.Linear(4, classes)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        print("call", self.calls)
        x = self.drop(torch.relu(self.bn(self.conv(x))))
        tokens = self.query(x.view(x.size(0), 4, -1).transpose(1, 2)) + self.shift
        if self.training and random.random() < 0.2:
            tokens = tokens + 0.01 * self.calls
        tokens, _ = self.attention(tokens, tokens, tokens)
        return self.head(self.norm(tokens.mean(1)) * self.frozen)


def network(shape, classes):
    return Wild(shape, classes)
"""


def setting(folder: Path, code: str = PLAIN, **changes: object) -> Setting:
    path = folder / "my_network.py"
    path.write_text(code)
    found = tiny()
    return replace(found, recipe=replace(found.recipe, network=str(path), group=1, **changes))


def trainer(found: Setting) -> Trainer:
    return Trainer(found, load(found), CPU)


def content(trained: Trainer, row: int) -> bytes:
    (result,) = trained(row)
    assert isinstance(result, RowResult)
    return b"".join(array.tobytes() for array in result.arrays.values())


def test_a_row_depends_on_nothing_that_was_trained_before(tmp_path: Path) -> None:
    """With dropout, buffers, frozen parameters, draws from NumPy and Python, and a counter that the network keeps."""
    found = setting(tmp_path, WILD)
    used = trainer(found)
    rows = [content(used, row) for row in (0, 1, 2)]
    assert len(set(rows)) == 3
    assert content(used, 1) == rows[1]
    torch.rand(5)
    assert content(trainer(found), 1) == rows[1]


def test_what_it_prints_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content(trainer(setting(tmp_path, WILD)), 0)
    told = capsys.readouterr()
    assert told.out == ""
    assert "call 1\n" in told.err


def test_its_values_and_its_draws_come_from_two_streams_of_the_row(tmp_path: Path) -> None:
    engine = trainer(setting(tmp_path)).engines[0]
    engine.parameters.reset(7, range(3, 4))
    drawn = torch.rand(1)
    torch.manual_seed(int(raw(7, 3, Stream.INITIALISATION, 1)[0]))
    expected = torch.nn.Linear(64, 10)
    value = engine.parameters.value[: engine.parameters.size]
    torch.testing.assert_close(value, torch.cat([expected.weight.flatten(), expected.bias]))
    torch.manual_seed(int(raw(7, 3, Stream.NETWORK, 1)[0]))
    assert torch.rand(1) == drawn


def test_only_parameters_that_require_a_gradient_are_trained(tmp_path: Path) -> None:
    trained = trainer(setting(tmp_path, WILD))
    (engine,) = trained.engines
    engine.parameters.reset(0, range(1))
    before = {name: parameter.detach().clone() for name, parameter in engine.network.named_parameters()}
    trained(0)
    after = dict(engine.network.named_parameters())
    assert torch.equal(before.pop("body.frozen"), after["body.frozen"])
    assert not any(torch.equal(value, after[name]) for name, value in before.items())


def test_it_sees_normalised_images_channels_first(tmp_path: Path) -> None:
    code = PLAIN.replace("    return", "    assert (channels, height, width) == (3, 4, 5)\n    return")
    found = setting(tmp_path, code)
    network = build(found.recipe, (4, 5, 3), 2)
    images = torch.randn(1, 6, 4, 5, 3)
    linear = network.body[1]
    expected = images[0].permute(0, 3, 1, 2).flatten(1) @ linear.weight.T + linear.bias
    torch.testing.assert_close(network(images)[0], expected)


def test_it_learns(tmp_path: Path) -> None:
    found = setting(tmp_path, epochs=30)
    (result,) = trainer(found)(0)
    assert isinstance(result, RowResult)
    assert result.train_accuracy == 1
    assert result.accuracy > 0.6


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def network(shape classes)", ", line 1: SyntaxError: invalid syntax"),
        ("def network(shape):\n    pass", ": TypeError: network() takes 1 positional argument but 2 were given"),
        ("def network(shape, classes):\n    return 5", ": network() returns int, expected a torch.nn.Module"),
        ("x = 1", " defines no function network (recipe.network)"),
        (PLAIN.replace("channels *", "5 *"), ": RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        (PLAIN.replace("classes))", "7))"), ": the network returns torch.float32 [2, 7], expected logits [2, 10]"),
        (PLAIN.replace("classes))", "classes)).double()"), ": 1.weight is torch.float64, expected torch.float32"),
        (PLAIN.replace("nn.Linear", "nn.LazyLinear").replace("channels * height * width, ", ""), ": 1.weight has no"),
        (
            "from torch import nn\ndef network(shape, classes):\n    return nn.Flatten()",
            ": network() returns a module w",
        ),
        (WILD.replace("self.calls += 1", "assert self.training, 'no'"), ", line 24: AssertionError: no"),
    ],
)
def test_what_is_wrong_with_it_is_told_in_one_line_before_a_store_is_made(tmp_path: Path, code: str, said: str) -> None:
    found = setting(tmp_path, code)
    with pytest.raises(UserError) as error:
        check(found.recipe, (8, 8, 1), 10, 50)
    assert str(error.value).startswith(f"{found.recipe.network}{said}")
    assert "\n" not in str(error.value)


def test_another_number_of_parameters_the_next_time_is_refused(tmp_path: Path) -> None:
    code = "BIAS = [True]\n" + PLAIN.replace("width, classes)", "width, classes, bias=bool(BIAS and BIAS.pop()))")
    with pytest.raises(UserError, match="makes 640 parameters, but made 650 before"):
        trainer(setting(tmp_path, code))(0)


def test_its_identity_is_its_content_not_its_place(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    first, moved, changed = setting(here), setting(there), setting(tmp_path, PLAIN + "#")
    assert identity(first.to_dict()) == identity(moved.to_dict()) != identity(changed.to_dict())
    assert identity(first.to_dict()) != identity(tiny().to_dict())
    assert from_dict(first.to_dict()) == first


def test_jobs_on_slurm_find_the_files_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting(tmp_path)
    monkeypatch.chdir(tmp_path)
    relative = Setting(dataset="mine", data=Data(python="my_data.py"), recipe=Recipe(network="my_network.py"))
    sent = from_dict(portable(relative))
    assert (sent.data.python, sent.recipe.network) == (f"{tmp_path}/my_data.py", f"{tmp_path}/my_network.py")
    assert identity(sent.to_dict()) == identity(relative.to_dict())


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ({"network": "no_such.py"}, "recipe.network is 'no_such.py': cannot read it: No such file"),
        ({"network": "vgg"}, "recipe.network is 'vgg', expected resnet9, resnet18, convnet, or a Python file (.py)"),
        ({"network_sha256": "ab"}, "recipe.network_sha256 is 'ab', expected null: no file is named"),
    ],
)
def test_a_network_that_is_not_there_is_refused(recipe: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as error:
        Recipe(**recipe)
    assert str(error.value).startswith(said)


def test_a_changed_file_is_refused_by_name_and_a_moved_one_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.py"
    path.write_text(PLAIN)
    root = ["--root", tmp_path / "root", *TINY, "--recipe.group=1", "--models=6", "--eval_models=2"]

    def called(name: str, network: object, *more: str) -> Outcome:
        return in_process(capsys, name, DIGITS, *root, f"--recipe.network={network}", *more)

    assert [called("init", path).code, called("train", path, "--rows=0:3", "--workers=1").code] == [0, 0]
    moved = path.rename(tmp_path / "moved.py")
    assert called("train", moved, "--workers=1").code == 0
    margins = np.load(tmp_path / "root" / "digits" / "data" / "test_margins_50pct.npy")
    assert len(np.unique(margins, axis=0)) == 8
    sha256 = Recipe(network=str(moved)).network_sha256
    moved.write_text(PLAIN + "# another\n")
    manifest = tmp_path / "root" / "digits" / "data" / "store_50pct.json"
    assert called("train", moved).error.startswith(f"error: {moved} is not the network that {manifest} was made with")
    assert called("status", moved, f"--recipe.network_sha256={sha256}").code == 0
    assert called("init", moved, f"--recipe.network_sha256={sha256}").code == 0
    retrained = called("verify", moved, f"--recipe.network_sha256={sha256}", "--retrain=1")
    assert retrained.code == 2
    assert f"error: {moved} has changed: it has sha256" in retrained.err
    assert f"recipe.network is 'convnet', but {manifest} holds a setting with" in called("status", "convnet").error
