"""Submitting and gates when SLURM is absent, refuses, is full, slow, or forgetful; splits, held jobs, cancelling."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodels.launch.slurm import submission
from datamodels.launch.slurm.tasks import read_plan
from datamodels.train.store import LockFile
from tests.conftest import DIGITS, TINY, Outcome, in_process
from tests.launch.slurm.fake import REFUSED, TIMED_OUT, FakeSlurm

Submit = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "digits" / "_slurm_50pct"


@pytest.fixture
def submit(tmp_path: Path, capsys: pytest.CaptureFixture[str], slurm: FakeSlurm) -> Submit:
    """`submit` with these options: 32 rows in 4 tasks of one array."""

    def call(*options: object) -> Outcome:
        return in_process(capsys, "submit", DIGITS, "--root", tmp_path, *TINY, "--slurm.rows=8", *options)

    return call


@pytest.fixture
def gate(tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Path, slurm: FakeSlurm) -> Submit:
    """What the gate of a plan runs, by default with all jobs over."""

    def call(number: int = 1, over: bool = True) -> Outcome:
        if over:
            slurm.end()
        plan = folder / f"plan_{number:04}"
        given = ["--root", tmp_path, "--slurm", plan / "slurm.yaml", "--gate", plan]
        return in_process(capsys, "submit", plan / "setting.yaml", *given)

    return call


def train(capsys: pytest.CaptureFixture[str], root: Path, rows: str = "0:32") -> None:
    assert in_process(capsys, "train", DIGITS, "--root", root, *TINY, "--workers=1", "--rows", rows).code == 0


def test_without_sbatch_nothing_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    error = in_process(capsys, "submit", DIGITS, "--root", tmp_path / "root").error
    assert "sbatch is not on the PATH" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_a_root_that_no_script_can_name_is_refused_before_anything_is_created(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], slurm: FakeSlurm, options: list[str]
) -> None:
    root = tmp_path / "a\\b"
    assert "--root is " in in_process(capsys, "submit", DIGITS, "--root", root, *TINY, *options).error
    assert not root.exists()


def test_arrays_that_fit_are_submitted_and_a_cluster_that_loses_them_is_asked_a_bounded_number_of_times(
    submit: Submit, gate: Submit, slurm: FakeSlurm, folder: Path
) -> None:
    slurm.configure("MaxArraySize = 2\nMaxJobCount = 4\n")
    first = submit("--slurm.rounds=1")
    assert "3 tasks of train in 2 jobs: 1, 2" in first.out, first.err
    assert "plan_0001: gate, job 3" in first.out
    slurm.configure("MaxArraySize = 2\nMaxJobCount = 8\n")  # the jobs that ended count for a while
    (slurm.folder / "jobs").write_text("[]")
    second = gate()
    assert "plan_0002: 32 of 32 rows missing; 4 tasks of train in 2 jobs: 1, 2" in second.out, second.err
    (slurm.folder / "jobs").write_text("[]")
    last = gate(2)
    assert last.code == 1
    assert "error: 32 of 32 rows missing although they were submitted 2 times (slurm.rounds)" in last.err
    assert (folder / "plan_0002" / "setting.yaml").read_bytes() == (folder / "plan_0001" / "setting.yaml").read_bytes()
    assert "4 tasks of train" in submit("--slurm.rounds=1").out


def test_no_more_jobs_are_queued_than_may_be_and_gates_submit_the_rest(
    submit: Submit, gate: Submit, slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    def tasks(plan: int) -> tuple[tuple[int, int], ...]:
        return read_plan(folder / f"plan_{plan:04}").tasks

    assert "--array=0-1%100\n" in submit("--slurm.queued=3", "--dry-run").out
    assert submit("--slurm.queued=3").code == 0
    assert tasks(1) == ((0, 8), (8, 16))
    again = submit("--slurm.queued=3")
    assert "nothing new to submit: 32 of 32 rows missing, and 3 jobs queued, as many as slurm.queued" in again.err
    assert len(slurm.jobs) == 2
    train(capsys, tmp_path, "0:16")
    slurm.end("1")
    slurm.change("2", state="RUNNING")
    assert gate(over=False).code == 0
    assert tasks(2) == ((16, 24),), "the gate at work, a task and the next gate"
    assert [job["elements"] for job in slurm.jobs[2:]] == [[0], ["N/A"]]


def test_a_limit_on_submitted_jobs_names_the_key_and_leaves_nothing(
    submit: Submit, slurm: FakeSlurm, folder: Path
) -> None:
    limit = ("fail", "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)")
    slurm.trouble("sbatch", [limit])
    assert submit().error.endswith(": set slurm.queued to how many jobs may be queued at a time")
    assert not list(folder.glob("plan_*"))
    slurm.trouble("sbatch", [], [limit])
    assert "set slurm.queued to" in submit().error
    assert slurm.waiting() == [], "the array went with its gate"


@pytest.mark.parametrize("way", ["key", "extra", "environment"])
def test_all_of_a_setting_stays_on_the_cluster_that_was_named(
    submit: Submit, gate: Submit, slurm: FakeSlurm, folder: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "environment":
        monkeypatch.setenv("SLURM_CLUSTERS", "b")
    options = {"key": ["--slurm.clusters=a,b"], "extra": ['--slurm.extra=["-M b"]'], "environment": []}[way]
    slurm.configure("MaxArraySize = 2\nMaxJobCount = 1000\n")
    assert submit("--slurm.at_once=2", *options).code == 0
    monkeypatch.delenv("SLURM_CLUSTERS", raising=False)
    assert [(job["cluster"], job["options"]) for job in slurm.jobs] == [
        ("b", ["--parsable"]),
        ("b", ["--clusters=b", "--parsable"]),
        ("b", ["--clusters=b", "--parsable", "--dependency=afterany:1:2"]),
    ]
    assert '"job": "3;b"' in (folder / "plan_0001" / "jobs.jsonl").read_text()
    assert "all in jobs 1;b, 2;b" in submit().err, "nothing is queued twice"
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "b")
    slurm.end("1", "2")
    assert gate(over=False).code == 0
    assert {job["cluster"] for job in slurm.jobs} == {"b"}
    assert submit("--cancel").out == "cancelled: jobs 3;b, 6;b, 4;b, 5;b\n"


def test_rows_that_cannot_be_fitted_are_trained_alone(
    submit: Submit, gate: Submit, slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--models=1", "--eval_models=31"]
    assert "the rows will be trained, but not fitted or evaluated" in submit(*sizes).err
    assert in_process(capsys, "train", DIGITS, "--root", tmp_path, *TINY, *sizes, "--workers=1").code == 0
    assert gate().out == "nothing to submit: all is done\n"


def test_rounds_count_only_without_progress(
    submit: Submit, gate: Submit, tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    assert submit("--slurm.rounds=1").code == 0
    assert gate(1).code == 0
    assert read_plan(folder / "plan_0002").round == 1
    train(capsys, tmp_path, "0:8")
    assert gate(2).code == 0
    assert read_plan(folder / "plan_0003").round == 0


def test_a_plan_of_an_older_store_is_refused(
    submit: Submit, gate: Submit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit().code == 0
    shutil.rmtree(tmp_path / "digits" / "data")
    assert in_process(capsys, "init", DIGITS, "--root", tmp_path, *TINY).code == 0
    assert "was made for the store" in gate().error


def test_a_gate_that_finds_no_room_is_followed_by_another_one_later(
    submit: Submit, gate: Submit, slurm: FakeSlurm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert submit().code == 0
    slurm.configure("MaxJobCount = 2\n")
    done = gate()
    assert done.code == 0, done.err
    assert "MaxJobCount" in done.err
    assert [job["options"] for job in slurm.jobs[2:]] == [["--parsable", "--begin=now+300"]]
    (record := folder / "plan_0001" / "jobs.jsonl").write_text(record.read_text().splitlines()[-1] + "\n")
    monkeypatch.setattr(submission, "NO_ROOM_GATES", 2)
    assert (gate().code, len(slurm.jobs)) == (0, 4)
    assert (gate().code, len(slurm.jobs)) == (75, 4), "the last one comes again itself, a bounded number of times"
    slurm.configure("MaxJobCount = 1000\n")
    assert "plan_0002: 32 of 32 rows missing; 4 tasks" in gate().out


@pytest.mark.parametrize(("command", "times"), [("squeue", 1), ("sbatch", 2)])
def test_a_gate_that_slurm_does_not_answer_asks_to_come_again(
    submit: Submit, gate: Submit, slurm: FakeSlurm, command: str, times: int
) -> None:
    assert submit().code == 0
    slurm.trouble(command, *[[TIMED_OUT]] * times)
    done = gate()
    assert (done.code, done.out) == (75, "")
    assert "this gate is to come again" in done.err
    assert "error:" not in done.err
    assert gate().code == 0
    assert len(slurm.waiting("train")) == len(slurm.waiting("gate")) == 1


def test_a_gate_that_finds_the_lock_held_asks_to_come_again(
    submit: Submit, gate: Submit, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert submit().code == 0
    monkeypatch.setattr(submission, "LOCK_SECONDS", 0.0)
    lock = LockFile(folder / "_lock")
    assert lock.acquire(0)
    assert gate().code == 75
    assert "try again later" in submit().error
    lock.close()


def test_arrays_whose_gate_is_refused_are_cancelled(submit: Submit, slurm: FakeSlurm) -> None:
    slurm.trouble("sbatch", [], [REFUSED])
    error = submit().error
    assert "Invalid partition" in error
    assert error.endswith("the new jobs 1 were cancelled")
    assert slurm.waiting() == []


def test_a_gate_whose_follower_is_refused_for_a_while_keeps_its_arrays(
    submit: Submit, gate: Submit, slurm: FakeSlurm
) -> None:
    assert submit().code == 0
    slurm.trouble("sbatch", [], [TIMED_OUT])
    assert gate().code == 75
    assert slurm.waiting() == ["3"]
    done = gate(over=False)
    assert "all in jobs 3" in done.err
    assert slurm.waiting() == ["3", "4"]


def test_a_job_whose_number_got_lost_is_found(submit: Submit, slurm: FakeSlurm, folder: Path) -> None:
    slurm.trouble("sbatch", [("take", str(folder / "plan_0001" / "train_0.sh")), TIMED_OUT])
    done = submit()
    assert done.code == 0, done.err
    assert "4 tasks of train in 1 job: 1" in done.out
    assert slurm.jobs[1]["options"] == ["--parsable", "--dependency=afterany:1"]
    assert '"job": "1"' in (folder / "plan_0001" / "jobs.jsonl").read_text()


def test_a_plan_stays_while_its_job_may_turn_up(submit: Submit, slurm: FakeSlurm, folder: Path) -> None:
    slurm.trouble("sbatch", [TIMED_OUT])
    assert "timed out" in submit().error
    plan = folder / "plan_0001"
    slurm.take(str(plan / "train_0.sh"))
    done = submit()
    assert "all in jobs 1" in done.err
    assert "plan_0001: gate, job 2" in done.out
    assert len(read_plan(plan).tasks) == 4


def test_a_plan_that_is_refused_is_removed_but_its_number_is_not_used_again(
    submit: Submit, slurm: FakeSlurm, folder: Path
) -> None:
    slurm.trouble("sbatch", [REFUSED])
    assert submit().error == "error: sbatch failed: Invalid partition name specified"
    assert not list(folder.glob("plan_*"))
    slurm.trouble("sbatch", [("take", str(folder / "plan_0002" / "train_0.sh")), REFUSED])
    assert "Invalid partition" in submit().error
    assert [path.name for path in folder.glob("plan_*")] == ["plan_0002"], "a job of it is there"


def test_the_other_split_gets_a_gate_of_its_own(
    submit: Submit, gate: Submit, slurm: FakeSlurm, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit().code == 0
    assert submit("--split=train").code == 0
    assert slurm.jobs[2]["script"] == str(folder / "plan_0002" / "gate.sh")
    assert slurm.jobs[2]["options"] == ["--parsable", "--dependency=afterany:1"]
    assert submit("--split=train").code == 0
    assert len(slurm.jobs) == 3
    train(capsys, tmp_path)
    slurm.end()
    assert "1 task of fit" in gate(1).out
    done = gate(2, over=False)
    assert "1 task of fit" in done.out, done.err
    assert "--split train" in Path(slurm.jobs[-2]["script"]).read_text()


@pytest.mark.parametrize("script", ["train", "gate"])
def test_what_is_held_is_submitted_anew(submit: Submit, slurm: FakeSlurm, script: str) -> None:
    assert submit().code == 0
    for job in slurm.jobs:
        held = Path(job["script"]).name.startswith(script)
        slurm.change(job["number"], reason="JobHeldUser" if held else "Dependency")
    done = submit()
    assert done.err.startswith("held (JobHeldUser): jobs ")
    assert len(slurm.jobs) == (4 if script == "train" else 3)
    assert slurm.jobs[-1]["script"].endswith("gate.sh")


@pytest.mark.parametrize(
    ("reasons", "cancelled"),
    [
        (["launch failed requeued held"], True),
        (["JobHeldUser"], False),
        (["Resources"], False),
        (["launch failed requeued held", "JobLaunchFailure"], True),
        (["launch failed requeued held", "None"], False),
    ],
)
def test_only_a_plan_of_which_every_task_fails_to_start_is_cancelled(
    submit: Submit, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, reasons: list[str], cancelled: bool
) -> None:
    assert submit("--split=train").code == 0  # another plan, which is to stay
    slurm.change("1", elements=[0])
    monkeypatch.setattr(submission, "START_SECONDS", 0.5)
    slurm.configure(f"MaxArraySize = {4 // len(reasons)}\n")
    slurm.reasons(*reasons)
    done = submit()
    if cancelled:
        assert "could not start job" in done.error
        assert slurm.waiting() == ["1", "2"]
    else:
        assert done.code == 0, done.err
        assert len(slurm.waiting("gate")) == 2


def test_cancelling_goes_on_until_no_gate_can_submit_any_more(submit: Submit, slurm: FakeSlurm, folder: Path) -> None:
    assert submit().code == 0
    late = ("take", str(folder / "plan_0001" / "train_0.sh"))
    slurm.trouble("scancel", [late])
    assert submit("--cancel").out == "cancelled: jobs 2, 1, 3\n"
    slurm.take(late[1])
    slurm.change("2", state="COMPLETING")  # a gate that is ending may still submit
    slurm.trouble("squeue", [], [], [late, ("end", "2")])
    assert submit("--cancel").out == "cancelled: jobs 4, 5\n"
    assert submit("--cancel").out == "nothing to cancel: no job is queued\n"


def test_a_dry_run_with_everything_queued_costs_nothing_more(submit: Submit) -> None:
    assert "CPU-hours  about 4.0" in submit("--dry-run", "--slurm.rows_per_hour=8").out
    assert submit().code == 0
    done = submit("--dry-run", "--slurm.rows_per_hour=8")
    assert "queued     4 tasks" in done.out
    assert "CPU-hours  about 0.0" in done.out
