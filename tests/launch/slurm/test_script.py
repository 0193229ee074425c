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

from datamodels.lasso.gram.cache import TARGETS_PER_FILE
from datamodels.launch.slurm.config import After, Slurm, seconds_of
from datamodels.launch.slurm.plan import Plan, freeze
from datamodels.launch.slurm.script import files, lanes, portable, sbatch_quoted
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


def rendered(root: Path, stage: str = "train", cluster: Slurm | None = None, array: int = 100) -> dict[str, str]:
    """The files of a plan of two tasks, as they lie in ROOT/digits/_slurm_50pct/plan_0001."""
    layout = Layout(root, "digits", "50")
    cluster = cluster or Slurm()
    content = portable(tiny()), dataclasses.asdict(cluster), cluster.after.gpus_for_fit
    plan = Plan("abc", stage, "test", 0, 32, ((0, 16), (16, 32)), array, *content)
    path = layout.folder / "_slurm_50pct" / "plan_0001"
    made = files(plan, path, layout)
    if root.exists():
        layout.data.mkdir(parents=True, exist_ok=True)
        layout.manifest.write_text('{\n "id": "abc"\n}')
        freeze(plan, path, made)
    return made


def asked(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


def test_the_shipped_cluster_file_asks_for_one_cpu_and_nothing_else() -> None:
    assert asked(rendered(Path("/r"))["train_0.sh"]) == [
        "--job-name=datamodels-digits-50pct-train",
        "--output=/r/digits/_slurm_50pct/plan_0001/logs/train_%A_%a.log",
        "--open-mode=append",
        "--requeue",
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
    cluster.after = After(partition="cpu", time="30", cpus=4, memory="8G", gpus=1, extra=["--qos=low"])
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
    assert {*fit} >= {*after, "--gres=gpu:1"}
    assert not [line for line in gate if line.startswith(("--gres", "--array", "--signal", "--constraint"))]
    assert "--constraint=a100" not in fit
    assert "--qos=low" not in asked(made["train_0.sh"])


def test_gpus_are_asked_for_where_the_recipe_wants_them() -> None:
    assert Slurm().gpus_for(tiny()) == 0
    recipe = dataclasses.replace(tiny().recipe, device="cuda")
    assert Slurm().gpus_for(tiny(recipe=recipe)) == 1
    assert Slurm(gpus=0).gpus_for(tiny(recipe=recipe)) == 0


def test_a_fit_takes_a_gpu_only_where_the_cluster_demands_one() -> None:
    assert [After(gpus=asked).gpus_for_fit for asked in (None, 0, 2)] == [0, 0, 2]


def test_pieces_of_the_fit_end_where_files_of_sums_do() -> None:
    assert After().targets % TARGETS_PER_FILE == 0


def test_long_arrays_are_split_and_share_what_may_run_at_once() -> None:
    made = rendered(Path("/r"), array=1, cluster=Slurm(at_once=9))
    assert [asked(made[f"train_{chunk}.sh"])[8] for chunk in (0, 1)] == ["--array=0-0%4"] * 2
    assert [made[f"train_{chunk}.rows"] for chunk in (0, 1)] == ["0:16\n", "16:32\n"]
    assert lanes(10, 4) == (4, 1)
    assert lanes(10, None) == (10, None)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("stage", ["train", "fit", "eval"])
def test_hostile_names_reach_the_program_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stage: str
) -> None:
    python = tmp_path / f"python {name}"
    python.write_text(RECORDER)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    root = tmp_path / name
    root.mkdir()
    rendered(root, stage, Slurm(name=name, partition=name, account=name, extra=[f"--comment={name}"]))
    plan = root / "digits" / "_slurm_50pct" / "plan_0001"
    _environment(tmp_path)
    before = {*tmp_path.rglob("*")}
    for script in (f"{stage}_0.sh", "gate.sh"):
        done = run(tmp_path, plan / script, CODE="0")
        assert done.returncode == 0, done.stderr
        words = (tmp_path / "record").read_text().splitlines()
        assert words[:4] == [
            "-P",
            "-m",
            "datamodels.launch.cli",
            {"gate.sh": "submit", "eval_0.sh": "report"}.get(script, stage),
        ]
        assert words[4:7] == [str(plan / "setting.yaml"), "--root", str(root)]
    made = {path.name for path in {*tmp_path.rglob("*")} - before}
    assert made <= {"record", "eval_test_50pct.json"}


def test_sbatch_reads_quoted_values_as_they_were() -> None:
    assert sbatch_quoted("plain-1.2_x%A") == "plain-1.2_x%A"
    assert sbatch_quoted('a\'b "c" \\d #e') == '"a\'b \\"c\\" \\\\d #e"'


@pytest.mark.parametrize("name", ["a\nb", "a\rtouch x", "\x1b[2J"])
def test_line_breaks_are_refused(name: str) -> None:
    for key in ("name", "partition", "account"):
        with pytest.raises(UserError, match=f"slurm.{key}"):
            Slurm(**{key: name})
    with pytest.raises(UserError, match=r"slurm\.extra"):
        Slurm(extra=[f"--comment={name}"])
    with pytest.raises(UserError, match="--root"):
        rendered(Path("/nowhere") / name)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(
            ("time", "soon"),
            ("time", "0"),
            ("memory", "lots"),
            ("cpus", 0),
            ("gpus", -1),
            ("rows", 0),
            ("minutes", 0.0),
        ),
        *(("extra", ["touch x"]), ("extra", ["--array=0-9"]), ("rows_per_hour", -1.0), ("signal", 14400)),
        *(("rows_per_hour", math.inf), ("minutes", math.nan), ("price", math.inf)),
    ],
)
def test_values_that_make_no_sense_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UserError, match=f"slurm.{key} is "):
        Slurm(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("key", "value"), [("gpus", -1), ("targets", 0), ("extra", ["x"]), ("extra", ["--a\n"])])
def test_values_for_the_jobs_after_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"slurm\.after\.{key} is "):
        After(**{key: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        *(("30", 1800), ("90:30", 5430), ("4:00:00", 14400), ("1-0", 86400), ("2-03:30", 185400)),
        *(("1-00:00:10", 86410), ("x", None), ("1:2", None)),
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
    (tools / "scontrol").chmod(0o755)
    job = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "7", "RECORD": str(folder / "record")}
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", **job, **more}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    python = tmp_path / "python"
    python.write_text(RECORDER)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    rendered(tmp_path, cluster=Slurm(requeues=2))
    return tmp_path / "digits" / "_slurm_50pct" / "plan_0001" / "train_0.sh"


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


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (2, False), (75, True), (137, True)])
def test_the_exit_code_is_the_workers(script: Path, tmp_path: Path, code: int, requeued: bool) -> None:
    assert run(tmp_path, script, CODE=str(code)).returncode == code
    assert (tmp_path / "record.scontrol").exists() == requeued
    assert (tmp_path / "record").read_text().splitlines()[-4:] == ["--rows", "0:16", "--workers", "1"]


@pytest.mark.parametrize(("code", "restarts", "requeued"), [(0, 0, 0), (1, 0, 0), (2, 0, 0), (75, 1, 1), (75, 2, 0)])
def test_a_gate_that_slurm_did_not_answer_comes_again_a_bounded_number_of_times(
    script: Path, tmp_path: Path, code: int, restarts: int, requeued: bool
) -> None:
    environment = {"CODE": str(code), "SLURM_RESTART_COUNT": str(restarts)}
    assert run(tmp_path, script.with_name("gate.sh"), **environment).returncode == code
    assert (tmp_path / "record.scontrol").exists() == requeued


@pytest.mark.parametrize("name", ["train_0.sh", "gate.sh"])
def test_modules_of_the_folder_that_was_submitted_from_are_not_taken_for_ours(tmp_path: Path, name: str) -> None:
    rendered(tmp_path)
    for module in ("train", "launch", "lasso", "yaml", "numpy"):
        (tmp_path / f"{module}.py").write_text("raise SystemExit('not ours')\n")
    done = run(tmp_path, tmp_path / "digits" / "_slurm_50pct" / "plan_0001" / name)
    assert done.stderr.startswith("error: "), done.stderr
    assert "store_50pct.json" in done.stderr


def test_another_store_is_refused_in_one_line(script: Path, tmp_path: Path) -> None:
    (tmp_path / "digits" / "data" / "store_50pct.json").write_text('{"id": "another"}')
    done = run(tmp_path, script, CODE="0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "record").exists()
