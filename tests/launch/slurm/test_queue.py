"""What SLURM's commands say, read and told; and a store's tasks that are on their way."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from datamodels.launch.slurm import describe_jobs, job_summary
from datamodels.launch.slurm.client import Busy, Full, array_limit, jobs, room, sbatch, scancel_words
from datamodels.launch.slurm.config import Slurm
from datamodels.launch.slurm.queue import Queue
from datamodels.launch.slurm.tasks import folder_of
from datamodels.launch.slurm.work import Rows
from datamodels.train.errors import UserError
from datamodels.train.store.layout import Layout
from datamodels.train.store.store import Store
from tests.conftest import DIGITS, TINY, in_process, tiny
from tests.launch.slurm.fake import FakeSlurm
from tests.launch.slurm.test_script import write_two_tasks


def program(slurm: FakeSlurm, name: str, text: str) -> None:
    """Put lines of bash in the place of a program."""
    (slurm.folder / name).write_text(f"#!/bin/bash\n{text}\n")


def answer(slurm: FakeSlurm, folder: Path, *lines: str) -> Path:
    """Have squeue say these lines, each of which ends in the name of a script of plan_0001."""
    plan = folder / "plan_0001"
    text = "".join(f"{line}|{plan / name}\n" for line, name in (line.rsplit("|", 1) for line in lines))
    text = f"** Welcome | to | /plan_0001/ | our | cluster | ** | of | n1 **\n{text}\n"
    folder.mkdir(exist_ok=True)
    (folder / "_clusters").write_text("[null]")
    (slurm.folder / "answer").write_text(text)
    program(slurm, "squeue", f"exec cat '{slurm.folder}/answer'")
    return plan


def test_seconds_of_a_row_are_a_gpus_however_many_groups_share_it_or_a_cpu_workers() -> None:
    rows = Rows(tiny(), 32, 8, [], np.arange(32), seconds=2.0)
    assert rows.rate(Slurm(gpus=2, workers=3)) == 2 * 3600 / 2
    assert rows.rate(Slurm(gpus=0, cpus=4)) == 4 // rows.setting.recipe.threads * 3600 / 2


def test_jobs_are_told_by_their_script_whatever_its_path(tmp_path: Path, slurm: FakeSlurm) -> None:
    folder = tmp_path / "a | b" / "_slurm_50pct"
    folder.mkdir(parents=True)
    plan = answer(slurm, folder, "12|3|15|RUNNING|n1|None|train_0.sh", "16|N/A|16|PENDING||Dependency|gate.sh")
    found = jobs(folder)
    assert [(job.name, job.id, job.state, job.script) for job in found] == [
        ("12_3", "15", "RUNNING", plan / "train_0.sh"),
        ("16", "16", "PENDING", plan / "gate.sh"),
    ]
    assert jobs(tmp_path / "b", clusters=[None]) == []
    (tmp_path / "link").symlink_to(folder)
    assert jobs(tmp_path / "link") == found


@pytest.mark.parametrize(
    "reason",
    [
        *("JobLaunchFailure", "launch failed requeued held", "JobHeldUser", "PartitionTimeLimit", "BadConstraints"),
        *("QOSMaxJobsPerUserLimit", "DependencyNeverSatisfied"),
    ],
)
def test_jobs_that_do_not_start_are_seen(tmp_path: Path, slurm: FakeSlurm, reason: str) -> None:
    answer(slurm, tmp_path, f"1|0|1|PENDING|n1|{reason}|train_0.sh", "1|1|2|PENDING||Priority|train_0.sh")
    assert [job.stuck for job in jobs(tmp_path)] == [True, False]


def test_limits_are_the_clusters_or_slurms_defaults(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm.configure("MaxArraySize            = 5\nMaxJobCount             = 100\nMaxJobId = 9\n")
    assert array_limit() == 5
    program(slurm, "squeue", "echo Welcome; seq 60; echo")
    assert room() == 36, "a tenth is left to others"
    slurm.configure("MaxArraySize = 0\nMaxJobCount = 50\n")
    with pytest.raises(UserError, match="MaxArraySize is 0"):
        array_limit()
    with pytest.raises(Busy, match="MaxJobCount"):
        room()
    monkeypatch.setenv("PATH", "/nowhere")
    assert array_limit() == 1001


def test_what_a_gate_submits_inherits_neither_its_job_nor_the_users_defaults(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = 'env | grep -E "^(SLURM|SBATCH|SQUEUE|SCANCEL|SCONTROL)_" > "$OUT"\necho "$@" >> "$OUT"; cat >> "$OUT"'
    program(slurm, "sbatch", f'{lines}; echo "Welcome, 1 of 2 nodes is idle"; echo 12; echo "** bye **"')
    for key in ("SLURM_JOB_ID", "SBATCH_PARTITION", "SQUEUE_FORMAT", "SCANCEL_STATE", "SCONTROL_ALL"):
        monkeypatch.setenv(key, "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/x")
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    assert sbatch(Path("/s.sh"), ["3", "4"], 30) == "12"
    told = ["SLURM_CONF=/etc/x", "--parsable --dependency=afterany:3:4 --begin=now+30 /s.sh"]
    assert (tmp_path / "out").read_text().splitlines() == told
    program(slurm, "sbatch", "echo Welcome")
    with pytest.raises(Busy, match="sbatch printed no number of a job, but 'Welcome'"):
        sbatch(Path("/s.sh"))


def test_each_cluster_that_was_submitted_to_is_asked(tmp_path: Path, slurm: FakeSlurm) -> None:
    answer(slurm, tmp_path, "12|3|15|RUNNING|n1|None|train_0.sh")
    (tmp_path / "_clusters").write_text('[null, "b"]')
    assert [job.name for job in jobs(tmp_path, clusters=["b", "c"])] == ["12_3", "12_3;b", "12_3;c"]
    program(slurm, "sbatch", 'echo "12;b"; echo "$@" > "$0.called"')
    assert sbatch(Path("/s.sh"), ["3;b", "4_1;b"], cluster="b") == "12;b"
    assert (slurm.folder / "sbatch.called").read_text() == "--clusters=b --parsable --dependency=afterany:3:4_1 /s.sh\n"
    program(slurm, "scontrol", '[ "$1" = --clusters=b ] && echo "MaxArraySize = 7" || echo "MaxArraySize = 9"')
    assert (array_limit(), array_limit(["a", "b"])) == (9, 7)
    assert scancel_words(["3", "4;b", "5;b"]) == "scancel 3; scancel -M b 4 5"


POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Socket timed out on send/recv operation", Busy),
        ("Unable to contact slurm controller", Busy),
        ("Resource temporarily unavailable", Busy),
        (f"Batch job submission failed: {POLICY}", Full),
        (f"AssocMaxSubmitJobLimit; Batch job submission failed: {POLICY}", Full),
        (f"QOSMaxWallDurationPerJobLimit; Batch job submission failed: {POLICY}", UserError),
        ("'b' can't be reached now, or it is an invalid entry for --cluster.", Busy),
        ("Invalid partition name specified", UserError),
    ],
)
def test_passing_trouble_is_told_from_refusals(
    tmp_path: Path, slurm: FakeSlurm, words: str, kind: type[Exception]
) -> None:
    slurm.trouble("squeue", [("fail", words.replace("; ", "\nsqueue: error: ") + "\nsee our wiki")])
    with pytest.raises(UserError, match=re.escape(f"squeue failed: {words}")) as raised:
        jobs(tmp_path, clusters=[None])
    assert type(raised.value) is kind
    assert ("slurm.queued" in str(raised.value)) == (kind is Full)
    assert "wiki" not in str(raised.value)


def test_a_question_that_takes_too_long_is_passing_trouble(tmp_path: Path, slurm: FakeSlurm) -> None:
    program(slurm, "squeue", "exec sleep 60")
    with pytest.raises(Busy, match=r"squeue did not answer within 0\.1 s"):
        jobs(tmp_path, patience=0.1, clusters=[None])


def test_status_tells_how_far_running_tasks_are(
    tmp_path: Path, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [DIGITS, "--root", tmp_path, *TINY]
    assert in_process(capsys, "init", *options).code == 0
    assert in_process(capsys, "train", *options, "--rows=0:8", "--workers=1").code == 0
    store = Store.open(Layout(tmp_path, "digits", "50pct"), tiny())
    write_two_tasks(tmp_path)
    running, waiting = "1|0|2|RUNNING|n1|None|train_0.sh", "1|1|1|PENDING||launch failed requeued held|train_0.sh"
    others = [f"9|{number}|9{number}|PENDING||PartitionTimeLimit|train_0.sh" for number in range(3)]
    others += ["8|0|8|FAILED|n1|JobLaunchFailure|train_0.sh", "3|N/A|3|PENDING||Dependency|gate.sh"]
    answer(slurm, folder_of(store.layout), running, waiting, *others)
    found = job_summary(store)
    assert describe_jobs(found) == [
        "in SLURM's queue: 1 running, 4 pending; gate pending",
        "job 1_0 on n1: train 0:16, 8 of 16 rows done",
        "not starting: job 1_1 (launch failed requeued held)",
        "not starting: job 9_0 and 2 more (PartitionTimeLimit)",
    ]
    assert json.loads(json.dumps(found)) == found
    monkeypatch.setenv("PATH", "/nowhere")
    found = job_summary(store)
    assert found["queue"] is None
    assert describe_jobs(found) == [f"SLURM does not answer: {found['queue_error']}"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a plan of two tasks for the store `abc`."""
    write_two_tasks(tmp_path)
    return folder_of(Layout(tmp_path, "digits", "50pct"))


def queue_of(folder: Path, slurm: FakeSlurm, *lines: str, split: str = "test", store: str = "abc") -> Queue:
    answer(slurm, folder, *lines)
    return Queue(jobs(folder), store, split)


def test_jobs_of_a_store_that_lay_here_before_are_refused(folder: Path, slurm: FakeSlurm) -> None:
    with pytest.raises(UserError, match="scancel 9"):
        queue_of(folder, slurm, "9|0|9|PENDING||Priority|train_0.sh", store="another")


def test_a_gate_does_not_count_itself_as_waiting(
    folder: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = queue_of(folder, slurm, "4|N/A|4|PENDING||None|gate.sh", "1|0|1|PENDING||None|train_0.sh")
    assert queue.gate_waits()
    assert (queue.arrays, queue.tasks("train"), queue.tasks("fit")) == (["1"], [(0, 16)], [])
    monkeypatch.setenv("SLURM_JOB_ID", "4")
    assert not queue.gate_waits()


def test_what_is_held_is_not_on_its_way(folder: Path, slurm: FakeSlurm) -> None:
    gate, other = "4|N/A|4|PENDING||Dependency|gate.sh", "1|1|2|RUNNING|n1|None|train_0.sh"
    queue = queue_of(folder, slurm, "1|0|1|PENDING||JobHeldUser|train_0.sh", other, gate)
    assert (queue.tasks("train"), queue.before_gate) == ([(16, 32)], ["1_1"])
    assert not queue.gate_waits(), "it waits for the whole array"
    assert queue.describe_held().startswith("held (JobHeldUser): jobs 1_0; ")
    queue = queue_of(folder, slurm, other, "4|N/A|4|PENDING||JobHeldAdmin|gate.sh")
    assert (queue.before_gate, queue.gate_waits()) == (["1"], False)
    queue = queue_of(folder, slurm, other, gate)
    assert (queue.held, queue.before_gate, queue.gate_waits()) == ([], ["1"], True)


def test_fits_and_gates_of_the_other_split_are_not_ours(folder: Path, slurm: FakeSlurm) -> None:
    lines = ["1|0|1|RUNNING||None|train_0.sh", "4|N/A|4|PENDING||Dependency|gate.sh"]
    queue = queue_of(folder, slurm, *lines, split="train")
    assert (queue.tasks("train"), queue.before_gate) == ([(0, 16)], ["1"])
    assert (queue.gate_waits(), queue.newest) == (False, None)


def test_a_plan_that_cannot_be_read_is_named_with_its_job(tmp_path: Path, slurm: FakeSlurm) -> None:
    with pytest.raises(UserError, match=r"job 6 is in the queue, but .*plan\.json.*--cancel"):
        queue_of(tmp_path, slurm, "6|0|6|RUNNING|n1|None|train_0.sh")
