"""Exceptions that a user sees as a message."""


class UserError(Exception):
    """A user's mistake. The message names the file, key or line and what to do; verbs exit with `status`."""

    status = 2


class PeerMissing(UserError):
    """A peer process did not join in time. Not a mistake in the configuration: exit status 1, so launchers retry."""

    status = 1
