"""Read config files, plain YAML with the keys of a setting, and the command line's options that override them."""

import argparse
import dataclasses
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from datamodels.train.config.identity import INSTEAD, from_dict
from datamodels.train.config.setting import Setting, flatten
from datamodels.train.errors import UserError

SETTING_KEYS = {field.name for field in dataclasses.fields(Setting)}


class _Help(jsonargparse.DefaultHelpFormatter):
    """Shows types and defaults beside keys; an option that is no key describes its default in its own help text."""

    def _get_help_string(self, action: argparse.Action) -> str:
        is_key = "." in action.dest or action.dest in SETTING_KEYS
        return super()._get_help_string(action) if is_key or action.default else action.help or ""


class Parser(jsonargparse.ArgumentParser):
    """A parser of a setting's keys that raises UserError, in one line, for what it cannot parse."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=_Help, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
        raise UserError(_in_plain_words(" ".join(line for line in lines if not line.startswith("usage:")))) from ex

    def add_setting(self) -> None:
        """Add every key of a setting as an option, which overrides the file."""
        self.add_argument("--config", action="config", help=argparse.SUPPRESS)
        self.add_class_arguments(Setting, as_group=True)

    def parse(self, config: Path | None, options: list[str], positional: str = "") -> tuple[Setting, dict[str, Any]]:
        """Return the setting of a config file, if any, and options, and the options that are no keys of a setting.

        The file is read once, so that it may be a pipe. positional: name of arguments that stand without one, if there
        have to be any.
        """
        of_file = None
        if config:
            text = read_yaml(config)
            check_config(config, text)
            of_file = self.parse_string(text)
        if positional:  # not before, or the file would have to give them
            self.add_argument(positional, nargs="*", metavar=positional.upper())
        values = self.parse_args(options, of_file).as_dict()
        others = {key: value for key, value in values.items() if key not in SETTING_KEYS}
        return from_dict({key: value for key, value in values.items() if key in SETTING_KEYS}), others


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "list[float]": "a list of numbers",
    "list[str]": "a list of texts",
    "NoneType": "null",
}


def _in_plain_words(message: str) -> str:
    """Return what the parser says of a value of a wrong type as `models is x, expected a whole number`.

    Of keys below one that has none, such as `--models.x 5`, it says NestedArg.
    """
    if unreadable := re.match(r'Parser key "([\w.]+)": Unable to load config \'([^{].*?)\' Parser key', message):
        return f"{unreadable[1]} is {unreadable[2]}, expected keys and values: --{unreadable[1]}.KEY VALUE gives one"
    message = re.sub(r"NestedArg\(key='(.*?)', val=.*\)", r"given the key \1", message)
    keys = re.findall(r'Parser key "([\w.]+)":', message)
    types = re.search(r"Subtypes: \[(.*)\] Errors|Expected an? (.*?)\. Got", message)
    value = re.search(r".*(?:Got|Given) value: (.*)", message)
    kinds = re.findall(r"<class '(\w+)'>|(list\[\w+\])|Literal\[(.*)\]", types[1] or types[2]) if types else []
    if not (keys and kinds and value):
        return message
    found = {"None": "null", "True": "true", "False": "false"}.get(value[1], value[1])
    expected = [
        f"one of {choices.replace(chr(39), '').replace('True', 'true')}" if choices else _KINDS.get(kind or items, kind)
        for kind, items, choices in kinds
    ]
    return f"{keys[-1]} is {found}, expected {', or '.join(expected)}"


def read_setting(path: Path) -> Setting:
    """Return the setting of a config file. Raises UserError."""
    parser = Parser()
    parser.add_setting()
    return parser.parse(path, [])[0]


def check_config(path: Path, text: str) -> None:
    """Raises UserError unless a file's text has keys of a setting alone at its top, and none of version 0.1."""
    content = load_yaml(path, text)
    if not content:
        raise UserError(f"{path} is empty, expected keys and values")
    if unknown := [str(key) for key in content if key not in SETTING_KEYS]:
        expected = ", ".join(sorted(SETTING_KEYS))
        raise UserError(f"{path}: {unknown[0]!r} is not a key of a config, expected one of {expected}")
    values = dict(flatten(content))
    if "fit.solver" in values:
        raise UserError(f"{path}: fit.solver is {values['fit.solver']!r}, expected no such key: there is one solver")
    if isinstance(form := values.get("data.form"), str) and form in INSTEAD:
        raise UserError(f"{path}: data.form is {form!r}, expected {INSTEAD[form]}")


_NO_TEXT = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "timestamp")}


class _Loader(yaml.SafeLoader):
    """Reads plain YAML and refuses what YAML's own reader takes for something else than most people.

    Of a key that is given twice that takes the last one; 010 is 8 to it, and 4:00:00 is 14400.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        value = super().construct_object(node, deep)
        if isinstance(value, int | float) and re.fullmatch("[-+]?0[0-7_]+|.*:.*", str(node.value)):
            line = node.start_mark.line + 1
            raise ValueError(
                f"line {line} holds {node.value}, which YAML takes for {value}: expected no leading 0, or quotes"
            )
        return value

    texts: Collection[str] = ()
    """Keys whose values are text as it is written, even if it reads as a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise ValueError(f"line {key.start_mark.line + 1} gives {key.value!r} a second time")
                seen.add(key.value)
                if key.value in self.texts and value.tag in _NO_TEXT:
                    value.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> str:
    """Return the text of a YAML file in UTF-8, after a byte order mark if it has one. Raises UserError."""
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not plain YAML: {error}") from None


def load_yaml(path: Path, text: str, texts: Collection[str] = ()) -> dict[Any, Any]:
    """Return the keys and values in the text of a YAML file; those of the keys `texts` as they are written.

    Raises UserError, also for a key that is given twice.
    """
    try:
        loader = _Loader(text)
        loader.texts = texts
        content = loader.get_single_data() or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not plain YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, expected keys and values")
    return content
