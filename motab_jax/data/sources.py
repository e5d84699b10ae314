"""Which model sampled a token: the codes that trajectories, training targets and records share."""

import enum


class Source(enum.IntEnum):
    """The model that sampled a token; 0 stands in unused entries.

    >>> Source(2).word
    'teacher'
    """

    STUDENT = 1
    TEACHER = 2

    @property
    def word(self) -> str:
        """Its name in records."""
        return self.name.lower()
