"""One measured setting: what it is, what its seconds mean, and how both are told."""

from collections.abc import Sequence
from typing import Any

from bench import flops
from datamodels.launch.text import counted
from datamodels.train.config import Setting
from datamodels.train.data.sources import Dataset


def name_of(setting: Setting, streams: int) -> str:
    recipe = setting.recipe
    words = [f"{setting.dataset} {setting.pct} %", recipe.network]
    if recipe.network != "resnet18":
        words.append(f"width {recipe.width}")
    if recipe.group > 1:
        words.append(f"{recipe.group} rows in a group")
    return ", ".join([*words, counted(streams, "stream")])


def identity(setting: Setting, dataset: Dataset, streams: int) -> dict[str, Any]:
    recipe = setting.recipe
    return {
        "dataset": setting.dataset,
        "alpha": setting.alpha,
        "network": recipe.network,
        "width": recipe.width,
        "group": recipe.group,
        "epochs": recipe.epochs,
        "batch": recipe.batch,
        "eval_batch": recipe.eval_batch,
        "tta": setting.tta,
        "streams": streams,
        "train_images": len(dataset.train.labels),
        "test_images": len(dataset.test.labels),
    }


def rates(entry: dict[str, Any], setting: Setting, dataset: Dataset, matmul: float) -> dict[str, float]:
    """What a row's seconds mean in FLOP/s; of its training alone too, where its parts were measured."""
    training, evaluation = flops.of_row(setting, dataset)
    rate = (training + evaluation) / entry["seconds_per_row"]
    found = {
        "training_flops": training,
        "evaluation_flops": evaluation,
        "flops_per_second": rate,
        "fraction_of_matmul": rate / matmul,
        "training_images_per_second": flops.trained_images(setting, dataset) / entry["seconds_per_row"],
    }
    if parts := entry.get("parts"):
        steps = sum(parts[name] for name in ("augment", "forward", "backward", "optimiser"))
        found["training_fraction_of_matmul"] = training / steps / matmul
    return found


def describe(entry: dict[str, Any]) -> str:
    return (
        f"{entry['seconds_per_row']:.4f} s a row (n = {entry['rows']}, {entry['fastest']:.4f} to "
        f"{entry['slowest']:.4f}), {entry['training_images_per_second']:,.0f} images/s, "
        f"{entry['flops_per_second'] / 1e12:.3g} TFLOP/s, {entry['fraction_of_matmul']:.1%} of matmul; idle from "
        f"a row's end to the next one's first step {entry['idle_between_rows']:.2%}; commit "
        f"{1e3 * entry['commit']:.0f} ms"
    )


def fastest_streams(entries: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of settings that were measured with several numbers of streams: seconds a row by number, and the fastest one."""
    keys = ("dataset", "alpha", "network", "width", "group")
    seconds: dict[tuple[Any, ...], dict[int, float]] = {}
    for entry in entries:
        seconds.setdefault(tuple(entry[key] for key in keys), {})[entry["streams"]] = entry["seconds_per_row"]
    return [
        {
            **dict(zip(keys, setting, strict=True)),
            "seconds_per_row": found,
            "fastest": min(found, key=found.__getitem__),
        }
        for setting, found in seconds.items()
        if len(found) > 1
    ]
