"""Exceptions that a user sees as one message: whose fault it is decides the exit status."""


class RunError(Exception):
    """What ends a verb with one message and `status`; raise one of the classes below."""

    status = 1

    def __str__(self) -> str:
        """The message; a name in it may come from a file, so control characters and half surrogates are escaped."""
        return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in super().__str__())


class UserError(RunError):
    """A user's mistake, which no retry mends. The message names the file, key or line and what to do."""

    status = 2


class EnvironmentFailure(RunError):
    """No mistake of the user's: the hub is down, a disk is full, a share is stale. Launchers start the run again."""

    status = 1


class PeerMissing(EnvironmentFailure):
    """A peer process did not join in time."""
