"""The scripts: exact #SBATCH lines, hostile names, and what they do with signals and exit codes."""

import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from datamodels.launch.slurm.config import After, Slurm, seconds_of
from datamodels.launch.slurm.script import files, portable, sbatch_quoted, side_by_side
from datamodels.launch.slurm.tasks import Plan, write_plan
from datamodels.train.errors import UserError
from datamodels.train.store.layout import Layout
from tests.conftest import tiny

HOSTILE = ["a'; touch x", "with spaces", "$(touch x)", '"; touch x; "', "`touch x`", "100%a", "{plan}", "ü#"]

RECORDER = """#!/bin/bash
# Stands for Python: writes down its arguments, and ends with 75 when it is told to end.
printf '%s\\n' "$@" > "$RECORD"
if [ -n "${CODE:-}" ]; then exit "$CODE"; fi
trap 'exit 75' TERM
touch "$RECORD.ready"
while :; do sleep 0.05; done
"""


PLAN = Path("digits") / "_slurm_50pct" / "plan_0001"


def rendered(root: Path, stage: str = "train", cluster: Slurm | None = None, array: int = 100) -> dict[str, str]:
    """The scripts and other files of a plan of two tasks in the root."""
    return files(_plan(stage, cluster, array), root / PLAN, Layout(root, "digits", "50pct"))


def write_two_tasks(root: Path, stage: str = "train", cluster: Slurm | None = None) -> Path:
    """Write such a plan, of the store `abc`; returns its folder."""
    write_plan(_plan(stage, cluster), root / PLAN, rendered(root, stage, cluster))
    return root / PLAN


def _plan(stage: str, cluster: Slurm | None, array: int = 100) -> Plan:
    content = portable(tiny()), dataclasses.asdict(cluster or Slurm())
    return Plan("abc", stage, "test", 0, 32, ((0, 16), (16, 32)), array, *content)


def asked(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_the_shipped_cluster_file_asks_for_one_cpu_and_nothing_else() -> None:
    assert asked(rendered(Path("/r"))["train_0.sh"]) == [
        "--job-name=datamodels-digits-50pct-train",
        "--output=/r/digits/_slurm_50pct/plan_0001/logs/train_%A_%a.log",
        "--open-mode=append",
        "--requeue",
        "--propagate=NONE",
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=1",
        "--time=4:00:00",
        "--array=0-1%100",
        "--signal=B:USR1@60",
    ]


def test_everything_that_can_be_asked_for_is_asked_for() -> None:
    cluster = Slurm(
        partition="gpu", account="me", time="1-00", cpus=8, memory="32G", gpus=2, workers=3, at_once=None, signal=90
    )
    cluster.extra, cluster.setup, cluster.name = ["--constraint=a100"], ["module load cuda"], "mine"
    cluster.after = After(partition="cpu", time="30", cpus=4, memory="8G", extra=["--qos=low"])
    made = rendered(Path("/r"), cluster=cluster) | rendered(Path("/r"), "fit", cluster)
    assert {*asked(made["train_0.sh"])} >= {
        *("--partition=gpu", "--account=me", "--time=1-00", "--cpus-per-task=8", "--mem=32G", "--gres=gpu:2"),
        *("--array=0-1", "--signal=B:USR1@90", "--constraint=a100", "--job-name=mine-train"),
    }
    assert "--workers 3 &" in made["train_0.sh"]
    assert "\nmodule load cuda\n" in made["train_0.sh"]
    gate, fit = asked(made["gate.sh"]), asked(made["fit_0.sh"])
    after = {"--partition=cpu", "--account=me", "--time=30", "--cpus-per-task=4", "--mem=8G", "--qos=low"}
    assert {*gate} >= after
    assert {*fit} >= after
    assert not [line for line in gate if line.startswith(("--gres", "--array", "--signal", "--constraint"))]
    assert not [line for line in fit if line.startswith(("--gres", "--signal", "--constraint"))]
    assert "--qos=low" not in asked(made["train_0.sh"])


@pytest.mark.parametrize(
    "option", ["--gres=gpu:a100:2", "--gpus=2", "--gpus-per-node=a100:2", "-G2", "--gpu-bind=none"]
)
def test_a_users_own_way_to_ask_for_gpus_replaces_ours(option: str) -> None:
    given = asked(rendered(Path("/r"), cluster=Slurm(gpus=2, extra=[option]))["train_0.sh"])
    assert ("--gres=gpu:2" in given) == (option == "--gpu-bind=none")
    assert option in given


def test_long_arrays_are_split_and_share_what_may_run_at_once() -> None:
    made = rendered(Path("/r"), array=1, cluster=Slurm(at_once=9))
    assert [asked(made[f"train_{chunk}.sh"])[9] for chunk in (0, 1)] == ["--array=0-0%4"] * 2
    assert [made[f"train_{chunk}.rows"] for chunk in (0, 1)] == ["0:16\n", "16:32\n"]
    assert side_by_side(10, 4) == (4, 1)
    assert side_by_side(10, None) == (10, None)


def write_store(root: Path) -> None:
    """All of the store `abc` that a script looks at."""
    (root / "digits" / "data").mkdir(parents=True)
    (root / "digits" / "data" / "store_50pct.json").write_text('{\n "id": "abc"\n}')


def record(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "python") -> None:
    """Put RECORDER in the place of Python."""
    (folder / name).write_text(RECORDER)
    (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / name))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_reach_the_program_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    record(tmp_path, monkeypatch, f"python {name}")
    cluster = Slurm(name=name, partition=name, account=name, extra=[f"--comment={name}"])
    _environment(tmp_path)
    for stage, last in (("train", "train"), ("fit", "fit"), ("eval", "report")):
        root = tmp_path / f"{stage} {name}"
        write_store(root)
        plan = write_two_tasks(root, stage, cluster)
        before = {*tmp_path.rglob("*")}
        for script, command in ((f"{stage}_0.sh", last), ("gate.sh", "submit")):
            done = run(tmp_path, plan / script, CODE="0")
            assert done.returncode == 0, done.stderr
            words = (tmp_path / "record").read_text().splitlines()
            assert words[:4] == ["-P", "-m", "datamodels", command]
            assert words[4:7] == [str(plan / "setting.yaml"), "--root", str(root)]
        made = {path.name for path in {*tmp_path.rglob("*")} - before}
        assert made <= {"record", "eval_test_50pct.json"}


@pytest.mark.parametrize("memory", ["0", "32", "32GB", "32g", "3Gb", "1024k", "1T"])
def test_sizes_are_given_to_slurm_as_they_are(memory: str) -> None:
    assert f"--mem={memory}" in asked(rendered(Path("/r"), cluster=Slurm(memory=memory))["train_0.sh"])


@pytest.mark.parametrize("option", ["--clusters=b", "--cluster=b", "-M b", "-Mb"])
def test_clusters_among_the_options_are_those_of_all_jobs(option: str) -> None:
    cluster = Slurm(extra=["--exclusive", option])
    assert (cluster.clusters, cluster.extra) == ("b", ["--exclusive"])
    for stage in ("train", "fit"):
        made = rendered(Path("/r"), stage, cluster)
        assert all("--clusters=b" in asked(made[script]) for script in (f"{stage}_0.sh", "gate.sh"))
    with pytest.raises(UserError, match=r"slurm\.extra is .*, expected slurm\.clusters, 'c'"):
        Slurm(extra=[option], clusters="c")


def test_a_wrapper_starts_each_command_once_but_no_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, monkeypatch)
    write_store(tmp_path)
    _environment(tmp_path)
    wrapper = tmp_path / "tools" / "apptainer"
    wrapper.write_text('#!/bin/bash\necho "$1 $2 ${PYTHONPATH-none}" >> "$RECORD.wrapped"; shift 2; exec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    cluster = Slurm(python=f"apptainer exec image.sif {sys.executable}")
    for stage, times in (("train", 1), ("fit", 1), ("eval", 2)):
        plan = write_two_tasks(tmp_path / stage, stage, cluster)
        write_store(tmp_path / stage)
        assert run(tmp_path, plan / f"{stage}_0.sh", CODE="0").returncode == 0
        assert run(tmp_path, plan / "gate.sh", CODE="0").returncode == 0
        assert (tmp_path / "record.wrapped").read_text() == "exec image.sif none\n" * times
        (tmp_path / "record.wrapped").unlink()


def test_sbatch_reads_quoted_values_as_they_were() -> None:
    assert sbatch_quoted("plain-1.2_x%A") == "plain-1.2_x%A"
    assert sbatch_quoted('a\'b "c" \\d #e') == '"a\'b \\"c\\" \\\\d #e"'


REFUSED: list[tuple[type[Slurm | After], str, object]] = [
    *((Slurm, "time", value) for value in ("soon", "1:2:3:4", "30:", "UNLIM")),
    *((Slurm, "memory", value) for value in ("lots", "1.5G", "3GiB", "-5", "1P")),
    *((Slurm, "clusters", value) for value in ("all", "a b", "a,", "")),
    *((Slurm, "queued", 2), (After, "extra", ["-M b"])),
    *((Slurm, key, 0) for key in ("cpus", "rows", "minutes")),
    *((Slurm, key, value) for key in ("rows_per_hour", "minutes", "price") for value in (-1.0, math.inf, math.nan)),
    *((Slurm, "gpus", -1), (Slurm, "signal", 14400), (After, "targets", 0)),
    *((Slurm, "extra", [value]) for value in ("touch x", "--array=0-9", "--comment=a\nb")),
    *((After, "extra", [value]) for value in ("x", "--a\n")),
    *((Slurm, key, value) for key in ("name", "partition", "account") for value in ("a\nb", "a\rx", "\x1b[2J")),
]


@pytest.mark.parametrize(("kind", "key", "value"), REFUSED)
def test_values_that_make_no_sense_are_refused_by_name(kind: type[Slurm | After], key: str, value: object) -> None:
    prefix = "slurm." if kind is Slurm else r"slurm\.after\."
    with pytest.raises(UserError, match=f"{prefix}{key} is "):
        kind(**{key: value})


def test_a_root_with_a_line_break_is_refused() -> None:
    with pytest.raises(UserError, match="--root"):
        rendered(Path("/nowhere") / "a\nb")


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        *(("30", 1800), ("90:30", 5430), ("4:00:00", 14400), ("1-0", 86400), ("2-03:30", 185400)),
        *(("1-00:00:10", 86410), ("x", None), ("1:2", 62), ("90:90", 5490), ("1-25", 176400)),
        *((limit, math.inf) for limit in ("UNLIMITED", "infinite", "-1", "0", "0:00")),
    ],
)
def test_time_limits_are_read_as_slurm_does(time: str, seconds: int | None) -> None:
    assert seconds_of(time) == seconds


def run(folder: Path, script: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", script], env=_environment(folder, **environment), cwd=folder, capture_output=True, text=True
    )


def _environment(folder: Path, **more: str) -> dict[str, str]:
    tools = folder / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "scontrol").write_text('#!/bin/bash\nprintf "%s " "$@" >> "$RECORD.scontrol"\n')
    (tools / "sleep").write_text('#!/bin/bash\necho "$1" >> "$RECORD.slept"; exec /bin/sleep 0.05\n')
    for name in ("scontrol", "sleep"):
        (tools / name).chmod(0o755)
    job = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "7", "RECORD": str(folder / "record")}
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", **job, **more}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    record(tmp_path, monkeypatch)
    write_store(tmp_path)
    return write_two_tasks(tmp_path, cluster=Slurm(requeues=2)) / "train_0.sh"


@pytest.mark.parametrize(
    ("number", "restarts", "requeued"),
    [(signal.SIGUSR1, 0, True), (signal.SIGUSR1, 2, False), (signal.SIGTERM, 0, False)],
)
def test_signals_reach_the_worker_and_a_time_limit_requeues_a_bounded_number_of_times(
    script: Path, tmp_path: Path, number: int, restarts: int, requeued: bool
) -> None:
    environment = _environment(tmp_path, SLURM_RESTART_COUNT=str(restarts))
    process = subprocess.Popen(["bash", script], env=environment, cwd=tmp_path)
    while not (tmp_path / "record.ready").exists():
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(20) == 75
    told = tmp_path / "record.scontrol"
    assert (told.read_text() if told.exists() else "") == ("requeue 7 " if requeued else "")


@pytest.mark.parametrize(
    ("name", "code", "restarts", "requeued"),
    [
        *(("train_0.sh", code, 0, requeued) for code, requeued in ((0, 0), (1, 0), (2, 0), (75, 1), (137, 1))),
        *(("gate.sh", 0, 0, 0), ("gate.sh", 1, 0, 0)),
        *(("gate.sh", 75, 0, 1), ("gate.sh", 75, 1, 1), ("gate.sh", 75, 2, 0)),
    ],
)
def test_the_exit_code_is_the_commands_and_jobs_come_again_a_bounded_number_of_times(
    script: Path, tmp_path: Path, name: str, code: int, restarts: int, requeued: bool
) -> None:
    done = run(tmp_path, script.with_name(name), CODE=str(code), SLURM_RESTART_COUNT=str(restarts))
    assert done.returncode == code
    assert (tmp_path / "record.scontrol").exists() == requeued
    if name == "gate.sh" and requeued:
        assert (tmp_path / "record.slept").read_text() == f"{60 * restarts}\n"
    if name == "train_0.sh":
        assert (tmp_path / "record").read_text().splitlines()[-4:] == ["--rows", "0:16", "--workers", "1"]


@pytest.mark.parametrize("name", ["train_0.sh", "gate.sh"])
def test_modules_of_the_folder_that_was_submitted_from_are_not_taken_for_ours(tmp_path: Path, name: str) -> None:
    write_store(tmp_path)
    for module in ("train", "launch", "lasso", "config", "datamodels", "yaml", "numpy"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('not ours')\n")
    done = run(tmp_path, write_two_tasks(tmp_path) / name)
    assert done.stderr.startswith("error: "), done.stderr
    assert "store_50pct.json" in done.stderr


def test_another_store_is_refused_in_one_line(script: Path, tmp_path: Path) -> None:
    (tmp_path / "digits" / "data" / "store_50pct.json").write_text('{"id": "another"}')
    done = run(tmp_path, script, CODE="0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "record").exists()
