"""Signals: whatever a command is at, it ends with the right code, says how to go on, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from datamodels.launch import stop
from datamodels.launch.progress import Stages
from datamodels.launch.stop import Stop
from tests.conftest import DIGITS, PROJECT, TINY, in_process, run_command

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with all rows done and no datamodels."""
    root = tmp_path_factory.mktemp("stop")
    for command in ("init", "train"):
        assert run_command(command, DIGITS, "--root", root, *TINY).code == 0
    return root


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("command", ["run", "fit"])
def test_a_signal_during_the_fit_ends_the_command(
    trained: Path, capsys: pytest.CaptureFixture[str], number: int, code: int, command: str
) -> None:
    handlers = [signal.getsignal(signal_number) for signal_number, _ in CODES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stages, "__call__", lambda *arguments: (os.kill(os.getpid(), number), time.sleep(60)))
        done = in_process(capsys, command, DIGITS, "--root", trained, *TINY)
    assert done.code == code
    assert done.err.splitlines()[-1] == "stopped: the same command goes on"
    assert not list((trained / "digits").glob("datamodels/*.pt")), "a draft was left"
    assert [signal.getsignal(signal_number) for signal_number, _ in CODES] == handlers


def test_a_signal_while_the_data_are_read_ends_the_command(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "datamodels.launch.commands.whole.load", lambda *arguments: (os.kill(os.getpid(), 15), time.sleep(60))
        )
        assert in_process(capsys, "run", DIGITS, "--root", trained, *TINY).code == 75


@pytest.mark.parametrize(("command", "code"), [("train", 0), ("run", 75)])
def test_a_signal_just_after_the_last_row_stops_only_what_would_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, code: int
) -> None:
    from datamodels.train.trainer import run_rows as rows

    options = ["--root", tmp_path, *TINY]
    assert in_process(capsys, "init", DIGITS, *options).code == 0

    def train_all(*arguments: object, original=rows.train_rows) -> None:
        original(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "train_rows", train_all)
        assert in_process(capsys, command, DIGITS, *options, "--workers=1").code == code
    assert not list((tmp_path / "digits").glob("datamodels/*.pt"))


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_signal_during_the_imports_leaves_no_traceback(number: int, code: int) -> None:
    program = (
        "import os, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name == 'jsonargparse': os.kill(os.getpid(), {int(number)})\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from datamodels.launch.cli import main\n"
        "sys.exit(main(['--help']))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "stopped: the same command goes on\n")


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_signal_when_all_is_done_leaves_no_traceback(number: int, code: int) -> None:
    program = (
        "import atexit, os, sys\n"
        f"atexit.register(os.kill, os.getpid(), {int(number)})\n"
        "sys.argv[1:] = ['--help']\n"
        "from datamodels.launch.cli import script\n"
        "script()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "stopped: the same command goes on\n")
    assert done.stdout.startswith("usage:")


def test_stop_notes_signals_and_puts_back_what_was_there() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt):
        asked.check()


def test_a_second_ctrl_c_stops_at_once() -> None:
    with Stop():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_thread_that_cannot_handle_signals_changes_nothing() -> None:
    def enter() -> None:
        with Stop() as asked:
            found.append(asked())

    found: list[bool] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_process_that_is_told_to_stop_leaves_whatever_it_is_at() -> None:
    program = (
        "import os, time; from datamodels.launch import stop; stop.LEAVE_SECONDS = 0.2\n"
        "with stop.Stop():\n    os.kill(os.getpid(), 15); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (75, "stopped: the same command goes on\n")
    assert stop.LEAVE_SECONDS < 10
