import warnings
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch

from datamodels.train.config import Recipe
from datamodels.train.trainer.device import environment
from datamodels.train.trainer.executor import keep_float32

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_bytes_depend_on_the_kernels_compiler() -> None:
    assert environment(Recipe(), CPU)["versions"]["triton"] == version("triton")


def test_bytes_of_a_gpu_depend_on_cudnn_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    assert environment(Recipe(), GPU)["versions"]["cudnn"] == "91002"
    assert "cudnn" not in environment(Recipe(), CPU)["versions"]


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
    monkeypatch: pytest.MonkeyPatch, recipe: Recipe, device: torch.device, arithmetic: int
) -> None:
    """So that `verify --retrain` still compares them byte for byte."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert environment(recipe, device)["arithmetic"] == arithmetic
