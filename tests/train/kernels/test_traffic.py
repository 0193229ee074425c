import sys

import pytest

from bench import kernels
from bench.traffic import counted, own_norm, torch_norm, units

PIXELS = [(64, 32), (128, 16), (128, 16), (128, 16), (256, 16), (256, 8), (256, 8), (128, 6)]
"""Channels and side of what ResNet-9's convolutions make."""


def test_units_have_the_networks_sizes() -> None:
    layers = list(units(512))
    assert [unit.made for unit in layers] == [512 * channels * side**2 for channels, side in PIXELS]
    assert [unit.taken for unit in layers[1:]] == [unit.left for unit in layers[:-1]]


def test_passes_over_an_activation_are_those_of_the_operations() -> None:
    plain, residual = next(units(1)), list(units(1))[3]
    assert own_norm(plain) == 2 * 8 * plain.made
    assert torch_norm(plain) == 2 * 13 * plain.made
    assert own_norm(residual) == 2 * 9 * residual.made


def test_own_kernels_move_less_everywhere() -> None:
    table = counted(512)
    assert all(own <= plain for plain, own in table.values())
    assert sum(own for _, own in table.values()) < 0.7 * sum(plain for plain, _ in table.values())


def test_kernels_are_timed_at_every_size_of_the_network(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["kernels", "--batch", "2", "--rounds", "1"])
    kernels.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + len(set(PIXELS)) + 2  # two sizes have units with and without a residual
