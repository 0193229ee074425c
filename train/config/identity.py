"""Settings as dictionaries, in manifests and configs: which keys rows depend on, and back to a setting.

Nothing here imports torch, so that `--help` and `status` stay quick.
"""

import dataclasses
from collections.abc import Mapping
from types import NoneType
from typing import Any, get_args

from datamodels.train.config.recipe import Recipe
from datamodels.train.config.setting import Data, Eval, Fit, Outputs, Setting, flatten
from datamodels.train.errors import UserError
from datamodels.train.values import shown

_FREE = {
    *("models", "recipe.device", "recipe.kernels", "outputs.preallocate"),
    *("data.root", "data.python", "data.layout", "data.form", "data.packed", "data.resident"),
}
"""Keys that may differ between a store and the config it is reopened with (`models` and `recipe.kernels` have rules of
their own)."""


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved setting that its rows depend on, as flat dotted keys.

    Of a file that the setting names, that is its digest and not its path.
    """
    flat = dict(flatten(config))
    for key in [key for key in flat if key.endswith("_sha256") and flat[key]]:
        flat[key.removesuffix("_sha256")] = "a file"
    return {key: value for key, value in flat.items() if key not in _FREE and not key.startswith(("fit.", "eval."))}


INSTEAD = {
    "beton-raw": "`npy`, which holds the same pixels",
    "beton-jpeg": "`beton`, with its two files in data.root as {dataset}_train.beton and {dataset}_test.beton",
}
"""What to use in place of values of data.form that version 0.1 had."""


def from_dict(config: dict[str, Any]) -> Setting:
    """Return the setting that a dictionary from `to_dict` stands for, one of version 0.1 too. Raises UserError.

    What that version had besides is dropped where no row depends on it.
    """
    groups = {"data": Data, "recipe": Recipe, "outputs": Outputs, "fit": Fit, "eval": Eval}
    for key in groups.keys() & config.keys():
        if not isinstance(config[key], dict):
            raise UserError(f"{key} is {shown(config[key])}, expected keys and values")
        refuse_null(groups[key], config[key], f"{key}.")
    refuse_null(Setting, config)
    given = {key: dict(config[key]) for key in groups.keys() & config.keys()}
    given.get("fit", {}).pop("solver", None)
    if given.get("data", {}).get("form") == "beton-raw":
        given["data"]["form"] = "auto"
    for prefix, kind, values in [("", Setting, config), *((f"{key}.", groups[key], given[key]) for key in given)]:
        if unknown := values.keys() - {each.name for each in dataclasses.fields(kind)}:
            raise UserError(f"the config has the key {prefix}{min(unknown)}, which only a newer version may know")
    return Setting(**{**config, **{key: groups[key](**values) for key, values in given.items()}})


def refuse_null(kind: type, values: Mapping[str, Any], prefix: str = "") -> None:
    """Raises UserError, with the prefix before the key's name, where a key of a dataclass is null and must not be."""
    for each in dataclasses.fields(kind):
        if values.get(each.name, each.default) is None and NoneType not in get_args(each.type):
            raise UserError(f"{prefix}{each.name} is null, expected a value; leave the key out for its default")
