"""Results of a bench: a JSON file for machines, and a table, printed last, for people."""

import contextlib
import datetime
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from datamodels.train.trainer.device import device_name, on_gpu

FOLDER = Path(__file__).parent / "results"


class Results:
    """What was measured on a device, section by section.

    The JSON's keys: `device`, `on_gpu`, `tiny`, `torch`, `date`, `arguments`; `rows`, a list of one entry a measured
    setting, each with at least `dataset`, `alpha`, `seconds_per_row` and `fraction_of_matmul`; `failed`, what raised an
    error; `left_out`, what there was no time for; and one key a section. Miniatures go to the folder `tiny` beside the
    others, which git ignores.
    """

    def __init__(
        self, device: torch.device, arguments: Sequence[str], folder: Path | None = None, tiny: bool = False
    ) -> None:
        self.folder = folder or (FOLDER / "tiny" if tiny else FOLDER)
        self.content: dict[str, Any] = {
            "device": device_name(device),
            "on_gpu": on_gpu(device),
            "tiny": tiny,
            "torch": torch.__version__,
            "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%MZ}",
            "arguments": " ".join(arguments),
            "rows": [],
            "failed": [],
            "left_out": [],
        }
        self.lines: list[str] = []
        self.path: Path | None = None

    def tell(self, line: str) -> None:
        """Print a line now; lines come again, all together, at the end."""
        print(line, flush=True)
        self.lines.append(line)

    @contextlib.contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """What is raised inside ends that alone, since a machine that is lent for a run is hard to have again."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            self.fail(what, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")

    def fail(self, what: str, why: str) -> None:
        self.tell(f"{what} FAILED: {why}")
        self.content["failed"].append({"what": what, "why": why})

    def write(self) -> Path:
        """Write all there is by now to the run's own file, whole or not at all.

        It is {date}-{device}.json, numbered where there is one of the same day: no other run's is overwritten.
        """
        self.path = self.path or self._taken()
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(_rounded(self.content), indent=1) + "\n")
        os.replace(temporary, self.path)
        return self.path

    def _taken(self) -> Path:
        """The first name that is free, which is no longer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        device = re.sub(r"[^a-z0-9]+", "-", self.content["device"].lower()).strip("-")
        stem = f"{self.content['date'][:10]}-{device}"
        for name in (stem, *(f"{stem}-{number}" for number in range(2, 1000))):
            with contextlib.suppress(FileExistsError), open(self.folder / f"{name}.json", "x", encoding="utf-8"):
                return self.folder / f"{name}.json"
        raise FileExistsError(self.folder / f"{stem}.json")


def _rounded(value: Any) -> Any:
    """Numbers to five digits: a file that people read too."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def refuse(text: str) -> NoReturn:
    """End with one line, as the command does."""
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)
