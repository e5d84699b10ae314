"""The one exception that a user sees as a message."""


class UserError(Exception):
    """A mistake of the user's; the message names the file, key or line and what to do. Verbs exit with status 2."""
