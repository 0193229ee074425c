"""`submit --dry-run`, and `submit` with a SLURM that is absent, refuses, or loses everything."""

import dataclasses
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from datamodels.lasso import fit_bytes
from datamodels.launch.slurm.config import Slurm
from tests.conftest import DIGITS, PROJECT, TINY, Outcome, run_command

CLUSTER = PROJECT / "configs" / "slurm.yaml"
NOWHERE = {**os.environ, "PATH": "/nowhere"}
"""An environment without SLURM's commands."""


def lines(out: str) -> dict[str, str]:
    """The summary after the scripts."""
    return dict(re.findall(r"^([\w-]+) {2,}(.*)$", out, re.MULTILINE))


def test_a_dry_run_prints_scripts_and_costs_and_changes_nothing(tmp_path: Path) -> None:
    done = run_command("submit", DIGITS, "--slurm", CLUSTER, "--dry-run", "--root", tmp_path / "root", env=NOWHERE)
    assert done.code == 0, done.err
    assert re.findall(r"^----- (.*)$", done.out, re.MULTILINE) == ["gate.sh", "train_0.sh", "fit_0.sh", "eval_0.sh"]
    found = lines(done.out)
    assert found["rows"] == "3400 of 3400 missing"
    assert found["tasks"] == "14 of up to 256 rows, from 0:256 to 3328:3400"
    assert found["disk"].startswith("12571888 bytes")
    assert found["GPU-hours"] == "0"
    assert not re.search("--(gres|mem|account|partition)", done.out)
    assert not list(tmp_path.iterdir())


def test_cifar_is_planned_without_its_data(tmp_path: Path) -> None:
    asked = ["--slurm.rows_per_hour=1200", "--slurm.price=2.5", "--slurm.gpus=2", "--data.root", tmp_path]
    config = PROJECT / "configs" / "cifar_50pct.yaml"
    asked += ["--slurm", CLUSTER, "--dry-run", "--root", tmp_path / "root"]
    done = run_command("submit", config, *asked, env=NOWHERE)
    assert done.code == 0, done.err
    found = lines(done.out)
    assert found["tasks"] == "606 of up to 512 rows, from 0:512 to 309760:310000"
    assert found["disk"] == "424700020480 bytes (425 GB)"
    weights = fit_bytes(50_000, 10_000)
    kept = 300_000 * 6250 + 8 * 50_000**2 + 16 * 10_000 * 50_002 + weights
    assert found["fit-disk"].startswith(f"{kept} bytes (31.9 GB), and meanwhile {weights} more")
    assert found["GPU-hours"] == "about 516.7"
    assert found["money"] == "about 1,291.67"
    scripts = dict(zip(*[iter(re.split(r"^----- (.*)$", done.out, flags=re.MULTILINE)[1:])] * 2, strict=True))
    for name, gpus in (("train_0.sh", 2), ("fit_0.sh", 0), ("eval_0.sh", 0), ("gate.sh", 0)):
        assert re.findall("--gres=gpu:(.)", scripts[name]) == [str(gpus)][: gpus > 0], name
    assert "#SBATCH --array=0-3%100" in scripts["fit_0.sh"]  # 10,000 targets by 2,560
    own = run_command("submit", config, *asked, "--slurm.after.gpus=1", env=NOWHERE)
    assert own.out.count("--gres=gpu") == 3
    assert not list(tmp_path.iterdir())


def test_fmow_is_planned_without_its_data(tmp_path: Path) -> None:
    config = PROJECT / "configs" / "fmow_50pct.yaml"
    options = ["--dry-run", "--root", tmp_path / "root", "--data.root", tmp_path, "--data.packed", tmp_path]
    found = lines(run_command("submit", config, *options, env=NOWHERE).out)
    rows, n_train, n_test = 160000, 21404, 3138
    size = rows * (n_train + 2 * n_train + 2 * n_test) + 3 * 4096
    assert found["disk"].startswith(f"{size} bytes")
    other = run_command("submit", config, *options, "--data.split_scheme=mixed-to-test", env=NOWHERE)
    assert str(tmp_path) in other.error


def test_a_million_tasks_are_planned_in_seconds(tmp_path: Path) -> None:
    config = PROJECT / "configs" / "cifar_50pct.yaml"
    options = ["--models=1500000", "--slurm.rows=1", "--dry-run", "--root", tmp_path / "root", "--data.root", tmp_path]
    done = run_command("submit", config, *options, env=NOWHERE)
    assert lines(done.out)["tasks"].startswith("1510000 of up to 1 rows"), done.err


def test_a_store_is_asked_for_its_missing_rows_and_its_rate_and_left_as_it_is(tmp_path: Path) -> None:
    options = ["--root", tmp_path / "root", *TINY]
    assert run_command("init", DIGITS, *options).code == 0
    assert run_command("train", DIGITS, *options, "--rows=0:16", "--workers=1").code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = run_command("submit", DIGITS, *options, "--slurm.rows=8", "--dry-run", env=NOWHERE)
    found = lines(done.out)
    assert found["rows"] == "16 of 32 missing"
    assert found["tasks"] == "2 of up to 8 rows, from 16:24 to 24:32"
    assert "(measured)" in found["rate"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("option", "named"),
    [
        *(
            ("--slurm.nope=3", "slurm.nope"),
            ("--slurm=nowhere.yaml", "nowhere.yaml"),
            ("--slurm.time=soon", "slurm.time"),
        ),
        *(("--slurm.name=a\nb", "slurm.name"), ("--slurm.cpus=many", "slurm.cpus"), ("--seed=-1", "seed is -1")),
        *(("--alpha=0.001", "alpha is 0.001"), ("--slurm.rows_per_hour=.inf", "slurm.rows_per_hour is inf")),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, option: str, named: str) -> None:
    assert named in run_command("submit", DIGITS, "--root", tmp_path / "root", option, "--dry-run").error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", [["--slurm", CLUSTER], [f"--slurm={CLUSTER}"]])
def test_the_cluster_file_is_not_taken_for_the_config(tmp_path: Path, given: list[object]) -> None:
    done = run_command("submit", *given, DIGITS, "--root", tmp_path / "root", "--dry-run", env=NOWHERE)
    assert done.code == 0, done.err


@pytest.mark.parametrize("before", [True, False])
def test_keys_override_the_cluster_file_wherever_they_stand(tmp_path: Path, before: bool) -> None:
    (tmp_path / "slurm.yaml").write_text("partition: file\nafter: {time: '30'}\n")
    given = [["--slurm.partition", "gpu", "--slurm.after.time=20"], ["--slurm", tmp_path / "slurm.yaml"]]
    options = [*given[not before], *given[before], "--root", tmp_path / "root", "--dry-run"]
    done = run_command("submit", DIGITS, *options, env=NOWHERE)
    assert "--partition=gpu" in done.out, done.err
    assert "--time=20" in done.out
    assert "--partition=file" not in done.out


def test_a_key_given_twice_in_the_cluster_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slurm.yaml").write_text("cpus: 1\ncpus: 2\n")
    error = run_command("submit", DIGITS, "--slurm", tmp_path / "slurm.yaml", "--dry-run").error
    assert "line 2 gives 'cpus' a second time" in error


@pytest.mark.parametrize("options", [["--dry-run"], []])
def test_a_root_that_no_script_can_name_is_refused_before_anything_is_created(
    tmp_path: Path, options: list[str]
) -> None:
    environment = fake(tmp_path / "tools", sbatch="exit 1", squeue="exit 1", scontrol="exit 1")
    root = tmp_path / "a\\b"
    assert "--root is " in run_command("submit", DIGITS, "--root", root, *TINY, *options, env=environment).error
    assert not root.exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("time: '30'\ncpus:\n", "slurm.cpus is None, expected a value"),
        ("after: {time: null}\n", "slurm.after.time is None, expected a value"),
        ("time: '30'\nafter:\n", "slurm.after is None, expected keys and values"),
        ("after: 5\n", "slurm.after is 5, expected keys and values"),
        ("time: '30'\nextra:\n", "slurm.extra is None, expected a value"),
    ],
)
def test_a_key_with_no_value_or_a_wrong_one_in_the_cluster_file_is_refused(
    tmp_path: Path, content: str, told: str
) -> None:
    (tmp_path / "slurm.yaml").write_text(content)
    assert told in run_command("submit", DIGITS, "--slurm", tmp_path / "slurm.yaml", "--dry-run").error


def test_null_in_the_cluster_file_has_its_meaning(tmp_path: Path) -> None:
    (tmp_path / "slurm.yaml").write_text("at_once: null\npartition: null\n")
    options = ["--slurm", tmp_path / "slurm.yaml", "--root", tmp_path / "root", "--dry-run"]
    done = run_command("submit", DIGITS, *options, env=NOWHERE)
    assert (done.code, "%100" in done.out.split("fit_0.sh")[0]) == (0, False), done.err


def test_a_time_that_yaml_reads_as_a_number_is_refused(tmp_path: Path) -> None:
    (tmp_path / "slurm.yaml").write_text("time: 4:00:00\n")
    assert "slurm.time" in run_command("submit", DIGITS, "--slurm", tmp_path / "slurm.yaml", "--dry-run").error


def test_without_sbatch_nothing_is_created(tmp_path: Path) -> None:
    error = run_command("submit", DIGITS, "--root", tmp_path / "root", env=NOWHERE).error
    assert "sbatch is not on the PATH" in error
    assert not list(tmp_path.iterdir())


def fake(folder: Path, **tools: str) -> dict[str, str]:
    """An environment with a SLURM whose commands are these lines of bash."""
    folder.mkdir()
    for name, text in tools.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


def gate(plan: Path, environment: dict[str, str]) -> Outcome:
    """What the gate of a plan runs."""
    given = ["--root", plan.parents[2], "--slurm", plan / "slurm.yaml", "--gate", plan]
    return run_command("submit", plan / "setting.yaml", *given, env=environment)


def test_a_plan_of_an_older_store_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    submitted = 'touch "$(dirname "${@: -1:1}")/logs/x"; echo 5'
    environment = fake(tmp_path / "tools", sbatch=submitted, squeue="exit 0", scontrol="exit 0")
    assert run_command("submit", DIGITS, "--root", root, *TINY, env=environment).code == 0
    shutil.rmtree(root / "digits" / "data")
    assert run_command("init", DIGITS, "--root", root, *TINY).code == 0
    assert "was made for the store" in gate(root / "digits" / "_slurm_50pct" / "plan_0001", environment).error


def test_what_sbatch_says_is_passed_on_and_no_plan_is_left(tmp_path: Path) -> None:
    refuse = 'echo "sbatch: error: invalid partition specified: x" >&2; echo "sbatch: error: Failed" >&2; exit 1'
    environment = fake(tmp_path / "tools", sbatch=refuse, squeue="exit 0", scontrol="exit 0")
    error = run_command("submit", DIGITS, "--root", tmp_path / "root", *TINY, env=environment).error
    assert error == "error: sbatch failed: invalid partition specified: x; Failed"
    assert not list((tmp_path / "root" / "digits" / "_slurm_50pct").glob("plan_*"))


def test_a_cluster_that_loses_every_job_is_asked_a_bounded_number_of_times(tmp_path: Path) -> None:
    number = f'echo x >> {tmp_path}/jobs; wc -l < {tmp_path}/jobs; touch "$(dirname "${{@: -1:1}}")/logs/x"'
    config = 'echo "MaxArraySize = 2"; echo "MaxJobCount = 4"'
    environment = fake(tmp_path / "tools", sbatch=number, squeue="exit 0", scontrol=config)
    options = ["--root", tmp_path / "root", "--slurm.rows=8", "--slurm.rounds=1"]
    folder = tmp_path / "root" / "digits" / "_slurm_50pct"
    first = run_command("submit", DIGITS, *options, *TINY, env=environment)
    assert "3 tasks of train in 2 jobs: 1, 2" in first.out, first.err
    assert "plan_0001: gate, job 3" in first.out
    second = gate(folder / "plan_0001", environment)
    assert "plan_0002: 32 of 32 rows missing; 3 tasks of train in 2 jobs: 4, 5" in second.out, second.err
    last = gate(folder / "plan_0002", environment)
    assert last.code == 1
    assert "error: 32 of 32 rows missing although they were submitted 2 times (slurm.rounds)" in last.err
    assert (folder / "plan_0002" / "setting.yaml").read_bytes() == (folder / "plan_0001" / "setting.yaml").read_bytes()
    assert "3 tasks of train" in run_command("submit", DIGITS, *options, *TINY, env=environment).out


def test_submitting_imports_no_torch_before_there_is_something_to_fit() -> None:
    program = (
        "import sys, datamodels.launch.slurm.submit, datamodels.launch.slurm.dry_run; sys.exit('torch' in sys.modules)"
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", program]) == 0


def test_the_shipped_cluster_file_says_what_the_defaults_are() -> None:
    defaults = dataclasses.asdict(Slurm())
    for key, value in yaml.safe_load(CLUSTER.read_text()).items():
        assert (defaults[key] | value if isinstance(value, dict) else value) == defaults[key]
