"""A trainer of one's own: its rows are as reproducible as any, and whatever it does, it takes no more than its row."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from datamodels.launch.slurm.script import portable
from datamodels.train.config import Recipe, Setting, from_dict
from datamodels.train.errors import UserError
from datamodels.train.masks import Masks
from datamodels.train.own import declared
from datamodels.train.rng import Stream, raw
from datamodels.train.store.layout import Layout
from datamodels.train.store.store import Store
from tests.conftest import PROJECT, Outcome, in_process

CONFIG = "dataset: mine\ntrainer: t.py\nmodels: 12\neval_models: 3\nrecipe: {device: cpu, threads: 1}\n"
DRAWING = """
import random
from multiprocessing import get_context
import numpy as np

n_train = 30
EXTRA = {f"test_{name}": (2, 3) for name in ("a", "b", "c1")}

def outputs():
    return {"test_margins": (5,), "train_loss": ((30,), "float32"), "test_loss": ((4,), np.float32), **EXTRA}

def setup(device):
    global place
    place = device
    worker = get_context("fork").Process(target=int)  # as a DataLoader starts
    worker.start()
    worker.join()

def train(mask, seed, device):
    print("this is no result")
    assert place == device == "cpu"
    loss = np.concatenate([np.random.normal(size=2), [random.random(), seed % 1000]])
    margins = np.arange(5) - mask.sum() / 8
    extra = dict.fromkeys(EXTRA, loss[0] * np.ones((2, 3)))
    return {"test_margins": margins, "train_loss": mask, "test_loss": loss, **extra}

def names():
    return {"test": ["one", "two\\nlines", "three", "", 5]}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the config and the trainer's file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(CONFIG)
    (tmp_path / "t.py").write_text(DRAWING)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], command: str, *options: object) -> Outcome:
    return in_process(capsys, command, "c.yaml", "--root", "root", *options)


def store() -> Store:
    return Store.open(Layout(Path("root"), "mine", "50pct"))


def content(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "mine" / "data").glob("*_50pct.npy"))}


def seed_of(row: int) -> int:
    return int(raw(0, row, Stream.INITIALISATION, 1)[0]) >> 1


def test_rows_are_what_the_file_makes_of_mask_and_seed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "init").code == 0
    assert call(capsys, "train", "--rows=3:5").out == ""
    assert call(capsys, "train", "--workers=2").out == ""
    found = store()
    assert [str(array) for array in found.arrays.values()][1:4] == [
        "test_margins float16 [15, 5]",
        "train_loss float32 [15, 30]",
        "test_loss float32 [15, 4]",
    ]
    masks, loss = Masks(found.setting, 30), found.array("test_loss")
    for row in range(15):
        assert (found.masks[row] == masks[row]).all()
        np.random.seed(np.array([seed_of(row) & 0xFFFFFFFF, seed_of(row) >> 32], np.uint32))  # noqa: NPY002
        assert loss[row, :2].tolist() == np.float32(np.random.normal(size=2)).tolist()  # noqa: NPY002
        assert loss[row, 3] == seed_of(row) % 1000
        assert (found.margins()[row] == np.float16(np.arange(5) - masks[row].sum() / 8)).all()
    assert found.records().accuracy[0] == np.float32((found.margins()[0] > 0).mean())

    again = json.loads(call(capsys, "verify", "--retrain=2", "--json").out)
    assert (again["checked"], again["bad"], len(again["retrained"]["equal"])) == (15, [], 2)
    status = json.loads(call(capsys, "status", "--json").out)
    assert status["done"] == 15
    told = next(iter(status["devices"]))
    assert f"1 thread, numpy {np.__version__}, python" in told, "versions are those of what the file imports"
    damaged = found.layout.array("test_c1")
    written = bytearray(damaged.read_bytes())
    written[-1] ^= 1
    damaged.write_bytes(written)
    assert json.loads(call(capsys, "verify", "--json").out)["bad"] == [14], "every output has its checksum"


def test_a_file_is_known_by_its_content(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "init").code == 0
    (folder / "t.py").rename(folder / "moved.py")
    assert call(capsys, "train", "--trainer=moved.py", "--rows=0:1").code == 0
    (folder / "moved.py").write_text(DRAWING + "\n")
    told = call(capsys, "train", "--trainer=moved.py").error
    assert told.startswith(
        f"error: moved.py is not the trainer that {store().layout.manifest} was made with: it has sha"
    )
    (folder / "moved.py").write_text("raise SystemError('status must not run this')")
    assert call(capsys, "status", f"--trainer_sha256={store().setting.trainer_sha256}").code == 0
    content = portable(Setting(dataset="mine", trainer="moved.py"))
    assert content["trainer"] == str(folder / "moved.py")
    assert from_dict(content).trainer_sha256 == content["trainer_sha256"]


WAYS = """
import ctypes, os, sys
import numpy as np

n_train, outputs = 30, {"test_loss": (4,)}
SEEDS = %s

def train(mask, seed, device):
    row = SEEDS.index(seed)
    found = np.ones(4)
    if row == 1:
        raise ValueError("no luck\\nat all")
    if row == 2:
        found[2] = np.nan
    if row == 3:
        found[1] = 1e6
    if row == 4:
        os._exit(7)
    if row == 5:
        sys.exit("enough")
    if row == 6:
        ctypes.string_at(0)
    return {"test_loss": found}
"""


def test_a_row_that_fails_is_told_with_its_reason_and_takes_no_other_with_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "t.py").write_text(WAYS % [seed_of(row) for row in range(15)])
    assert call(capsys, "init").code == 0
    done = call(capsys, "train", "--workers=1")
    assert done.code == 1
    assert done.err.splitlines()[-1].startswith("error: 6 of 15 rows failed")
    status = json.loads(call(capsys, "status", "--json").out)
    assert (status["done"], status["failed"]) == (9, 6)
    assert status["reasons"] == {
        "line 12: ValueError: no luck": 1,
        "test_loss not finite": 1,
        "test_loss outside float16's range": 1,
        "the process ended with exit code 7": 1,
        "line 20: SystemExit: enough": 1,
        "the process ended by SIGSEGV": 1,
    }
    assert call(capsys, "train", "--fit.max_failed=1").code == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_train = 30": ""}, "t.py defines no n_train, expected n_train, outputs and train (trainer)"),
        ({"n_train = 30": "n_train = 0"}, "t.py: n_train is 0, expected the number of training examples"),
        ({"(5,)": "()"}, "t.py: the output 'test_margins' is (), expected a shape such as (200,), or"),
        ({"np.float32": "int"}, "t.py: the output 'test_loss' is ((4,), <class 'int'>), expected a shape such as"),
        ({'"train_loss"': '"loss"'}, "t.py: an output is named 'loss', expected train_ or test_ and letters, as in"),
        ({"n_train = 30": "import os; os._exit(3)"}, "t.py: the process ended with exit code 3"),
        ({'"two': '"six", "two'}, "t.py: names returns 6 names of test examples, expected 5"),
        ({"def names": "1 / 0\ndef names"}, "t.py, line 27: ZeroDivisionError: division by zero"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_told(folder: Path, changes: dict[str, str], said: str) -> None:
    code = DRAWING
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    (folder / "t.py").write_text(code)
    with pytest.raises(UserError) as told:
        declared(Setting(dataset="mine", trainer="t.py"))
    assert str(told.value).startswith(said)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            '"train_loss": mask',
            '"train_lost": mask',
            "train returns test_margins, train_lost, test_loss, test_a, test_b,",
        ),
        (
            '"train_loss": mask',
            '"train_loss": mask[:9]',
            "train returns train_loss bool [9], declared train_loss float32 [30]",
        ),
        (
            '"train_loss": mask',
            '"train_loss": ["x"] * 30',
            "train returns train_loss <U1 [30], declared train_loss float32",
        ),
        ("place = device", 'raise OSError(2, "no such disk")', "FileNotFoundError: [Errno 2] no such disk"),
    ],
)
def test_a_row_that_is_not_as_declared_ends_the_command(
    folder: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    (folder / "t.py").write_text(DRAWING.replace(old, new))
    assert call(capsys, "init").code == 0
    assert said in call(capsys, "train", "--workers=1").error
    assert len(store().missing()) == 15


HANGING = """
import os, time
import numpy as np

n_train, outputs = 30, {"test_loss": (4,)}

def train(mask, seed, device):
    while seed == %d and os.path.exists("hang"):
        time.sleep(0.05)
    return {"test_loss": np.random.normal(size=4)}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_that_ends_while_a_row_hangs_loses_that_row_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    (folder / "t.py").write_text(HANGING % seed_of(4))
    (folder / "hang").touch()
    assert call(capsys, "init").code == 0
    command = [sys.executable, "-m", "datamodels", "train", "c.yaml", "--root", "root", "--workers=1"]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(PROJECT)}, stderr=subprocess.DEVNULL)
    while len(store().missing()) > 11:
        assert process.poll() is None
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(number)
    assert process.wait(8) == (75 if number == signal.SIGTERM else -9)
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{child}/fd").is_dir() and _runs(child) for child in children):
        assert time.monotonic() < deadline, "no process outlives the command"
        time.sleep(0.05)
    (folder / "hang").unlink()
    assert call(capsys, "train", "--workers=1").code == 0
    assert in_process(capsys, "init", "c.yaml", "--root", "whole").code == 0
    assert in_process(capsys, "train", "c.yaml", "--root", "whole", "--workers=1").code == 0
    assert content(folder / "root") == content(folder / "whole")


def _runs(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_names_of_examples_are_kept_a_line_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "init").code == 0
    assert store().names("test") == ["one", "two lines", "three", "-", "5"]
    assert store().names("train") is None
    (folder / "root" / "mine" / "data" / "train_names.txt").write_text("one\ntwo\n")
    with pytest.raises(UserError, match=r"train_names\.txt has 2 lines, expected one for each of 30 train examples"):
        store().names("train")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tta": "none"}, "tta is 'none', expected no such key: t.py trains the rows"),
        ({"recipe": Recipe(lr=0.1)}, "recipe.lr is 0.1, expected no such key: t.py trains the rows"),
        ({"fixed": ["order"]}, "fixed is ['order'], expected a list out of initialisation"),
        ({"trainer": "t.txt"}, "trainer is 't.txt', expected a Python file (.py)"),
        ({"trainer": "x.py"}, "trainer is 'x.py': cannot read it: No such file or directory"),
        ({"trainer": None, "trainer_sha256": "0"}, "trainer_sha256 is '0', expected null: no trainer is named"),
    ],
)
def test_keys_that_a_trainer_of_ones_own_does_not_heed_are_refused(
    folder: Path, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError) as told:
        Setting(**{"trainer": "t.py", **changes})
    assert str(told.value) == said


PAGE = (PROJECT / "docs" / "own_trainer.md").read_text()


def test_the_page_runs_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_trainer.py").write_text(*re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    (tmp_path / "wine.yaml").write_text(*re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    (run, verify), masks = re.findall(r"```sh\n(.*?)\n(.*?)\n```", PAGE)[0], re.findall(r"```sh\n(.*)\n```", PAGE)[0]
    np.save("subsets.npy", Masks(Setting(models=120, eval_models=20), 89)[3] | np.eye(140, 89, dtype=bool))
    done = in_process(capsys, *shlex.split(run)[1:], "--workers=1")
    assert done.code == 0, done.err
    assert float(re.findall(r"LDS +([\d.]+)", done.out)[0]) > 0.3
    assert "2 rows trained again byte-equal" in in_process(capsys, *shlex.split(verify)[1:]).out
    fit, judge = re.findall(r"```sh\n(.*?)\n(.*?)\n```", PAGE)[1]
    assert in_process(capsys, *shlex.split(fit)[1:]).out.endswith("test_loss_50pct.pt\n")
    assert "squared loss" in in_process(capsys, *shlex.split(judge)[1:]).out
    assert in_process(capsys, *shlex.split(masks)[1:], "--workers=1").out.endswith("report_test_removal.html\n")
