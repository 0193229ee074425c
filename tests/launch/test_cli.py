"""The command line: exit codes, one-line errors, nothing changed by a refusal."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodels.launch.parser import COMMANDS
from datamodels.launch.progress import Stages
from tests.conftest import DIGITS, PROJECT, TINY, in_process, run_command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a small digits setting that `run` has done."""
    root = tmp_path_factory.mktemp("trained")
    done = run_command("run", DIGITS, "--root", root, *TINY)
    assert done.code == 0, done.err
    return root


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


REFUSED = {
    "a misspelt option": (["--recipe.lrr=3"], "recipe.lrr"),
    "alpha 0": (["--alpha=0"], "alpha is 0"),
    "alpha 1": (["--alpha=1"], "alpha is 1"),
    "alpha -1": (["--alpha=-1"], "alpha is -1"),
    "alpha NaN": (["--alpha=NaN"], "alpha"),
    "alpha .nan": (["--alpha=.nan"], "alpha is nan"),
    "no models": (["--models=0"], "models is 0"),
    "models that are no number": (["--models=many"], "models"),
    "an unknown data set": (["--dataset=mnist"], "dataset is 'mnist'"),
    "a data set name with a path": (["--dataset=../x"], "dataset is '../x'"),
    "more examples than there are": (["--data.train=101"], "data.train is 101"),
    "a subset without an example": (["--alpha=0.001"], "alpha is 0.001"),
    "an alpha with an exponent": (["--alpha=1e-9"], "alpha is 1e-09: 0 of 100"),
    "an unknown network": (["--recipe.network=vgg"], "recipe.network"),
    "a group for a network without": (["--recipe.network=resnet9"], "recipe.group is"),
    "an abbreviated option": (["--mod=5"], "--mod=5"),
    "a root without a name": (["--root="], "--root is ''"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_one_line_and_change_nothing(case: str, tmp_path: Path) -> None:
    options, named = REFUSED[case]
    assert named in run_command("init", DIGITS, "--root", tmp_path / "new" / "root", *options).error
    assert not list(tmp_path.iterdir())


FILES = {
    "a misspelt key": ("dataset: digits\nalpa: 0.5\n", "alpa"),
    "a misspelt key in a group": ("dataset: digits\nrecipe:\n  lrr: 3\n", "lrr"),
    "a hostile tag": ('dataset: !!python/object/apply:os.system ["touch pwned"]\n', "not plain YAML"),
    "a list": ("- 1\n- 2\n", "expected keys and values"),
    "broken YAML": ("dataset: [\n", "not plain YAML"),
    "nothing": ("", "expected keys and values"),
    "bytes": ("dataset: \x01", "not plain YAML"),
    "a key given twice": ("dataset: digits\nalpha: 0.5\nalpha: 0.25\n", "line 3 gives 'alpha' a second time"),
    "a key of a group given twice": ("recipe:\n  lr: 1\n  lr: 2\n", "line 3 gives 'lr' a second time"),
    "a key without a value": ("dataset: digits\nmodels:\n", "models is None, expected a value"),
    "a key of a group without a value": ("recipe:\n  epochs: 3\n  lr:\n", "recipe.lr is None, expected a value"),
    "a group without keys": ("dataset: digits\nrecipe:\n", "recipe is None, expected keys and values"),
    "an option of the command": ("dataset: digits\nroot: elsewhere\n", "'root' is no key of a config"),
    "an option of a subcommand": ("dataset: digits\nworkers: 3\n", "'workers' is no key of a config"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_config_files_are_one_line_and_change_nothing(case: str, tmp_path: Path) -> None:
    content, named = FILES[case]
    config = tmp_path / "bad.yaml"
    config.write_text(content)
    assert named in run_command("init", config, "--root", tmp_path / "root").error
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]
    assert not (PROJECT / "pwned").exists()


def test_a_config_that_is_not_there_is_named() -> None:
    assert "nowhere.yaml" in run_command("init", "nowhere.yaml").error


def test_a_config_is_asked_for() -> None:
    assert "CONFIG is missing" in run_command("train").error


def test_a_command_is_asked_for() -> None:
    assert "COMMAND is missing" in run_command().error


def test_an_unknown_command_lists_the_known_ones() -> None:
    assert "expected one of init, train" in run_command("tarin", DIGITS).error


@pytest.mark.parametrize("root", ["/proc/datamodels", "/dev/null/datamodels"])
def test_a_root_that_cannot_be_written_is_refused(root: str) -> None:
    assert root.split("/")[1] in run_command("init", DIGITS, "--root", root).error


def test_a_missing_data_folder_says_how_to_get_it(tmp_path: Path) -> None:
    config = PROJECT / "configs" / "cifar_debug.yaml"
    error = run_command("init", config, "--root", tmp_path / "root", "--data.root", tmp_path / "nowhere").error
    assert "nowhere" in error
    assert "datamodels data" in error
    assert not list(tmp_path.iterdir())


def test_a_corrupted_cifar_batch_is_named_with_its_hash(tmp_path: Path, real_data: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    shutil.copytree(real_data / "cifar-10-batches-py", folder)
    with open(folder / "data_batch_3", "r+b") as file:
        file.seek(5000)
        file.write(b"x")
    config = PROJECT / "configs" / "cifar_debug.yaml"
    error = run_command("init", config, "--root", tmp_path / "root", "--data.root", tmp_path).error
    assert "data_batch_3" in error
    assert "0f00d98ebfb30b3e" in error
    assert not (tmp_path / "root").exists()


def test_a_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib
    import pickle

    from datamodels.train.data import cifar
    from datamodels.train.errors import UserError

    hostile = pickle.dumps({b"data": os.system})
    (tmp_path / "batch").write_bytes(hostile)
    with pytest.raises(UserError, match="expected only numpy arrays"):
        cifar._read_batch(tmp_path / "batch", hashlib.sha256(hostile).hexdigest())


def test_another_setting_under_the_same_root_is_refused_by_name(trained: Path) -> None:
    before = snapshot(trained)
    for option, named in [
        ("--seed=1", "seed is 1"),
        ("--recipe.lr=0.3", "recipe.lr is 0.3"),
        ("--models=32", "models"),
    ]:
        assert named in run_command("init", DIGITS, "--root", trained, *TINY, option).error
    assert snapshot(trained) == before


@pytest.mark.parametrize("rows", ["0:33", "5:5", "7:3", "abc", "-1:4", "3", "0:٣"])
def test_rows_outside_the_store_are_refused(trained: Path, rows: str) -> None:
    assert "--rows" in run_command("train", DIGITS, "--root", trained, *TINY, f"--rows={rows}").error


@pytest.mark.parametrize("workers", [-1, 0])
def test_workers_are_at_least_one(trained: Path, workers: int) -> None:
    error = run_command("train", DIGITS, "--root", trained, *TINY, f"--workers={workers}").error
    assert error == f"error: --workers is {workers}, expected at least 1"


def test_what_torch_raises_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--root", tmp_path, *TINY]
    assert in_process(capsys, "init", DIGITS, *options).code == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodels.train.trainer.engine.build", out_of_memory)
        done = in_process(capsys, "train", DIGITS, *options, "--workers=1")
    assert (done.code, done.err) == (1, "error: training on cpu failed: out of memory\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodels.launch.request.open_store", out_of_memory)
        done = in_process(capsys, "fit", DIGITS, *options)
    assert (done.code, done.err) == (1, "error: out of memory It cannot go on\n")


def out_of_memory(*arguments: object) -> None:
    raise RuntimeError("out of memory\nIt cannot go on")


def test_a_store_that_does_not_exist_is_named(tmp_path: Path) -> None:
    for command in ("train", "status", "verify", "fit", "eval", "report"):
        assert "datamodels init" in run_command(command, DIGITS, "--root", tmp_path).error
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_refused_with_the_numbers(tmp_path: Path) -> None:
    options = ["--models=100000000", "--outputs.train_logits=true", "--outputs.test_logits=true"]  # 4 TB
    error = run_command("init", DIGITS, "--root", tmp_path / "root", *options).error
    assert "bytes" in error
    assert not list(tmp_path.iterdir())


def test_init_twice_changes_nothing(trained: Path) -> None:
    before = snapshot(trained)
    assert run_command("init", DIGITS, "--root", trained, *TINY).code == 0
    assert snapshot(trained) == before


def test_status_as_json_has_the_contracts_keys(trained: Path) -> None:
    found = json.loads(run_command("status", DIGITS, "--root", trained, *TINY, "--json").out)
    assert (found["done"], found["missing"], found["failed"], found["total"]) == (32, 0, 0, 32)
    assert found["rows_per_hour"] > 0


def test_verify_finds_a_changed_byte_and_repair_and_train_mend_it(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained, root)
    path = root / "digits" / "data" / "test_margins_50pct.npy"
    good = path.read_bytes()
    with open(path, "r+b") as file:
        file.seek(4096 + 9 * 120 + 5)
        file.write(bytes([good[4096 + 9 * 120 + 5] ^ 1]))
    found = run_command("verify", DIGITS, "--root", root, *TINY, "--json")
    assert found.code == 1
    assert json.loads(found.out)["bad"] == [9]
    assert "row 9" in run_command("verify", DIGITS, "--root", root, *TINY).out
    shutil.rmtree(root / "digits" / "datamodels")  # what was summed before the damage stays right
    refused = run_command("fit", DIGITS, "--root", root, *TINY)
    assert refused.code == 1
    assert "repair" in refused.err
    assert run_command("repair", DIGITS, "--root", root, *TINY).code == 0
    flags = np.load(root / "digits" / "data" / "_completed_50pct.npy")
    assert flags.sum() == 31
    assert not flags[9]
    assert run_command("train", DIGITS, "--root", root, *TINY).code == 0
    assert path.read_bytes() == good
    assert run_command("verify", DIGITS, "--root", root, *TINY).code == 0


def test_retraining_rows_gives_the_same_bytes(trained: Path) -> None:
    found = run_command("verify", DIGITS, "--root", trained, *TINY, "--retrain=3", "--json")
    assert found.code == 0, found.err
    assert len(json.loads(found.out)["retrained"]["equal"]) == 3


def test_eval_as_json_has_the_contracts_keys(trained: Path) -> None:
    found = json.loads(run_command("eval", DIGITS, "--root", trained, *TINY, "--json").out)
    assert {"lds", "undefined", "mse", "targets", "models", "ceiling"} <= found.keys()
    assert {"low", "high", "level"} <= found["lds_interval"].keys()
    assert (found["targets"], found["models"]) == (60, 8)
    wide = json.loads(run_command("eval", DIGITS, "--root", trained, *TINY, "--json", "--per_target").out)
    assert np.mean(wide.pop("per_target")["lds"]) == pytest.approx(found["lds"])
    assert wide == found
    table = run_command("eval", DIGITS, "--root", trained, *TINY, "--eval.level=0.8").out
    assert re.search(rf"^LDS +{found['lds']:.4f}, 80% interval -?[0-9.]+ to [0-9.]+$", table, re.MULTILINE)
    assert re.search(r"^models +8 for evaluation, with 4 masks$", table, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    found = run_command(command, "--help")
    assert found.code == 0
    assert f"datamodels {command} CONFIG" in found.out
    assert "recipe.lr" in found.out
    options = re.split("^(One setting|The cluster):", found.out, flags=re.MULTILINE)[0]
    assert not re.search(r"default:\s(null|False)", options)


def test_help_and_status_import_no_torch(trained: Path) -> None:
    program = (
        "import sys; from datamodels.launch.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(code or ('torch' in sys.modules and 99))"
    )
    for arguments in (["--help"], ["train", "--help"], ["status", str(DIGITS), "--root", str(trained), *TINY]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=PROJECT, capture_output=True)
        assert done.returncode == 0, done.stderr


def test_progress_counts_up_to_the_latest_total(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages() as stages:
        stages("margins", 9, 9)
        stages("margins", 14, 14)
    assert "margins: 14 of 14, " in capsys.readouterr().err


def test_results_alone_go_to_standard_output(trained: Path) -> None:
    found = run_command("report", DIGITS, "--root", trained, *TINY)
    assert found.code == 0
    assert Path(found.out.strip()) == trained / "digits" / "report_test_50pct.html"
