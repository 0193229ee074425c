"""What squeue says, read and told; and a store's tasks that are on their way."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from datamodels.launch.slurm import queue as slurm_queue
from datamodels.launch.slurm import status as slurm_status
from datamodels.launch.slurm.config import Slurm
from datamodels.launch.slurm.plan import folder_of
from datamodels.launch.slurm.queue import Busy, Limits, jobs, limits
from datamodels.launch.slurm.work import Queue, Rows
from datamodels.train.errors import UserError
from datamodels.train.store.layout import Layout
from datamodels.train.store.store import open_own
from tests.conftest import DIGITS, TINY, run_command, tiny
from tests.launch.slurm.test_script import rendered


def answer(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: str) -> Path:
    """A squeue that says these lines, each ending in the name of a script of plan_0001."""
    plan = folder / "plan_0001"
    text = "".join(f"{line}|{plan / name}\n" for line, name in (line.rsplit("|", 1) for line in lines))
    monkeypatch.setattr(slurm_queue, "_ask", lambda *command, **options: text)
    return plan


def test_seconds_of_a_row_are_a_gpus_however_many_groups_share_it_or_a_cpu_workers() -> None:
    rows = Rows(tiny(), 32, 8, [], np.arange(32), seconds=2.0)
    assert rows.rate(Slurm(gpus=2, workers=3)) == 2 * 3600 / 2
    assert rows.rate(Slurm(gpus=0, cpus=4)) == 4 // rows.setting.recipe.threads * 3600 / 2


def test_jobs_are_told_by_their_script_whatever_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a | b" / "_slurm_50pct"
    folder.mkdir(parents=True)
    plan = answer(monkeypatch, folder, "12|3|15|RUNNING|n1|None|train_0.sh", "16|N/A|16|PENDING||Dependency|gate.sh")
    found = jobs(folder)
    assert [(job.name, job.id, job.state, job.script) for job in found] == [
        ("12_3", "15", "RUNNING", plan / "train_0.sh"),
        ("16", "16", "PENDING", plan / "gate.sh"),
    ]
    assert jobs(tmp_path / "b") == []
    link = tmp_path / "link"
    link.symlink_to(folder)
    assert jobs(link) == found


@pytest.mark.parametrize(
    "reason",
    [
        *("JobLaunchFailure", "launch failed requeued held", "JobHeldUser", "PartitionTimeLimit", "BadConstraints"),
        *("QOSMaxJobsPerUserLimit", "DependencyNeverSatisfied"),
    ],
)
def test_jobs_that_do_not_start_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    answer(monkeypatch, tmp_path, f"1|0|1|PENDING|n1|{reason}|train_0.sh", "1|1|2|PENDING||Priority|train_0.sh")
    assert [job.stuck for job in jobs(tmp_path)] == [True, False]


def test_limits_are_the_clusters_or_slurms_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    config = "MaxArraySize            = 5\nMaxJobCount             = 70\nMaxJobId = 9\n"
    monkeypatch.setattr(slurm_queue, "_ask", lambda *command, **options: config)
    assert limits() == Limits(5, 70)
    monkeypatch.setattr(slurm_queue, "_ask", lambda *command, **options: config.replace("5", "0"))
    with pytest.raises(UserError, match="MaxArraySize is 0"):
        limits()
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "/nowhere")
    assert limits() == Limits(1001, 10000)


def test_a_cluster_that_is_nearly_full_leaves_a_tenth_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_queue, "_ask", lambda *command, **options: "1\n" * 60)
    assert slurm_queue.room(Limits(5, 100)) == 36
    assert slurm_queue.room(Limits(5, 50)) == 0


def test_what_a_gate_submits_inherits_neither_its_job_nor_the_users_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "sbatch"
    fake.write_text(
        '#!/bin/bash\nenv | grep -E "^(SLURM|SBATCH|SQUEUE|SCANCEL|SCONTROL)_" > "$OUT"\n'
        'echo "$@" >> "$OUT"; cat >> "$OUT"; echo "12;cluster"\n'
    )
    fake.chmod(0o755)
    for key in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SQUEUE_FORMAT", "SCANCEL_STATE", "SCONTROL_ALL"):
        monkeypatch.setenv(key, "7")
    for key, value in {"SLURM_CONF": "/etc/x", "OUT": str(tmp_path / "out")}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm_queue.sbatch(Path("/s.sh"), ["3", "4"], 30) == "12"
    told = ["SLURM_CONF=/etc/x", "--parsable --dependency=afterany:3:4 --begin=now+30 /s.sh"]
    assert (tmp_path / "out").read_text().splitlines() == told


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 32 rows of which the first 8 are done, and a plan for another store."""
    root = tmp_path_factory.mktemp("queue") / "root"
    options = ["--root", root, *TINY]
    assert run_command("init", DIGITS, *options).code == 0
    assert run_command("train", DIGITS, *options, "--rows=0:8", "--workers=1").code == 0
    manifest = root / "digits" / "data" / "store_50pct.json"
    content = manifest.read_bytes()
    rendered(root)
    manifest.write_bytes(content)
    return root


def test_status_tells_how_far_running_tasks_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(root, "digits", "50")
    running, waiting = "1|0|2|RUNNING|n1|None|train_0.sh", "1|1|1|PENDING||launch failed requeued held|train_0.sh"
    others = [f"9|{number}|9{number}|PENDING||PartitionTimeLimit|train_0.sh" for number in range(3)]
    others += ["8|0|8|FAILED|n1|JobLaunchFailure|train_0.sh", "3|N/A|3|PENDING||Dependency|gate.sh"]
    answer(monkeypatch, folder_of(layout), running, waiting, *others)
    found = slurm_status.queue(open_own(layout, tiny()))
    assert slurm_status.describe(found) == [
        "in SLURM's queue: 1 running, 4 pending; gate pending",
        "job 1_0 on n1: train 0:16, 8 of 16 rows done",
        "not starting: job 1_1 (launch failed requeued held)",
        "not starting: job 9_0 and 2 more (PartitionTimeLimit)",
    ]
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        *(("Socket timed out on send/recv operation", Busy), ("Unable to contact slurm controller", Busy)),
        *(("Resource temporarily unavailable", Busy), ("Invalid partition name specified", UserError)),
        ("Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", Busy),
    ],
)
def test_passing_trouble_is_told_from_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, kind: type[Exception]
) -> None:
    fake = tmp_path / "squeue"
    fake.write_text(f'#!/bin/bash\necho "squeue: error: {words}" >&2; exit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UserError, match=re.escape(words)) as raised:
        jobs(tmp_path)
    assert type(raised.value) is kind


def test_a_question_that_takes_too_long_is_passing_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "squeue"
    fake.write_text("#!/bin/bash\nexec sleep 60\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Busy, match=r"squeue did not answer within 0\.1 s"):
        jobs(tmp_path, patience=0.1)


def test_status_goes_on_without_slurm(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    found = slurm_status.queue(open_own(Layout(root, "digits", "50"), tiny()))
    assert found["queue"] is None
    assert slurm_status.describe(found) == [f"SLURM does not answer: {found['queue_error']}"]


def test_jobs_of_a_store_that_lay_here_before_are_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(root, "digits", "50")
    answer(monkeypatch, folder_of(layout), "9|0|9|PENDING||Priority|train_0.sh")
    with pytest.raises(UserError, match="scancel 9"):
        Queue(jobs(folder_of(layout)), open_own(layout, tiny()).manifest.id, "test")


def test_a_gate_does_not_count_itself_as_waiting(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(root, "digits", "50")
    answer(monkeypatch, folder_of(layout), "4|N/A|4|PENDING||None|gate.sh", "1|0|1|PENDING||None|train_0.sh")
    queue = Queue(jobs(folder_of(layout)), "abc", "test")
    assert queue.gate_waits()
    assert (queue.arrays, queue.tasks("train"), queue.tasks("fit")) == (["1"], [(0, 16)], [])
    monkeypatch.setenv("SLURM_JOB_ID", "4")
    assert not queue.gate_waits()


def queue_of(root: Path, monkeypatch: pytest.MonkeyPatch, *lines: str, split: str = "test") -> Queue:
    layout = Layout(root, "digits", "50")
    answer(monkeypatch, folder_of(layout), *lines)
    return Queue(jobs(folder_of(layout)), "abc", split)


def test_what_is_held_is_not_on_its_way(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, other = "4|N/A|4|PENDING||Dependency|gate.sh", "1|1|2|RUNNING|n1|None|train_0.sh"
    queue = queue_of(root, monkeypatch, "1|0|1|PENDING||JobHeldUser|train_0.sh", other, gate)
    assert (queue.tasks("train"), queue.ahead) == ([(16, 32)], ["1_1"])
    assert not queue.gate_waits(), "it waits for the whole array"
    assert queue.describe_held().startswith("held (JobHeldUser): jobs 1_0; ")
    queue = queue_of(root, monkeypatch, other, "4|N/A|4|PENDING||JobHeldAdmin|gate.sh")
    assert (queue.ahead, queue.gate_waits()) == (["1"], False)
    queue = queue_of(root, monkeypatch, other, gate)
    assert (queue.held, queue.ahead, queue.gate_waits()) == ([], ["1"], True)


def test_fits_and_gates_of_the_other_split_are_not_ours(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["1|0|1|RUNNING||None|train_0.sh", "4|N/A|4|PENDING||Dependency|gate.sh"]
    queue = queue_of(root, monkeypatch, *lines, split="train")
    assert (queue.tasks("train"), queue.ahead) == ([(0, 16)], ["1"])
    assert (queue.gate_waits(), queue.newest) == (False, None)


def test_a_plan_that_cannot_be_read_is_named_with_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, tmp_path, "6|0|6|RUNNING|n1|None|train_0.sh")
    with pytest.raises(UserError, match=r"job 6 is in the queue, but .*plan\.json.*--cancel"):
        Queue(jobs(tmp_path), "abc", "test")
