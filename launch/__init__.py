"""The command line, and the ways a setting is run.

`cli` is the entry point, `parser` reads the arguments, `commands` lists every command with its options. `local` and
`worker` train rows on this machine, `slurm` has jobs do it.
"""

from typing import NoReturn

__all__ = ["script"]


def script() -> NoReturn:
    """Run the command that this process was started for, and end the process with its exit code."""
    from datamodels.launch.cli import script as run  # here, so that `python -m datamodels.launch.cli` loads it once

    run()
