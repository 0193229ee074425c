"""The `datamodels` command: reads the command line, runs a command, and turns every outcome into an exit code."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jsonargparse
import yaml

from launch import commands
from launch.commands import Request
from launch.slurm_config import Slurm
from launch.stop import EXIT_CTRL_C, EXIT_INTERRUPTED
from train.config import Setting, from_dict
from train.errors import Interrupted, UserError, WorkError

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


class _Parser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(_one_line(message)) from ex


def _one_line(message: str) -> str:
    """jsonargparse's reasons span lines and begin with the whole option; the first lines say what matters."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith("usage:"))


@dataclasses.dataclass(frozen=True)
class Command:
    run: Callable[[Request], int]
    help: str
    options: Callable[[Any], None] = lambda parser: None


def _rows(parser: Any) -> None:
    parser.add_argument("--rows", metavar="A:B", help="only rows A to B-1")


def _training(parser: Any) -> None:
    parser.add_argument("--devices", metavar="0,1", help="GPUs to use; default all that are visible")
    parser.add_argument("--workers", type=int, help="processes a GPU, or in all on a CPU; default 1, or cores/threads")
    parser.add_argument("--retry-failed", action="store_true", help="retry rows that failed for good as well")


def _split(parser: Any) -> None:
    parser.add_argument("--split", choices=["test", "train"], default="test", help="which examples are the targets")


def _json(parser: Any) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _all(*options: Callable[[Any], None]) -> Callable[[Any], None]:
    def add(parser: Any) -> None:
        for option in options:
            option(parser)

    return add


def _verify(parser: Any) -> None:
    parser.add_argument("--retrain", type=int, metavar="K", default=0, help="also train K random done rows again")


def _repair(parser: Any) -> None:
    parser.add_argument("--rows", metavar="A:B", help="also make rows A to B-1 missing, whether they look bad or not")


def _fit(parser: Any) -> None:
    parser.add_argument("--targets", metavar="A:B", help="only targets A to B-1, as a piece of the whole")


def _eval(parser: Any) -> None:
    parser.add_argument("--weights", metavar="FILE", help="evaluate these weights (.pt of ours, or .npy scores)")
    units = "units of the weights; default what the report beside them says, else mask"
    parser.add_argument("--weight_units", choices=["mask", "standardised"], help=units)
    parser.add_argument(
        "--curve", action="store_true", help="LDS and MSE against the number of models, and how many do"
    )


def _submit(parser: Any) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print scripts, bytes and GPU-hours, submit nothing")
    parser.add_argument("--retry-failed", action="store_true", help="retry rows that failed for good as well")
    parser.add_argument("--cancel", action="store_true", help="cancel what is queued for the setting instead")
    parser.add_argument("--gate", metavar="PLAN", help=argparse.SUPPRESS)
    parser.add_class_arguments(Slurm, "slurm", as_group=True)


def _status(parser: Any) -> None:
    parser.add_argument("--watch", action="store_true", help="show it again every few seconds until all is done")


COMMANDS = {
    "init": Command(commands.init, "create the store of a setting"),
    "train": Command(commands.train, "train the rows that are missing", _all(_rows, _training)),
    "status": Command(commands.status, "say how many rows are done, missing and failed", _all(_json, _status)),
    "verify": Command(commands.verify, "check every completed row against its checksums", _all(_json, _verify)),
    "repair": Command(commands.repair, "make rows that verify finds bad missing again", _repair),
    "grow": Command(commands.grow, "lengthen a setting to --models rows"),
    "fit": Command(commands.fit, "fit the datamodels", _all(_split, _fit)),
    "eval": Command(commands.evaluate, "judge the datamodels on the evaluation rows", _all(_split, _json, _eval)),
    "report": Command(commands.report, "write an HTML page with plots", _split),
    "run": Command(commands.run, "init, train, fit, eval and report in one go", _training),
    "submit": Command(commands.submit, "the same on SLURM, as arrays of tasks", _all(_split, _submit)),
    "data": Command(commands.data, "fetch or check the data set, and say where it lies"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code."""
    # Threads that spin while they wait halve the speed of a machine that others use too; torch reads this on import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.umask(os.umask(0o077) | 0o002)  # whatever the user's umask, nothing is writable by everyone
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        return _fail(error, 2)
    except WorkError as error:
        return _fail(error, 1)
    except Interrupted as error:
        return error.args[0] if error.args else EXIT_INTERRUPTED
    except KeyboardInterrupt:
        return EXIT_CTRL_C
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _fail(WorkError(f"{error.filename or 'input/output'}: {error.strerror or error}"), 1)


def _fail(error: Exception, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        raise UserError(f"{name!r} is not a command, expected one of {', '.join(COMMANDS)}")
    command = COMMANDS[name]
    parser = _parser(name, command)
    if "-h" in rest or "--help" in rest:
        parser.print_help()
        return 0
    return command.run(_request(parser, rest))


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name.ljust(width)}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: datamodels COMMAND CONFIG [--root DIR] [--KEY VALUE ...]",
            "",
            "Train many small models on random subsets of a data set, and fit datamodels to them.",
            "",
            *lines,
            "",
            "CONFIG is a YAML file; any of its keys can be overridden, as in --alpha 0.35 --models 64 --recipe.lr 0.2.",
            "`datamodels COMMAND --help` lists a command's options and every key.",
        ]
    )


def _parser(name: str, command: Command) -> _Parser:
    usage = f"datamodels {name} CONFIG [--root DIR] [options] [--KEY VALUE ...]"
    parser = _Parser(prog=f"datamodels {name}", usage=usage, description=command.help)
    parser.add_argument("--config", action="config", help=argparse.SUPPRESS)
    parser.add_argument("--root", metavar="DIR", help="where the store lies; default runs/<name of CONFIG>")
    command.options(parser)
    parser.add_class_arguments(Setting, as_group=True)
    return parser


def _request(parser: _Parser, rest: list[str]) -> Request:
    config, others = _split_config(rest)
    path = Path(config)
    _check_yaml(path)
    values = parser.parse_args(["--config", str(path), *others])
    options = {key: value for key, value in vars(values).items() if key not in _SETTING_KEYS}
    content = {key: value for key, value in values.as_dict().items() if key in _SETTING_KEYS}
    explicit = any(argument.split("=")[0] == "--models" for argument in others)
    root = options.pop("root") or f"runs/{path.stem}"
    return Request(from_dict(content), Path(root).expanduser(), path, options, explicit)


_SETTING_KEYS = {field.name for field in dataclasses.fields(Setting)}


def _split_config(rest: list[str]) -> tuple[str, list[str]]:
    """The CONFIG argument and the others; it comes first, or is the one that ends in .yaml or .yml."""
    for index, argument in enumerate(rest):
        is_option = argument.startswith("-") or (index > 0 and rest[index - 1] == "--slurm")
        if not is_option and (index == 0 or argument.endswith((".yaml", ".yml"))):
            return argument, rest[:index] + rest[index + 1 :]
    raise UserError("CONFIG is missing: expected `datamodels COMMAND CONFIG`, CONFIG being a YAML file")


def _check_yaml(path: Path) -> None:
    """Raises UserError unless the file is plain YAML with keys at its top."""
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not plain YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}, expected keys and values")


if __name__ == "__main__":
    sys.exit(main())
