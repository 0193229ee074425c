"""The files for machines without a shared disk: what they say is consistent, and the script saves what it trained."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from datamodels.train import read_setting
from tests.conftest import PROJECT

FAKE = {
    "datamodels": """
        echo "$@" >> "$LOG"
        root=$4
        case $1 in
            init) touch "$root/inited" ;;
            train) trap 'echo stopped >> "$root/rows"; exit 75' TERM; echo some >> "$root/rows"
                [ -e "$LOG.none" ] || exit 0
                rm "$LOG.none"
                while sleep 0.1; do :; done ;;
        esac
    """,
    "rclone": """
        case $1 in
            lsf) ls "$2" 2> /dev/null || { touch "$LOG.none"; exit ${UNREACHABLE:-3}; } ;;
            copyto) mkdir -p "${3%/*}"; cp "$2" "$3" ;;
        esac
    """,
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What the script needs, with stand-ins for the command and for rclone."""
    (tmp_path / "bin").mkdir()
    for name, text in FAKE.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}")
        (tmp_path / "bin" / name).chmod(0o755)
    found = {name: str(tmp_path / name) for name in ("STORE", "LOG", "ROOT")}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, **found, "PATH": path, "CONFIG": "c.yaml", "INDEX": "2", "ROWS": "50", "OPTIONS": "--seed 1"}


def test_the_script_saves_what_it_trained_and_goes_on_from_there(tmp_path: Path, environment: dict[str, str]) -> None:
    script = ["bash", str(PROJECT / "examples" / "cloud.sh")]
    lost = subprocess.run(script, env={**environment, "UNREACHABLE": "1"}, timeout=60)
    assert lost.returncode == 1
    assert not (tmp_path / "LOG").exists()

    process = subprocess.Popen(script, env=environment)
    while not (tmp_path / "ROOT" / "rows").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    (tmp_path / "ROOT").rename(tmp_path / "gone")
    assert subprocess.run(script, env=environment, timeout=60).returncode == 0
    assert (tmp_path / "ROOT" / "rows").read_text() == "some\nstopped\nsome\n"
    given = f"c.yaml --root {tmp_path / 'ROOT'} --outputs.preallocate false --seed 1"
    calls = [f"init {given}", f"train {given} --rows 100:150", f"repair {given}", f"train {given} --rows 100:150"]
    assert (tmp_path / "LOG").read_text().splitlines() == calls


def test_the_examples_for_clouds_train_whole_groups_of_rows_that_exist() -> None:
    job, task = (
        yaml.safe_load((PROJECT / "examples" / f"{name}.yaml").read_text()) for name in ("kubernetes", "skypilot")
    )
    (container,) = job["spec"]["template"]["spec"]["containers"]
    of_job = {each["name"]: each["value"] for each in container["env"]}
    for given in (of_job, task["envs"]):
        assert all(isinstance(value, str) for value in given.values())
        setting = read_setting(PROJECT / given["CONFIG"])
        _, models, _, eval_models = given["OPTIONS"].split()
        assert job["spec"]["completions"] * int(given["ROWS"]) == int(models) + int(eval_models)
        assert int(given["ROWS"]) % setting.recipe.group == 0
        assert given["STORE"].partition(":")[0].upper() == "SAVED"
    assert job["spec"]["completionMode"] == "Indexed"
    assert "examples/cloud.sh" in container["command"][-1]
    assert "examples/cloud.sh" in task["run"]
