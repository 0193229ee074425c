"""`datamodels export --to huggingface` and `--to safetensors`: what the files hold, and the way back."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
import yaml

import datamodels as dm
from datamodels.lasso import silent
from datamodels.launch.export import huggingface, read_datamodels, write_export
from datamodels.train import UserError, read_setting
from datamodels.train.config import Fit, Recipe, Setting
from datamodels.train.exchange import import_huggingface
from datamodels.train.store import Layout, Store, create_store, open_store
from tests.conftest import DIGITS, in_process
from tests.launch.export.conftest import OPTIONS
from tests.stores import DATASET, created_store, flip, linear_data, made_up_data, published_store, write_rows

Export = Callable[..., Path]


def files(folder: Path) -> dict[str, bytes]:
    """Of a store's data folder, locks apart."""
    found = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("_lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture
def exported(export: Export, monkeypatch: pytest.MonkeyPatch) -> Path:
    """32 rows in four files, each with two blocks."""
    monkeypatch.setattr(huggingface, "BLOCK_BYTES", 4 * 1620)
    monkeypatch.setattr(huggingface, "SHARD_BYTES", 8 * 1620)
    return export("--to", "huggingface", "--license", "cc-by-4.0")


def test_the_tables_hold_rows_and_datamodels(root: Path, exported: Path) -> None:
    shards = sorted((exported / "rows").iterdir())
    assert [path.name for path in shards] == [f"rows-{part:05}-of-00004.parquet" for part in range(4)]
    assert [pyarrow.parquet.ParquetFile(path).num_row_groups for path in shards] == [2] * 4
    table, store = pyarrow.parquet.read_table(exported / "rows"), dm.open(root)
    assert table["row"].to_pylist() == list(range(32))
    for name in store.arrays:
        assert np.array_equal(table[name].to_pylist(), store.array(name))
    assert np.array_equal(table["accuracy"], store.records().accuracy)
    fitted = dm.load(store, split="train")
    weights = pyarrow.parquet.read_table(exported / "datamodels" / "train_weights.parquet")
    assert np.array_equal(weights["weight"].to_pylist(), fitted.weight)
    targets = pyarrow.parquet.read_table(exported / "datamodels" / "train_targets.parquet")
    for name in ("bias", "lam", "gap"):
        assert np.array_equal(targets[name], fitted.arrays[name])


def test_the_card_names_the_tables_the_licence_and_the_quality(root: Path, exported: Path, capsys: Any) -> None:
    _, front, text = (exported / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["license"] == "cc-by-4.0"
    tables = {each["config_name"]: [*exported.glob(each["data_files"])] for each in about["configs"]}
    assert set(tables) == {"rows", "test_weights", "test_targets", "train_weights", "train_targets"}
    assert all(tables.values())
    assert [each["config_name"] for each in about["configs"] if each["default"]] == ["rows"]
    evaluated = json.loads(in_process(capsys, "eval", DIGITS, "--root", root, *OPTIONS, "--json").out)
    assert f"| test | {evaluated['lds']:.4f} (" in text
    assert f"| {evaluated['ceiling']:.4f} |" in text
    (config,) = [block.split("```")[0] for block in text.split("```yaml\n")[1:]]
    assert yaml.safe_load(config)["recipe"]["width"] == 4


def test_a_store_comes_back_byte_for_byte(root: Path, exported: Path, tmp_path: Path, capsys: Any) -> None:
    back = tmp_path / "back"
    found = in_process(capsys, "import", exported, "--format=huggingface", "--root", back)
    assert found.code == 0, found.err
    assert files(back / "digits" / "data") == files(root / "digits" / "data")
    options = [back / "import.yaml", "--root", back]
    verified = json.loads(in_process(capsys, "verify", *options, "--json").out)
    assert verified == {"checked": 32, "bad": [], "damaged_files": []}
    for split in ("test", "train"):
        name = f"digits/datamodels/{split}_50pct"
        one, other = (torch.load(each / f"{name}.pt", weights_only=True) for each in (root, back))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
        assert (back / f"{name}.json").read_bytes() == (root / f"{name}.json").read_bytes()
    assert "fitted" not in in_process(capsys, "export", *options, "--to=sparse").err  # on other rows: they are fresh
    refused = in_process(capsys, "import", exported, "--format=huggingface", "--root", tmp_path / "x", "--alpha=0.5")
    assert "brings its own config" in refused.error
    shutil.copytree(exported, tmp_path / "fewer")
    table = tmp_path / "fewer" / "datamodels" / "test_weights.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(table)[:-1], table)
    with pytest.raises(UserError, match=r"test_weights\.parquet cannot be read: it has 99 rows, expected 100"):
        read_datamodels(tmp_path / "fewer", dm.open(back))


def with_masks(folder: Path, masks: np.ndarray, margins: np.ndarray, **keys: Any) -> Store:
    """A store whose masks are of a file, or of groups in a file."""
    setting = Setting(dataset=DATASET, models=40, eval_models=0, recipe=Recipe(network="convnet"), **keys)
    layout = Layout(folder, DATASET, setting.file_tag)
    store = create_store(layout, setting, made_up_data(setting, 12, 3), lambda text: None)
    write_rows(store, masks if setting.own_masks else np.stack([store.seeded_masks[row] for row in range(40)]), margins)
    return store


@pytest.mark.parametrize("kind", ["gaps", "standardised", "groups", "masks"])
def test_other_stores_come_back_too(kind: str, tmp_path: Path) -> None:
    masks, margins = linear_data(40, 12, 3)
    given = tmp_path / f"{kind}.npy"
    np.save(given, masks if kind == "masks" else np.arange(12) // 2)
    if kind == "gaps":
        store = created_store(tmp_path / "root", masks, margins, missing=[0, 7, 39], failed=[8])
    elif kind == "standardised":
        store = created_store(tmp_path / "root", masks, margins, fit=Fit(weight_units="standardised"))
    elif kind == "groups":
        store = with_masks(tmp_path / "root", masks, margins, mask="groups", groups=str(given))
    else:
        store = with_masks(tmp_path / "root", masks, margins, mask=str(given), tag="own", alpha=None)
    if kind != "gaps":
        dm.fit(store)
    folder = write_export(store, "huggingface", {}, silent)
    given.unlink()
    layout, config = import_huggingface(folder, tmp_path / "back", silent)
    back = open_store(layout, read_setting(config))
    assert files(layout.data) == files(store.layout.data)
    assert len(read_datamodels(folder, back)) == (kind != "gaps")
    if kind != "gaps":
        np.testing.assert_allclose(dm.load(back).predict(masks), dm.load(store).predict(masks), atol=1e-5)


def test_published_files_come_back_as_such_and_a_killed_import_begins_again(tmp_path: Path) -> None:
    def killed(*_: object) -> None:
        shutil.copytree(tmp_path / "interrupted", tmp_path / "back")
        raise KeyboardInterrupt

    masks, margins = linear_data(40, 12, 3)
    store = published_store(tmp_path / "root", masks, margins, eval_models=8)
    np.save(store.layout.array("train_masks"), masks.astype(np.uint8))
    np.save(store.layout.completed, np.arange(40) % 5 > 0)
    store = dm.open(tmp_path / "root", eval_models=8)
    folder = write_export(store, "huggingface", {}, silent)
    with pytest.raises(KeyboardInterrupt):
        import_huggingface(folder, tmp_path / "interrupted", killed)
    layout, config = import_huggingface(folder, tmp_path / "back", silent)
    back = open_store(layout, read_setting(config))
    assert (back.models, back.eval_models) == (32, 8)
    done = store.completed()
    assert np.array_equal(back.completed(), done)
    assert np.array_equal(back.masks[done], masks[done])
    assert np.array_equal(back.margins()[done], margins[done])


def test_damaged_folders_are_refused_and_leave_nothing(exported: Path, tmp_path: Path) -> None:
    def error(copy: Path) -> str:
        with pytest.raises(UserError) as refused:
            import_huggingface(copy, tmp_path / "back", silent)
        assert not [*(tmp_path / "back").rglob("*")]
        return str(refused.value)

    def copied(name: str) -> Path:
        return Path(shutil.copytree(exported, tmp_path / name))

    (copied("missing") / "rows" / "rows-00002-of-00004.parquet").unlink()
    assert "holds 24 rows, expected 32: a file is missing" in error(tmp_path / "missing")
    shard = copied("cut") / "rows" / "rows-00001-of-00004.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert "rows cannot be read" in error(tmp_path / "cut")
    shard = copied("flipped") / "rows" / "rows-00001-of-00004.parquet"
    flip(shard, 4 * shard.stat().st_size)
    assert "flipped/rows cannot be read" in error(tmp_path / "flipped")
    path = copied("changed") / "rows" / "rows-00000-of-00004.parquet"
    table = pyarrow.parquet.read_table(path)
    reversed_rows = table.set_column(0, "row", pyarrow.array(table["row"].to_pylist()[::-1]))
    pyarrow.parquet.write_table(reversed_rows, path)
    assert "rows do not ascend" in error(tmp_path / "changed")
    swapped = table.set_column(5, "test_margins", table["test_margins"].take([1, 0, *range(2, len(table))]))
    pyarrow.parquet.write_table(swapped, path)
    assert "is damaged: row 0" in error(tmp_path / "changed")
    floats = table.set_column(0, "row", pyarrow.array(np.arange(len(table)) + 0.5))
    pyarrow.parquet.write_table(floats, path)
    assert "row holds float64, expected whole numbers" in error(tmp_path / "changed")
    pyarrow.parquet.write_table(table, path)
    shutil.copy(path, path.with_name("rows-9.parquet"))
    assert "rows-9.parquet: row 0 is there a second time" in error(tmp_path / "changed")
    path.with_name("rows-9.parquet").unlink()
    for lists in ([[0.5] * 59, [0.5] * 61], [None, [0.5] * 120]):  # as many values in all
        lists += [[0.5] * 60] * (len(table) - 2)
        other = pyarrow.array(lists, pyarrow.list_(pyarrow.float16()))
        pyarrow.parquet.write_table(table.set_column(5, "test_margins", other), path)
        assert "test_margins holds lists of other lengths, expected 60" in error(tmp_path / "changed")
    store = copied("unrecorded") / "store"
    next((store / "_journal_50pct").iterdir()).write_bytes(b"")
    assert "rows as done, expected 32" in error(tmp_path / "unrecorded")
    next(store.glob("store_*.json")).rename(store / "store_25pct.json")
    assert "holds _journal_50pct, but no store_50pct.json" in error(tmp_path / "unrecorded")
    about = json.loads((exported / "export.json").read_text())
    for wrong in ({"arrays": {}}, {"completed": float("inf")}, {"arrays": {"train_masks": [[32.0, 100], "|b1"]}}):
        (tmp_path / "changed" / "export.json").write_text(json.dumps(about | wrong))
        assert "is not of `datamodels export --to huggingface`" in error(tmp_path / "changed")
    assert "is not of `datamodels export --to huggingface`" in error(tmp_path)
    (tmp_path / "back" / "x").touch()
    with pytest.raises(UserError, match="expected a new or empty folder"):
        import_huggingface(exported, tmp_path / "back", silent)


def test_safetensors_holds_weights_in_mask_units(root: Path, export: Export) -> None:
    content = (export("--to", "safetensors", "--split", "train") / "datamodels.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    about, values = json.loads(content[8 : 8 + size]), content[8 + size :]
    fitted = torch.load(root / "digits" / "datamodels" / "train_50pct.pt", weights_only=True)
    assert (8 + size) % 8 == 0
    for name in ("weight", "bias", "lam"):
        start, stop = about[name]["data_offsets"]
        assert about[name]["dtype"] == "F32"
        assert about[name]["shape"] == list(fitted[name].shape)
        assert values[start:stop] == fitted[name].numpy().tobytes()
    assert stop == len(values)
