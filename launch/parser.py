"""From a command line to a command that runs. The commands and their options are declared in `commands`."""

import json
from importlib.metadata import version
from pathlib import Path

import jsonargparse

from datamodels.launch.commands import COMMANDS, Command
from datamodels.launch.request import Request
from datamodels.launch.slurm import TEXT_KEYS, Slurm
from datamodels.train import Parser, Setting, UserError, expanded, load_yaml, read_yaml

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def run(arguments: list[str]) -> int:
    """Run a command line; returns the exit code. Raises UserError, WorkError, Interrupted, OSError."""
    if not arguments:
        raise UserError(f"COMMAND is missing: expected one of {', '.join(COMMANDS)}; `datamodels --help` says more")
    name, *others = arguments
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(version("datamodels-harness"))
        return 0
    if name not in COMMANDS:
        raise UserError(f"{name!r} is not a command, expected one of {', '.join(COMMANDS)}")
    parser = _parser(name, COMMANDS[name])
    if "-h" in others or "--help" in others:
        parser.print_help()
        return 0
    if COMMANDS[name].places:
        options = parser.parse_args(others).as_dict()
        if not (root := options.pop("root", ".")):
            raise UserError("--root is missing: expected a new or empty folder")
        return COMMANDS[name].run(Request(Setting(), expanded(root, "--root"), options, explicit_models=False))
    config, others = _split_config(others, COMMANDS[name].bare)
    setting, options = parser.parse(config, _files_first(others), "source" if COMMANDS[name].sources else "")
    root, options["config"] = options.pop("root"), config
    if root == "":
        raise UserError("--root is '', expected a folder")
    if root is None and config and (config.is_relative_to("/dev") or not config.is_file()):
        raise UserError(f"--root is missing: {config} has no name to call a folder by, expected --root DIR")
    explicit_models = any(argument.split("=")[0] == "--models" for argument in others)
    folder = expanded(root or (f"runs/{config.stem}" if config else "runs"), "--root")
    request = Request(setting, folder, options, explicit_models)
    return COMMANDS[name].run(request)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name.ljust(width)}  {command.help}" for name, command in COMMANDS.items())
    return f"""\
usage: datamodels COMMAND CONFIG [--root DIR] [--KEY VALUE ...]

Train many small models on random subsets of a data set, and fit datamodels to them.

{commands}

CONFIG is a YAML file; any of its keys can be overridden, as in --alpha 0.35 --models 64 --recipe.lr 0.2.
`datamodels COMMAND --help` lists a command's options and every key. `datamodels --version` prints the version."""


def _parser(name: str, command: Command) -> Parser:
    config = "[CONFIG]" if command.bare else "CONFIG"
    keys = f"{config}{' SOURCE...' * command.sources} [--root DIR] [options] [--KEY VALUE ...]"
    usage = f"datamodels {name} {' '.join(command.places) + ' [options]' if command.places else keys}"
    parser = Parser(prog=f"datamodels {name}", usage=usage, description=command.help, allow_abbrev=False)
    if not command.places:
        parser.add_argument("--root", metavar="DIR", help="where the store lies; default runs/<name of CONFIG>")
    for place, help in command.places.items():
        parser.add_argument(place, help=help)
    for option, details in command.options:
        parser.add_argument(option, **details)
    if command.cluster:
        parser.add_class_arguments(Slurm, "slurm", as_group=True)
    if not command.places:
        parser.add_setting()
    return parser


def _split_config(arguments: list[str], bare: bool) -> tuple[Path | None, list[str]]:
    """The CONFIG argument and the others; it comes first, or is the one that ends in .yaml or .yml.

    bare: whether it may be left out.
    """
    for index, argument in enumerate(arguments):
        is_option = argument.startswith("-") or (index > 0 and arguments[index - 1] == "--slurm")
        if not is_option and (index == 0 or argument.endswith((".yaml", ".yml"))):
            return Path(argument), arguments[:index] + arguments[index + 1 :]
    if bare:
        return None, arguments
    raise UserError("CONFIG is missing: expected `datamodels COMMAND CONFIG`, CONFIG being a YAML file")


def _files_first(arguments: list[str]) -> list[str]:
    """The same options with `--slurm FILE` before `--slurm.time 30`: single keys override a file wherever it stands.

    The file's content takes the place of its name. It is read here, once and in UTF-8; the parser would also take the
    last one of a key that is given twice. Raises UserError.
    """
    options: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--") or not options:
            options.append([argument])
        else:
            options[-1].append(argument)
    for option in options:
        name, _, file = "=".join(option).partition("=")
        if name == "--slurm" and file:
            content = load_yaml(Path(file), read_yaml(Path(file)), TEXT_KEYS)
            option[:] = [name, json.dumps(content, default=str)]
    options.sort(key=lambda option: option[0].partition("=")[0].count("."))
    return [argument for option in options for argument in option]
