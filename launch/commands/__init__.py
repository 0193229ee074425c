"""Every command of `datamodels`: its function, its help and its options.

To add a command, write `def name(request: Request) -> int` in a file of this folder (it returns the exit code), and
give it an entry in COMMANDS. To add an option to a command, add it to that entry: the value of `--retrain` is
`request.options["retrain"]`. Heavy packages are imported inside the functions that need them, so that `--help` and
`status` stay quick.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datamodels.launch.commands import counterfactual, datamodels, doctor, exchange, plan, run, store, submit, train
from datamodels.launch.request import Request

__all__ = ["COMMANDS", "Command"]

Option = tuple[str, dict[str, Any]]


def option(name: str, help: str, **details: Any) -> Option:
    """An option as argparse takes it: `details` are type, metavar, choices, default, action."""
    return name, {"help": help, **details}


@dataclass(frozen=True)
class Command:
    run: Callable[[Request], int]
    help: str
    options: Sequence[Option] = ()
    cluster: bool = False
    """Whether it also takes --slurm FILE and --slurm.KEY VALUE."""
    places: Mapping[str, str] = field(default_factory=dict)
    """What it takes in place of CONFIG, with its help; then no keys of a config but those among its options."""
    sources: bool = False
    """Whether it takes one SOURCE or more beside CONFIG."""
    bare: bool = False
    """Whether CONFIG may be left out."""


ROWS = option("--rows", "only rows A to B-1, or several such ranges", metavar="A:B[,C:D]")
DEVICES = option("--devices", "GPUs to use; default all that are visible", metavar="0,1")
WORKERS = option(
    "--workers",
    "groups of rows in training at once on each GPU, default 1; or processes on a CPU, default cores/threads",
    type=int,
)
RETRY = option("--retry-failed", "also retry rows that failed for good", action="store_true")
SPLIT = option("--split", "which examples are the targets", choices=["test", "train"], default="test")
OUTPUT = option(
    "--output", "what is predicted, such as loss; default margins, or without any the first output", metavar="NAME"
)
OUT = option("--out", "folder for datamodels and report, where the root is read-only", metavar="DIR")
JSON = option("--json", "print the result as JSON", action="store_true")
PER_TARGET = option("--per_target", "with --json: also lists with one value per target", action="store_true")
PRICE = option("--price", "price of a GPU for an hour (of a CPU core where no GPU trains)", type=float)

EVAL = [
    option("--weights", "evaluate these weights or scores, of any method: a .pt, .npy or .npz file", metavar="FILE"),
    option("--weight_units", "default what the file says, else mask", choices=["mask", "standardised"]),
    option("--curve", "LDS and MSE by number of models, and how many models are enough", action="store_true"),
    PER_TARGET,
]

COMPARE = [
    SPLIT,
    OUTPUT,
    JSON,
    PER_TARGET,
    option("--k", "components of each side", type=int, default=5),
    option("--root_a", "where the store of A lies, if A is a config; default runs/<name of A>", metavar="DIR"),
    option("--root_b", "the same of B", metavar="DIR"),
    option("--data.root", "folder of the data set, for the images", metavar="DIR", default=argparse.SUPPRESS),
    option("--out", "folder for the page; default below the root of A", metavar="DIR"),
]

EXPORT = [
    option(
        "--to",
        "library or format to write for",
        choices=["trak", "dattri", "quanda", "sparse", "parquet", "safetensors", "huggingface"],
    ),
    option("--split", "which examples are the targets; default test", choices=["test", "train"]),
    OUTPUT,
    option("--rows", "trak, dattri, quanda: these rows; default the evaluation rows", metavar="A:B[,C:D]"),
    option("--margin", "trak, dattri: margins as stored (default), or TRAK's, from logits", choices=["store", "trak"]),
    option("--checkpoints", "quanda: these rows, with their networks trained again", metavar="A:B[,C:D]"),
    option("--threshold", "sparse: leave out weights of at most this size; default 0", type=float),
    option("--k", "parquet: training examples of each sign for a target; default 50", type=int),
    option("--license", "huggingface: licence of your data, as the Hub names it, such as cc-by-4.0", metavar="ID"),
    option("--out", "folder for the export, where the root is read-only", metavar="DIR"),
]

COUNTERFACTUAL = [
    option("--targets", "these targets; default --count of them, evenly spaced", metavar="T,T"),
    option("--count", "number of targets", type=int, default=20),
    option("--remove", "how many training examples to remove", metavar="K,K", default="1,2,5,10,20,50"),
    option(
        "--by",
        "how they are chosen: datamodel (largest positive weights), random, same-class, or a file of scores; default "
        "the first three, or two where there are no labels",
        metavar="WAY,WAY",
    ),
    option(
        "--base", "what is removed from: all, or masks of evaluation rows", choices=["full", "alpha"], default="full"
    ),
    option("--runs", "models of each subset, and five times as many of a base set", type=int, default=20),
    option("--verify", "also remove as few as are predicted to make a margin negative", action="store_true"),
    option("--prepare", "create the store of what is to be trained, train nothing", action="store_true"),
]

PLAN = [
    option(
        "--probe",
        "train K groups of rows (on a GPU, K for each worker) in a temporary store, to measure their seconds",
        type=int,
        metavar="K",
    ),
    option(
        "--workers",
        "groups of rows in training at a time on a GPU, default 1; uses rows that were trained with as many, if any",
        type=int,
        metavar="W",
    ),
    option("--budget", "print what so many hours buy at each alpha", type=float, metavar="HOURS"),
    option("--money", "the same for so much money, at --price", type=float),
]

SUBMIT = [
    option("--dry-run", "print scripts, bytes and GPU-hours, submit nothing", action="store_true"),
    RETRY,
    option("--cancel", "cancel what is queued for the setting instead", action="store_true"),
    option("--gate", argparse.SUPPRESS, metavar="PLAN"),  # what a gate's script calls
]

IMPORT = [
    option("--root", "where the store is to lie", metavar="DIR"),
    option("--format", "what SOURCE is", choices=["madrylab", "arrays", "huggingface"], required=True),
    option(
        "--names",
        "take only these files of SOURCE: train_masks (default masks.npy), and outputs such as test_loss",
        metavar="NAME=FILE[,NAME=FILE]",
    ),
    option("--dataset", "name of the data set, and of its folder", default="imported"),
    option("--alpha", "default the share of ones in the masks", type=float, default=argparse.SUPPRESS),
    option("--tag", "ending of the files' names in place of the alpha", metavar="NAME", default=argparse.SUPPRESS),
    option(
        "--eval_models",
        "rows for evaluation, the last ones; default a tenth of the completed rows",
        type=int,
        default=argparse.SUPPRESS,
    ),
]

FETCH = [
    option(
        "--what",
        "some of masks, margins, logits, datamodels, or of one split alone, as test_margins",
        default="masks,margins",
        metavar="KIND[,KIND]",
    ),
    ROWS,
    option("--yes", "download; without it bytes and price are printed", action="store_true"),
    option("--price", "US dollars for a GB out of AWS, such as 0 from within its region; default 0.09", type=float),
]

COMMANDS = {
    "init": Command(store.init, "create the store of a setting"),
    "train": Command(train.train, "train the rows that are missing", [ROWS, DEVICES, WORKERS, RETRY]),
    "status": Command(
        store.status,
        "say how many rows are done, missing and failed",
        [JSON, OUT, option("--watch", "show it every few seconds until all is done", action="store_true")],
    ),
    "verify": Command(
        store.verify,
        "check every completed row against its checksums",
        [JSON, option("--retrain", "also train K random done rows again", type=int, metavar="K", default=0)],
    ),
    "repair": Command(
        store.repair,
        "make rows that verify finds bad missing again",
        [option("--rows", "also make rows A to B-1 missing, whether they look bad or not", metavar="A:B[,C:D]")],
    ),
    "grow": Command(store.grow, "lengthen a setting to --models rows"),
    "fit": Command(
        datamodels.fit,
        "fit the datamodels",
        [SPLIT, OUTPUT, OUT, option("--targets", "only targets A to B-1, as a piece of the whole", metavar="A:B")],
    ),
    "eval": Command(
        datamodels.evaluate, "evaluate datamodels on the evaluation rows", [SPLIT, OUTPUT, OUT, JSON, *EVAL]
    ),
    "report": Command(datamodels.report, "write an HTML page with plots and images", [SPLIT, OUTPUT, OUT, PRICE]),
    "compare": Command(
        datamodels.compare,
        "say where two settings use the same training examples differently, and write an HTML page",
        COMPARE,
        places={"A": "root of a store with fitted datamodels, or a config", "B": "another one, of the same examples"},
    ),
    "counterfactual": Command(
        counterfactual.counterfactual,
        "predict what removing training examples does, and train models without them to see",
        [SPLIT, OUTPUT, OUT, JSON, *COUNTERFACTUAL, DEVICES, WORKERS],
    ),
    "export": Command(datamodels.export, "write files for other libraries: docs/export.md", EXPORT),
    "run": Command(run.run, "init, train, fit, eval and report in one go", [OUTPUT, DEVICES, WORKERS, RETRY]),
    "submit": Command(
        submit.submit, "run a setting on SLURM, as arrays of tasks", [SPLIT, OUTPUT, *SUBMIT], cluster=True
    ),
    "plan": Command(plan.plan, "print what a setting takes: bytes, hours, money", [JSON, *PLAN, PRICE]),
    "merge": Command(exchange.merge, "bring in the completed rows of other roots", [JSON], sources=True),
    "import": Command(
        exchange.import_,
        "copy masks and outputs that other programs made to a new root",
        IMPORT,
        places={"SOURCE": "folder of the files"},
    ),
    "fetch": Command(exchange.fetch, "download the published files of a setting, after telling bytes and price", FETCH),
    "data": Command(store.data, "fetch or check the data set, and say where it lies"),
    "doctor": Command(doctor.doctor, "check this machine: devices, kernels, disk, SLURM", [JSON], bare=True),
}
