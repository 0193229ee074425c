"""The benches of training run, in miniature, and count and compare as they say."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import accuracy, cases, flops, gpu, plain
from bench.results import Results
from bench.rows import idle
from tests.conftest import PROJECT
from train.config import Recipe

ABSENT = ["ffcv", "jsonargparse", "matplotlib", "pandas", "sklearn", "tqdm", "wilds"]
"""Packages that a machine which is lent for a measurement may lack: torch, NumPy, SciPy and PyYAML are enough."""

WITHOUT = """
import runpy, sys
from importlib.machinery import PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
runpy.run_module("bench.gpu", run_name="__main__", alter_sys=True)
"""


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, command)], cwd=PROJECT, capture_output=True, text=True, timeout=900
    )


def content_of(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    content = json.loads(path.read_text())
    assert path.name.startswith(content["date"][:10])
    assert content["torch"] == torch.__version__
    assert content["device"]
    return content


@pytest.fixture(scope="module")
def gpu_bench(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What a miniature of every section writes and prints, where nothing but what it needs can be imported."""
    folder = tmp_path_factory.mktemp("results")
    done = run(
        "-c", WITHOUT.replace("{absent}", str(set(ABSENT))), "--device=cpu", "--tiny", "--rows=2", "--out", folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return content_of(folder), done.stdout


def test_the_gpu_bench_measures_rows_against_the_matmul(gpu_bench: tuple[dict[str, Any], str]) -> None:
    content, _ = gpu_bench
    networks = [(row["dataset"], row["network"]) for row in content["rows"]]
    assert networks.count(("cifar", "resnet9")) == 3
    assert networks.count(("fmow", "resnet18")) == 1
    assert networks.count(("digits", "convnet")) == 1
    for row in content["rows"]:
        rate = (row["training_flops"] + row["evaluation_flops"]) / row["seconds_per_row"]
        assert row["fraction_of_matmul"] == pytest.approx(rate / content["ceilings"]["matmul_flops"], rel=1e-3)
        assert row["fastest"] <= row["seconds_per_row"] <= row["slowest"]
        assert 0 <= row["idle"] <= row["idle_until_first_step"] < 1
        assert row["commit"] > 0


def test_the_gpu_bench_tells_parts_peers_kernels_and_accuracies(gpu_bench: tuple[dict[str, Any], str]) -> None:
    content, printed = gpu_bench
    (parts, _) = [row["parts"] for row in content["rows"] if "parts" in row]
    assert list(parts) == ["begin", "augment", "forward", "optimiser", "backward", "evaluation", "copy"]
    ours = content["rows"][0]["seconds_per_row"]
    for peer in content["peers"].values():
        assert peer["over_ours"] == pytest.approx(peer["seconds_per_row"] / ours, rel=1e-3)
    assert len(content["peers"]) == 2
    assert any("convolution" in kernel["name"] for kernel in content["profile"])
    assert content["accuracy"]["rows"] == 2
    last = printed[printed.rindex(content["device"]) :]
    assert all(
        word in last for word in ("matmul", "copy", "cifar", "fmow", "digits", "upstream", "airbench", "accuracy")
    )


def test_the_cpu_bench_measures_steps_against_the_matmul(tmp_path: Path) -> None:
    done = run("-m", "bench.cpu", "--tiny", "--threads=1", "--pairs=3", "--only", "phase", "profile", "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    content = content_of(tmp_path)
    (row,) = content["rows"]
    for kind in ("fraction_of_matmul", "fraction_of_bare", "fraction_of_matmul_of_cpu_time"):
        low, middle, high = row["quartiles"][kind]
        assert 0 < low <= middle == row[kind] <= high
    assert row["steps"] == 3
    assert content["profile"]


@pytest.mark.parametrize("options", [["--tiny"], ["--device=cpu"]])
def test_the_gpu_bench_refuses_what_it_cannot_measure_in_one_line(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_flops_are_those_of_the_layers() -> None:
    """Two for every multiplication and addition; three passes, but for the gradient with respect to the images."""
    sizes = [(3, 64, 3, 32), (64, 128, 5, 16), (128, 128, 3, 16), (128, 128, 3, 16)]
    sizes += [(128, 256, 3, 16), (256, 256, 3, 8), (256, 256, 3, 8), (256, 128, 3, 6)]
    layers = [2 * inputs * outputs * kernel**2 * side**2 for inputs, outputs, kernel, side in sizes]
    head = 2 * 128 * 10
    both, forward = flops.per_image(Recipe(), (32, 32, 3), 10)
    assert forward == sum(layers) + head
    assert both == 3 * (sum(layers) + head) - layers[0]


def test_a_group_counts_as_its_rows() -> None:
    recipe = Recipe(network="convnet", width=4)
    assert flops.per_image(replace(recipe, group=8), (8, 8, 1), 10) == flops.per_image(recipe, (8, 8, 1), 10)


def test_a_rows_flops_are_of_all_its_steps_and_views() -> None:
    setting = cases.setting("cifar", 0.5, tiny=True)
    dataset = cases.random_images("cifar", tiny=True)
    both, forward = flops.per_image(setting.recipe, (32, 32, 3), 10)
    assert flops.trained_images(setting, dataset) == 2 * 48
    assert flops.of_row(setting, dataset) == (2 * 48 * both, 2 * (96 + 32) * forward)


def test_idle_is_what_no_span_covers() -> None:
    assert idle([(0, 1), (1, 2)]) == 0
    assert idle([(0, 1), (3, 4)]) == 0.5
    assert idle([(0, 2), (1, 3), (1.5, 1.7), (3.5, 4)]) == pytest.approx(1 / 8)


def test_permutations_tell_means_apart_and_leave_equals_alone() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, 20), rng.normal(0, 1, 20)
    assert accuracy.permutation_test(a, b) > 0.05
    assert accuracy.permutation_test(a, b + 3) < 0.001


def test_results_are_never_overwritten(tmp_path: Path) -> None:
    results = Results(torch.device("cpu"), [])
    names = [results.write(tmp_path).name for _ in range(3)]
    assert len(set(names)) == 3
    assert names[1] == names[0].replace(".json", "-2.json")


def test_the_plain_loops_augmentation_moves_mirrors_and_covers() -> None:
    """Every image is a window of its padded self or of the mirror image of that, with a square of the fill in it."""
    torch.manual_seed(0)
    images = torch.randint(0, 256, (8, 12, 12, 3), dtype=torch.uint8)
    batches = plain.Batches(torch.device("cpu"))
    shown = batches.augment(images)
    for image, found in zip(images, shown, strict=True):
        padded = batches.fill.repeat(16, 16, 1)
        padded[2:14, 2:14] = image
        windows = [
            each[y : y + 12, x : x + 12] for each in (padded, padded.flip(1)) for y in range(5) for x in range(5)
        ]
        differing = [(window != found).any(-1) for window in windows]
        best = min(differing, key=lambda mask: int(mask.sum()))
        rows, columns = best.any(1).nonzero(), best.any(0).nonzero()
        assert int(rows.max() - rows.min()) < 4
        assert int(columns.max() - columns.min()) < 4
        assert (found[best] == batches.fill).all()
