"""What a user's trainer file declares of its rows, asked from a process that runs it."""

import operator
from dataclasses import replace
from typing import Any

import numpy as np

from datamodels.train.config import Setting
from datamodels.train.errors import UserError
from datamodels.train.outputs import MOST_OUTPUTS, Declared, Output, is_output
from datamodels.train.own.process import Process, RowError


def declared(setting: Setting) -> Declared:
    """Run a setting's trainer file in a process of its own, and return what it declares. Raises UserError."""
    process = process_of(setting)
    try:
        found = declared_by(process, setting)[0]
        return replace(found, names=_names(found, process.path, ask(process, "names")))
    finally:
        process.close()


def _names(found: Declared, path: str, names: Any) -> dict[str, list[str]]:
    """Return names of examples by split, each one line. Raises UserError where they are not as many as the examples."""
    counts = {"train": found.n_train, "test": found.n_test}
    if names is None:
        return {}
    if not isinstance(names, dict) or not names.keys() <= counts.keys():
        raise UserError(f"{path}: names returns {names!r:.60}, expected a dictionary of lists, train and test")
    for split, texts in names.items():
        if not isinstance(texts, list | tuple) or len(texts) != counts[split]:
            raise UserError(f"{path}: names returns {len(texts)} names of {split} examples, expected {counts[split]}")
    return {split: [" ".join(str(text).split()) or "-" for text in texts] for split, texts in names.items()}


def process_of(setting: Setting) -> Process:
    """Return the process for a setting's trainer file, yet to be started."""
    assert setting.trainer is not None
    return Process(setting.trainer, setting.trainer_sha256, setting.recipe.threads)


def ask(process: Process, name: str, *arguments: object) -> Any:
    """Return what a call answers that is of no row. Raises UserError."""
    try:
        return process(name, *arguments)
    except RowError as error:
        raise UserError(f"{process.path}: {error}") from None


def declared_by(process: Process, setting: Setting) -> tuple[Declared, dict[str, str]]:
    """Return what the file declares, and the versions of the packages that it imports. Raises UserError."""
    path, sha256, found = process.path, setting.trainer_sha256, ask(process, "declare")
    n_train, outputs = found["n_train"], found["outputs"]
    assert sha256 is not None
    if not isinstance(n_train, int | np.integer) or isinstance(n_train, bool) or n_train < 1:
        raise UserError(f"{path}: n_train is {n_train!r}, expected the number of training examples")
    if not isinstance(outputs, dict) or not 0 < len(outputs) <= MOST_OUTPUTS:
        raise UserError(f"{path}: outputs is {outputs!r}, expected a dictionary of 1 to {MOST_OUTPUTS} outputs")
    made = tuple(_output(path, name, value) for name, value in outputs.items())
    n_test = next((output.shape[0] for output in made if output.name.startswith("test_")), 0)
    return Declared(int(n_train), n_test, (), made, sha256, path), found["versions"]


def _output(path: str, name: Any, value: Any) -> Output:
    """Return an output from its declared shape, or shape and type. Raises UserError."""
    shape, kind = value, "float16"
    if isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], tuple | list):
        shape, kind = value
    try:
        output = Output(str(name), tuple(map(operator.index, shape)), np.dtype(kind))
    except TypeError:
        output = None
    if output is None or not (output.shape and min(output.shape) > 0 and output.dtype in (np.float16, np.float32)):
        raise UserError(
            f"{path}: the output {name!r} is {value!r}, expected a shape such as (200,), or a shape and its type, "
            "float16 or float32, such as ((200,), 'float32')"
        )
    if not is_output(output.name) or output.name == "train_masks":
        raise UserError(f"{path}: an output is named {name!r}, expected train_ or test_ and letters, as in test_loss")
    return output
