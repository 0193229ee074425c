"""What a config may say: its keys and their checks, how its file is read, and which keys the rows depend on."""

from datamodels.train.config.config_file import Parser, load_yaml, read_setting, read_yaml
from datamodels.train.config.identity import INSTEAD, from_dict, identity, refuse_null
from datamodels.train.config.recipe import Recipe
from datamodels.train.config.setting import Data, Eval, Fit, Outputs, Setting, alpha_of, flatten

__all__ = [
    "INSTEAD",
    "Data",
    "Eval",
    "Fit",
    "Outputs",
    "Parser",
    "Recipe",
    "Setting",
    "alpha_of",
    "flatten",
    "from_dict",
    "identity",
    "load_yaml",
    "read_setting",
    "read_yaml",
    "refuse_null",
]
