"""`datamodels export`: what the files hold, and what is refused."""

import json
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch

from datamodels.lasso import path_of, silent, strongest
from datamodels.launch.export import TARGETS, options_of, write_export
from datamodels.launch.export.rows import Subsets
from datamodels.launch.export.weights import Weights
from datamodels.train import UserError, WorkError
from datamodels.train.data import load
from datamodels.train.store import BaseStore
from tests.conftest import DIGITS, PROJECT, in_process, run_command, tiny
from tests.launch.export.conftest import OPTIONS
from tests.stores import created_store, damage, linear_data, published_store, seeded_masks

DOCS = (PROJECT / "docs" / "export.md").read_text()

Export = Callable[..., Path]


def stored(root: Path, name: str) -> np.ndarray:
    return np.load(root / "digits" / "data" / f"{name}_50pct.npy")


def fitted(root: Path) -> dict[str, torch.Tensor]:
    return torch.load(root / "digits" / "datamodels" / "test_50pct.pt", weights_only=True)


def run_block(mention: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the one Python block of the docs with a mention defines, run where the docs' runs are."""
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL) if mention in text]
    monkeypatch.chdir(root.parent.parent)
    names: dict[str, Any] = {}
    exec(block, names)
    return names


def test_trak_files_are_masks_and_their_mean_margins(root: Path, export: Export) -> None:
    made = export("--to", "trak")
    masks, margins = np.load(made / "mask.npy"), np.load(made / "val_margins.npy")
    assert (masks.dtype, margins.dtype) == (np.bool_, np.float32)
    assert np.array_equal(masks, stored(root, "train_masks")[24::2])  # two runs of each mask
    runs = stored(root, "test_margins")[24:].astype(np.float64).reshape(4, 2, 60)
    np.testing.assert_allclose(margins, runs.mean(axis=1), rtol=1e-6)
    about = json.loads((made / "export.json").read_text())
    assert about.items() >= {"to": "trak", "split": "test", "margin": "store", "masks": 4}.items()
    assert about["rows"] == list(range(24, 32))
    assert about["files"] == ["mask.npy", "val_margins.npy"]


def test_the_docs_trak_score_is_that_of_eval(
    root: Path, export: Export, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    export("--to", "trak")
    with pytest.warns(match="constant"):  # weights that are all 0
        lds = run_block("spearmanr", root, monkeypatch)["lds"]
    evaluated = json.loads(in_process(capsys, "eval", DIGITS, "--root", root, *OPTIONS, "--json").out)["lds"]
    assert lds.mean() == pytest.approx(evaluated, abs=1e-6)


def test_traks_margin_is_the_log_odds_of_the_correct_class(root: Path, export: Export) -> None:
    made = export("--to", "trak", "--margin", "trak", "--rows", "3:11")
    logits = torch.from_numpy(stored(root, "test_logits")[3:11]).double()
    labels = torch.from_numpy(load(tiny()).test.labels)
    probability = logits.softmax(2)[:, torch.arange(60), labels]
    expected = torch.log(probability / (1 - probability))
    np.testing.assert_allclose(np.load(made / "val_margins.npy"), expected, rtol=1e-4, atol=1e-5)
    assert np.array_equal(np.load(made / "mask.npy"), stored(root, "train_masks")[3:11])


def test_dattri_files_are_the_weights_and_what_each_model_saw(root: Path, export: Export) -> None:
    made, trak = export("--to", "dattri"), export("--to", "trak")
    assert torch.equal(torch.load(made / "score.pt", weights_only=True), fitted(root)["weight"])
    values, indices = torch.load(made / "ground_truth.pt", weights_only=True)
    assert np.array_equal(values.numpy(), np.load(trak / "val_margins.npy"))
    masks = torch.zeros(4, 100, dtype=torch.bool).scatter(1, indices, True)
    assert np.array_equal(masks.numpy(), np.load(trak / "mask.npy"))

    train = export("--to", "dattri", "--split", "train")
    assert train.name == "dattri_train_50pct"
    assert torch.load(train / "score.pt", weights_only=True).shape == (100, 100)


def test_sparse_weights_are_those_above_the_threshold(
    root: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Weights, "piece_values", 700)  # seven targets at a time
    weight, bias = (fitted(root)[name].numpy() for name in ("weight", "bias"))
    assert (weight[:, 7] > 0.01).any()  # the docs ask for its strongest
    for threshold in (0, 0.01):
        export("--to", "sparse", "--threshold", threshold)
        found = run_block("load_npz", root, monkeypatch)
        assert found["weight"].format == "csc"
        assert found["weight"].nnz == (np.abs(weight) > threshold).sum() > 0
        assert np.array_equal(found["weight"].toarray(), np.where(np.abs(weight) > threshold, weight, 0))
        assert np.array_equal(found["bias"], bias)
        assert found["strongest"] == weight[:, 7].argmax()


def test_the_parquet_table_is_the_strongest_of_each_sign(
    root: Path, export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Weights, "piece_values", 700)
    export("--to", "parquet", "--k", 3)
    table = run_block("read_parquet", root, monkeypatch)["table"]
    expected = []
    for target, column in enumerate(fitted(root)["weight"].T.tolist()):
        for sign in (1, -1):
            ranked = sorted((-sign * value, index) for index, value in enumerate(column) if sign * value > 0)[:3]
            expected += [(target, sign, rank, index, -sign * value) for rank, (value, index) in enumerate(ranked, 1)]
    assert [tuple(row) for row in table.itertuples(index=False)] == expected
    assert table.dtypes.astype(str).tolist() == ["int32", "int8", "int32", "int32", "float32"]


def test_equal_weights_are_ranked_by_their_example() -> None:
    table = strongest(np.array([[1, 0], [1, -1], [-2, -1], [1, 2]], np.float32), 3)
    assert table["train_index"].tolist() == [0, 1, 3, 2, 3, 1, 2]
    assert table["rank"].tolist() == [1, 2, 3, 1, 1, 1, 2]


def test_weights_in_other_units_are_exported_in_mask_units(
    root: Path, export: Export, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    units = ["--fit.weight_units", "standardised", "--out", tmp_path]
    assert in_process(capsys, "fit", DIGITS, "--root", root, *OPTIONS, *units).code == 0
    dattri, sparse = export("--to", "dattri", *units), export("--to", "sparse", *units)
    assert dattri.is_relative_to(tmp_path)
    weight, bias = (fitted(root)[name].numpy() for name in ("weight", "bias"))
    np.testing.assert_allclose(torch.load(dattri / "score.pt", weights_only=True), weight, atol=1e-6)
    np.testing.assert_allclose(scipy.sparse.load_npz(sparse / "weight.npz").toarray(), weight, atol=1e-6)
    np.testing.assert_allclose(np.load(sparse / "bias.npy"), bias, atol=1e-5)


REFUSED = {
    "no target": ([], "--to is missing"),
    "an unknown target": (["--to=trax"], "invalid choice: 'trax'"),
    "an option of another target": (["--to=trak", "--k=3"], "--k is not for --to trak"),
    "rows beside checkpoints": (["--to=quanda", "--rows=0:4", "--checkpoints=0:4"], "--checkpoints names the rows"),
    "rows that do not exist": (["--to=trak", "--rows=0:33"], "--rows is '0:33'"),
    "too few masks": (["--to=trak", "--rows=24:28"], "have 2 masks, expected at least 3"),
    "logits that are not kept": (["--to=trak", "--split=train", "--margin=trak"], "outputs.train_logits"),
    "nothing of a table": (["--to=parquet", "--k=0"], "--k is 0"),
    "a negative threshold": (["--to=sparse", "--threshold=-1"], "--threshold is -1"),
    "no threshold": (["--to=sparse", "--threshold=.nan"], "--threshold is nan"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_one_line(root: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    options, named = REFUSED[case]
    assert named in in_process(capsys, "export", DIGITS, "--root", root, *OPTIONS, *options).error


def test_command_and_docs_offer_every_target_with_its_options() -> None:
    assert f"{{{','.join(TARGETS)}}}" in run_command("export", "--help").out
    for name in TARGETS:
        (row,) = re.findall(rf"^\| `{name}` \|.*", DOCS, re.MULTILINE)
        assert re.findall(r"--(\w+)", row) == list(options_of(name))


def write_weights(store: BaseStore) -> None:
    """What a fit might have given."""
    weight = torch.arange(store.n_train * store.n_test).reshape(store.n_train, store.n_test) % 5 - 2.0
    path = path_of(store, "test")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weight": weight, "bias": torch.zeros(store.n_test), "lam": torch.zeros(store.n_test)}, path)


@pytest.mark.parametrize("to", ["dattri", "sparse", "parquet", "safetensors"])
def test_a_store_without_datamodels_says_what_to_run(tmp_path: Path, to: str) -> None:
    with pytest.raises(UserError, match="run `datamodels fit`"):
        write_export(published_store(tmp_path, *linear_data(12, 20, 8), eval_models=6), to, {}, silent)
    assert not list(tmp_path.rglob("*.pt"))


def test_missing_rows_are_left_out_with_a_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks, margins = linear_data(12, 20, 8)
    store = created_store(tmp_path / "some", masks, margins, eval_models=6, missing=[7, 9])
    made = write_export(store, "trak", {}, silent)
    assert "2 of the rows 6 to 11 are missing or failed and are left out" in capsys.readouterr().err
    assert json.loads((made / "export.json").read_text())["rows"] == [6, 8, 10, 11]
    assert np.array_equal(np.load(made / "mask.npy"), masks[[6, 8, 10, 11]])
    made = write_export(store, "trak", {"rows": [0, 1, 8, 9, 11]}, silent)
    assert "1 of the rows 0 to 11 are missing or failed" in capsys.readouterr().err
    assert np.array_equal(np.load(made / "mask.npy"), masks[[0, 1, 8, 11]])
    store = created_store(tmp_path / "none", masks, margins, eval_models=6, missing=range(6, 12))
    for given, named in (({}, "run `datamodels train`"), ({"rows": range(7, 9)}, "rows 7 to 8 is completed")):
        with pytest.raises(UserError, match=named):
            write_export(store, "trak", given, silent)


def test_a_mask_with_a_run_missing_is_the_mean_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Subsets, "block_values", 40)  # rows of 20 values: two at a time, and runs are never parted
    _, margins = linear_data(15, 20, 8)
    masks = seeded_masks(15, 20, eval_models=9, runs_per_mask=3)
    store = created_store(tmp_path, masks, margins, eval_models=9, runs_per_mask=3, missing=[7, 12, 13])
    found = np.load(write_export(store, "trak", {}, silent) / "val_margins.npy")
    wide = margins.astype(np.float64)
    np.testing.assert_allclose(found, [wide[[6, 8]].mean(0), wide[9:12].mean(0), wide[14]], rtol=1e-6)


def test_damaged_rows_are_not_exported(tmp_path: Path) -> None:
    store = created_store(tmp_path, *linear_data(12, 20, 8), eval_models=6)
    damage(store, "train_masks", [8])
    with pytest.raises(WorkError, match="repair"):
        write_export(store, "trak", {}, silent)
    assert not list((store.derived / "export").iterdir())


def test_masks_of_several_sizes_are_refused_for_dattri(tmp_path: Path) -> None:
    data = linear_data(12, 20, 8)
    stores = {
        r"masks hold .* training examples: dattri takes subsets of one size": published_store(tmp_path / "a", *data, 6),
        "mask is 'bernoulli'": created_store(tmp_path / "b", *data, eval_models=6),
    }
    for message, store in stores.items():
        write_weights(store)
        with pytest.raises(UserError, match=message):
            write_export(store, "dattri", {}, silent)


@pytest.mark.parametrize(("logits", "classes"), [(np.random.default_rng(0).normal(size=(12, 8, 5)), 0), (None, 5)])
def test_logits_that_do_not_tell_the_labels_are_refused(
    tmp_path: Path, logits: np.ndarray | None, classes: int
) -> None:
    """Those of other margins, and classes that are all alike."""
    masks, margins = linear_data(12, 20, 8)
    if logits is None:
        logits, margins = np.zeros((12, 8, 5)), np.zeros_like(margins)
    store = published_store(tmp_path, masks, margins, eval_models=6, test_logits=logits)
    with pytest.raises(WorkError, match=f"has {classes} classes"):
        write_export(store, "trak", {"margin": "trak"}, silent)


def test_memory_grows_neither_with_rows_nor_with_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Weights, "piece_values", 2**12)
    monkeypatch.setattr(Subsets, "block_values", 2**12)
    monkeypatch.setattr("datamodels.launch.export.sparse._COPY_BYTES", 2**12)
    monkeypatch.setattr("datamodels.train.store.published._BLOCK_BYTES", 2**12)
    masks = np.random.default_rng(0).permuted(np.arange(400 * 512).reshape(400, 512) % 2 == 0, axis=1)
    small = published_store(tmp_path / "small", masks[:12], np.zeros((12, 8)), eval_models=6)
    large = published_store(tmp_path / "large", masks, np.zeros((400, 512)), eval_models=390)
    write_weights(small)
    write_weights(large)  # 1 MB; margins and indices are 0.8 MB each
    for to in TARGETS.keys() - {"huggingface"}:  # it evaluates, too
        write_export(small, to, {}, silent)  # what is imported and kept is not counted
        tracemalloc.start()
        try:
            write_export(large, to, {}, silent)
            assert tracemalloc.get_traced_memory()[1] < 0.35e6, to
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
    refused = in_process(capsys, "export", config, *options, "--to=quanda", "--checkpoints=0:2")
    assert "rows of published files" in refused.error
    assert {path.name for path in data.parent.rglob("*.*")} == {"test_margins_50pct.npy", "train_masks_50pct.npy"}


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="run `pip install pyarrow`"):
        write_export(published_store(tmp_path, *linear_data(12, 20, 8)), "parquet", {}, silent)
