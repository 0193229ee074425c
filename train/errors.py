"""The two kinds of failure a command can end with."""


class UserError(Exception):
    """A mistake of the user's or an unmet precondition: told in one line, exit code 2."""


class WorkError(Exception):
    """The work itself failed (a disk error, a damaged file): told in one line, exit code 1."""


class Interrupted(Exception):
    """A signal asked the process to stop; what is committed stays, and rows remain."""
