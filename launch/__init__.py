"""The command line, and the ways a setting is run.

`cli` is the entry point, `parser` reads the arguments, `commands` lists every command with its options. `local` and
`worker` train rows on this machine, `slurm` has jobs do it.
"""

from datamodels.launch.cli import main, script

__all__ = ["main", "script"]
