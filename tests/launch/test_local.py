"""Several workers on one machine: which device each gets, and what becomes of them."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from datamodels.launch.local import Worker, devices_of, supervise
from datamodels.launch.progress import Progress
from datamodels.launch.stop import Stop
from datamodels.train.errors import Interrupted, UserError, WorkError
from datamodels.train.store.layout import Layout
from datamodels.train.store.store import Store
from tests.conftest import DIGITS, PROJECT, TINY, in_process, tiny

CPU = tiny().recipe
GPU = replace(CPU, device="cuda")


@pytest.fixture
def store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Store:
    """32 rows in 4 groups, none of them done."""
    assert in_process(capsys, "init", DIGITS, "--root", tmp_path, *TINY).code == 0
    return Store.open(Layout(tmp_path, "digits", "50pct"), tiny())


@pytest.mark.parametrize(
    ("devices", "groups", "expected"),
    [(None, 4, [0, 1, 2]), (["1"], 4, [1]), (["2", "0"], 4, [2, 0]), (None, 2, [0, 1])],
)
def test_each_gpu_gets_one_process_while_there_are_groups(
    devices: list[str] | None, groups: int, expected: list[int]
) -> None:
    places = [f"cuda:{number}" for number in expected]
    assert devices_of(GPU, devices, None, groups, gpus=3) == places
    assert devices_of(GPU, devices, 3, groups, gpus=3) == places, "workers share a GPU within a process"


@pytest.mark.parametrize("device", ["3", "-1", "cuda:0", "", "١"])
def test_a_gpu_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UserError, match=r"--devices names .* below 3"):
        devices_of(GPU, ["0", device], None, 4, gpus=3)
    with pytest.raises(UserError, match="no such GPU here"):
        devices_of(CPU, ["0"], None, 4, gpus=0)


def test_a_slurm_job_that_was_given_gpus_does_not_train_without(
    store: Store, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("SLURM_JOB_GPUS", "2,3")
    command = ["train", DIGITS, "--root", store.layout.root, *TINY, "--workers=1"]
    done = in_process(capsys, *command, "--recipe.device=cuda")
    assert done.code == 1
    assert "SLURM gave this job GPU 2,3 of " in done.err
    assert in_process(capsys, *command).code == 0


def test_without_gpus_cores_are_shared_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2})
    assert devices_of(CPU, None, None, 4, gpus=0) == ["cpu"] * 3
    assert devices_of(CPU, None, None, 2, gpus=0) == ["cpu"] * 2
    assert devices_of(CPU, None, 1, 4, gpus=0) == ["cpu"]
    assert devices_of(replace(CPU, threads=3), None, None, 4, gpus=0) == ["cpu"]
    assert capsys.readouterr().err == ""
    assert devices_of(GPU, None, 2, 4, gpus=0) == ["cpu"] * 2
    assert capsys.readouterr().err == "no GPU here: training on the CPU\n"


def run_programs(store: Store, *programs: str, kill_after: float = 8.0) -> None:
    """Supervise workers that run these programs."""
    workers = [
        Worker(f"worker {number}", [sys.executable, "-ISc", f"import os, time\n{program}"])
        for number, program in enumerate(programs)
    ]
    supervise(workers, store, range(32), Stop(), Progress("rows", 32), kill_after)


KILLED, INTERRUPTED = "os.kill(os.getpid(), 9)", "os._exit(75)"


@pytest.mark.parametrize("second", [KILLED, INTERRUPTED])
def test_workers_that_are_killed_leave_rows_for_another_time(
    store: Store, capsys: pytest.CaptureFixture[str], second: str
) -> None:
    with pytest.raises(Interrupted) as raised:
        run_programs(store, KILLED, second)
    assert raised.value.args == (75,)
    assert "worker 0 was ended by SIGKILL" in capsys.readouterr().err


@pytest.mark.parametrize(("code", "kind"), [(1, WorkError), (2, UserError)])
def test_what_a_worker_tells_is_the_error(store: Store, code: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="no memory left"):
        run_programs(store, KILLED, f"print('no memory left', flush=True); os._exit({code})")


def test_a_worker_that_does_not_leave_when_told_is_killed(store: Store) -> None:
    deaf = f"import signal; signal.signal(15, signal.SIG_IGN); os.kill({os.getpid()}, 15); time.sleep(60)"
    with pytest.raises(Interrupted) as raised:
        run_programs(store, deaf, kill_after=0.5)
    assert raised.value.args == (75,)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_modules_of_the_folder_that_the_user_is_in_are_not_taken_for_ours(store: Store, tmp_path: Path) -> None:
    options = [DIGITS, "--root", store.layout.root, *TINY]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}

    def returned(*command: object) -> int:
        return subprocess.run([sys.executable, *map(str, command)], cwd=tmp_path, env=environment).returncode

    for name in ("train", "launch", "lasso", "config"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    assert returned("-m", "datamodels", "status", *options) == 0
    for name in ("yaml", "numpy"):  # nor those of packages that workers import
        (tmp_path / f"{name}.py").write_text("raise SystemExit('not ours')\n")
    assert returned("-P", "-m", "datamodels", "train", *options, "--workers=2") == 0
    store.refresh()
    assert store.completed().all()
