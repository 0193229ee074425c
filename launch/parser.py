"""The command line: commands and their options."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonargparse

from datamodels.launch.commands import datamodels, store, train, whole
from datamodels.launch.request import Request
from datamodels.launch.slurm import Slurm
from datamodels.train import Parser, UserError, load_yaml

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


@dataclasses.dataclass(frozen=True)
class Command:
    run: Callable[[Request], int]
    help: str
    options: Callable[[Any], None] = lambda parser: None


def _rows(parser: Any) -> None:
    parser.add_argument("--rows", metavar="A:B", help="only rows A to B-1")


def _training(parser: Any) -> None:
    parser.add_argument("--devices", metavar="0,1", help="GPUs to use; default all that are visible")
    workers = "groups of rows in training at once on each GPU, default 1; or processes on a CPU, default cores/threads"
    parser.add_argument("--workers", type=int, help=workers)
    parser.add_argument("--retry-failed", action="store_true", help="retry rows that failed for good as well")


def _out(parser: Any) -> None:
    parser.add_argument("--out", metavar="DIR", help="folder for datamodels and report, where the root is read-only")


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
    units = "units of the weights; default what their file says, else mask"
    parser.add_argument("--weight_units", choices=["mask", "standardised"], help=units)
    parser.add_argument(
        "--curve", action="store_true", help="LDS and MSE against the number of models, and how many do"
    )
    parser.add_argument("--per_target", action="store_true", help="with --json: also lists with a value a target")


def _export(parser: Any) -> None:
    targets = "trak", "dattri", "quanda", "sparse", "parquet"
    parser.add_argument("--to", choices=targets, help="the library or format to write files for")
    parser.add_argument("--split", choices=["test", "train"], help="which examples are the targets; default test")
    parser.add_argument("--rows", metavar="A:B", help="trak, dattri, quanda: these rows; default the evaluation rows")
    margin = "trak, dattri: margins as stored, or TRAK's, which need logits; default store"
    parser.add_argument("--margin", choices=["store", "trak"], help=margin)
    parser.add_argument("--checkpoints", metavar="A:B", help="quanda: these rows, with their networks trained again")
    parser.add_argument("--threshold", type=float, help="sparse: leave out weights of at most this size; default 0")
    parser.add_argument("--k", type=int, help="parquet: training examples of each sign for a target; default 50")
    parser.add_argument("--out", metavar="DIR", help="folder for the export, where the root is read-only")


def _price(parser: Any) -> None:
    parser.add_argument("--price", type=float, help="price of a GPU for an hour (of a CPU core where no GPU trains)")


def _plan(parser: Any) -> None:
    probe = "train K groups of rows (on a GPU, K for each worker) in a temporary store, to measure their seconds"
    parser.add_argument("--probe", type=int, metavar="K", help=probe)
    workers = "groups of rows in training at a time on a GPU, default 1; counts rows that were trained so, if any"
    parser.add_argument("--workers", type=int, metavar="W", help=workers)
    parser.add_argument("--budget", type=float, metavar="HOURS", help="print what so many hours buy at each alpha")
    parser.add_argument("--money", type=float, help="the same for so much money, at --price")


def _submit(parser: Any) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print scripts, bytes and GPU-hours, submit nothing")
    parser.add_argument("--retry-failed", action="store_true", help="retry rows that failed for good as well")
    parser.add_argument("--cancel", action="store_true", help="cancel what is queued for the setting instead")
    parser.add_argument("--gate", metavar="PLAN", help=argparse.SUPPRESS)
    parser.add_class_arguments(Slurm, "slurm", as_group=True)


def _status(parser: Any) -> None:
    parser.add_argument("--watch", action="store_true", help="show it again every few seconds until all is done")


COMMANDS = {
    "init": Command(store.init, "create the store of a setting"),
    "train": Command(train.train, "train the rows that are missing", _all(_rows, _training)),
    "status": Command(store.status, "say how many rows are done, missing and failed", _all(_json, _status)),
    "verify": Command(store.verify, "check every completed row against its checksums", _all(_json, _verify)),
    "repair": Command(store.repair, "make rows that verify finds bad missing again", _repair),
    "grow": Command(store.grow, "lengthen a setting to --models rows"),
    "fit": Command(datamodels.fit, "fit the datamodels", _all(_split, _out, _fit)),
    "eval": Command(datamodels.evaluate, "judge datamodels on the evaluation rows", _all(_split, _out, _json, _eval)),
    "report": Command(datamodels.report, "write an HTML page with plots and images", _all(_split, _out, _price)),
    "export": Command(datamodels.export, "write files for other libraries: docs/export.md", _export),
    "run": Command(whole.run, "init, train, fit, eval and report in one go", _training),
    "submit": Command(whole.submit, "the same on SLURM, as arrays of tasks", _all(_split, _submit)),
    "plan": Command(whole.plan, "tell what a setting takes: bytes, hours, money", _all(_json, _plan, _price)),
    "data": Command(store.data, "fetch or check the data set, and say where it lies"),
}


def run(arguments: list[str]) -> int:
    """Run a command line; returns the exit code. Raises UserError, WorkError, Interrupted, OSError."""
    if not arguments:
        raise UserError(f"COMMAND is missing: expected one of {', '.join(COMMANDS)}; `datamodels --help` says more")
    if arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0
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


def _parser(name: str, command: Command) -> Parser:
    usage = f"datamodels {name} CONFIG [--root DIR] [options] [--KEY VALUE ...]"
    parser = Parser(prog=f"datamodels {name}", usage=usage, description=command.help, allow_abbrev=False)
    parser.add_argument("--root", metavar="DIR", help="where the store lies; default runs/<name of CONFIG>")
    command.options(parser)
    parser.add_setting()
    return parser


def _request(parser: Parser, rest: list[str]) -> Request:
    config, others = _split_config(rest)
    path = Path(config)
    others = _files_first(others)
    setting, options = parser.parse(path, others)
    explicit = any(argument.split("=")[0] == "--models" for argument in others)
    root = options.pop("root")
    if root == "":
        raise UserError("--root is '', expected a folder")
    return Request(setting, Path(root or f"runs/{path.stem}").expanduser(), path, options, explicit)


def _split_config(rest: list[str]) -> tuple[str, list[str]]:
    """The CONFIG argument and the others; it comes first, or is the one that ends in .yaml or .yml."""
    for index, argument in enumerate(rest):
        is_option = argument.startswith("-") or (index > 0 and rest[index - 1] == "--slurm")
        if not is_option and (index == 0 or argument.endswith((".yaml", ".yml"))):
            return argument, rest[:index] + rest[index + 1 :]
    raise UserError("CONFIG is missing: expected `datamodels COMMAND CONFIG`, CONFIG being a YAML file")


def _files_first(arguments: list[str]) -> list[str]:
    """The same options with `--slurm FILE` before `--slurm.time 30`: single keys override a file wherever it stands."""
    options: list[list[str]] = []
    for argument in arguments:
        if argument.startswith("--") or not options:
            options.append([argument])
        else:
            options[-1].append(argument)
    for option in options:
        name, equals, value = option[0].partition("=")
        if name == "--slurm" and (equals or len(option) > 1):
            _refuse_duplicates(Path(value if equals else option[1]))
    options.sort(key=lambda option: option[0].partition("=")[0].count("."))
    return [argument for option in options for argument in option]


def _refuse_duplicates(path: Path) -> None:
    if path.is_file():
        load_yaml(path)
