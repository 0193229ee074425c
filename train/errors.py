"""The two kinds of failure a command can end with."""

import errno

READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
"""What the system says of a place where nothing may be written."""


class UserError(Exception):
    """A mistake of the user's or an unmet precondition: told in one line, exit code 2."""


class WorkError(Exception):
    """The work itself failed (a disk error, a damaged file): told in one line, exit code 1."""


class Interrupted(Exception):
    """A signal asked the process to stop; what is committed stays, and rows remain."""
