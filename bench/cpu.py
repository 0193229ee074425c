"""Training on a CPU against its ceiling and two peers: `python -m bench.cpu --data-root DIR`.

phase    steps of the full-width CIFAR-10 recipe, in turn with bare steps in the same precision (forward, backward and
         torch.optim.SGD on one batch that never changes) and with bfloat16 matrix products that take about as long, so
         that all three meet the same neighbours on the machine. Random images. In the clock: all that a step does, from
         choosing its images to the new weights.
command  the whole `datamodels init` and `train` for one row, everything included, against the upstream way
         (bench/plain.py): images per second of two processes that train and evaluate the same numbers of images.
digits   rows per second of `datamodels train configs/digits_50pct.yaml --workers 2`: rows beyond the first 256, by the
         difference of two runs, and all of the longer run with its start; and rows per CPU second, of which two cores
         have two a second.
profile  the operators that a step of `phase` spends its time in, by torch's profiler.

What is printed of pairs is the median of their ratios, and quartiles or range.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench import cases, flops, plain
from bench.results import Results, refuse
from bench.steps import Bare, Reading, in_turn, profiled
from bench.timing import best_matmul
from datamodels.train.config import Setting
from datamodels.train.data import Dataset
from datamodels.train.trainer.device import precision
from datamodels.train.trainer.executor import Executor
from datamodels.train.trainer.trainer import Trainer

CPU = torch.device("cpu")
PROJECT = Path(__file__).parent.parent
TRAIN, TEST, EPOCHS = 5000, 500, 2
IMAGES = EPOCHS * (TRAIN // 2 // plain.BATCH) * plain.BATCH
TRAIN_IMAGES = 5000
"""Training images of `phase`: enough for the augmentation to find them outside of every cache."""
KINDS = {"": 0, "_of_cpu_time": 1}


def recipe_and_images(options: argparse.Namespace) -> tuple[Setting, Dataset]:
    setting = cases.timed("cifar", 0.5, options.tiny, device="cpu", threads=options.threads)
    share = 1 if options.tiny else TRAIN_IMAGES / cases.SHAPES["cifar"][0]
    return setting, cases.random_images("cifar", options.tiny, share)


def phase(options: argparse.Namespace, results: Results) -> None:
    """Our steps, bare steps in the same precision, and matrix products that take about as long."""
    setting, dataset = recipe_and_images(options)
    trainer = Trainer(setting, dataset, CPU)
    dtype = precision(setting.recipe, trainer.executor)
    product, _ = best_matmul(trainer.executor, dtype, options.tiny)
    step_flops = flops.per_image(setting.recipe, dataset.train.images.shape[1:], 10)[0] * trainer.batch
    times = max(1, round(step_flops / product.flops))

    def products() -> None:
        for _ in range(times):
            product()

    others: list[Callable[[], None]] = [Bare(setting, trainer.batch, dtype), products]
    found = in_turn(trainer, others, options.pairs * (1 if options.tiny else 5))
    entry: dict[str, Any] = {
        "dataset": "cifar",
        "alpha": setting.alpha,
        "network": "resnet9",
        "threads": setting.recipe.threads,
        "precision": str(dtype).removeprefix("torch."),
        "seconds_per_row": None,
        "steps": len(found),
        "images_per_step": trainer.batch,
        "matmul_side": product.side,
        "quartiles": {},
    }
    results.content["rows"].append(entry)
    for kind, at in KINDS.items():
        ours, bare, matmul = ([lap[at] for lap in laps] for laps in zip(*found, strict=True))
        entry[f"seconds_per_step{kind}"] = statistics.median(ours)
        entry[f"matmul_flops{kind}"] = times * product.flops / statistics.median(matmul)
        scale = step_flops / (times * product.flops)
        ratios = {
            "fraction_of_matmul": [scale * other / mine for mine, other in zip(ours, matmul, strict=True)],
            "fraction_of_bare": [other / mine for mine, other in zip(ours, bare, strict=True)],
        }
        for name, values in ratios.items():
            entry["quartiles"][name + kind] = quartiles = statistics.quantiles(values, n=4, method="inclusive")
            entry[name + kind] = quartiles[1]
            told = ", ".join(f"{each:.3f}" for each in quartiles)
            results.tell(f"{name}{kind}, quartiles: {told} (n = {len(found)}, {entry['threads']} threads)")
        results.tell(
            f"{entry['seconds_per_step' + kind]:.3f} s a step of {trainer.batch} images, matmul of {product.side} at "
            f"{entry['matmul_flops' + kind] / 1e9:.0f} GFLOP/s{kind.replace('_', ' ')}"
        )


def command(options: argparse.Namespace, results: Results) -> None:
    if not options.data_root:
        refuse("command needs --data-root, the folder with cifar-10-batches-py")
    pairs = [(ours(options.data_root), upstream(options.data_root)) for _ in range(options.pairs)]
    ratios = sorted(mine / other for mine, other in pairs)
    rates = [statistics.median(column) for column in zip(*pairs, strict=True)]
    results.content["command"] = {"ours": rates[0], "plain_float32": rates[1], "ratios": ratios}
    results.tell(
        f"`datamodels init` and `train` against a plain float32 loop: {rates[0]:.0f} and {rates[1]:.0f} images/s, "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {len(ratios)})"
    )


def datamodels(*arguments: str) -> Reading:
    """Wall and CPU seconds of a command, with all processes that it starts."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "datamodels", *arguments], check=True, capture_output=True, cwd=PROJECT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def ours(data_root: str) -> float:
    """Images per second."""
    with tempfile.TemporaryDirectory() as root:
        options = ["--root", root, "--data.root", str(Path(data_root).resolve()), "--models=1", "--eval_models=0"]
        options += ["--recipe.device=cpu", f"--data.train={TRAIN}", f"--data.test={TEST}"]
        options += [f"--recipe.epochs={EPOCHS}", "--recipe.peak_epoch=1"]
        config = "configs/cifar_50pct.yaml"
        return IMAGES / sum(datamodels(name, config, *options)[0] for name in ("init", "train"))


def upstream(data_root: str) -> float:
    """Images per second."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = [f"--train={TRAIN}", f"--test={TEST}", f"--epochs={EPOCHS}"]
        files = ["--data-root", data_root, "--out", f"{folder}/margins.npy"]
        began = time.perf_counter()
        script = [sys.executable, "-m", "bench.plain", *sizes, *files]
        done = subprocess.run(script, check=True, capture_output=True, encoding="utf-8")
        seconds = time.perf_counter() - began
    assert int(done.stdout) == IMAGES
    return IMAGES / seconds


def digits(options: argparse.Namespace, results: Results) -> None:
    few, many = (64, 128) if options.tiny else (256, 256 + 64 * 40)
    taken = {}
    for rows in (few, many):
        with tempfile.TemporaryDirectory() as root:
            arguments = ["configs/digits_50pct.yaml", "--root", root, f"--models={rows}", "--eval_models=0"]
            datamodels("init", *arguments)
            taken[rows] = datamodels("train", *arguments, "--workers=2")
    rates = [(many - few) / (more - less) for more, less in zip(taken[many], taken[few], strict=True)]
    entry = {"dataset": "digits", "alpha": 0.5, "network": "convnet", "workers": 2, "threads": 1, "rows": many - few}
    entry |= {"seconds_per_row": 1 / rates[0], "fraction_of_matmul": None}
    entry |= {"rows_per_second": rates[0], "rows_per_cpu_second": rates[1]}
    entry["rows_per_second_with_start"] = many / taken[many][0]
    results.content["rows"].append(entry)
    results.tell(
        f"digits, 2 workers of one thread: {rates[0]:.1f} rows/s, {rates[1]:.1f} a CPU second, beyond the first {few} "
        f"(n = {many - few}); {many / taken[many][0]:.1f} rows/s with the start of the command"
    )


def profile(options: argparse.Namespace, results: Results) -> None:
    setting, dataset = recipe_and_images(options)
    found = profiled(setting, dataset, Executor(CPU), steps=2 if options.tiny else 5)
    total = sum(each["microseconds"] for each in found)
    results.content["profile"] = found
    results.tell(f"operators of a training step ({total / 1e6:.3f} s by the profiler's wall clock)")
    for each in found[:20]:
        results.tell(f"    {each['microseconds'] / total:6.1%} {each['calls']:6.1f} calls  {each['name'][:80]}")


SECTIONS = {"phase": phase, "profile": profile, "digits": digits, "command": command}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-root", help="folder with cifar-10-batches-py, for `command`, left out without it")
    parser.add_argument("--pairs", type=int, default=5, help="of commands; five times as many of steps")
    parser.add_argument("--threads", type=int, default=2, help="of phase and profile")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections")
    parser.add_argument("--tiny", action="store_true", help="in miniature, to see that it works")
    parser.add_argument("--out", type=Path, help="folder of the JSON file; default bench/results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    results = Results(CPU, sys.argv[1:], options.out, options.tiny)
    print(f"{results.content['device']}, torch {torch.__version__}", flush=True)
    for name in options.only or [name for name in SECTIONS if name != "command" or options.data_root]:
        with results.guarded(name):
            SECTIONS[name](options, results)
        path = results.write()
    print(path)
    sys.exit(1 if results.content["failed"] else 0)


if __name__ == "__main__":
    main()
