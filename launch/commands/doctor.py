"""The command doctor: what this machine has for a setting, and what is wrong with it."""

import json
import os
import platform
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodels.launch.progress import notice
from datamodels.launch.request import Request
from datamodels.launch.slurm import version as slurm_version
from datamodels.train import Interrupted, Setting, UserError, WorkError
from datamodels.train.data import Dataset, Split, free_host_memory, load
from datamodels.train.store import LockFile, versions

if TYPE_CHECKING:
    from datamodels.train.kernels import Kernels
    from datamodels.train.trainer import Executor

GIB = 1 << 30
WARM_UP, STEPS = 4, 8
"""Training steps before those that are timed, and those."""


def doctor(request: Request) -> int:
    """Print what was found, as JSON with --json; the exit code is 1 where something of it is bad."""
    bad: list[str] = []
    found: dict[str, Any] = {
        "versions": versions(),
        "cores": len(os.sched_getaffinity(0)),
        "free_memory_bytes": free_host_memory(),
        "devices": _devices(request, bad),
        "root": _disk(request.root, bad),
    }
    try:
        found["slurm"] = slurm_version()
    except UserError as error:
        found["slurm"] = None
        bad.append(str(error))
    found["bad"] = bad
    print(json.dumps(found) if request.options["json"] else "\n".join(_lines(found)))
    return 1 if bad else 0


def _devices(request: Request, bad: list[str]) -> list[dict[str, Any]]:
    """Every GPU that the recipe allows, or the CPU."""
    import torch

    from datamodels.train.trainer import executor_of

    setting, count = request.setting, 0
    if setting.recipe.device == "cuda":
        count = torch.cuda.device_count()
        if not count and Path("/dev/nvidia0").exists():
            without = "was built without CUDA: uninstall it, and `pip install -c constraints.txt -e .` from PyPI"
            missing = without if torch.version.cuda is None else "does not find it: does nvidia-smi?"
            bad.append(f"this machine has an NVIDIA GPU, but torch {torch.__version__} {missing}")
    dataset: Dataset | None = None
    try:
        if not setting.trainer:
            dataset = load(setting, notice) if request.options["config"] else _random_images()
    except (UserError, WorkError) as error:
        bad.append(str(error))
    places = [torch.device("cuda", number) for number in range(count)] or [torch.device("cpu")]
    return [_device(setting, executor_of(place), dataset, bad) for place in places]


def _random_images() -> Dataset:
    random = np.random.default_rng(0)
    images = Split(random.integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8), random.integers(0, 10, 4096))
    return Dataset(images, images, tuple("abcdefghij"), (125.3, 123.0, 113.9), (51.6, 50.8, 51.3), "random numbers")


def _device(setting: Setting, executor: "Executor", dataset: Dataset | None, bad: list[str]) -> dict[str, Any]:
    """What a device trains with, and how fast where there are images; kernels are checked."""
    from datamodels.train.trainer import choose_kernels, device_name, explain, precision

    recipe = setting.recipe
    found: dict[str, Any] = {"device": str(executor.device), "name": device_name(executor.device)}
    found["free_memory_bytes"] = executor.free_memory()
    if executor.capability is not None:
        found["capability"] = "{}.{}".format(*executor.capability)
    found |= {"precision": str(precision(recipe, executor)).removeprefix("torch."), "kernels": None}
    found["images_per_second"] = None
    try:
        began = time.perf_counter()
        kernels = choose_kernels(recipe, executor, tell=bad.append)
        found |= {"kernels": kernels.name, "check_seconds": time.perf_counter() - began}
        if dataset:
            notice(f"{executor.device}: timing {WARM_UP + STEPS} training steps")
            found["images_per_second"] = _speed(setting, executor, dataset, kernels)
    except (UserError, WorkError) as error:
        bad.append(str(error))
    except (RuntimeError, MemoryError) as error:
        bad.append(f"{executor.device}: {explain(error)}")
    return found


def _speed(setting: Setting, executor: "Executor", dataset: Dataset, kernels: "Kernels") -> float:
    """Training images a second, over a few steps of one group; on a CPU with 32 images a step at most."""
    from datamodels.train.trainer import Trainer

    recipe, count = setting.recipe, len(dataset.train.labels)
    batch = recipe.batch if executor.overlaps else min(recipe.batch, 32)
    train = dataset.train.first(min(count, 4 * batch), "train")
    test = dataset.test.first(min(len(dataset.test.labels), batch), "test")
    recipe = replace(
        recipe, batch=batch, epochs=WARM_UP + STEPS, peak_epoch=1.0, eval_batch=min(batch, recipe.eval_batch)
    )
    trial = Setting(
        dataset=setting.dataset, alpha=0.5, models=recipe.group, eval_models=0, recipe=recipe, data=setting.data
    )
    trainer = Trainer(trial, replace(dataset, train=train, test=test), executor, kernels=kernels)
    engine, rows = trainer.engines[0], range(recipe.group)
    engine.begin(trainer.draw(rows).schedule, rows)
    moments = []

    def stop() -> bool:
        moments.append(executor.moment())
        return len(moments) > WARM_UP + STEPS

    with suppress(Interrupted):
        engine.train(stop)
    moments.append(executor.moment())
    seconds = executor.seconds(moments[WARM_UP], moments[WARM_UP + STEPS])
    return STEPS * trainer.batch * recipe.group / seconds


def _disk(root: Path, bad: list[str]) -> dict[str, Any]:
    """How fast the file system of the root is, tried in the nearest folder that is there; whether it has locks."""
    folder = next(path for path in (root, *root.absolute().parents) if path.is_dir())
    found: dict[str, Any] = {"folder": str(folder)}
    try:
        with tempfile.TemporaryDirectory(prefix="datamodels-doctor-", dir=folder) as place:
            found["locks"] = _locks(Path(place), bad)
            block = np.random.default_rng(0).bytes(1 << 22)
            with open(Path(place) / "content", "wb", buffering=0) as file:
                began = time.perf_counter()
                for _ in range(8):
                    file.write(block)
                os.fdatasync(file.fileno())
                found["write_bytes_per_second"] = 8 * len(block) / (time.perf_counter() - began)
                taken = []
                for _ in range(20):
                    began = time.perf_counter()
                    os.pwrite(file.fileno(), block[:100_000], 0)
                    os.fdatasync(file.fileno())
                    taken.append(time.perf_counter() - began)
                found["sync_seconds"] = float(np.median(taken))
        status = os.statvfs(folder)
        found["free_bytes"] = status.f_bavail * status.f_frsize
    except OSError as error:
        bad.append(f"cannot write to {folder}: {error.strerror}")
    return found


def _locks(folder: Path, bad: list[str]) -> bool:
    lock, other = LockFile(folder / "lock"), LockFile(folder / "lock")
    with closing(lock), closing(other):
        works = lock.works and lock.acquire(0) and not other.acquire(0)
    if not works:
        bad.append(f"{folder.parent} has no file locks that work: processes there may do the same rows")
    return works


def _lines(found: dict[str, Any]) -> list[str]:
    """What was found, for people."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [f"{platform.node()}: {found['cores']} cores, {found['free_memory_bytes'] / GIB:.1f} GiB free; {versions}"]
    for device in found["devices"]:
        capability = f", compute capability {device['capability']}" if "capability" in device else ""
        line = f"{device['device']}: {device['name']}{capability}, {device['free_memory_bytes'] / GIB:.1f} GiB free, "
        line += f"{device['precision']}, kernels {device['kernels'] or 'that do not work'}"
        if device["images_per_second"]:
            line += f", {device['images_per_second']:,.0f} training images a second"
        lines.append(line)
    root = found["root"]
    if "free_bytes" in root:
        lines.append(
            f"{root['folder']}: {root['free_bytes'] / GIB:,.1f} GiB free, {root['write_bytes_per_second'] / 1e6:,.0f} "
            f"MB/s written, {1e3 * root['sync_seconds']:.1f} ms to make 100 kB durable, "
            f"{'locks work' if root['locks'] else 'no locks'}"
        )
    slurm = found["slurm"]
    lines.append("SLURM: " + (", ".join(f"{key} {value}" for key, value in slurm.items()) if slurm else "none here"))
    return [*lines, *(f"bad: {text}" for text in found["bad"])]
