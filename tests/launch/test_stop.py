"""Signals: whatever a command is at, it ends with the right code, says how to go on, and leaves nothing behind."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from datamodels.launch.progress import Stages
from datamodels.launch.stop import LEAVE_SECONDS, Stop
from tests.conftest import DIGITS, PROJECT, TINY, in_process

CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
STOPPED = "stopped: the same command goes on\n"


@pytest.fixture
def unfitted(trained: Path, tmp_path: Path) -> Path:
    """A root with all rows done and no datamodels."""
    shutil.copytree(trained, tmp_path / "unfitted", ignore=shutil.ignore_patterns("datamodels", "report*"))
    return tmp_path / "unfitted"


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("command", ["run", "fit"])
def test_a_signal_during_the_fit_ends_the_command(
    unfitted: Path, capsys: pytest.CaptureFixture[str], number: int, code: int, command: str
) -> None:
    handlers = [signal.getsignal(signal_number) for signal_number, _ in CODES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stages, "__call__", lambda *arguments: (os.kill(os.getpid(), number), time.sleep(60)))
        done = in_process(capsys, command, DIGITS, "--root", unfitted, *TINY)
    assert done.code == code
    assert done.err.endswith(STOPPED)
    assert not list((unfitted / "digits").glob("datamodels/*.pt")), "a draft was left"
    assert [signal.getsignal(signal_number) for signal_number, _ in CODES] == handlers


@pytest.mark.parametrize(("command", "code"), [("train", 0), ("run", 75)])
def test_a_signal_just_after_the_last_row_stops_only_what_would_follow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, code: int
) -> None:
    from datamodels.launch import worker

    options = ["--root", tmp_path, *TINY]
    assert in_process(capsys, "init", DIGITS, *options).code == 0
    sent = []

    def train_all(*arguments: object, original=worker.train_rows) -> None:
        original(*arguments)
        sent.append(os.kill(os.getpid(), signal.SIGTERM))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "train_rows", train_all)
        assert in_process(capsys, command, DIGITS, *options, "--workers=1").code == code
    assert sent
    assert not list((tmp_path / "digits").glob("datamodels/*.pt"))


DURING_IMPORTS = """
import os, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "jsonargparse": os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Finder())
"""
AT_THE_END = "import atexit, os, sys; atexit.register(os.kill, os.getpid(), {number})"


@pytest.mark.parametrize(("number", "code"), CODES)
@pytest.mark.parametrize("moment", [DURING_IMPORTS, AT_THE_END])
def test_a_signal_during_imports_or_when_all_is_done_leaves_no_traceback(moment: str, number: int, code: int) -> None:
    program = moment.format(number=int(number)) + "\nfrom datamodels.launch.cli import script\nscript()"
    done = subprocess.run([sys.executable, "-c", program, "--help"], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, STOPPED)
    assert done.stdout.startswith("usage:" if moment == AT_THE_END else "")


def test_stop_notes_signals_and_puts_back_what_was_there() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        assert not stop()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop()
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt):
        stop.check()


def test_a_second_ctrl_c_stops_at_once() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_thread_that_cannot_handle_signals_changes_nothing() -> None:
    def enter() -> None:
        with Stop() as stop:
            found.append(stop())

    found: list[bool] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [False]


def test_a_process_that_is_told_to_stop_leaves_whatever_it_is_at() -> None:
    program = (
        "import os, time; from datamodels.launch.stop import Stop\n"
        "with Stop(leave_after=0.2):\n    os.kill(os.getpid(), 15); time.sleep(60)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (75, STOPPED)
    assert LEAVE_SECONDS < 10
