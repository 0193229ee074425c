"""The benches of training run, in miniature, and count and compare as they say."""

import json
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import cases, flops, gpu, plain
from bench.results import Results
from bench.rows import Measured, Rows, differing, idle
from datamodels.train.config import Recipe
from datamodels.train.store import RowResult
from tests.conftest import PROJECT

ABSENT = ["ffcv", "matplotlib", "pandas", "sklearn", "tqdm", "wilds"]
"""Packages that a measurement on a GPU can do without."""

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
    done = run("-c", WITHOUT.replace("{absent}", str(set(ABSENT))), "--device=cpu", "--tiny", "--out", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return content_of(folder), done.stdout


def test_the_gpu_bench_measures_rows_against_the_matmul(gpu_bench: tuple[dict[str, Any], str]) -> None:
    content, _ = gpu_bench
    networks = [(row["dataset"], row["network"]) for row in content["rows"]]
    assert networks.count(("cifar", "resnet9")) == 3
    assert networks.count(("fmow", "resnet18")) == 1
    assert networks.count(("digits", "convnet")) == 2
    assert content["failed"] == []
    assert (content["tiny"], content["on_gpu"]) == (True, False)
    for row in content["rows"]:
        rate = (row["training_flops"] + row["evaluation_flops"]) / row["seconds_per_row"]
        assert row["fraction_of_matmul"] == pytest.approx(rate / content["ceilings"]["matmul_flops"], rel=1e-3)
        assert row["fastest"] <= row["seconds_per_row"] <= row["slowest"]
        assert 0 <= row["idle_between_rows"] < 1
        assert row["commit"] > 0


def test_the_gpu_bench_measures_peers_kernels_and_whether_rows_repeat(gpu_bench: tuple[dict[str, Any], str]) -> None:
    content, printed = gpu_bench
    ours = content["rows"][0]["seconds_per_row"]
    for peer in content["peers"].values():
        assert peer["over_ours"] == pytest.approx(peer["seconds_per_row"] / ours, rel=1e-3)
        assert peer["fastest"] <= peer["seconds_per_row"] <= peer["slowest"]
        assert peer["rows"] == 1
    assert [name for name in content["peers"] if "reduce-overhead" in name]
    assert len(content["peers"]) == 2
    assert any("convolution" in kernel["name"] for kernel in content["profile"]["torch"])
    assert content["check"]["kernels"] == "torch"
    assert list(content["keep"]["seconds_per_row"]) == ["torch", "compiled"]
    assert list(content["section_seconds"]) == list(gpu.SECTIONS)
    assert [each["network"] for each in content["repeat"]] == ["resnet9", "resnet18", "convnet"]
    assert all(each["differing_again"] == each["differing_beside_another"] == 0 for each in content["repeat"])
    assert [each["steps"] for each in content["repeat"]] == [12, 2, 12]
    last = printed[printed.rindex(content["device"]) :]
    words = ("tests: exit code 0", "matmul", "copy", "cifar", "fmow", "digits", "upstream", "airbench", "section keep")
    assert all(word in last for word in words)


def test_triton_stays_where_it_is_ahead_of_both_others_by_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = gpu.Bench(Namespace(seconds=1e3, tiny=True, out=tmp_path), torch.device("cpu"))
    monkeypatch.setattr(gpu.Bench, "kernels", replace(gpu.TORCH, name="triton"))
    for seconds, verdict in (({"triton": 2.7, "torch": 3.0, "compiled": 3.0}, "stay"), ({"triton": 2.8}, "go")):
        taken = {"torch": 3.2, "compiled": 3.0, **seconds}
        monkeypatch.setattr(
            gpu.Bench,
            "rows",
            lambda bench, setting, budget, kernels: {"kernels": kernels.name, "seconds_per_row": taken[kernels.name]},  # noqa: B023
        )
        bench.section("keep")
        assert f"Triton's kernels {verdict}: a row takes" in capsys.readouterr().out
    assert bench.results.content["keep"]["triton_ahead"] == pytest.approx(1 - 2.8 / 3.0)


def gpu_in_process(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """Exit code and file of a miniature in this process."""
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device=cpu", "--tiny", "--out", str(folder), *options])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    return int(str(ended.value.code)), content_of(folder)


def test_what_raises_an_error_ends_alone_and_is_recorded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = gpu.measure

    def failing(rows: Rows, budget: float, most: int) -> Measured:
        if rows.setting.dataset == "cifar":
            raise RuntimeError("no luck\nat all")
        return measure(rows, budget, most)

    monkeypatch.setattr(gpu, "measure", failing)
    monkeypatch.setattr(gpu, "profiled", lambda *_, **__: 1 / 0)
    code, content = gpu_in_process(monkeypatch, tmp_path, "--only", "profile", "streams")
    assert code == 1
    assert {row["dataset"] for row in content["rows"]} == {"digits"}
    assert [each["what"] for each in content["failed"]] == [
        "profile",
        *(f"cifar 50 %, resnet9, kernels torch, {streams} at once" for streams in (1, 2)),
    ]
    assert content["failed"][1]["why"] == "RuntimeError: no luck"
    assert "profile FAILED: ZeroDivisionError" in capsys.readouterr().out


def test_what_there_is_no_time_for_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Namespace(seconds=0.0, tiny=False, out=tmp_path)
    bench = gpu.Bench(options, torch.device("cpu"))
    for name in ("repeat", "profile"):
        bench.section(name)
    found = content_of(tmp_path)
    assert found["left_out"] == ["repeat cifar", "repeat fmow", "repeat digits", "profile, kernels torch"]
    assert found["failed"] == []
    assert capsys.readouterr().out.count("left out, ") == 4


def test_other_bytes_are_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = {"network": "convnet", "steps": 1, "values": 9, "differing_again": 0, "differing_beside_another": 3}
    monkeypatch.setattr(gpu, "repeated", lambda setting, dataset, executor: found)
    code, content = gpu_in_process(monkeypatch, tmp_path, "--only", "repeat")
    assert (code, content["failed"][0]["why"]) == (1, "a row came out with other bytes")


def test_values_differ_where_their_bytes_do() -> None:
    def row(*values: float) -> RowResult:
        return RowResult(0, {"test_margins": np.array(values, np.float16)}, 1.0, 0.5, 0.5)

    assert differing([row(1, np.nan)], [row(1, np.nan)]) == 0
    assert differing([row(1, 0.0, 2)], [row(1, -0.0, 2.002)]) == 2


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


def test_a_run_writes_its_own_file_again_and_never_anothers(tmp_path: Path) -> None:
    runs = [Results(torch.device("cpu"), [], tmp_path) for _ in range(3)]
    paths = [run.write() for run in runs]
    assert len(set(paths)) == 3
    assert paths[1].name == paths[0].name.replace(".json", "-2.json")
    runs[1].content["rows"].append({"alpha": 0.5})
    assert runs[1].write() == paths[1]
    assert [len(json.loads(path.read_text())["rows"]) for path in paths] == [0, 1, 0]
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_miniatures_have_a_folder_of_their_own() -> None:
    assert Results(torch.device("cpu"), [], tiny=True).folder == PROJECT / "bench" / "results" / "tiny"
    assert "bench/results/tiny/" in (PROJECT / ".gitignore").read_text().splitlines()


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
