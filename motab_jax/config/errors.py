"""The exceptions that a user sees as a message."""


class UserError(Exception):
    """A mistake of the user's; the message names the file, key or line and what to do. Verbs exit with `status`."""

    status = 2


class PeerMissing(UserError):
    """Another process of the run did not come: no mistake in the configuration, so that launchers start again."""

    status = 1
