"""The command doctor: what it finds on this machine, and its exit code."""

import json
import os
from pathlib import Path

import pytest

from tests.conftest import DIGITS, in_process
from tests.launch.slurm.fake import FakeSlurm


def test_it_finds_devices_disk_and_slurm(capsys: pytest.CaptureFixture[str], tmp_path: Path, slurm: FakeSlurm) -> None:
    arguments = (DIGITS, "--root", tmp_path / "not" / "there", "--recipe.device=cpu")
    found = in_process(capsys, "doctor", *arguments, "--json")
    assert found.code == 0
    content = json.loads(found.out)
    assert content["bad"] == []
    (device,) = content["devices"]
    assert (device["device"], device["precision"], device["kernels"]) == ("cpu", "float32", "torch")
    assert device["images_per_second"] > 0
    assert (content["root"]["folder"], content["root"]["locks"]) == (str(tmp_path), True)
    assert min(content["root"][key] for key in ("write_bytes_per_second", "sync_seconds", "free_bytes")) > 0
    assert int(content["slurm"]["MaxArraySize"]) > 0
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_without_a_config_it_takes_random_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = ("--recipe.width=4", "--recipe.batch=8", "--recipe.device=cpu")
    found = in_process(capsys, "doctor", *small, "--root", tmp_path)
    assert [line.partition(":")[0] for line in found.out.splitlines()][1:4] == ["cpu", str(tmp_path), "SLURM"]
    assert "training images a second" in found.out
    assert found.err == "cpu: timing 12 training steps\n"


def test_what_is_bad_is_told_and_ends_with_1(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = in_process(capsys, "doctor", DIGITS, "--dataset=cifar", f"--data.root={tmp_path}", "--recipe.device=cpu")
    assert found.code == 1
    assert [line for line in found.out.splitlines() if line.startswith(f"bad: data.root is '{tmp_path}'")]
    assert "training images a second" not in found.out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_root_that_cannot_be_written_is_bad(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    found = in_process(capsys, "doctor", DIGITS, "--root", tmp_path, "--recipe.device=cpu")
    assert found.code == 1
    assert f"bad: cannot write to {tmp_path}: Permission denied" in found.out
