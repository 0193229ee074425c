"""The command line: exit codes, one-line errors, nothing changed by a refusal."""

import hashlib
import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from datamodels.launch.commands import COMMANDS
from datamodels.launch.progress import Stages
from tests.conftest import DIGITS, PROJECT, TINY, Outcome, in_process, run_command

CIFAR = PROJECT / "configs" / "cifar_debug.yaml"
Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""
    return partial(in_process, capsys)


@pytest.fixture
def on_trained(run: Run, trained: Path) -> Run:
    """Runs a command, named first, on the trained root."""
    return lambda command, *options: run(command, DIGITS, "--root", trained, *TINY, *options)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


REFUSED = {
    "a misspelt option": (["--recipe.lrr=3"], "recipe.lrr"),
    "alpha 0": (["--alpha=0"], "alpha is 0"),
    "alpha .nan": (["--alpha=.nan"], "alpha is nan"),
    "no models": (["--models=0"], "models is 0"),
    "models that are no number": (["--models=many"], "models is many, expected a whole number"),
    "a key that must not be null": (["--models=null"], "models is null, expected a whole number"),
    "half an example": (["--data.train=2.5"], "data.train is 2.5, expected a whole number, or null"),
    "a number for a group of keys": (["--data=5"], "data is 5, expected keys and values"),
    "a key below a number": (["--models.x=5"], "models is given the key x, expected a whole number"),
    "a number for a list": (["--data.mean=2"], "data.mean is 2, expected a list of numbers, or null"),
    "an unknown layout": (["--data.layout=nchw"], "data.layout is nchw, expected one of auto, NHWC, NCHW"),
    "an unknown data set": (["--dataset=mnist"], "dataset is 'mnist'"),
    "a data set name with a path": (["--dataset=../x"], "dataset is '../x'"),
    "more examples than there are": (["--data.train=101"], "data.train is 101"),
    "a subset without an example": (["--alpha=0.001"], "alpha is 0.001"),
    "an alpha with an exponent": (["--alpha=1e-9"], "alpha is 1e-09: 0 of 100"),
    "an unknown network": (["--recipe.network=vgg"], "recipe.network"),
    "a group for a network without": (["--recipe.network=resnet9"], "recipe.group is"),
    "an abbreviated option": (["--mod=5"], "--mod=5"),
    "a root without a name": (["--root="], "--root is ''"),
    "a disk that is too small": (["--models=100000000", "--outputs.train_logits=true"], "bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_options_are_one_line_and_change_nothing(run: Run, tmp_path: Path, case: str) -> None:
    options, named = REFUSED[case]
    assert named in run("init", DIGITS, "--root", tmp_path / "new" / "root", *options).error
    assert not list(tmp_path.iterdir())


FILES = {
    "a misspelt key": ("dataset: digits\nalpa: 0.5\n", "alpa"),
    "a misspelt key in a group": ("dataset: digits\nrecipe:\n  lrr: 3\n", "lrr"),
    "a list": ("- 1\n- 2\n", "expected keys and values"),
    "broken YAML": ("dataset: [\n", "not plain YAML"),
    "nothing": ("", "expected keys and values"),
    "bytes": ("dataset: \x01", "not plain YAML"),
    "a key given twice": ("dataset: digits\nalpha: 0.5\nalpha: 0.25\n", "line 3 gives 'alpha' a second time"),
    "a key of a group given twice": ("recipe:\n  lr: 1\n  lr: 2\n", "line 3 gives 'lr' a second time"),
    "an octal number": ("alpha: 0.5\nseed: 010\n", "line 2 holds 010, which YAML takes for 8: expected no leading 0"),
    "a number of base 60": ("models: 4:00:00\n", "line 1 holds 4:00:00, which YAML takes for 14400"),
    "a key without a value": ("dataset: digits\nmodels:\n", "models is null, expected a value"),
    "a key of a group without a value": ("recipe:\n  epochs: 3\n  lr:\n", "recipe.lr is null, expected a value"),
    "a group without keys": ("dataset: digits\nrecipe:\n", "recipe is null, expected keys and values"),
    "an option of the command": ("dataset: digits\nroot: elsewhere\n", "'root' is not a key of a config"),
    "an option of a subcommand": ("dataset: digits\nworkers: 3\n", "'workers' is not a key of a config"),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_config_files_are_one_line_and_change_nothing(run: Run, tmp_path: Path, case: str) -> None:
    content, named = FILES[case]
    config = tmp_path / "bad.yaml"
    config.write_text(content)
    assert named in run("init", config, "--root", tmp_path / "root").error
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_config_files_may_be_pipes_and_begin_with_a_byte_order_mark(run: Run, tmp_path: Path) -> None:
    def pipe(text: str) -> str:
        """The name of a file that can be read once."""
        read, write = os.pipe()
        os.write(write, text.encode("utf-8-sig"))
        os.close(write)
        return f"/dev/fd/{read}"

    config, options = DIGITS.read_text(), ["--root", tmp_path, *TINY]
    cluster = "cpus: 2\nsetup: [echo ünï]\n"
    shown = run("submit", pipe(config), *options, "--dry-run", "--slurm.cpus=3", "--slurm", pipe(cluster)).out
    assert all(f"\n{line}\n" in shown for line in ("#SBATCH --cpus-per-task=3", "echo ünï")), shown
    assert "holds list, expected keys" in run("submit", DIGITS, *options, f"--slurm={pipe('- 1')}").error
    assert "--root is missing: /dev/fd/" in run("init", pipe(config), *TINY).error


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "COMMAND is missing"),
        (["tarin", DIGITS], "expected one of init, train"),
        (["train"], "CONFIG is missing"),
        (["init", "nowhere.yaml"], "nowhere.yaml"),
        (["init", DIGITS, "--root", "/proc/datamodels"], "proc"),
        (["init", DIGITS, "--root", "/dev/null/datamodels"], "dev"),
        (["init", DIGITS, "--root", "~nobody.here/x"], "--root is '~nobody.here/x', but no home folder is known"),
        (["data", "configs/cifar_debug.yaml", "--data.root", "~nobody.here"], "data.root is '~nobody.here', but"),
    ],
)
def test_bad_command_lines_are_one_line(run: Run, arguments: list[object], named: str) -> None:
    assert named in run(*arguments).error


def test_closed_streams_full_disks_and_narrow_encodings_end_no_work(run: Run, tmp_path: Path) -> None:
    command, root = [sys.executable, "-m", "datamodels"], tmp_path / "ünï"
    options = [*map(str, [DIGITS, "--root", root, *TINY])]
    assert run("init", *options).code == 0
    train = [*command, "train", *options, "--rows=0:16", "--workers=2"]
    subprocess.run(f"{shlex.join(train)} <&- >&- 2>&-", shell=True, cwd=PROJECT, check=True)
    shown = run_command("status", *options, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert f"{tmp_path}/\\xfcn\\xef/digits/data: 16 of 32 rows done" in shown.out
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command, "--version"], cwd=PROJECT, stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (1, b"error: input/output: No space left on device\n")
        subprocess.run(train, cwd=PROJECT, stderr=full, check=True)  # tells that there is nothing to train


def test_a_foreign_locale_and_settings_of_matplotlib_change_nothing(trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "rünï"
    shutil.copytree(trained, root)
    (page,) = root.glob("digits/report_*")
    before = page.read_text()
    page.unlink()
    config = tmp_path / "ä.yaml"
    config.write_text(f"# ünï\n{DIGITS.read_text()}")
    (tmp_path / "matplotlibrc").write_bytes("# Schriftgröße\ntext.usetex: True\n".encode("latin-1"))
    environment = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    environment |= {"MPLBACKEND": "module://not_installed.backend", "MATPLOTLIBRC": str(tmp_path)}
    environment |= {**os.environ, **environment, "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-m", "datamodels", "report", config, "--root", root, *TINY]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == os.fsencode(page) + b"\n"
    assert plots(page.read_text()) == plots(before)


def plots(page: str) -> list[str]:
    return re.findall("<svg.*?</svg>", page, re.DOTALL)


def test_the_command_prints_its_version_and_errors_without_a_traceback() -> None:
    assert run_command("--version").out == f"{version('datamodels-harness')}\n"
    assert run_command("train", DIGITS, "--models=0").error == "error: models is 0, expected at least 1"


def test_a_missing_data_folder_says_how_to_get_it(run: Run, tmp_path: Path) -> None:
    error = run("init", CIFAR, "--root", tmp_path / "root", "--data.root", tmp_path / "nowhere").error
    assert "nowhere" in error
    assert "datamodels data" in error
    assert not list(tmp_path.iterdir())


def test_a_corrupted_cifar_batch_is_named_with_its_hash(run: Run, tmp_path: Path, real_data: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    shutil.copytree(real_data / "cifar-10-batches-py", folder)
    with open(folder / "data_batch_3", "r+b") as file:
        file.seek(5000)
        file.write(b"x")
    error = run("init", CIFAR, "--root", tmp_path / "root", "--data.root", tmp_path).error
    assert "data_batch_3" in error
    assert "0f00d98ebfb30b3e" in error
    assert not (tmp_path / "root").exists()


def test_a_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path: Path) -> None:
    from datamodels.train.data import cifar
    from datamodels.train.errors import UserError

    hostile = pickle.dumps({b"data": os.system})
    (tmp_path / "batch").write_bytes(hostile)
    with pytest.raises(UserError, match="expected only numpy arrays"):
        cifar._read_batch(tmp_path / "batch", hashlib.sha256(hostile).hexdigest())


def test_a_store_is_neither_changed_nor_replaced_by_init(on_trained: Run, trained: Path) -> None:
    before = snapshot(trained)
    for option, named in {
        "--seed=1": "seed is 1",
        "--recipe.lr=0.3": "recipe.lr is 0.3",
        "--models=32": "models",
    }.items():
        assert named in on_trained("init", option).error
    assert on_trained("init").code == 0
    assert snapshot(trained) == before


@pytest.mark.parametrize("value", ["0:33", "5:5", "7:3", "abc", "-1:4", "3", "0:٣", "0:2,", "0:2,30:33"])
def test_rows_outside_the_store_are_refused(on_trained: Run, value: str) -> None:
    assert f"--rows is {value!r}" in on_trained("train", f"--rows={value}").error


@pytest.mark.parametrize("value", [-1, 0])
def test_workers_are_at_least_one(on_trained: Run, value: int) -> None:
    assert on_trained("train", f"--workers={value}").error == f"error: --workers is {value}, expected at least 1"


def test_what_torch_raises_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*arguments: object) -> None:
        raise RuntimeError("out of memory\nIt cannot go on")

    options = [DIGITS, "--root", tmp_path, *TINY]
    assert run("init", *options).code == 0
    monkeypatch.setattr("datamodels.train.trainer.engine.build", out_of_memory)
    done = run("train", *options, "--workers=1")
    assert (done.code, done.err) == (1, "error: training on cpu failed: out of memory\n")
    monkeypatch.setattr("datamodels.launch.request.open_store", out_of_memory)
    done = run("fit", *options)
    assert (done.code, done.err) == (1, "error: out of memory It cannot go on\n")


@pytest.mark.parametrize("command", ["train", "status", "verify", "fit", "eval", "report"])
def test_a_store_that_does_not_exist_is_named(run: Run, tmp_path: Path, command: str) -> None:
    assert "datamodels init" in run(command, DIGITS, "--root", tmp_path).error
    assert not list(tmp_path.iterdir())


def test_verify_finds_a_changed_byte_and_repair_and_train_mend_it(run: Run, trained: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(trained, root)
    options = [DIGITS, "--root", root, *TINY]
    path = root / "digits" / "data" / "test_margins_50pct.npy"
    good = path.read_bytes()
    with open(path, "r+b") as file:
        file.seek(4096 + 9 * 120 + 5)
        file.write(bytes([good[4096 + 9 * 120 + 5] ^ 1]))
    found = run("verify", *options, "--json")
    assert (found.code, json.loads(found.out)["bad"]) == (1, [9])
    assert "row 9" in run("verify", *options).out
    shutil.rmtree(root / "digits" / "datamodels")  # what was summed before the damage stays right
    refused = run("fit", *options)
    assert refused.code == 1
    assert "repair" in refused.err
    assert run("repair", *options).code == 0
    flags = np.load(root / "digits" / "data" / "_completed_50pct.npy")
    assert np.flatnonzero(~flags).tolist() == [9]
    assert run("train", *options).code == 0
    assert path.read_bytes() == good
    assert run("verify", *options).code == 0


def test_all_rows_are_done_and_come_out_the_same_when_trained_again(on_trained: Run) -> None:
    status = json.loads(on_trained("status", "--json").out)
    assert (status["done"], status["missing"], status["failed"], status["total"]) == (32, 0, 0, 32)
    assert status["rows_per_hour"] > 0
    found = on_trained("verify", "--retrain=3", "--json")
    assert found.code == 0, found.err
    assert len(json.loads(found.out)["retrained"]["equal"]) == 3


def test_eval_says_how_good_the_datamodels_are(on_trained: Run) -> None:
    found = json.loads(on_trained("eval", "--json").out)
    assert {"lds", "undefined", "mse", "targets", "models", "ceiling"} <= found.keys()
    assert {"low", "high", "level"} <= found["lds_interval"].keys()
    assert (found["targets"], found["models"]) == (60, 8)
    wide = json.loads(on_trained("eval", "--json", "--per_target").out)
    assert np.mean(wide.pop("per_target")["lds"]) == pytest.approx(found["lds"])
    assert wide == found
    table = on_trained("eval", "--eval.level=0.8").out
    assert re.search(rf"^LDS +{found['lds']:.4f}, 80% interval -?[0-9.]+ to [0-9.]+$", table, re.MULTILINE)
    assert re.search(r"^models +8 for evaluation, with 4 masks$", table, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    found = run(command, "--help")
    assert found.code == 0
    takes = " ".join(COMMANDS[command].places) or ("[CONFIG]" if COMMANDS[command].bare else "CONFIG")
    assert f"datamodels {command} {takes}" in found.out
    assert ("recipe.lr" in found.out) == ("CONFIG" in takes)
    options = re.split("^(One setting|The cluster):", found.out, flags=re.MULTILINE)[0]
    assert not re.search(r"default:\s(null|False)", options)


def test_help_and_status_import_no_torch(trained: Path) -> None:
    program = (
        "import sys; from datamodels.launch.cli import main\n"
        "for arguments in (['--help'], ['train', '--help'], ['status', *sys.argv[1:]]):\n"
        "    assert main(arguments) == 0 and 'torch' not in sys.modules, arguments"
    )
    arguments = [sys.executable, "-c", program, DIGITS, "--root", trained, *TINY]
    subprocess.run([*map(str, arguments)], cwd=PROJECT, check=True, capture_output=True)


def test_progress_counts_up_to_the_latest_total(capsys: pytest.CaptureFixture[str]) -> None:
    with Stages() as stages:
        stages("margins", 9, 9)
        stages("margins", 14, 14)
    assert "margins: 14 of 14, " in capsys.readouterr().err


def test_results_alone_go_to_standard_output(on_trained: Run, trained: Path) -> None:
    found = on_trained("report")
    assert found.code == 0
    assert Path(found.out.strip()) == trained / "digits" / "report_test_50pct.html"
