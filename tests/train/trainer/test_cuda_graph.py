"""Capturing a step: nothing of torch.cuda is real here, but the order in which it is asked."""

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from datamodels.train.trainer.cuda_graph import WARM_UP, captured


class Graph:
    """Counts how often it is replayed."""

    def __init__(self) -> None:
        self.replayed = 0

    def replay(self) -> None:
        self.replayed += 1


class Owner:
    """Has a step that it replays, as an engine has."""

    def __init__(self) -> None:
        self.calls: list[bool] = []
        self.step = captured(self.one_step, torch.device("cuda"))

    def one_step(self) -> None:
        self.calls.append(gc.isenabled())


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Graph]:
    """The graphs that were captured."""
    made: list[Graph] = []

    @contextlib.contextmanager
    def capture(graph: Graph, **_: Any) -> Iterator[None]:
        made.append(graph)
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: mock.Mock())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return made


def test_a_captured_function_is_replayed_and_not_called(graphs: list[Graph]) -> None:
    owner = Owner()
    calls = len(owner.calls)
    owner.step()
    assert calls == len(owner.calls) == WARM_UP + 1
    assert [graph.replayed for graph in graphs] == [1]


def test_no_garbage_is_collected_during_a_capture() -> None:
    owner = Owner()
    assert owner.calls == [True] * WARM_UP + [False]
    assert gc.isenabled()


def test_a_graph_dies_with_its_owner(graphs: list[Graph]) -> None:
    owner = Owner()
    graph = weakref.ref(graphs.pop())
    gc.disable()
    try:
        del owner
        assert graph() is None
    finally:
        gc.enable()


def refused(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A capture that an operation of the step ends, after which torch finds that it has ended."""
    try:
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
    finally:
        raise RuntimeError("capture_end: the capture was invalidated")


def test_what_cannot_be_captured_is_called_and_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[int] = []
    step = captured(lambda: calls.append(1), torch.device("cuda", 1), refused)
    assert len(calls) == WARM_UP
    step()
    assert len(calls) == WARM_UP + 1
    told = "a step cannot be captured on cuda:1, and is launched operation by operation: operation not permitted when "
    assert capsys.readouterr().err == told + "stream is capturing\n"


def test_a_lack_of_memory_and_a_steps_own_errors_are_raised() -> None:
    def lacking(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        finally:
            raise RuntimeError("capture_end: the capture was invalidated")

    def wrong() -> None:
        raise RuntimeError("no such image")

    with pytest.raises(torch.OutOfMemoryError):
        captured(lambda: None, torch.device("cuda"), lacking)
    with pytest.raises(RuntimeError, match="no such image"):
        captured(wrong, torch.device("cuda"))
