"""Import of other programs' arrays: what is copied and how it is named, what is refused, and a stop in the middle."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datamodels as dm
from datamodels.train import UserError
from datamodels.train.exchange import import_arrays
from tests.conftest import Outcome, in_process
from tests.stores import linear_data

ROWS, N_TRAIN, TARGETS = 120, 20, 3
DONE = np.arange(ROWS) % 8 != 7
SPEC = {
    "masks": ([N_TRAIN], "bool_"),
    "margins": ([TARGETS], "float16"),
    "accuracy": ([], "float32"),
    "predictions": ([TARGETS], "uint8"),
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """What `initialize_store` and the workers of MadryLab/datamodels leave, of which 105 of 120 have come to an end."""
    folder = tmp_path / "store"
    (folder / "workers" / "0").mkdir(parents=True)
    (folder / "cmds.txt").write_text("worker.py --worker.index=0\n")
    masks, margins = linear_data(ROWS, N_TRAIN, TARGETS)
    values = {"masks": masks, "margins": margins, "accuracy": margins.mean(axis=1), "predictions": margins > 0}
    for key, (shape, kind) in {**SPEC, "_completed": ([], "bool_")}.items():
        array = np.lib.format.open_memmap(folder / f"{key}.npy", "w+", getattr(np, kind), (ROWS, *shape))
        array[DONE] = values.get(key, DONE)[DONE]
        array.flush()
    np.lib.format.open_memmap(folder / "margins.npy", "r+")[7] = np.nan  # where a worker was stopped
    return folder


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def imported(capsys: Any, source: Path, root: Path, *options: str) -> Outcome:
    return in_process(capsys, "import", source, "--root", root, *options)


def test_a_store_of_madrylab_is_fitted_by_the_command_that_is_printed(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "a root"
    before = {path.name: path.read_bytes() for path in store.glob("*.npy")}
    found = imported(capsys, store, root, "--format=madrylab")
    assert "predictions.npy is left out: --names test_OUTPUT=predictions" in found.err
    _, command, *config = shlex.split(found.out.splitlines()[-1])
    assert in_process(capsys, command, *config).out == f"{root}/imported/datamodels/test_50pct.pt\n"
    status = json.loads(in_process(capsys, "status", *config, "--json").out)
    assert (status["done"], status["missing"], status["failed"], status["total"]) == (105, 15, 0, ROWS)
    assert json.loads(in_process(capsys, "eval", *config, "--json").out)["models"] == 10
    assert before == {path.name: path.read_bytes() for path in store.glob("*.npy")}

    opened = dm.open(root / "import.yaml", root=root)
    assert sorted(opened.arrays) == ["test_accuracy", "test_margins", "train_masks"]
    assert opened.setting.mask == "bernoulli"
    np.testing.assert_array_equal(opened.masks[DONE], np.load(store / "masks.npy")[DONE])
    for output, width in (("margins", TARGETS), ("accuracy", 1)):
        expected = np.load(store / f"{output}.npy").reshape(ROWS, width)[DONE]
        np.testing.assert_array_equal(opened.output(output, "test")[DONE], expected)
    np.testing.assert_array_equal(dm.open(root, eval_models=12).completed(), DONE)


def test_arrays_of_any_name_and_type_have_a_tag_where_masks_follow_no_alpha(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, root = tmp_path / "arrays", tmp_path / "root"
    source.mkdir()
    rng = np.random.default_rng(0)
    masks = rng.random((90, 12)) < rng.random((90, 1))
    masks[:, 0] = True
    values = {"test_losses": rng.normal(size=(90, 4)).astype(">f8"), "test_votes": rng.integers(9, size=(90, 4))}
    np.save(source / "subsets.npy", np.asfortranarray(masks, np.float64))
    for name, array in values.items():
        np.save(source / f"{name}.v1.npy", array)
    names = "--names=train_masks=subsets,test_losses=test_losses.v1,test_votes=test_votes.v1.npy"
    options = ["--format=arrays", names, "--dataset=mine", "--eval_models=20"]
    assert "expected --tag NAME" in imported(capsys, source, root, *options).error
    assert not root.exists()
    command = imported(capsys, source, root, *options, "--tag=mixed").out.splitlines()[-1]
    config = shlex.split(command)[2:]
    assert in_process(capsys, "fit", *config, "--output=votes").out == f"{root}/mine/datamodels/test_votes_mixed.pt\n"
    opened = dm.open(root / "import.yaml", root=root)
    assert (opened.models, opened.eval_models) == (70, 20)
    np.testing.assert_array_equal(opened.masks, masks)
    for name, array in values.items():
        np.testing.assert_array_equal(opened.output(name.removeprefix("test_"), "test"), array)
        assert opened.arrays[name].dtype == ("=f8" if name == "test_losses" else "f4")


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        (np.arange(101) < np.full((30, 1), 50), (0.5, "exact")),  # round(0.5 * 101) of 101
        (np.arange(9) < np.full((30, 1), 3), (0.3, "exact")),
        (np.arange(400) < np.full((9, 1), 50), (0.125, "exact")),
        (~np.eye(200, dtype=bool), (0.995, "exact")),
        (np.random.default_rng(0).random((500, 300)) < 0.25, (0.25, "bernoulli")),
        (np.random.default_rng(0).random((200, 30)) < 0.5, (0.5, "bernoulli")),
    ],
)
def test_alpha_is_the_share_of_ones_as_far_as_it_is_known(tmp_path: Path, masks: Any, expected: Any) -> None:
    np.save(tmp_path / "masks.npy", masks)
    np.save(tmp_path / "margins.npy", np.zeros((len(masks), 1), np.float16))
    layout, config = import_arrays(
        tmp_path, "arrays", tmp_path / "root", {"dataset": "x"}, {}, lambda *done: None, pytest.fail
    )
    setting = dm.open(config, root=layout.root).setting
    assert (setting.alpha, setting.mask) == expected


def write(name: str, values: Any) -> Any:
    return lambda folder: np.save(folder / name, values)


def spec(**shapes: Any) -> Any:
    schema = {key: {"shape": shape, "dtype": "float16"} for key, shape in shapes.items()}
    return lambda folder: (folder / "spec.json").write_text(json.dumps({"num_models": ROWS, "schema": schema}))


REFUSED = {
    "no flags": (lambda folder: (folder / "_completed.npy").unlink(), [], "_completed.npy does not exist"),
    "no masks": (lambda folder: (folder / "masks.npy").unlink(), [], "expected train_masks: --names train_masks=FILE"),
    "nothing done": (write("_completed.npy", np.zeros(ROWS, bool)), [], "marks none of 120 rows"),
    "flags of other rows": (write("_completed.npy", np.ones(9, bool)), [], "holds bool of shape (9,)"),
    "outputs of other rows": (write("loss.npy", np.ones((9, 2))), [], "loss.npy holds float64 of shape (9, 2)"),
    "masks that are no 0 and 1": (write("masks.npy", np.full((ROWS, 4), 2)), [], "the mask of row 0 holds 2"),
    "masks of one dimension": (write("masks.npy", np.ones(ROWS)), [], "expected masks [rows, n_train]"),
    "two files for a name": (write("test_margins.npy", np.ones((ROWS, 2))), [], "are both test_margins"),
    "text": (lambda folder: (folder / "loss.npy").write_text("x"), [], "loss.npy is not a whole .npy file"),
    "another spec": (spec(margins=[TARGETS + 1]), [], "margins.npy has shape (120, 3), but"),
    "a spec of more": (spec(loss=[3]), [], "loss.npy is not a whole .npy file"),
    "a broken spec": (lambda folder: (folder / "spec.json").write_text("{}"), [], "expected num_models"),
    "no test output": (spec(), ["--names=train_margins=predictions"], "expected test_margins"),
    "a name that is no output": (spec(), ["--names=margins=margins"], "--names gives 'margins'"),
    "a name twice": (spec(), ["--names=test_x=margins,test_x=accuracy"], "each name once"),
    "a file that is not there": (spec(), ["--names=test_x=nowhere"], "nowhere.npy is not a whole .npy file"),
    "a tag and an alpha": (spec(), ["--tag=x", "--alpha=0.5"], "alpha is 0.5, expected no alpha"),
    "a path for a data set": (spec(), ["--dataset=../x"], "dataset is '../x'"),
    "evaluation rows alone": (spec(), ["--eval_models=120"], "eval_models is 120"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_imported_is_refused_in_one_line_before_anything_is_written(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    change, options, named = REFUSED[case]
    change(store)
    found = imported(capsys, store, tmp_path / "root", "--format=madrylab", *options)
    assert named in found.error
    assert not (tmp_path / "root").exists()


def test_a_root_that_is_not_empty_is_left_alone(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "root").mkdir()
    assert imported(capsys, store, tmp_path / "root", "--format=madrylab").code == 0
    assert "root/import" in imported(capsys, store, tmp_path / "root", "--format=madrylab").error
    assert "Not a directory" in imported(capsys, store, store / "cmds.txt", "--format=madrylab").error
    assert "--root is missing" in in_process(capsys, "import", store, "--format=madrylab").error


def test_until_all_is_copied_nothing_can_be_opened_and_a_killed_import_begins_again(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(name: str, done: int, total: int) -> None:
        if name.startswith("_completed"):
            shutil.copytree(root, killed)
            with pytest.raises(UserError, match="holds no setting"):
                dm.open(root)
            assert "is being written by another" in imported(capsys, store, root, "--format=madrylab").error
            raise KeyboardInterrupt

    root, killed = tmp_path / "root", tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        import_arrays(store, "madrylab", root, {"dataset": "x"}, {}, stopped, lambda text: None)
    assert not list(root.iterdir())

    assert (killed / ".importing" / "x" / "data" / "test_margins_50pct.npy").exists()
    other = shutil.copytree(store, tmp_path / "other")
    before = files(killed)
    assert "killed/.importing exists" in imported(capsys, other, killed, "--format=madrylab").error
    (killed / "import.yaml").write_text("dataset: x\n")
    assert "killed/import.yaml exists" in imported(capsys, store, killed, "--format=madrylab").error
    (killed / "import.yaml").unlink()
    assert files(killed) == before
    for target in (killed, root):
        assert imported(capsys, store, target, "--format=madrylab", "--dataset=x").code == 0
    assert files(killed) == files(root)
