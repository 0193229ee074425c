import math

import numpy as np
import pytest
import torch
from torch import nn

from datamodels.train.config import Recipe
from datamodels.train.errors import UserError
from datamodels.train.trainer.models import ConvNet, build, check
from datamodels.train.trainer.optimizer import FlatParameters, reset_statistics

CPU = torch.device("cpu")


def resnet9(width: int = 64) -> nn.Module:
    return build(Recipe(width=width), (32, 32, 3), 10)


def test_resnet9_has_the_published_number_of_parameters() -> None:
    assert sum(parameter.numel() for parameter in resnet9().parameters()) == 2_274_880


def test_parameters_are_views_of_one_tensor() -> None:
    network = resnet9(8)
    parameters = FlatParameters(network, 1, CPU)
    parameters.value.fill_(3.0)
    assert all((parameter == 3).all() for parameter in network.parameters())
    parameters.backward(network(torch.randn(1, 4, 32, 32, 3)).sum())
    assert parameters.grad.abs().sum() > 0
    assert network.convs[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_initial_values_follow_pytorchs_defaults() -> None:
    network = resnet9(32)
    parameters = FlatParameters(network, 1, CPU)
    parameters.reset(3, range(7, 8))
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()


def test_resnet18_starts_as_torchvisions_does() -> None:
    network = build(Recipe(network="resnet18"), (64, 64, 3), 62)
    FlatParameters(network, 1, CPU).reset(0, range(1))
    weight = network.body.layer1[0].conv1.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert weight.mean().abs().item() < 1e-3
    assert weight.abs().max() > 3 * weight.std()
    assert network.head.weight.abs().max() <= 1 / math.sqrt(512)


def test_a_row_starts_the_same_alone_and_in_a_group() -> None:
    group, alone = ConvNet(3, 4, (8, 8, 1), 10), ConvNet(1, 4, (8, 8, 1), 10)
    FlatParameters(group, 3, CPU).reset(5, range(6, 9))
    FlatParameters(alone, 1, CPU).reset(5, range(7, 8))
    x = torch.randn(1, 5, 8, 8, 1)
    torch.testing.assert_close(group(x)[1], alone(x)[0])


def test_rows_of_a_group_do_not_touch_each_other() -> None:
    network = ConvNet(3, 4, (8, 8, 1), 10)
    parameters = FlatParameters(network, 3, CPU)
    parameters.reset(5, range(3))
    images = torch.randn(3, 6, 8, 8, 1)
    parameters.backward(network(images)[1].square().sum())
    assert (parameters.grad[parameters.row != 1] == 0).all()
    assert parameters.grad[parameters.row == 1].abs().sum() > 0


def test_shared_images_give_what_copies_for_every_row_give() -> None:
    network = ConvNet(3, 4, (8, 8, 1), 10)
    FlatParameters(network, 3, CPU).reset(5, range(3))
    images = torch.randn(1, 6, 8, 8, 1)
    torch.testing.assert_close(network(images), network(images.expand(3, 6, 8, 8, 1)))


@pytest.mark.parametrize("group", [1, 3])
def test_steps_equal_torchs_sgd(group: int) -> None:
    network = ConvNet(group, 4, (8, 8, 1), 10)
    parameters = FlatParameters(network, group, CPU)
    parameters.reset(5, range(group))
    copies = [parameter.detach().clone().requires_grad_() for parameter in network.parameters()]
    reference = torch.optim.SGD(copies, lr=0.1, momentum=0.9, weight_decay=5e-4)
    for lr in (0.1, 0.3, 0.2):
        parameters.backward(network(torch.randn(group, 6, 8, 8, 1)).square().mean())
        for copy, grad in zip(copies, parameters.grads, strict=True):
            copy.grad = grad.clone()
        reference.param_groups[0]["lr"] = lr
        reference.step()
        parameters.step(torch.full((group,), lr), 0.9, 5e-4)
        for copy, parameter in zip(copies, network.parameters(), strict=True):
            torch.testing.assert_close(copy, parameter)


@pytest.mark.parametrize("group", [1, 3])
def test_flat_tensors_are_filled_up_with_zeros_that_stay(group: int) -> None:
    network = ConvNet(group, 5, (8, 8, 1), 10)
    parameters = FlatParameters(network, group, CPU)
    parameters.reset(5, range(group))
    for _ in range(2):
        parameters.backward(network(torch.randn(group, 6, 8, 8, 1)).square().mean())
        parameters.step(torch.full((group,), 0.1), 0.9, 5e-4)
    tensors = parameters.value, parameters.grad, parameters.momentum
    assert parameters.size == sum(parameter.numel() for parameter in network.parameters())
    assert all(len(tensor) % 16 == 0 < len(tensor) - parameters.size for tensor in tensors)
    assert not any(tensor[parameters.size :].any() for tensor in tensors)


def test_gradients_of_one_precision_are_copied_together(monkeypatch: pytest.MonkeyPatch) -> None:
    network, copied = resnet9(8), []
    parameters = FlatParameters(network, 1, CPU, torch.bfloat16)
    parameters.reset(0, range(1))
    copy = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda homes, new: (copied.append(new), copy(homes, new)))
    parameters.backward(network(torch.randn(1, 4, 32, 32, 3, dtype=torch.bfloat16)).sum())
    assert [{tensor.dtype for tensor in new} for new in copied] == [{torch.bfloat16}, {torch.float32}]
    assert sum(map(len, copied)) == len(parameters.grads) == 25
    assert all(grad.any() for grad in parameters.grads)


def test_a_learning_rate_of_zero_leaves_a_row_as_it_is() -> None:
    network = ConvNet(2, 4, (8, 8, 1), 10)
    parameters = FlatParameters(network, 2, CPU)
    parameters.reset(5, range(2))
    before = parameters.value.clone()
    parameters.backward(network(torch.randn(2, 6, 8, 8, 1)).square().mean())
    parameters.step(torch.tensor([0.0, 0.1]), 0.9, 5e-4)
    changed = parameters.value != before
    assert not changed[parameters.row == 0].any()
    assert changed[parameters.row == 1].float().mean() > 0.99, "an update may be below its rounding"


def test_resetting_leaves_no_trace_of_earlier_rows() -> None:
    network = resnet9(8)
    parameters = FlatParameters(network, 1, CPU)
    parameters.reset(0, range(1))
    fresh = [tensor.clone() for tensor in network.state_dict().values()]
    parameters.backward(network(torch.randn(1, 8, 32, 32, 3)).sum())
    parameters.step(torch.tensor([0.1]), 0.9, 0.0)
    parameters.reset(0, range(1))
    reset_statistics(network)
    for before, after in zip(fresh, network.state_dict().values(), strict=True):
        np.testing.assert_array_equal(before.numpy(), after.numpy())
    assert (parameters.momentum == 0).all()


@pytest.mark.parametrize(
    ("recipe", "shape", "batch", "told"),
    [
        (Recipe(), (8, 8, 1), 512, "recipe.network is 'resnet9', which cannot train on 512 images of 8 x 8 pixels"),
        (Recipe(network="resnet18"), (32, 32, 3), 1, "recipe.network is 'resnet18', which cannot train on 1 images"),
        (Recipe(cutout=40), (32, 48, 3), 512, "recipe.cutout is 40, expected at most the side of the 48 x 32 images"),
    ],
)
def test_a_recipe_that_cannot_train_on_the_images_is_refused(
    recipe: Recipe, shape: tuple[int, ...], batch: int, told: str
) -> None:
    with pytest.raises(UserError, match=f"^{told}"):
        check(recipe, shape, 10, batch)


@pytest.mark.parametrize(
    ("recipe", "shape"),
    [
        (Recipe(), (32, 32, 3)),
        (Recipe(network="resnet18"), (64, 64, 3)),
        (Recipe(network="convnet", group=64), (8, 8, 1)),
    ],
)
def test_a_recipe_that_can_is_not(recipe: Recipe, shape: tuple[int, ...]) -> None:
    check(recipe, shape, 10, 512)
