"""The ways in which a command can fail."""

import errno

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
"""Error numbers of the system for a place that must not be written."""


class UserError(Exception):
    """A mistake of the user or an unmet precondition: printed in one line, exit code 2."""


class WorkError(Exception):
    """The work itself failed (a disk error, a damaged file): printed in one line, exit code 1."""


class Interrupted(Exception):
    """A signal asked the process to stop; what is committed stays, and rows remain."""
