"""The `datamodels` command: runs it, and turns every outcome into an exit code.

What takes long to import is imported once signals are handled.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from datamodels.launch.stop import EXIT_INTERRUPTED, STOPPED, code_of, install, installed, leave, raise_interrupt
from datamodels.launch.streams import prepare_streams


def script() -> NoReturn:
    """Run one command as a process: even while it ends, a signal gives an exit code and one line, no traceback."""
    install(leave)
    prepare_streams()
    code = main()
    try:
        sys.stdout.flush()
    except OSError:  # of which main has told
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python writes what is left once more as it ends
    sys.exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; an error is one line on standard error."""
    # Threads that spin while they wait halve the speed of a machine that others use too; torch reads this on import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Plots start from matplotlib's defaults. Its import fails for a backend that is not installed, as a notebook's.
    os.environ.pop("MPLBACKEND", None)
    os.environ["MATPLOTLIBRC"] = os.devnull
    os.umask(os.umask(0o077) | 0o002)  # whatever the user's umask, nothing is writable by everyone
    with installed(leave):
        from datamodels.launch.parser import run
        from datamodels.train import Interrupted, UserError, WorkError

        try:
            with installed(raise_interrupt):
                code = run(list(sys.argv[1:] if arguments is None else arguments))
                sys.stdout.flush()
                return code
        except UserError as error:
            return _fail(error, 2)
        except WorkError as error:
            return _fail(error, 1)
        except Interrupted as error:
            return error.args[0] if error.args else EXIT_INTERRUPTED
        except KeyboardInterrupt as error:
            print(STOPPED, file=sys.stderr)
            return code_of(error)
        except BrokenPipeError:
            return 1
        except OSError as error:
            return _fail(f"{error.filename or 'input/output'}: {error.strerror or error}", 1)
        except (RuntimeError, MemoryError) as error:  # what torch raises, such as for a GPU that has no memory left
            return _fail(str(error) or type(error).__name__, 1)


def _fail(error: object, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
