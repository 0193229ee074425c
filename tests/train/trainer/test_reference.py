"""The trainer against a plain statement of the recipe: exported modules, torch's optimiser and schedule, in float32.

Same order, same augmented images, same initial weights; what differs is how the trainer computes: its units, flat
parameters, precision, schedule and evaluation with folded batch norm. With a GPU, all of it runs there too.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp, permutation_test
from torch import Tensor
from torch.nn import functional as F

from datamodels.launch.export import network as plain
from datamodels.train.config import Data, Recipe, Setting
from datamodels.train.data.sources import Dataset, Split
from datamodels.train.errors import Interrupted
from datamodels.train.store.writer import RowResult
from datamodels.train.trainer.engine import FP16_LOSS_SCALE
from datamodels.train.trainer.trainer import Trainer, margin
from tests.conftest import any_algorithm
from tests.train.trainer.fake_gpu import Eager

DEVICES = ["cpu", *(["cuda:0"] if torch.cuda.is_available() else [])]
WIDTH = 8
ABOUT = {"network": "resnet9", "width": WIDTH, "image": [32, 32, 3], "classes": 4, "tta": "none"}
ABOUT |= {"dtype": "uint8", "mean": [0], "std": [1]}
PRECISIONS = ["float32", "bfloat16", "float16"]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Four kinds of blurred noise, which a narrow network tells apart most of the time."""
    rng = np.random.default_rng(0)
    labels = np.arange(640) % 4
    tint = rng.normal(0, 1, (4, 1, 1, 3))
    images = rng.normal(0, 1, (640, 8, 8, 3)).repeat(4, 1).repeat(4, 2) + 0.55 * tint[labels]
    images = np.clip(125 + 40 * images, 0, 255).astype(np.uint8)
    train, test = Split(images[:256], labels[:256]), Split(images[256:], labels[256:])
    return Dataset(train, test, tuple("abcd"), (125.3, 123.0, 113.9), (51.6, 50.8, 51.3), "here")


def setting(precision: str, **changes: object) -> Setting:
    recipe = Recipe(
        **{"width": WIDTH, "epochs": 6, "peak_epoch": 1.5, "batch": 32, "lr": 0.02, "threads": 1, **changes},
        precision=precision,
    )
    return Setting(alpha=0.5, models=1000, eval_models=0, recipe=recipe, data=Data())


class Reference:
    """One row, trained plainly on the images that the trainer's own tables name."""

    def __init__(self, trainer: Trainer, row: int) -> None:
        self.trainer, engine = trainer, trainer.engines[0]
        self.schedule = trainer.draw(range(row, row + 1)).schedule
        engine.parameters.reset(trainer.setting.seed, range(row, row + 1))
        self.network = plain.build(ABOUT).train().to(trainer.device)
        self.network.load_state_dict({name: value.float() for name, value in engine.network.state_dict().items()})
        recipe = trainer.recipe
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=1.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
        corners = np.array([0, recipe.peak_epoch, recipe.epochs]) * (self.steps / recipe.epochs)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: recipe.lr * float(np.interp(step, corners, [0, 1, 0]))
        )

    @property
    def steps(self) -> int:
        return self.schedule.steps

    def loss(self, step: int, precision: torch.dtype = torch.float32) -> Tensor:
        """In a lower precision by torch's autocast."""
        shared, device = self.trainer.shared, self.trainer.device
        order, draws = (
            torch.from_numpy(table[:, step]).to(device) for table in (self.schedule.order_GSB, self.schedule.draws_GSB)
        )
        bordered, augment = shared.loaders["train"].resident, shared.augment
        assert bordered is not None
        images = augment.normalise(augment.augmented(bordered, order, draws))[0]
        labels = shared.labels["train"][order][0]
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = self.network.logits(images.permute(0, 3, 1, 2)).float()
        return F.cross_entropy(logits, labels, label_smoothing=self.trainer.recipe.label_smoothing)

    @any_algorithm()
    def gradients(self, precision: torch.dtype = torch.float32) -> list[Tensor]:
        """Of the first step's loss, in the order of the trainer's parameters."""
        return list(torch.autograd.grad(self.loss(0, precision), list(self.network.parameters())))

    @any_algorithm()
    def train(self, steps: int | None = None) -> list[float]:
        """The loss of every step."""
        losses = []
        for step in range(steps or self.steps):
            self.optimizer.zero_grad()
            loss = self.loss(step)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.item())
        return losses

    @torch.no_grad()
    def margins(self) -> NDArray[np.float32]:
        """Test margins, averaged over an image and its mirror image."""
        self.network.eval()
        split, shared = self.trainer.shared.loaders["test"], self.trainer.shared
        images = torch.cat([shared.augment.normalise(batch) for batch in split.in_order(1000)]).permute(0, 3, 1, 2)
        logits = (self.network.logits(images) + self.network.logits(images.flip(3))) / 2
        return margin(logits, shared.labels["test"]).cpu().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_gradient_of_every_layer_is_the_references(dataset: Dataset, precision: str, device: str) -> None:
    """Equal in float32; in half precision as near to it as torch's autocast, whose roundings turn other maxima too."""
    trainer = Trainer(setting(precision), dataset, torch.device(device))
    reference = Reference(trainer, 3)
    exact, cast = reference.gradients(), reference.gradients(getattr(torch, precision))
    whole = reference.schedule
    first = replace(whole, order_GSB=whole.order_GSB[:, :1], draws_GSB=whole.draws_GSB[:, :1], lr_GS=whole.lr_GS[:, :1])
    engine, scale = trainer.engines[0], FP16_LOSS_SCALE if precision == "float16" else 1.0
    engine.begin(first, range(3, 4))
    engine.train(lambda: False)
    for mine, expected, theirs in zip(engine.parameters.grads, exact, cast, strict=True):
        error, bound = (
            torch.linalg.norm(found - expected) / torch.linalg.norm(expected) for found in (mine / scale, theirs)
        )
        assert error <= 1.5 * bound + 1e-4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("precision", "apart"), [("float32", 1e-3), ("bfloat16", 0.02), ("float16", 0.01)])
def test_loss_curves_agree_over_the_first_epoch(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, precision: str, apart: float, device: str
) -> None:
    # On a GPU without graphs: a replayed step records nothing.
    executor = torch.device("cpu") if device == "cpu" else Eager(torch.device(device))
    trainer = Trainer(setting(precision, epochs=2, peak_epoch=1.0), dataset, executor)
    reference = Reference(trainer, 0)
    losses: list[Tensor] = []
    (engine,) = trainer.engines
    parameters = engine.parameters
    backward = parameters.backward

    def record(loss: Tensor) -> None:
        losses.append(loss.detach() / (FP16_LOSS_SCALE if precision == "float16" else 1.0))
        backward(loss)

    monkeypatch.setattr(parameters, "backward", record)
    epoch = reference.steps // 2
    engine.begin(reference.schedule, range(1))
    with pytest.raises(Interrupted):
        engine.train(lambda: len(losses) == epoch)
    np.testing.assert_allclose(torch.stack(losses).cpu().numpy(), reference.train(epoch), rtol=apart)


def test_float32_rows_end_where_the_reference_does(dataset: Dataset) -> None:
    trainer = Trainer(setting("float32"), dataset, torch.device("cpu"))
    reference = Reference(trainer, 5)
    result = trainer(5)[0]
    assert isinstance(result, RowResult)
    losses = reference.train()
    assert losses[-1] < 0.9 * losses[0]
    apart = np.abs(result.arrays["test_margins"].astype(np.float64) - reference.margins())
    assert np.median(apart) < 0.01


ROWS = 20
"""Rows a sample: a difference of 1.1 standard deviations is found with a chance of 0.8 at this test's level."""


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", ["bfloat16"])
def test_accuracies_over_rows_have_the_references_distribution(dataset: Dataset, precision: str, device: str) -> None:
    trainer = Trainer(setting(precision), dataset, torch.device(device))
    results = [trainer(row)[0] for row in range(ROWS)]
    ours = np.array([result.accuracy for result in results if isinstance(result, RowResult)])
    theirs = []
    for row in range(ROWS, 2 * ROWS):
        reference = Reference(trainer, row)
        reference.train()
        theirs.append(float((reference.margins() > 0).mean()))
    assert len(ours) == ROWS
    assert 0.5 < np.mean(theirs) < 0.98, "a test says something only where there is room on both sides"
    assert ks_2samp(ours, theirs).pvalue > 0.01
    means = permutation_test((ours, theirs), lambda a, b: np.mean(a) - np.mean(b), n_resamples=9999, rng=0)
    assert means.pvalue > 0.01
