"""`submit --dry-run`: scripts, bytes and costs, without SLURM, data or a store; and the options of the cluster."""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from datamodels.lasso import fit_bytes
from datamodels.launch.slurm import Slurm
from tests.conftest import DIGITS, PROJECT, TINY, Outcome, in_process

CLUSTER = PROJECT / "configs" / "slurm.yaml"
CIFAR, FMOW = (PROJECT / "configs" / f"{name}_50pct.yaml" for name in ("cifar", "fmow"))

Run = Callable[..., Outcome]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, without SLURM's commands."""
    monkeypatch.setenv("PATH", "/nowhere")
    return partial(in_process, capsys)


@pytest.fixture
def dry_run(run: Run, tmp_path: Path) -> Run:
    """Runs `submit --dry-run` of a config on a root that is not there."""
    return lambda config, *options: run("submit", config, "--dry-run", "--root", tmp_path / "root", *options)


def lines(done: Outcome) -> dict[str, str]:
    """The summary after the scripts."""
    assert done.code == 0, done.err
    return dict(re.findall(r"^([\w-]+) {2,}(.*)$", done.out, re.MULTILINE))


def scripts(done: Outcome) -> dict[str, str]:
    """The text of each script by its name."""
    parts = re.split(r"^----- (.*)$", done.out, flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_scripts_and_costs_are_printed_and_nothing_is_changed(dry_run: Run, tmp_path: Path) -> None:
    done = dry_run(DIGITS, "--slurm", CLUSTER)
    assert [*scripts(done)] == ["gate.sh", "train_0.sh", "fit_0.sh", "eval_0.sh"]
    found = lines(done)
    assert found["rows"] == "3400 of 3400 missing"
    assert found["tasks"] == "14 of up to 256 rows, from 0:256 to 3328:3400"
    assert found["disk"].startswith("12571888 bytes")
    assert found["GPU-hours"] == "0"
    assert not re.search("--(gres|mem|account|partition)", done.out)
    assert not list(tmp_path.iterdir())


def test_cifar_is_planned_without_its_data(dry_run: Run, tmp_path: Path) -> None:
    asked = ["--slurm.rows_per_hour=1200", "--slurm.price=2.5", "--slurm.gpus=2", "--data.root", tmp_path]
    done = dry_run(CIFAR, *asked)
    found = lines(done)
    assert found["tasks"] == "606 of up to 512 rows, from 0:512 to 309760:310000"
    assert found["disk"] == "424700020480 bytes (425 GB)"
    weights = fit_bytes(50_000, 10_000)
    kept = 300_000 * 6250 + 8 * 50_000**2 + 16 * 10_000 * 50_002 + weights
    assert found["fit-disk"].startswith(f"{kept} bytes (31.9 GB), and meanwhile {weights} more")
    assert found["GPU-hours"] == "about 516.7"
    assert found["money"] == "about 1,291.67"
    gpus = {name: re.findall("--gres=gpu:(.)", text) for name, text in scripts(done).items()}
    assert gpus == {"train_0.sh": ["2"], "fit_0.sh": [], "eval_0.sh": [], "gate.sh": []}
    for given, wanted in (([], ["1"]), (["--slurm.gpus=0"], [])):  # one where the recipe's device is cuda
        text = scripts(dry_run(DIGITS, "--recipe.device=cuda", *given))["train_0.sh"]
        assert re.findall("--gres=gpu:(.)", text) == wanted
    assert "#SBATCH --array=0-3%100" in scripts(done)["fit_0.sh"]  # 10,000 targets by 2,560
    million = dry_run(CIFAR, "--models=1500000", "--slurm.rows=1", "--data.root", tmp_path)
    assert lines(million)["tasks"].startswith("1510000 of up to 1 rows")
    assert not list(tmp_path.iterdir())


def test_fmow_is_planned_without_its_data(dry_run: Run, tmp_path: Path) -> None:
    options = ["--data.root", tmp_path, "--data.packed", tmp_path]
    rows, n_train, n_test = 160000, 21404, 3138
    size = rows * (n_train + 2 * n_train + 2 * n_test) + 3 * 4096
    assert lines(dry_run(FMOW, *options))["disk"].startswith(f"{size} bytes")
    assert str(tmp_path) in dry_run(FMOW, *options, "--data.split_scheme=mixed-to-test").error


def test_a_store_is_asked_for_its_missing_rows_and_its_rate_and_left_as_it_is(run: Run, tmp_path: Path) -> None:
    options = [DIGITS, "--root", tmp_path / "root", *TINY]
    assert run("init", *options).code == 0
    assert run("train", *options, "--rows=0:16", "--workers=1").code == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = lines(run("submit", *options, "--slurm.rows=8", "--dry-run"))
    assert found["rows"] == "16 of 32 missing"
    assert found["tasks"] == "2 of up to 8 rows, from 16:24 to 24:32"
    assert "(measured)" in found["rate"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--slurm.nope=3", "slurm.nope"),
        ("--slurm.after.gpus=1", "slurm.after.gpus"),
        ("--slurm=nowhere.yaml", "nowhere.yaml"),
        ("--slurm.cpus=many", "slurm.cpus"),
        ("--seed=-1", "seed is -1"),
        ("--slurm.rows_per_hour=.inf", "slurm.rows_per_hour is inf"),
    ],
)
def test_bad_options_are_one_line(dry_run: Run, tmp_path: Path, option: str, named: str) -> None:
    assert named in dry_run(DIGITS, option).error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("cpus: 1\ncpus: 2\n", "line 2 gives 'cpus' a second time"),
        ("time: '30'\ncpus:\n", "slurm.cpus is null, expected a value"),
        ("after: {time: null}\n", "slurm.after.time is null, expected a value"),
        ("time: '30'\nafter:\n", "slurm.after is null, expected keys and values"),
        ("after: 5\n", "slurm.after is 5, expected keys and values"),
        ("time: '30'\nextra:\n", "slurm.extra is null, expected a value"),
        ("time: [4]\n", "slurm.time"),
        ("cpus: 010\n", "line 1 holds 010, which YAML takes for 8"),
        ("- time\n", "slurm.yaml holds list, expected keys and values"),
        ("after: {gpus: 0}\n", "after.gpus"),
    ],
)
def test_bad_cluster_files_are_one_line(dry_run: Run, tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "slurm.yaml").write_text(content)
    assert told in dry_run(DIGITS, "--slurm", tmp_path / "slurm.yaml").error


@pytest.mark.parametrize(
    ("content", "asked"),
    [
        *(("time: 4:00:00", "--time=4:00:00"), ("time: 90:30", "--time=90:30"), ("time: 0", "--time=0")),
        *(
            ("memory: 32", "--mem=32"),
            ("account: 007", "--account=007"),
            ("name: 2026-01-01", "--job-name=2026-01-01-fit"),
        ),
        ("after: {time: 1:30:00, partition: on}", "--partition=on"),
        ("# nothing", "--time=4:00:00"),
    ],
)
def test_what_yaml_takes_for_a_number_is_text_as_it_was_written(
    dry_run: Run, tmp_path: Path, content: str, asked: str
) -> None:
    (tmp_path / "slurm.yaml").write_text(content)
    assert f"#SBATCH {asked}\n" in "".join(scripts(dry_run(DIGITS, "--slurm", tmp_path / "slurm.yaml")).values())


def test_without_a_time_limit_hours_are_not_known(dry_run: Run) -> None:
    unlimited = ["--slurm.time=UNLIMITED", "--slurm.price=2"]
    found = lines(dry_run(DIGITS, *unlimited))
    assert (found["CPU-hours"], "money" in found) == ("not known: slurm.time sets no limit", False)
    assert lines(dry_run(DIGITS, *unlimited, "--slurm.rows_per_hour=3400"))["money"] == "about 2.00"


def test_null_in_the_cluster_file_has_its_meaning(dry_run: Run, tmp_path: Path) -> None:
    (tmp_path / "slurm.yaml").write_text("at_once: null\npartition: null\n")
    assert "%100" not in scripts(dry_run(DIGITS, "--slurm", tmp_path / "slurm.yaml"))["train_0.sh"]


@pytest.mark.parametrize("given", [["--slurm", CLUSTER], [f"--slurm={CLUSTER}"]])
def test_the_cluster_file_is_not_taken_for_the_config(run: Run, tmp_path: Path, given: list[object]) -> None:
    done = run("submit", *given, DIGITS, "--root", tmp_path / "root", "--dry-run")
    assert "datamodels-digits-50pct-train" in done.out, done.err


@pytest.mark.parametrize("before", [True, False])
def test_keys_override_the_cluster_file_wherever_they_stand(dry_run: Run, tmp_path: Path, before: bool) -> None:
    (tmp_path / "slurm.yaml").write_text("partition: file\nafter: {time: '30'}\n")
    given = [["--slurm.partition", "gpu", "--slurm.after.time=20"], ["--slurm", tmp_path / "slurm.yaml"]]
    done = dry_run(DIGITS, *given[not before], *given[before])
    assert "--partition=gpu" in done.out, done.err
    assert "--time=20" in done.out
    assert "--partition=file" not in done.out


def test_the_shipped_cluster_file_says_what_the_defaults_are() -> None:
    defaults = dataclasses.asdict(Slurm())
    for key, value in yaml.safe_load(CLUSTER.read_text()).items():
        assert (defaults[key] | value if isinstance(value, dict) else value) == defaults[key]
