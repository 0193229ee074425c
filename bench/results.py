"""Results of a bench: a JSON file for machines, and a table, printed last, for people."""

import datetime
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from train.device import device_name

FOLDER = Path(__file__).parent / "results"


class Results:
    """What was measured on a device, section by section.

    The JSON's keys: `device`, `torch`, `date`, `arguments`; `rows`, a list of one entry a measured setting, each with
    at least `dataset`, `alpha`, `seconds_per_row` and `fraction_of_matmul`; and one key a section.
    """

    def __init__(self, device: torch.device, arguments: Sequence[str]) -> None:
        self.content: dict[str, Any] = {
            "device": device_name(device),
            "torch": torch.__version__,
            "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%MZ}",
            "arguments": " ".join(arguments),
            "rows": [],
        }
        self.lines: list[str] = []

    def tell(self, line: str) -> None:
        """Print a line now; lines come again, all together, at the end."""
        print(line, flush=True)
        self.lines.append(line)

    def write(self, folder: Path) -> Path:
        """{date}-{device}.json, numbered where there is one of the same day: nothing is overwritten."""
        folder.mkdir(parents=True, exist_ok=True)
        device = re.sub(r"[^a-z0-9]+", "-", self.content["device"].lower()).strip("-")
        stem = f"{self.content['date'][:10]}-{device}"
        text = json.dumps(_rounded(self.content), indent=1) + "\n"
        for name in (stem, *(f"{stem}-{number}" for number in range(2, 1000))):
            try:
                with open(folder / f"{name}.json", "x") as file:
                    file.write(text)
            except FileExistsError:
                continue
            return folder / f"{name}.json"
        raise FileExistsError(folder / f"{stem}.json")


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
