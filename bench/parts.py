"""Where a row's time on the device goes: each part by itself, replayed as the trainer replays it.

Seconds of one row. `begin` is tables and initial state with the host's work for them, which in a run overlaps the row
before; augment, forward and optimiser are captured and replayed alone, many times; backward is what a row's steps take
beyond these three. Parts alone find their inputs in the cache more often than in a step, so that backward is rather
over- than understated. `copy` is margins, float16 and the way to the host.
"""

from collections.abc import Callable

import torch

from bench.timing import median_seconds, seconds
from datamodels.train.trainer.cuda_graph import Replay
from datamodels.train.trainer.device import fetched, on_gpu
from datamodels.train.trainer.trainer import Trainer, margin


def never() -> bool:
    return False


def parts_of(trainer: Trainer, repeats: int) -> dict[str, float]:
    """Seconds a row of each part, on a stream of its own: graphs are not captured on the default one."""
    if not on_gpu(trainer.device):
        return Parts(trainer, repeats).measure()
    torch.cuda.synchronize(trainer.device)
    with torch.cuda.stream(torch.cuda.Stream(trainer.device)):
        found = Parts(trainer, repeats).measure()
    torch.cuda.synchronize(trainer.device)
    return found


class Parts:
    """One lane of a trainer that trains nothing meanwhile. Elsewhere than on a GPU, plain calls are timed."""

    def __init__(self, trainer: Trainer, repeats: int) -> None:
        self.trainer, self.lane, self.device, self.repeats = trainer, trainer.lanes[0], trainer.device, repeats
        self.rows = range(trainer.recipe.group)
        self.plan = trainer.plan(self.rows, [trainer.masks[row] for row in self.rows])
        self.steps = self.plan.order_GSB.shape[1]
        self.order, self.draws = (
            torch.from_numpy(table[:, 0].copy()).to(self.device) for table in (self.plan.order_GSB, self.plan.draws_GSB)
        )
        feed = trainer.shared.feeds["train"]
        self.place = self.order
        if feed.kept is None:  # images are sent batch by batch: room for a batch
            self.place = torch.arange(self.order.numel(), device=self.device).view_as(self.order)
        self.images = feed.empty(self.order.numel()) if feed.kept is None else feed.kept

    def measure(self) -> dict[str, float]:
        lane, recipe, labels = self.lane, self.trainer.recipe, self.trainer.shared.labels
        begin = self._timed(self._begin)
        train = self._timed(lambda: lane.train(never), before=self._begin)
        lane.network.train()
        batch = self._augmented()
        lr = torch.zeros(recipe.group, device=self.device)
        steps = {
            "augment": self._replayed(self._augmented),
            "forward": self._replayed(lambda: self._loss(batch)),
            "optimiser": self._replayed(lambda: lane.parameters.step(lr, recipe.momentum, recipe.weight_decay)),
        }
        found = {"begin": begin, **{name: self.steps * taken for name, taken in steps.items()}}
        found["backward"] = train - self.steps * sum(steps.values())
        found["evaluation"] = self._timed(lambda: [lane.evaluate(split, never) for split in labels])
        found["copy"] = self._copy()
        return {name: taken / recipe.group for name, taken in found.items()}

    def _begin(self) -> None:
        self.lane.begin(self.plan, self.rows)

    def _augmented(self) -> torch.Tensor:
        return self.lane._augment(self.images, self.place, self.draws)

    def _loss(self, images: torch.Tensor) -> torch.Tensor:
        labels = self.trainer.shared.labels["train"][self.order]
        return self.lane._losses(self.lane._forward(images), labels).sum()

    def _copy(self) -> float:
        labels = self.trainer.shared.labels
        logits = {split: self.lane.evaluate(split, never) for split in labels}

        def copied() -> None:
            for split, value in logits.items():
                for kind in (margin(value, labels[split]), value):
                    fetched(kind.abs().flatten(1).amax(1), self.device)
                    fetched(kind.half(), self.device)

        return self._timed(copied)

    def _replayed(self, function: Callable[[], object]) -> float:
        def call() -> None:
            function()

        replay = Replay(call, self.device)
        replay.prepare()
        return seconds(replay, self.device, self.repeats, each=10)

    def _timed(self, work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        return median_seconds(work, self.device, 3, before)
