"""What removing examples does: predicted by datamodels, measured by models without them, in stores of own masks."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datamodels as dm
from datamodels.launch.cli import main
from tests.conftest import DIGITS, TINY, Outcome, in_process
from tests.faults.full import can_mount, read_only

TRAINER = """
import numpy as np

n_train, outputs = 12, {"test_margins": (6,), "test_loss": ((6,), "float32")}
effect = np.zeros((12, 6))
effect[[0, 1, 2, 3, 4, 5, 6], 0] = [3, 2, 1, 0.5, -1, -2, -0.5]
effect[[7, 8], 1] = 2, -3
effect[:, 2] = 1
effect[3:6, 3:] = np.arange(1, 10).reshape(3, 3) / 3


def train(mask, seed, device):
    margins = mask @ effect - [2, 1, 3, 1, 1, 20] + 0.05 * np.random.normal(size=6)
    return {"test_margins": margins, "test_loss": -margins}
"""
CONFIG = "dataset: mine\ntrainer: t.py\nalpha: 0.5\nmodels: 60\neval_models: 6\nrecipe: {device: cpu, threads: 1}\n"
ASKED = ["--remove=1,2,4", "--runs=3", "--workers=1"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, its trainer, and a root with datamodels of margins and of the loss."""
    folder = tmp_path_factory.mktemp("fitted")
    (folder / "c.yaml").write_text(CONFIG)
    (folder / "t.py").write_text(TRAINER)
    np.save(folder / "groups.npy", np.arange(12) // 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in (["init"], ["train", "--workers=1"], ["fit"], ["fit", "--output=loss"]):
            assert main([command[0], "c.yaml", "--root=root", *command[1:]]) == 0
    return folder


@pytest.fixture
def folder(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, as the working folder."""
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(capsys: pytest.CaptureFixture[str], *options: object) -> Outcome:
    return in_process(capsys, "counterfactual", "c.yaml", "--root=root", *ASKED, *options)


def found_by(capsys: pytest.CaptureFixture[str], *options: object) -> dict[str, Any]:
    done = ask(capsys, "--json", *options)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def models_in(root: Path = Path("root")) -> dict[str, int]:
    """Models by the tag of their store."""
    folder = root / "mine" / "counterfactual_50pct"
    return {path.stem: int(dm.open(folder, tag=path.stem).completed().sum()) for path in folder.glob("*.yaml")}


def test_a_linear_learner_does_what_its_datamodels_say(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = found_by(capsys, "--targets=0,1,3", "--verify")
    assert found["correlation"] > 0.99
    assert found["slope"] == pytest.approx(1, abs=0.15)
    assert found["ceiling"] > 0.99
    assert found["by"].keys() == {"datamodel", "random"}
    assert found["by"]["datamodel"]["sign_agreement"] == found["by"]["datamodel"]["k"]["1"]["sign_agreement"] == 1

    weight = dm.load(dm.open("root")).weight
    for one in found["subsets"]:
        assert one["predicted"] == pytest.approx(-weight[one["removed"], one["target"]].sum())
    first = next(one for one in found["subsets"] if (one["target"], one["k"], one["by"]) == (0, 2, "datamodel"))
    assert first["removed"] == [0, 1]
    assert first["measured"] == pytest.approx(-5, abs=0.2)

    # by hand, from the rows of the store
    (tag,) = [tag for tag, count in models_in().items() if count > 16]
    store = dm.open("root/mine/counterfactual_50pct", tag=tag)
    whole, without = store.masks.all(axis=1), np.ones(12, bool)
    without[[0, 1]] = False
    base, rest = (store.margins()[rows, 0].astype(float) for rows in (whole, (store.masks == without).all(axis=1)))
    base = base[1:]  # the first row is one more of the base set
    assert (len(base), len(rest)) == (15, 3)
    assert first["measured"] == pytest.approx(rest.mean() - base.mean())
    assert first["standard_error"] == pytest.approx(np.sqrt(rest.var(ddof=1) / 3 + base.var(ddof=1) / 15))

    # target 0 has a margin of 1, its largest weight is 3; target 3 one of 3, and its largest are 7/3 and 4/3
    assert [(one["target"], one["brittle"]["datamodel"]) for one in found["targets"]] == [(0, 1), (1, 0), (3, 2)]
    assert [(one["target"], one["k"], one["flips"]) for one in found["verified"]] == [(0, 1, True), (3, 2, True)]
    assert found["brittleness"]["datamodel"]["predicted"] == {"k": [1, 2], "share": [0.5, 1.0]}
    assert found["brittleness"]["datamodel"]["measured"] == {"k": [1, 2, 4], "share": [0.5, 1.0, 1.0]}


def test_fewer_positive_weights_than_asked_are_all_removed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A size that removes no more than the one before is left out."""
    positive = np.flatnonzero(dm.load(dm.open("root")).weight[:, 3] > 0)
    assert len(positive) < 9
    done = ask(capsys, "--json", "--targets=3", "--by=datamodel", "--remove=1,9,10")
    assert "datamodel: 1 of 1 targets have fewer than 10 examples with a positive weight" in done.err
    first, last = json.loads(done.out)["subsets"]
    assert (first["k"], first["removed"], last["k"], sorted(last["removed"])) == (1, [5], 9, positive.tolist())


def test_a_subset_is_trained_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever asks again; the arrays in Python are those of the command."""
    first = found_by(capsys, "--targets=0", "--by=datamodel")
    before = models_in()
    assert list(before.values()) == [1 + 5 * 3 + 3 * 3]
    assert found_by(capsys, "--targets=0", "--by=datamodel") == first
    assert models_in() == before

    both = dm.counterfactual(dm.open("root"), [0, 3], remove=[1, 2, 4], runs=3, by=["datamodel"], workers=1)
    table = both.subsets.to_frame()
    assert table.predicted.tolist() == both.subsets.predicted.tolist()
    (new,) = set(models_in().items()) - set(before.items())
    assert new[1] == 1 + 3 * 3
    chosen = both.subsets.target == 0
    for name in ("predicted", "measured", "standard_error"):
        np.testing.assert_array_equal(getattr(both.subsets, name)[chosen], [one[name] for one in first["subsets"]])
    more = found_by(capsys, "--targets=0", "--by=datamodel", "--runs=4")
    assert more["base_runs"] == 20
    assert len(models_in()) == 3


def test_a_prepared_store_is_one_that_other_commands_take(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = ask(capsys, "--targets=0", "--by=datamodel", "--prepare")
    config, root = done.out.split()[2], done.out.split()[4]
    assert done.out == f"datamodels submit {config} --root {root}\n"
    assert "25 of 25 models to be trained" in done.err
    for options in (["train", "--rows=0:7", "--workers=1"], ["train", "--workers=1"], ["verify", "--retrain=2"]):
        assert in_process(capsys, options[0], config, "--root", root, *options[1:]).code == 0
    done = ask(capsys, "--targets=0", "--by=datamodel", "--prepare")
    assert done.out == ""
    assert "0 of 25 models to be trained" in done.err
    rows = models_in()
    assert found_by(capsys, "--targets=0", "--by=datamodel")["subsets"][0]["removed"] == [0]
    assert models_in() == rows
    lds = in_process(capsys, "eval", config, "--root", root, "--weights=root/mine/datamodels/test_50pct.pt", "--json")
    assert json.loads(lds.out)["masks"] == 8


def test_base_sets_may_be_masks_of_evaluation_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over which changes are averaged; removed from a mask that lacks it, an example changes nothing."""
    found = found_by(capsys, "--targets=0,3", "--base=alpha", "--by=datamodel", "--remove=1,2")
    store = dm.open("root")
    masks, weight = store.masks[60:63], dm.load(store).weight
    for one in found["subsets"]:
        share = masks[:, one["removed"]].mean(axis=0)
        assert one["predicted"] == pytest.approx(-weight[one["removed"], one["target"]] @ share)
        assert one["measured"] == pytest.approx(one["predicted"], abs=0.3)
    assert (found["base"], found["base_sets"], found["runs"], found["base_runs"]) == ("alpha", 3, 3, 15)
    changed = {
        (masks[at] & ~np.isin(range(12), one["removed"])).tobytes() for one in found["subsets"] for at in range(3)
    }
    assert list(models_in().values()) == [1 + 15 + len(changed - {mask.tobytes() for mask in masks})]


def test_groups_are_removed_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--mask=groups", "--groups=groups.npy", "--root=grouped"]
    for command in ("init", "train", "fit"):
        assert in_process(capsys, command, "c.yaml", *options).code == 0
    found = json.loads(ask(capsys, *options, "--targets=0", "--remove=1", "--by=datamodel", "--json").out)
    assert found["subsets"][0]["removed"] == [0]  # examples 0 and 1, whose effects are 3 and 2
    assert found["subsets"][0]["measured"] == pytest.approx(-5, abs=0.2)


def test_scores_of_another_method_choose_too_and_other_outputs_have_no_brittleness(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = np.zeros((12, 6))
    scores[4, 0] = 1
    np.save("scores.npy", scores)
    found = found_by(capsys, "--targets=0", "--by=scores.npy,datamodel", "--output=loss")
    assert [one["removed"] for one in found["subsets"] if one["by"] == "scores.npy"] == [[4]]
    assert found["subsets"][0]["measured"] == pytest.approx(-1, abs=0.2)
    assert found["brittleness"] == {}
    assert [*Path("root/mine/counterfactual_50pct").glob("*.json")] == [
        Path("root/mine/counterfactual_50pct/test_loss.json")
    ]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--targets=3,x"], "--targets is '3,x', expected numbers such as 3,17"),
        (["--targets=6"], "--targets is [6], expected numbers from 0 to 5"),
        (["--remove=0,1"], "--remove is [0, 1], expected numbers of at least 1"),
        (["--remove=12"], "--remove is 12, expected fewer than the 12 of the smallest base set"),
        (["--runs=1"], "--count is 20 and --runs 1, expected at least 1 and 2"),
        (["--by=same-class"], "--by is same-class, but no labels of single training examples are known here"),
        (["--by=nonsense"], "--by has 'nonsense', expected datamodel, random, same-class, or a file of scores"),
        (["--by="], "--by has '', expected datamodel"),
        (["--by=nan.npy"], "nan.npy holds values that are not finite"),
        (["--runs=1000000000000"], "the store needs "),
        (["--output=nothing"], "output is 'nothing', expected one of margins, loss (test split)"),
        (["--base=alpha", "--eval_models=0", "--root=new"], "new/mine/data/store_50pct.json does not exist"),
    ],
)
def test_what_cannot_be_asked_is_told_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    np.save("nan.npy", np.full((12, 6), np.nan))
    done = ask(capsys, *options)
    assert (done.code, done.out) == (2, "")
    assert done.error.startswith(f"error: {told}")
    assert models_in() == {}


def test_a_read_only_root_takes_another_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not can_mount(folder):
        pytest.skip("mounting is not permitted here")
    with read_only(folder / "root"):
        refused = ask(capsys, "--targets=0")
        assert (refused.code, "--out names another folder" in refused.error) == (2, True)
        assert found_by(capsys, "--targets=0", "--by=datamodel", "--out=out")["correlation"] > 0.9
    assert models_in(Path("out"))


def test_images_are_removed_and_shown(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of their class too; all models take as many steps, in groups that reach past the last row."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    options = [DIGITS, "--root", tmp_path, *TINY]
    done = in_process(
        capsys, "counterfactual", *options, "--count=2", "--remove=1,3", "--runs=2", "--workers=1", "--json"
    )
    found = json.loads(done.out)
    assert found["by"].keys() == {"datamodel", "random", "same-class"}
    dataset = dm.open(tmp_path, alpha=0.5).dataset()
    for one in found["subsets"]:
        if one["by"] == "same-class":
            assert (dataset.train.labels[one["removed"]] == dataset.test.labels[one["target"]]).all()
    (config,) = (tmp_path / "digits" / "counterfactual_50pct").glob("*.yaml")
    setting = dm.open(config.parent).setting
    assert (setting.recipe.steps_per_epoch, setting.recipe.group, setting.rows % 8 > 0) == (2, 8, True)
    assert in_process(capsys, "report", *options).code == 0
    page = (tmp_path / "digits" / "report_test_50pct.html").read_text()
    assert 'id="counterfactual"' in page
    assert "removed, the largest weights first" in page
