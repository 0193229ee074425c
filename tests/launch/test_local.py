"""Several workers on one machine: which device each gets, and what becomes of them."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datamodels.launch import local
from datamodels.launch.local import _places, train_here
from datamodels.launch.progress import Progress
from datamodels.launch.stop import Stop
from datamodels.launch.worker import Task
from datamodels.train.errors import Interrupted, UserError, WorkError
from datamodels.train.store.layout import Layout
from datamodels.train.store.store import Store, open_own
from tests.conftest import DIGITS, TINY, in_process, run_command, tiny


@pytest.fixture
def store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Store:
    """32 rows in 4 groups, none of them done."""
    assert in_process(capsys, "init", DIGITS, "--root", tmp_path, *TINY).code == 0
    return open_own(Layout(tmp_path, "digits", "50"), tiny())


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, store: Store) -> Store:
    """A store whose recipe wants GPUs, on a machine with three."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    store.setting = dataclasses.replace(store.setting, recipe=dataclasses.replace(store.setting.recipe, device="cuda"))
    return store


@pytest.mark.parametrize(
    ("devices", "missing", "expected"),
    [(None, 32, [0, 1, 2]), (["1"], 32, [1]), (["2", "0"], 32, [2, 0]), (None, 9, [0, 1])],
)
def test_each_gpu_gets_a_process_while_there_are_groups(
    gpus: Store, devices: list[str] | None, missing: int, expected: list[int]
) -> None:
    assert _places(gpus, devices, None, missing) == [f"cuda:{number}" for number in expected]


@pytest.mark.parametrize(("device", "streams"), [("cuda", 3), ("cpu", 1)])
def test_workers_of_a_gpu_are_streams_of_one_process(
    gpus: Store, monkeypatch: pytest.MonkeyPatch, device: str, streams: int
) -> None:
    gpus.setting = dataclasses.replace(gpus.setting, recipe=dataclasses.replace(gpus.setting.recipe, device=device))
    tasks: list[Any] = []
    monkeypatch.setattr(local, "work", lambda task, stop, progress: tasks.append(task))
    monkeypatch.setattr(local, "_supervise", lambda given, *others: tasks.extend(given))
    train_here(gpus, "", range(32), ["1"] if device == "cuda" else None, 3, Stop())
    assert {task.streams for task in tasks} == {streams}
    assert len(tasks) == (1 if device == "cuda" else 3)


@pytest.mark.parametrize("device", ["3", "-1", "cuda:0", "", "١"])
def test_a_gpu_that_is_not_there_is_refused(gpus: Store, device: str) -> None:
    with pytest.raises(UserError, match=r"--devices names .* below 3"):
        _places(gpus, ["0", device], None, 32)


def test_without_gpus_cores_are_shared_out(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    assert _places(store, None, None, 32) == ["cpu"] * 3
    assert _places(store, None, None, 9) == ["cpu"] * 2
    assert _places(store, None, 1, 32) == ["cpu"]
    with pytest.raises(UserError, match="no such GPU here"):
        _places(store, ["0"], None, 32)


def supervise(store: Store, monkeypatch: pytest.MonkeyPatch, *programs: str, stop: Stop | None = None) -> None:
    """Supervise workers that run these programs instead."""
    started = iter(programs)

    def start(command: list[str], **options: object) -> subprocess.Popen[str]:
        return original([sys.executable, "-c", "import os, time\n" + next(started)], **options)

    original = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.05)
    tasks = [Task(str(store.layout.root), {}, (0, 32), f"cuda:{number}") for number in range(len(programs))]
    local._supervise(tasks, store, range(32), stop or Stop(), Progress("rows", 32))


KILLED, INTERRUPTED = "os.kill(os.getpid(), 9)", "os._exit(75)"


@pytest.mark.parametrize("second", [KILLED, INTERRUPTED])
def test_workers_that_are_killed_leave_rows_for_another_time(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], second: str
) -> None:
    with pytest.raises(Interrupted) as raised:
        supervise(store, monkeypatch, KILLED, second)
    assert raised.value.args == (75,)
    assert "worker 0 on cuda:0 was ended by SIGKILL" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "kind"), [(1, WorkError), (2, UserError)])
def test_what_a_worker_tells_is_the_error(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match="no memory left"):
        supervise(store, monkeypatch, KILLED, f"print('no memory left', flush=True); os._exit({code})")


def test_a_worker_that_does_not_leave_when_told_is_killed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "KILL_SECONDS", 0.5)
    deaf = f"import signal; signal.signal(15, signal.SIG_IGN); os.kill({os.getpid()}, 15); time.sleep(60)"
    with pytest.raises(Interrupted) as raised:
        supervise(store, monkeypatch, deaf)
    assert raised.value.args == (75,)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_modules_of_the_folder_that_the_user_is_in_are_not_taken_for_ours(store: Store, tmp_path: Path) -> None:
    for name in ("train", "launch", "lasso", "yaml", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    program = "import sys; sys.path.remove(''); from datamodels.launch.cli import main; sys.exit(main(sys.argv[1:]))"
    options = [DIGITS, "--root", store.layout.root, *TINY, "--workers=2"]
    done = subprocess.run([sys.executable, "-c", program, "train", *map(str, options)], cwd=tmp_path)
    assert done.returncode == 0
    assert run_command("status", *options[:-1]).out.count("32 of 32 rows done") == 1
