import warnings
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch

from datamodels.train.config import Recipe
from datamodels.train.trainer.device import describe, environment, precision
from datamodels.train.trainer.executor import Executor, keep_float32
from tests.train.trainer.fake_gpu import FakeGpu

CPU, GPU = Executor(torch.device("cpu")), FakeGpu(torch.device("cuda", 0), (9, 0))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_bytes_depend_on_the_kernels_compiler() -> None:
    assert environment(Recipe(), CPU, "torch")["versions"]["triton"] == version("triton")


def test_bytes_of_a_gpu_depend_on_cudnn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    assert environment(Recipe(), GPU, "triton")["versions"]["cudnn"] == "91002"
    assert "cudnn" not in environment(Recipe(), CPU, "torch")["versions"]


def test_a_gpu_records_its_kernels_and_a_cpu_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert environment(Recipe(), GPU, "triton")["kernels"] == "triton"
    assert "kernels" not in environment(Recipe(), CPU, "torch"), "rows of a CPU keep the environment that they had"


@pytest.mark.parametrize(("capability", "chosen"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_half_precision_goes_by_compute_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], chosen: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    executor = FakeGpu(torch.device("cuda", 0), capability)
    assert precision(Recipe(), executor) == chosen
    assert precision(Recipe(precision="float32"), executor) == torch.float32
    name = str(chosen).removeprefix("torch.")
    told = f"cuda:0: a GPU, compute capability {capability[0]}.{capability[1]}, {name}, kernels torch"
    assert describe(Recipe(), executor, "torch") == told


def test_asking_for_float32_warns_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def __setattr__(self, name: str, value: object) -> None:
            warnings.warn(f"{name} is deprecated", UserWarning, stacklevel=2)
            object.__setattr__(self, name, value)

    monkeypatch.setattr(torch.backends, "cudnn", Old())
    keep_float32()
    assert torch.backends.cudnn.allow_tf32 is False


@pytest.mark.parametrize(
    ("recipe", "device", "arithmetic"),
    [
        (Recipe(precision="float32"), CPU, 2),
        (Recipe(precision="bfloat16"), CPU, 3),
        (Recipe(network="convnet", precision="bfloat16"), CPU, 2),
        (Recipe(network="resnet18", precision="float32"), GPU, 3),
        (Recipe(network="convnet", precision="float32"), GPU, 2),
    ],
)
def test_rows_whose_bytes_did_not_change_keep_their_arithmetic(
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, device: Executor, arithmetic: int
) -> None:
    """So that `verify --retrain` still compares them byte for byte."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert environment(recipe, device, "torch")["arithmetic"] == arithmetic
