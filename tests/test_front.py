"""What a notebook sees: `dm.open`, `dm.load`, `dm.fit`, `dm.evaluate`, and the objects that they return."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy import stats

import datamodels as dm
from datamodels.lasso import find
from datamodels.train.config import Fit
from datamodels.train.store import PublishedStore
from tests.conftest import DIGITS, PROJECT, TINY, in_process, run_command
from tests.stores import linear_data, published_store, with_fit

OPTIONS = [*TINY, "--outputs.test_logits=true"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a tiny digits setting with logits, trained and fitted."""
    folder = tmp_path_factory.mktemp("front") / "root"
    done = run_command("run", DIGITS, "--root", folder, *OPTIONS)
    assert done.code == 0, done.err
    return folder


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# Opening


def test_a_store_is_opened_by_its_root_alone(root: Path) -> None:
    store = dm.open(root)
    assert (store.setting.dataset, store.setting.alpha, store.setting.recipe.width) == ("digits", 0.5, 4)
    arrays = {
        "train_masks": (store.masks, (32, 100)),
        "test_margins": (store.margins(), (32, 60)),
        "train_margins": (store.margins("train"), (32, 100)),
        "test_logits": (store.logits(), (32, 60, 10)),
    }
    for name, (array, shape) in arrays.items():
        assert array.shape == shape
        np.testing.assert_array_equal(array, np.load(root / "digits" / "data" / f"{name}_50pct.npy"))
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_rows_and_records_are_those_of_the_store(root: Path) -> None:
    store = dm.open(root, "digits", 0.5)
    assert store.completed().all()
    np.testing.assert_array_equal(store.estimation_rows(), np.arange(24))
    np.testing.assert_array_equal(store.evaluation_rows(), np.arange(24, 32))
    records = store.records()
    right = (store.logits().argmax(axis=2) == store.dataset().test.labels).mean(axis=1)
    np.testing.assert_allclose(records.accuracy, right, atol=1e-6)
    assert (records.seconds > 0).all()
    assert len(set(records.device)) == 1
    assert records.device[0]
    table = records.to_frame()
    assert (table.index.name, list(table.columns)) == ("row", ["accuracy", "seconds", "device"])
    assert np.array_equal(table.accuracy, records.accuracy)


def test_rows_that_are_not_done_have_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(capsys, "init", DIGITS, "--root", tmp_path, *TINY).code == 0
    store = dm.open(tmp_path)
    assert not store.completed().any()
    assert len(store.estimation_rows()) == len(store.evaluation_rows()) == 0
    records = store.records()
    assert np.isnan(records.accuracy).all()
    assert np.isnan(records.seconds).all()
    assert set(records.device) == {""}


def test_a_config_file_stands_for_its_setting(root: Path, tmp_path: Path) -> None:
    config = write(tmp_path / "mine.yaml", yaml.safe_dump(dm.open(root).setting.to_dict()))
    store = dm.open(config, root=root)
    assert (store.models, store.eval_models) == (24, 8)
    with pytest.raises(dm.UserError, match=r"seed is 1, but .* holds a setting with 0"):
        dm.open(write(tmp_path / "other.yaml", config.read_text().replace("seed: 0", "seed: 1")), root=root)
    with pytest.raises(dm.UserError, match="'sead' is not a key of a config"):
        dm.open(write(tmp_path / "wrong.yaml", "sead: 1\n"), root=root)
    with pytest.raises(dm.UserError, match="expected no other with it"):
        dm.open(config, "cifar", root=root)
    with pytest.raises(dm.UserError, match=r"runs/mine/digits/data/store_50pct\.json does not exist"):
        dm.open(config)


def published(root: Path, folder: Path, percentages: list[str]) -> Path:
    """A root with the masks and test margins of another one, as published files."""
    data = folder / "digits" / "data"
    data.mkdir(parents=True)
    for pct in percentages:
        for name in ("train_masks", "test_margins"):
            shutil.copy(root / "digits" / "data" / f"{name}_50pct.npy", data / f"{name}_{pct}pct.npy")
    return folder


def test_published_files_are_opened_with_their_evaluation_rows(root: Path, tmp_path: Path) -> None:
    store = dm.open(published(root, tmp_path, ["50"]), eval_models=8)
    assert (store.models, store.eval_models) == (24, 8)
    np.testing.assert_array_equal(store.evaluation_rows(), np.arange(24, 32))
    assert np.isnan(store.records().accuracy).all()
    with pytest.raises(dm.UserError, match=r"train_margins_50pct\.npy does not exist"):
        store.margins("train")
    with pytest.raises(dm.UserError, match=r"eval_models is 10000, but .* holds 32 rows"):
        dm.open(tmp_path)


def test_one_of_several_settings_is_asked_for(root: Path, tmp_path: Path) -> None:
    published(root, tmp_path, ["50", "12.5"])
    assert dm.open(tmp_path, alpha=0.125, eval_models=8).setting.alpha == 0.125
    with pytest.raises(dm.UserError, match=r"2 settings \(digits 12.5pct, digits 50pct\): say which"):
        dm.open(tmp_path, eval_models=8)
    for arguments in (("cifar",), ("digits", 0.3)):
        with pytest.raises(dm.UserError, match="holds no setting"):
            dm.open(tmp_path, *arguments)
    with pytest.raises(dm.UserError, match="holds no setting: expected"):
        dm.open(tmp_path / "nowhere")
    with pytest.raises(dm.UserError, match=r"cannot read .*nowhere\.yaml: No such file"):
        dm.open(tmp_path / "nowhere.yaml")
    with pytest.raises(dm.UserError, match="is not a config file"):
        dm.open(tmp_path, root=tmp_path)


def test_what_a_store_lacks_is_named(root: Path) -> None:
    store = dm.open(root)
    with pytest.raises(dm.UserError, match=r"train_logits_50pct\.npy does not exist"):
        store.logits("train")
    with pytest.raises(dm.UserError, match="split is 'val'"):
        store.margins("val")
    assert dm.open(root, eval_models=8).eval_models == 8
    with pytest.raises(dm.UserError, match=r"eval_models is 4, but .*store_50pct\.json says 8"):
        dm.open(root, eval_models=4)


def test_images_are_those_that_the_store_was_made_of(root: Path) -> None:
    store = dm.open(root)
    dataset = store.dataset()
    assert (len(dataset.train.images), len(dataset.test.labels), dataset.classes[3]) == (100, 60, "3")
    store.setting = replace(store.setting, data=replace(store.setting.data, test=61))
    with pytest.raises(dm.UserError, match=r"has \(100, 61\) examples, but the store \(100, 60\)"):
        store.dataset()


# Datamodels


def test_datamodels_of_a_root_are_read_wherever_else_one_writes(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}

    before, store = files(), dm.open(root, out=tmp_path)
    assert find(store, "test") == root / "digits" / "datamodels" / "test_50pct.pt"
    np.testing.assert_array_equal(dm.load(store).weight, dm.load(dm.open(root)).weight)
    assert dm.evaluate(store).lds == dm.evaluate(dm.open(root)).lds
    options = ["--root", root, *OPTIONS, "--out", tmp_path]
    for command in (["eval", "--json"], ["report"], ["export", "--to=sparse"], ["eval", "--curve"]):
        done = in_process(capsys, command[0], DIGITS, *options, *command[1:])
        assert done.code == 0, done.err
        assert "fitted on other rows" not in done.err
    assert files() == before
    written = {path.name for path in (tmp_path / "digits").rglob("*") if path.is_file()}
    assert {"report_test_50pct.html", "weight.npz", "test_50pct.curve.json"} <= written
    assert in_process(capsys, "fit", DIGITS, *options, "--fit.k=30").code == 0
    assert find(store, "test") == tmp_path / "digits" / "datamodels" / "test_50pct.pt"
    missing = r"does not exist \(nor .*train_50pct\.pt\): run `datamodels fit --split train`"
    with pytest.raises(dm.UserError, match=missing):
        dm.load(store, split="train")


def test_pieces_of_a_root_are_reported_on_from_elsewhere(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root, tmp_path / "root")
    options = ["--root", tmp_path / "root", *OPTIONS, "--split=train"]
    assert in_process(capsys, "fit", DIGITS, *options, "--targets=0:30").code == 0
    done = in_process(capsys, "report", DIGITS, *options, "--out", tmp_path / "mine")
    assert done.out.strip() == str(tmp_path / "mine" / "digits" / "report_train_50pct.html")


def test_predictions_are_the_published_formula(root: Path) -> None:
    store = dm.open(root)
    fitted = dm.load(store)
    saved = torch.load(root / "digits" / "datamodels" / "test_50pct.pt", weights_only=True)
    expected = torch.tensor(store.masks[:5], dtype=torch.float32) @ saved["weight"] + saved["bias"]
    np.testing.assert_allclose(fitted.predict(store.masks[:5]), expected, atol=1e-4)
    np.testing.assert_allclose(fitted.predict(store.masks[0]), expected[0], atol=1e-4)
    np.testing.assert_allclose(fitted.predict(store.masks[:5].tolist()), expected, atol=1e-4)
    with pytest.raises(dm.UserError, match=r"shape \(5, 60\), expected \[m, 100\]"):
        fitted.predict(store.margins()[:5])


@pytest.fixture
def linear(tmp_path: Path) -> PublishedStore:
    return published_store(tmp_path, *linear_data(700, 10, 6), eval_models=200, fit=Fit(k=30))


def test_datamodels_are_arrays_of_the_file(linear: PublishedStore) -> None:
    path = dm.fit(linear)
    fitted, saved = dm.load(linear), torch.load(path, weights_only=True)
    shapes = {"weight": (10, 6), "bias": (6,), "lam": (6,), "gap": (6,)}
    for name, shape in shapes.items():
        found = getattr(fitted, name)
        assert (type(found), found.shape) == (np.ndarray, shape)
        np.testing.assert_array_equal(found, saved[name].numpy())
    torch.save({"weight": saved["weight"], "bias": saved["bias"]}, path)
    with pytest.raises(dm.UserError, match=r"test_50pct\.pt holds no `gap`"):
        _ = dm.load(path).gap


def test_predictions_do_not_depend_on_units_or_tiles(linear: PublishedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    dm.fit(linear)
    expected = dm.load(linear).predict(linear.masks)
    monkeypatch.setattr("datamodels.lasso.datamodels._TILE_VALUES", 30)
    np.testing.assert_allclose(dm.load(linear).predict(linear.masks), expected, atol=1e-5)
    dm.fit(with_fit(linear, weight_units="standardised"))
    fitted = dm.load(linear)
    assert fitted.units == "standardised"
    np.testing.assert_allclose(fitted.predict(linear.masks), expected, atol=1e-5)


@pytest.mark.parametrize("units", ["mask", "standardised"])
def test_top_influences_are_the_largest_weights(linear: PublishedStore, units: str) -> None:
    dm.fit(with_fit(linear, weight_units=units))
    fitted = dm.load(linear)
    weight = fitted.columns(np.arange(6))[0]
    for found, column in ((fitted.top_examples(2, 3), weight[:, 2]), (fitted.top_targets(4, 3), weight[4])):
        assert list(found.indices) == list(np.argsort(-np.abs(column))[:3])
        np.testing.assert_allclose(found.weights, column[found.indices], rtol=1e-6)
    up, down = (fitted.top_examples(2, 100, sign) for sign in ("positive", "negative"))
    assert (np.diff(up.weights) <= 0).all()
    assert (up.weights > 0).all()
    assert (np.diff(down.weights) >= 0).all()
    assert (down.weights < 0).all()
    assert len(up.weights) + len(down.weights) == np.count_nonzero(weight[:, 2])
    table = fitted.to_frame([4, 2], k=3)
    assert list(table.columns) == ["target", "sign", "rank", "train_index", "weight"]
    of_2 = table[table.target == 2]
    assert of_2.train_index.tolist() == [*up.indices[:3], *down.indices[:3]]
    np.testing.assert_allclose(of_2.weight, [*up.weights[:3], *down.weights[:3]], rtol=1e-6)
    assert fitted.to_frame(k=100)["weight"].size == np.count_nonzero(weight)


def test_what_has_no_influences_is_refused(linear: PublishedStore) -> None:
    with pytest.raises(dm.UserError, match=r"test_50pct\.pt does not exist: run `datamodels fit`"):
        dm.load(linear)
    fitted = dm.load(dm.fit(linear))
    for ask, words in (
        (lambda: fitted.top_examples(6), "no target 6, expected one of 0 to 5"),
        (lambda: fitted.to_frame([0, 6]), "no target 6, expected one of 0 to 5"),
        (lambda: fitted.to_frame(0, k=0), "k is 0, expected at least 1"),
        (lambda: fitted.top_targets(-1), "no training example -1, expected one of 0 to 9"),
        (lambda: fitted.top_examples(0, 3, "up"), "sign is 'up', expected one of both, positive, negative"),
    ):
        with pytest.raises(dm.UserError, match=words):
            ask()


def test_scores_of_another_method_are_judged_on_the_same_rows(root: Path) -> None:
    store = dm.open(root)
    fitted = dm.load(store)
    assert dm.evaluate(store, fitted).lds == dm.evaluate(store).lds
    assert dm.evaluate(store, fitted.weight).lds == pytest.approx(dm.evaluate(store).lds, abs=1e-6)
    rows = store.evaluation_rows()
    margins = store.margins()[rows].astype(float).reshape(4, 2, 60).mean(axis=1)
    scores = np.random.default_rng(0).normal(size=(100, 60))
    expected = stats.spearmanr(store.masks[rows[::2]] @ scores, margins).statistic[:60, 60:].diagonal()
    np.testing.assert_allclose(dm.evaluate(store, scores).target_lds, expected, atol=1e-9)


# What notebooks show


def test_a_store_and_datamodels_are_shown_in_a_few_lines(root: Path, linear: PublishedStore) -> None:
    store = dm.open(root)
    fitted = dm.load(store)
    assert repr(store).splitlines() == [
        "Store",
        "  setting: digits, alpha 0.5",
        "  rows: 24 and 8 for evaluation, 32 completed",
        "  examples: 100 for training, 60 for testing",
        "  arrays: train_masks, test_margins, train_margins, test_logits",
        f"  folder: {root / 'digits'}",
    ]
    assert repr(fitted).splitlines()[:4] == [
        "Datamodels",
        "  weight: 100 training examples x 60 targets",
        f"  file: {root / 'digits' / 'datamodels' / 'test_50pct.pt'}",
        "  fitted to: 24 models, test split of digits",
    ]
    found = dm.evaluate(linear, np.eye(10, 6))
    assert repr(found).startswith(f"Evaluation\n  LDS: {found.lds:.4f}, 95% interval ")
    assert repr(found).endswith(f"  of: 6 targets, 200 models on {found.masks} masks")
    assert repr(linear).startswith("PublishedStore\n  setting: made-up, alpha 0.5\n  rows: 500 and 200 for evaluation")


def test_notebooks_show_tables_with_names_escaped(tmp_path: Path) -> None:
    store = published_store(tmp_path / "<b>&", *linear_data(60, 10, 6), eval_models=10)
    torch.save({"weight": torch.zeros(10, 6), "bias": torch.zeros(6)}, tmp_path / "<i>.pt")
    for shown, escaped in ((store, "/&lt;b&gt;&amp;/made-up"), (dm.load(tmp_path / "<i>.pt"), "/&lt;i&gt;.pt")):
        page = shown._repr_html_()
        assert page.startswith(f"<table><caption>{type(shown).__name__}</caption><tr><th>")
        assert escaped in page
        assert not {"<b>", "<i>"} & {page[at : at + 3] for at in range(len(page))}


# The package


def test_the_fronts_are_light() -> None:
    program = (
        "import sys, datamodels as dm, datamodels.lasso, datamodels.train.store\n"
        "assert callable(dm.open) and callable(dm.load)\n"
        "assert not {'torch', 'numba', 'matplotlib', 'pandas', 'scipy'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=PROJECT, check=True)


def test_every_name_of_the_front_is_there() -> None:
    assert set(dm.__all__) <= set(dir(dm))
    for name in dm.__all__:
        assert getattr(dm, name) is not None
    assert f'version = "{dm.__version__}"' in (PROJECT / "pyproject.toml").read_text()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = dm.nothing
