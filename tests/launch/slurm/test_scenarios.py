"""Settings submitted to a real SLURM and disturbed: the arrays come out as in an undisturbed local run."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from datamodels.launch.cli import main
from tests.conftest import DIGITS, PROJECT, TINY, Outcome, in_process
from tests.launch.slurm.cluster import Cluster, running, why_not

MAX_ARRAY = 4
WORK = [*TINY, "--recipe.epochs=150", "--recipe.width=16"]
"""32 rows in 4 groups of more than half a second."""
ASKED = ["--slurm", str(PROJECT / "configs" / "slurm.yaml"), "--slurm.rows=16", "--slurm.signal=10"]
"""Two training tasks of two groups each."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(f"no SLURM for the tests: {reason}")
    with running(tmp_path_factory.mktemp("slurm"), MAX_ARRAY) as started:
        yield started


@pytest.fixture(autouse=True)
def calm(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of an earlier scenario waits or runs, and the commands of this process talk to the cluster."""
    cluster.ask("scancel", "--user=root")
    cluster.wait(cluster.processes, [])
    for key in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(key, cluster.environment[key])


def arrays(root: Path, pct: str = "50") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((root / "digits" / "data").glob(f"*_{pct}pct.npy"))}


class Case:
    """One setting in a root of its own, on the cluster."""

    def __init__(self, cluster: Cluster, capsys: pytest.CaptureFixture[str], root: Path, *options: str) -> None:
        self.cluster, self.capsys, self.root, self.options = cluster, capsys, root, [*WORK, *options]
        self.pct = "25" if "--alpha=0.25" in options else "50"
        self.folder = root / "digits" / f"_slurm_{self.pct}pct"

    def run(self, command: str, *options: str) -> Outcome:
        return in_process(self.capsys, command, DIGITS, "--root", self.root, *self.options, *options)

    def submit(self, *options: str) -> Outcome:
        done = self.run("submit", *ASKED, *options)
        assert done.code == 0, done.err
        return done

    def flags(self) -> np.ndarray:
        return np.load(self.root / "digits" / "data" / f"_completed_{self.pct}pct.npy")

    def wait_for_first(self) -> None:
        self.cluster.wait(lambda: bool(self.flags().any()))

    def wait_for_all(self) -> None:
        self.cluster.wait(lambda: bool(self.flags().all()))

    def jobs(self) -> list[list[str]]:
        """[number, state, restarts, script] of each of the setting's jobs that wait or run."""
        lines = self.cluster.ask("squeue", "-h", "-r", "-o", "%i|%T|%r|%o").splitlines()
        return [line.split("|") for line in lines if str(self.folder) in line]

    def numbers(self, stage: str = "train", plan: int = 1) -> list[str]:
        lines = (self.folder / f"plan_{plan:04}" / "jobs.jsonl").read_text().splitlines()
        return [entry["job"] for line in lines if (entry := json.loads(line))["script"].startswith(stage)]

    def gate_times(self) -> list[float]:
        """When the gates of the first plan were submitted, in seconds since the epoch."""
        file = self.folder / "plan_0001" / "jobs.jsonl"
        entries = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [entry["time"] for entry in entries if entry["script"] == "gate.sh"]

    def processes(self) -> list[int]:
        """Running workers of the setting's tasks."""
        return [pid for pid in self.cluster.processes() if {str(self.root), "datamodels", "--rows"} <= {*_words(pid)}]

    def logs(self, stage: str = "train") -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"plan_*/logs/{stage}_*.log")))

    def finish(self, expected: dict[str, bytes]) -> None:
        """Wait for the rows, end what would follow, and compare."""
        self.wait_for_all()
        self.cancel()
        assert arrays(self.root, self.pct) == expected

    def cancel(self) -> None:
        while numbers := [job[0] for job in self.jobs()]:
            self.cluster.ask("scancel", *numbers)
            time.sleep(0.2)


def _words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return []


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def undisturbed(root: Path, *options: str) -> dict[str, bytes]:
    for command in (["init"], ["train", "--workers=1"]):
        assert main([*command, str(DIGITS), "--root", str(root), *WORK, *options]) == 0
    return arrays(root, "25" if "--alpha=0.25" in options else "50")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, cluster: Cluster) -> dict[str, bytes]:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def case(cluster: Cluster, capsys: pytest.CaptureFixture[str], tmp_path: Path, expected: dict[str, bytes]) -> Case:
    return Case(cluster, capsys, tmp_path / "root")


def stop_until_asked_to_end(case: Case) -> None:
    """Hold the case's only worker still once its first rows are done, until its time limit has it told to end."""
    case.wait_for_first()
    workers = case.processes()
    assert len(workers) == 1
    hold(workers)
    case.cluster.wait(lambda: _told_to_end(workers[0]))
    os.kill(workers[0], signal.SIGCONT)


def hold(workers: list[int]) -> None:
    """Stop processes, and wait until they stand still."""
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    while not all(_status(worker).get("State", "T").startswith("T") for worker in workers):
        time.sleep(0.01)


def _told_to_end(held: int) -> bool:
    """Whether a process that was held has a SIGTERM waiting, or goes on again, or has ended."""
    status = _status(held)
    if not status.get("State", "").startswith("T"):
        return True
    pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    return bool(pending >> (signal.SIGTERM - 1) & 1)


def _status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status; none where the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split(":\t") for line in lines if ":\t" in line)


def greet(folder: Path) -> str:
    """A PATH on which SLURM's commands print a site's greeting around their answers, to jobs too."""
    folder.mkdir()
    for program in ("sbatch", "squeue", "scontrol", "scancel"):
        call = f'{shutil.which(program)} "$@"; code=$?; echo "** bye **"; exit $code'
        (folder / program).write_text(f'#!/bin/bash\necho "-- Welcome | 1 of 2 nodes is idle --"; {call}\n')
        (folder / program).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_a_plain_array_and_a_time_limit_shorter_than_the_work(
    case: Case, cluster: Cluster, tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/bash\necho "$5" >> {tmp_path}/started; exec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", greet(tmp_path / "greeting"))
    limited = Case(cluster, case.capsys, tmp_path / "limited")
    limited.submit("--slurm.time=1", "--slurm.rows=32")
    with ThreadPoolExecutor(1) as pool:
        told_to_end = pool.submit(stop_until_asked_to_end, limited)
        case.submit("--slurm.after.targets=40", f"--slurm.python={wrapper} {sys.executable}", "--slurm.memory=1gb")
        again = case.submit()
        assert "nothing new to submit" in again.err
        found = json.loads(case.run("status", "--json").out)
        assert sum(found["queue"].values()) == 2
        assert found["gate"] == "PENDING"
        cluster.wait(case.jobs, [])
        told_to_end.result()
    assert arrays(case.root) == expected
    assert (case.root / "digits" / "report_test_50pct.html").exists()
    judged = json.loads((case.root / "digits" / "eval_test_50pct.json").read_text())
    assert (judged["targets"], judged["models"]) == (60, 8)
    assert len(list((case.root / "digits" / "datamodels").glob("test_50pct*.pt"))) == 1
    assert sorted((tmp_path / "started").read_text().split()) == ["eval", "fit", "fit", "report", "train", "train"]
    assert "all is done" in case.submit().out
    limited.finish(expected)
    assert "the others remain" in limited.logs()
    assert len(limited.numbers()) == 1
    assert not (limited.folder / "plan_0002" / "train_0.sh").exists()


def test_a_worker_and_a_batch_script_are_killed(case: Case, expected: dict[str, bytes]) -> None:
    case.submit()
    case.cluster.wait(lambda: len(case.processes()), 2)
    first, second = case.processes()
    shell = _parent(second)
    os.kill(first, signal.SIGKILL)
    os.kill(shell, signal.SIGKILL)
    case.finish(expected)


def test_a_failing_task_and_a_gate_that_gets_no_answer_are_requeued_and_succeed(
    case: Case, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    deaf = tmp_path / "deaf"
    deaf.mkdir()
    (deaf / "squeue").write_text('#!/bin/bash\necho "squeue: error: Unable to contact slurm controller" >&2; exit 1\n')
    (deaf / "squeue").chmod(0o755)
    first = f"mkdir '{tmp_path}'/${{SLURM_ARRAY_TASK_ID:-gate}} 2>/dev/null"
    fail = f'[ -n "$SLURM_ARRAY_TASK_ID" ] && {first} && {{ scontrol requeue $SLURM_JOB_ID; exit 1; }}'
    ignore = f"[ -z \"$SLURM_ARRAY_TASK_ID\" ] && {first} && PATH='{deaf}':$PATH"
    case.submit(f"--slurm.setup={json.dumps([fail, ignore])}")
    gates = case.numbers("gate")
    case.wait_for_all()
    case.cluster.wait(lambda: [job for job in case.jobs() if job[0] == gates[0]], [])
    assert "this gate is to come again" in case.logs("gate")
    assert len(case.numbers("fit", plan=2)) == 1
    case.finish(expected)


def test_preemption(case: Case, expected: dict[str, bytes]) -> None:
    case.submit()
    case.cluster.wait(lambda: len(case.processes()), 2)
    workers = case.processes()
    hold(workers)
    for node in case.cluster.NODES:
        case.cluster.ask("sbatch", "-p", "vip", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 1")
    case.cluster.wait(lambda: all(map(_told_to_end, workers)))
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGCONT)
    case.finish(expected)
    assert len(case.numbers()) == 1
    journals = list((case.root / "digits" / "data" / "_journal_50pct").iterdir())
    assert any(not path.name.endswith("-0.bin") for path in journals), "no task was requeued"


def test_a_slurmd_is_killed_and_its_task_runs_twice(case: Case, expected: dict[str, bytes]) -> None:
    case.submit("--slurm.rows=32")
    case.wait_for_first()
    (zombie,) = case.processes()
    os.kill(zombie, signal.SIGSTOP)
    node = case.cluster.ask("squeue", "-h", "-t", "running", "-o", "%N").strip()
    case.cluster.kill(node)
    try:
        case.cluster.wait(lambda: len(case.processes()), 2)
        case.cluster.wait(lambda: len(list((case.root / "digits" / "data" / "_journal_50pct").glob("*-1.bin"))), 1)
        os.kill(zombie, signal.SIGCONT)
        case.wait_for_all()
        case.cluster.wait(case.processes, [])
    finally:
        case.cluster.start(node)
    case.finish(expected)


def test_slurmctld_is_killed_two_seconds_after_the_submit(case: Case, expected: dict[str, bytes]) -> None:
    submit = [sys.executable, "-m", "datamodels", "submit", str(DIGITS), "--root", str(case.root), *WORK, *ASKED]
    submitting = subprocess.Popen(submit, cwd=PROJECT)
    case.cluster.wait(lambda: len(case.gate_times()), 1)
    time.sleep(max(0.0, case.gate_times()[0] + 2 - time.time()))
    case.cluster.kill("slurmctld")
    case.cluster.start("slurmctld")
    case.cluster.wait(lambda: case.cluster.ask("scontrol", "ping").count("UP"), 1)
    assert submitting.wait() == 0
    case.submit()
    case.finish(expected)
    case.cluster.restart_nodes()


def test_two_settings_at_once_in_one_root_one_with_more_tasks_than_an_array_may_have(
    case: Case, tmp_path: Path, expected: dict[str, bytes]
) -> None:
    other = ["--alpha=0.25", "--models=40", "--recipe.epochs=20"]
    half, quarter = case, Case(case.cluster, case.capsys, case.root, *other)
    half.submit()
    quarter.submit("--slurm.rows=8", "--slurm.at_once=4")
    local = undisturbed(tmp_path / "local", *other)
    assert (len(half.numbers()), len(quarter.numbers())) == (1, 2)
    half.finish(expected)
    quarter.finish(local)


def test_cancelling_and_going_on_with_another_time_limit_on_two_gpus(case: Case, expected: dict[str, bytes]) -> None:
    case.submit("--slurm.rows=32")
    case.wait_for_first()
    assert case.run("submit", "--cancel").out.startswith("cancelled: jobs ")
    case.cluster.wait(case.jobs, [])
    case.cluster.wait(case.processes, [])
    assert 0 < case.flags().sum() < 32
    case.options.append("--recipe.device=cuda")
    shown = 'echo "GPUs $SLURM_JOB_GPUS"; unset SLURM_JOB_GPUS'  # PyTorch finds no made-up ones
    case.submit("--slurm.time=2:00:00", "--slurm.gpus=2", f"--slurm.setup={json.dumps([shown])}", "--slurm.rows=32")
    assert "--time=2:00:00" in (case.folder / "plan_0002" / "train_0.sh").read_text()
    case.finish(expected)
    assert "GPUs 0,1" in case.logs()


def test_rows_that_fail_for_good_end_at_the_gate(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case = Case(cluster, capsys, tmp_path / "root", "--recipe.lr=1.0e+30", "--recipe.epochs=2")
    assert "nvalid partition" in case.run("submit", "--slurm.partition=nowhere").error
    assert not list(case.folder.glob("plan_*"))
    case.submit("--slurm.rows=32")
    cluster.wait(case.jobs, [])
    assert "error: 32 of 32 rows failed" in case.logs("gate")
    refused = case.run("submit")
    assert refused.code == 1
    assert "submit --retry-failed" in refused.err


def test_a_root_that_the_nodes_cannot_see_is_named(cluster: Cluster, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    submit = [sys.executable, "-m", "datamodels", "submit", str(DIGITS), "--root", str(hidden / "root"), *WORK]
    mount = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {hidden} || exit 77; exec "$@"', "sh"]
    done = subprocess.run([*mount, *submit], env=cluster.environment, cwd=PROJECT, capture_output=True, text=True)
    if "unshare" in done.stderr or done.returncode == 77:
        pytest.skip(f"no mount namespaces here: {done.stderr.strip()}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert f"can it see and write to {hidden / 'root'}?" in done.stderr


OWN = """
import numpy as np

n_train, outputs = 20, {"test_loss": (3,)}

def train(mask, seed, device):
    return {"test_loss": mask @ np.arange(60.0).reshape(20, 3) / 100 + np.random.normal(size=3)}
"""


def test_a_trainer_of_ones_own_is_trained_fitted_and_reported_on(
    cluster: Cluster, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.py").write_text(OWN)
    Path("c.yaml").write_text(
        "dataset: mine\ntrainer: t.py\nmodels: 24\neval_models: 8\nrecipe: {device: cpu, threads: 1}\n"
    )
    done = in_process(capsys, "submit", "c.yaml", "--root=root", "--output=loss", *ASKED)
    assert done.code == 0, done.err
    assert "2 tasks of train" in done.out
    cluster.wait((tmp_path / "root" / "mine" / "report_test_loss_50pct.html").exists)
    assert (tmp_path / "root" / "mine" / "eval_test_loss_50pct.json").exists()
    for command in ("init", "train"):
        assert in_process(capsys, command, "c.yaml", "--root=local").code == 0
    found, expected = (Path(root, "mine", "data", "test_loss_50pct.npy").read_bytes() for root in ("root", "local"))
    assert found == expected
