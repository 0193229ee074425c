"""`datamodels export`: what the files hold, what is refused, and that a former export is lost to nothing."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from datamodels.lasso.atomic import temporary_beside
from datamodels.lasso.rows import silent
from datamodels.launch.cli import main
from datamodels.launch.export import TARGETS, parquet, rows, sparse, weights, write_export
from datamodels.launch.export.checkpoints import row_state
from datamodels.launch.export.network import build as plain_network
from datamodels.launch.export.network import load as plain_load
from datamodels.train.data.sources import load
from datamodels.train.errors import UserError, WorkError
from datamodels.train.store import ReadableStore
from datamodels.train.trainer.models import build
from datamodels.train.trainer.trainer import margin
from tests.conftest import DIGITS, PROJECT, TINY, in_process, run_command, tiny
from tests.stores import created_store, damage, invalidate, linear_data, published_store, seeded_masks

DOCS = (PROJECT / "docs" / "export.md").read_text()
LOGITS = ["--outputs.test_logits=true"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained and fitted runs/digits_50pct, as the docs' commands have it."""
    folder = tmp_path_factory.mktemp("export")
    for command, *options in (["init"], ["train", "--workers=1"], ["fit"], ["fit", "--split=train"]):
        assert main([command, str(DIGITS), *map(str, root(folder)), *options]) == 0
    return folder


def root(folder: Path) -> list[object]:
    return ["--root", folder / "runs" / "digits_50pct", *TINY, *LOGITS]


def export(capsys: pytest.CaptureFixture[str], folder: Path, *options: object) -> Path:
    done = in_process(capsys, "export", DIGITS, *root(folder), *options)
    assert done.code == 0, done.err
    return Path(done.out.strip())


def store_array(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / "runs" / "digits_50pct" / "digits" / "data" / f"{name}_50pct.npy")


def block(mention: str) -> str:
    """The one Python block of the docs that mentions something."""
    (found,) = [block for block in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if mention in block]
    return found


def run_block(mention: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """The names that a block of the docs defines, run where the docs' runs are."""
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(block(mention), names)
    return names


def test_trak_files_are_masks_and_their_mean_margins(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = export(capsys, folder, "--to", "trak")
    masks, margins = np.load(made / "mask.npy"), np.load(made / "val_margins.npy")
    assert (masks.dtype, margins.dtype) == (np.bool_, np.float32)
    assert np.array_equal(masks, store_array(folder, "train_masks")[24::2])  # two runs of each mask
    runs = store_array(folder, "test_margins")[24:].astype(np.float64).reshape(4, 2, 60)
    np.testing.assert_allclose(margins, runs.mean(axis=1), rtol=1e-6)
    assert json.loads((made / "export.json").read_text())["rows"] == list(range(24, 32))


def test_the_docs_trak_score_is_that_of_eval(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export(capsys, folder, "--to", "trak")
    with pytest.warns(match="constant"):  # weights that are all 0
        lds = run_block("spearmanr", folder, monkeypatch)["lds"]
    evaluated = json.loads(in_process(capsys, "eval", DIGITS, *root(folder), "--json").out)["lds"]
    assert lds.mean() == pytest.approx(evaluated, abs=1e-6)


def test_traks_margin_is_the_log_odds_of_the_correct_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = export(capsys, folder, "--to", "trak", "--margin", "trak", "--rows", "3:11")
    logits = torch.from_numpy(store_array(folder, "test_logits")[3:11]).double()
    labels = torch.from_numpy(load(tiny()).test.labels)
    probability = logits.softmax(2)[:, torch.arange(60), labels]
    expected = torch.log(probability / (1 - probability))
    np.testing.assert_allclose(np.load(made / "val_margins.npy"), expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(np.load(made / "mask.npy"), store_array(folder, "train_masks")[3:11])


def test_train_examples_can_be_the_targets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = export(capsys, folder, "--to", "dattri", "--split", "train")
    assert made.name == "dattri_train_50pct"
    assert torch.load(made / "score.pt", weights_only=True).shape == (100, 100)


def test_dattri_files_are_the_weights_and_what_each_model_saw(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = export(capsys, folder, "--to", "dattri")
    fit = torch.load(folder / "runs/digits_50pct/digits/datamodels/test_50pct.pt", weights_only=True)
    assert torch.equal(torch.load(made / "score.pt", weights_only=True), fit["weight"])
    values, indices = torch.load(made / "ground_truth.pt", weights_only=True)
    trak = export(capsys, folder, "--to", "trak")
    assert np.array_equal(values.numpy(), np.load(trak / "val_margins.npy"))
    masks = torch.zeros(4, 100, dtype=torch.bool).scatter(1, indices, True)
    assert np.array_equal(masks.numpy(), np.load(trak / "mask.npy"))


def test_sparse_weights_are_those_above_the_threshold(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = torch.load(folder / "runs/digits_50pct/digits/datamodels/test_50pct.pt", weights_only=True)
    weight = fit["weight"].numpy()
    assert (weight[:, 7] > 0.01).any()  # the docs ask for its strongest
    for threshold in (0, 0.01):
        monkeypatch.setattr(weights, "_TILE_VALUES", 700)  # seven targets at a time
        export(capsys, folder, "--to", "sparse", "--threshold", threshold)
        found = run_block("load_npz", folder, monkeypatch)
        assert found["weight"].format == "csc"
        assert found["weight"].nnz == (np.abs(weight) > threshold).sum() > 0
        assert np.array_equal(found["weight"].toarray(), np.where(np.abs(weight) > threshold, weight, 0))
        assert np.array_equal(found["bias"], fit["bias"].numpy())
        assert found["strongest"] == weight[:, 7].argmax()


def test_the_parquet_table_is_the_strongest_of_each_sign(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(weights, "_TILE_VALUES", 700)
    export(capsys, folder, "--to", "parquet", "--k", 3)
    table = run_block("read_parquet", folder, monkeypatch)["table"]
    weight = torch.load(folder / "runs/digits_50pct/digits/datamodels/test_50pct.pt", weights_only=True)["weight"]
    expected = []
    for target, column in enumerate(weight.T.tolist()):
        for sign in (1, -1):
            ranked = sorted((-sign * value, index) for index, value in enumerate(column) if sign * value > 0)[:3]
            expected += [(target, sign, rank, index, -sign * value) for rank, (value, index) in enumerate(ranked, 1)]
    assert [tuple(row) for row in table.itertuples(index=False)] == expected
    assert table.dtypes.astype(str).tolist() == ["int32", "int8", "int32", "int32", "float32"]


def test_equal_weights_are_ranked_by_their_example() -> None:
    table = parquet._strongest(np.array([[1, 0], [1, -1], [-2, -1], [1, 2]], np.float32), 3)
    assert table["train_index"].tolist() == [0, 1, 3, 2, 3, 1, 2]
    assert table["rank"].tolist() == [1, 2, 3, 1, 1, 1, 2]


def test_checkpoints_give_the_stored_margins_without_this_package(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = export(capsys, folder, "--to", "quanda", "--checkpoints", "5:12")
    about = json.loads((made / "export.json").read_text())
    subsets = json.loads((made / "subset_ids.json").read_text())
    assert subsets == [np.flatnonzero(mask).tolist() for mask in store_array(folder, "train_masks")[5:12]]
    program = (
        "import json, network, numpy as np, sys, torch\n"
        "images, model = torch.from_numpy(np.load(sys.argv[1])), network.load('.')\n"
        "for name in json.load(open('export.json'))['checkpoints']:\n"
        "    model.load_state_dict(torch.load(name, weights_only=True))\n"
        "    for shown in (images, images.float() / 255):\n"
        "        print(json.dumps(model(shown).tolist()))\n"
        "assert 'train' not in sys.modules\n"
    )
    test = load(tiny()).test
    np.save(tmp_path / "images.npy", test.images.transpose(0, 3, 1, 2))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, tmp_path / "images.npy"],
        cwd=made, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    logits = [torch.tensor(json.loads(line)) for line in done.stdout.splitlines()]
    margins = torch.stack([margin(each, torch.from_numpy(test.labels)) for each in logits])
    stored = store_array(folder, "test_margins")[about["rows"]].astype(np.float32)
    assert np.abs(margins.numpy() - stored.repeat(2, axis=0)).max() < 2e-3


@pytest.mark.parametrize(
    ("network", "tta"), [("convnet", "legacy_fliplr"), ("resnet9", "mirror"), ("resnet18", "none")]
)
def test_plain_networks_are_those_that_are_trained(network: str, tta: str) -> None:
    from datamodels.train.config import Recipe
    from datamodels.train.kernels import Augment
    from datamodels.train.trainer.engine import views

    dataset = replace(load(tiny()), mean=(100.0, 90.0, 80.0), std=(50.0, 60.0, 70.0))
    recipe = replace(tiny().recipe, network=network, group=3 if network == "convnet" else 1)
    trained = build(recipe, (32, 32, 3), 7).eval()
    generator = torch.Generator().manual_seed(0)
    for values in trained.state_dict().values():
        if values.ndim:
            values.copy_(0.05 + 0.1 * torch.rand(values.shape, generator=generator))
    about = {"network": network, "width": 4, "image": [32, 32, 3], "classes": 7, "tta": tta}
    plain = plain_network({**about, "mean": dataset.mean, "std": dataset.std})
    images = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8, generator=generator)
    shown = views(Augment(dataset, Recipe(), torch.device("cpu")).normalise(images), tta)
    with torch.inference_mode():
        wanted = torch.stack([trained(view[None]) for view in shown]).mean(0)
        for place in range(recipe.group):
            plain.load_state_dict(row_state(trained.state_dict(), plain.state_dict(), recipe.group, 30 + place))
            torch.testing.assert_close(plain(images.permute(0, 3, 1, 2)), wanted[place], rtol=1e-4, atol=1e-4)


def test_a_row_that_comes_out_different_is_not_exported(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = export(capsys, folder, "--to", "quanda", "--rows", "0:2")
    path = folder / "runs" / "digits_50pct" / "digits" / "data" / "test_margins_50pct.npy"
    good = path.read_bytes()
    try:
        path.write_bytes(good[: 4096 + 9 * 120] + bytes([good[4096 + 9 * 120] ^ 1]) + good[4096 + 9 * 120 + 1 :])
        done = in_process(capsys, "export", DIGITS, *root(folder), "--to", "quanda", "--checkpoints", "8:10")
    finally:
        path.write_bytes(good)
    assert done.code == 1
    assert "error: row 9 trained again comes out other than it is stored: run `datamodels verify`" in done.err
    assert json.loads((made / "export.json").read_text())["rows"] == [0, 1]  # the former export


def test_weights_in_other_units_are_exported_in_mask_units(
    folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    units = ["--fit.weight_units", "standardised", "--out", tmp_path]
    assert in_process(capsys, "fit", DIGITS, *root(folder), *units).code == 0
    for to in ("dattri", "sparse"):
        masked, other = export(capsys, folder, "--to", to), export(capsys, folder, "--to", to, *units)
        assert other.is_relative_to(tmp_path)
        if to == "dattri":
            scores = [torch.load(made / "score.pt", weights_only=True).numpy() for made in (masked, other)]
        else:
            scores = [scipy.sparse.load_npz(made / "weight.npz").toarray() for made in (masked, other)]
            np.testing.assert_allclose(np.load(masked / "bias.npy"), np.load(other / "bias.npy"), atol=1e-5)
        np.testing.assert_allclose(*scores, atol=1e-6)


REFUSED = {
    "no target": ([], "--to is missing"),
    "an unknown target": (["--to=trax"], "invalid choice: 'trax'"),
    "an option of another target": (["--to=trak", "--k=3"], "--k is not for --to trak"),
    "rows beside checkpoints": (["--to=quanda", "--rows=0:4", "--checkpoints=0:4"], "--checkpoints names the rows"),
    "rows that are not there": (["--to=trak", "--rows=0:33"], "--rows is '0:33'"),
    "too few masks": (["--to=trak", "--rows=24:28"], "have 2 masks, expected at least 3"),
    "logits that are not kept": (["--to=trak", "--split=train", "--margin=trak"], "outputs.train_logits"),
    "nothing of a table": (["--to=parquet", "--k=0"], "--k is 0"),
    "a negative threshold": (["--to=sparse", "--threshold=-1"], "--threshold is -1"),
    "no threshold": (["--to=sparse", "--threshold=.nan"], "--threshold is nan"),
}


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.norm = nn.BatchNorm2d(shape[0])
        self.head = nn.Linear(shape[0] * shape[1] * shape[2], classes)

    def forward(self, x):
        return self.head(self.norm(x).flatten(1))

def network(shape, classes):
    return Net(shape, classes)
"""


def test_own_networks_are_exported_with_their_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    options = ["--root", tmp_path / "root", *TINY, "--recipe.group=1", f"--recipe.network={tmp_path / 'mine.py'}"]
    for command in (["init"], ["train", "--rows=0:3", "--workers=1"]):
        assert in_process(capsys, command[0], DIGITS, *options, *command[1:]).code == 0
    done = in_process(capsys, "export", DIGITS, *options, "--to=quanda", "--checkpoints=0:3")
    assert done.code == 0, done.err
    made, test = Path(done.out.strip()), load(tiny()).test
    (tmp_path / "mine.py").unlink()
    model = plain_load(made)
    model.load_state_dict(torch.load(made / "checkpoints" / "row_2.pt", weights_only=True))
    margins = margin(model(torch.from_numpy(test.images).permute(0, 3, 1, 2)), torch.from_numpy(test.labels)).detach()
    stored = np.load(tmp_path / "root" / "digits" / "data" / "test_margins_50pct.npy")[2]
    np.testing.assert_allclose(margins, stored, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    options, named = REFUSED[case]
    assert named in in_process(capsys, "export", DIGITS, *root(folder), *options).error


def test_the_command_offers_every_target() -> None:
    help_text = run_command("export", "--help").out
    assert f"{{{','.join(TARGETS)}}}" in help_text


def small(folder: Path, make: Callable[..., Any] = created_store, **options: Any) -> Any:
    """A store of 6 + 6 rows, 20 training examples and 8 targets, with weights that a fit might have given."""
    masks, margins = linear_data(12, 20, 8)
    store = make(folder, masks, options.pop("margins", margins), 6, **options)
    write_weights(store, 20, 8)
    return store


def write_weights(store: ReadableStore, n_train: int, targets: int) -> None:
    weight = torch.arange(n_train * targets).reshape(n_train, targets) % 5 - 2.0
    path = store.layout.folder / "datamodels" / "test_50pct.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": weight, "bias": torch.zeros(targets), "lam": torch.zeros(targets)}, path)


def test_a_store_without_datamodels_says_what_to_run(tmp_path: Path) -> None:
    store = published_store(tmp_path, *linear_data(12, 20, 8), 6)
    for to in ("dattri", "sparse", "parquet"):
        with pytest.raises(UserError, match="run `datamodels fit`"):
            write_export(store, to, {}, silent)
    assert not list(tmp_path.rglob("*.pt"))


def test_missing_rows_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = small(tmp_path, missing=[7, 9])
    made = write_export(store, "trak", {}, silent)
    assert "2 of the rows 6 to 11 are missing or failed and are left out" in capsys.readouterr().err
    assert json.loads((made / "export.json").read_text())["rows"] == [6, 8, 10, 11]
    assert np.array_equal(np.load(made / "mask.npy"), store.masks[[6, 8, 10, 11]])
    invalidate(store, range(6, 12))
    for given, named in (({}, "run `datamodels train`"), ({"rows": (7, 9)}, "rows 7 to 8 is completed")):
        with pytest.raises(UserError, match=named):
            write_export(store, "trak", given, silent)


def test_a_mask_with_a_run_missing_is_the_mean_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_BLOCK_VALUES", 40)  # rows of 20 values: two at a time, and runs are never parted
    masks, (_, margins) = seeded_masks(15, 20, 9, 3), linear_data(15, 20, 8)
    store = created_store(tmp_path, masks, margins, eval_models=9, runs=3, missing=[7, 12, 13])
    found = np.load(write_export(store, "trak", {}, silent) / "val_margins.npy")
    wide = margins.astype(np.float64)
    expected = [wide[[6, 8]].mean(0), wide[9:12].mean(0), wide[14]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_masks_of_several_sizes_are_refused_for_dattri(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"masks hold .* training examples, but dattri takes subsets of one size"):
        write_export(small(tmp_path, published_store), "dattri", {}, silent)
    with pytest.raises(UserError, match="mask is 'bernoulli'"):
        write_export(small(tmp_path / "bernoulli"), "dattri", {}, silent)
    assert not list(tmp_path.rglob("dattri_test_50pct"))


def test_logits_of_other_margins_are_refused(tmp_path: Path) -> None:
    store = small(tmp_path, published_store, test_logits=np.random.default_rng(0).normal(size=(12, 8, 5)))
    with pytest.raises(WorkError, match="has 0 classes"):
        write_export(store, "trak", {"margin": "trak"}, silent)


def test_classes_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    store = small(tmp_path, published_store, margins=np.zeros((12, 8)), test_logits=np.zeros((12, 8, 5)))
    with pytest.raises(WorkError, match="has 5 classes"):
        write_export(store, "trak", {"margin": "trak"}, silent)


def test_a_former_export_is_replaced_and_kept_where_the_new_one_fails(tmp_path: Path) -> None:
    store = small(tmp_path)
    first = write_export(store, "trak", {}, silent)
    before = (first / "mask.npy").read_bytes()
    damage(store, "train_masks", [8])
    with pytest.raises(WorkError, match="repair"):
        write_export(store, "trak", {}, silent)
    assert (first / "mask.npy").read_bytes() == before
    damage(store, "train_masks", [8])
    assert write_export(store, "trak", {"rows": (6, 10)}, silent) == first
    assert np.load(first / "mask.npy").shape == (4, 20)
    assert [path.name for path in first.parent.iterdir()] == ["trak_test_50pct"]


def test_what_is_no_export_is_never_replaced(tmp_path: Path) -> None:
    store = small(tmp_path)
    made = write_export(store, "trak", {}, silent)
    (made / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt is no part of the export"):
        write_export(store, "trak", {}, silent)
    (made / "export.json").unlink()
    with pytest.raises(UserError, match="was not written by `datamodels export`"):
        write_export(store, "trak", {}, silent)
    assert (made / "notes.txt").read_text() == "mine"


def test_what_a_killed_export_left_is_cleared(tmp_path: Path) -> None:
    store = small(tmp_path)
    made = write_export(store, "trak", {}, silent)
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = Path(str(temporary_beside(made)).replace(f".{os.getpid()}.", f".{ended.pid}."))
    left.mkdir()
    (left / "mask.npy").write_bytes(b"half")
    write_export(store, "trak", {}, silent)
    assert not left.exists()


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_former_export_outlives_a_kill_at_every_step_of_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Killed in the rename (or removal of the former) with this number, and then once more by an export that fails."""
    store, done = small(tmp_path), iter(range(calls))
    first = write_export(store, "trak", {}, silent)
    before = (first / "mask.npy").read_bytes()

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if next(done, None) is None:
                raise Killed
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dying(Path.rename))
        patched.setattr("datamodels.launch.export.folder.shutil.rmtree", dying(shutil.rmtree))
        with pytest.raises(Killed):
            write_export(store, "trak", {"rows": (6, 10)}, silent)
    damage(store, "train_masks", [8])
    with pytest.raises(WorkError, match="repair"):
        write_export(store, "trak", {}, silent)
    rows = json.loads((first / "export.json").read_text())["rows"]
    assert rows == (list(range(6, 12)) if calls < 2 else list(range(6, 10)))
    assert (first / "mask.npy").read_bytes() == before or calls >= 2
    assert [path.name for path in first.parent.iterdir() if not path.name.endswith(".tmp")] == ["trak_test_50pct"]


def test_a_replacement_that_fails_half_way_brings_the_former_back_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, rename, failed = small(tmp_path), Path.rename, []
    made = write_export(store, "trak", {}, silent)

    def once(path: Path, target: Path) -> Path:
        if target == made and not failed:
            failed.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(WorkError, match="Input/output error"):
        write_export(store, "trak", {"rows": (6, 10)}, silent)
    assert json.loads((made / "export.json").read_text())["rows"] == list(range(6, 12))
    assert [path.name for path in made.parent.iterdir()] == ["trak_test_50pct"]


class Killed(BaseException):
    """Stands for a process that ends here."""


def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("datamodels.launch.export.trak.write_npy", full)
    with pytest.raises(WorkError, match="No space left"):
        write_export(small(tmp_path), "trak", {}, silent)
    assert not list((tmp_path / "made-up" / "export").iterdir())


def test_memory_grows_neither_with_rows_nor_with_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_TILE_VALUES", 2**13)
    monkeypatch.setattr(rows, "_BLOCK_VALUES", 2**13)
    monkeypatch.setattr(sparse, "_COPY_BYTES", 2**13)
    masks = np.random.default_rng(0).permuted(np.arange(700 * 1024).reshape(700, 1024) % 2 == 0, axis=1)
    store = published_store(tmp_path, masks, np.zeros((700, 512)), eval_models=600)
    write_weights(store, 1024, 512)  # 2 MB; margins are 1.2 MB, indices 2.4 MB
    for to in TARGETS:
        if to == "parquet":
            pytest.importorskip("pyarrow")
        write_export(store, to, {}, silent)  # what is imported and kept is not counted
        tracemalloc.start()
        try:
            write_export(store, to, {}, silent)
            assert tracemalloc.get_traced_memory()[1] < 0.6e6, to
        finally:
            tracemalloc.stop()


def test_published_files_are_exported_and_nothing_is_written_beside_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "published" / "cifar" / "data"
    data.mkdir(parents=True)
    masks, margins = linear_data(12, 20, 8)
    np.save(data / "train_masks_50pct.npy", masks)
    np.save(data / "test_margins_50pct.npy", margins)
    config = PROJECT / "configs" / "cifar_50pct.yaml"
    options = ["--root", tmp_path / "published", "--eval_models", 6, "--out", tmp_path / "mine"]
    for to in ("trak", "quanda"):
        done = in_process(capsys, "export", config, *options, "--to", to)
        assert done.code == 0, done.err
        assert Path(done.out.strip()).is_relative_to(tmp_path / "mine" / "cifar")
    assert (
        "rows of published files"
        in in_process(capsys, "export", config, *options, "--to=quanda", "--checkpoints=0:2").error
    )
    assert sorted(path.name for path in (tmp_path / "published").rglob("*.*")) == [
        "test_margins_50pct.npy", "train_masks_50pct.npy",
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = small(tmp_path)
    store.derived = Path("/proc/nowhere")
    with pytest.raises(UserError, match="--out names another folder"):
        write_export(store, "trak", {}, silent)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="run `pip install pyarrow`"):
        write_export(small(tmp_path), "parquet", {}, silent)


def test_every_table_of_the_docs_names_the_options_that_a_target_takes() -> None:
    for name, target in TARGETS.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*", DOCS, re.MULTILINE)
        assert re.findall(r"--(\w+)", row) == list(target.takes)
