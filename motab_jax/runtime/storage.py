"""From a place that a user names to a path that can be read and written.

Left out: which places there are (config/locations.py).
"""

import argparse
import os
from pathlib import Path

from motab_jax.config import UserError
from motab_jax.config.locations import check_location


def to_path(location: str | os.PathLike[str]) -> Path:
    """The path that a place names; `~` is the user's home.

    Raises:
      UserError: it is a URL with a scheme that is not known.
    """
    try:
        return Path(check_location(os.fspath(location))).expanduser()
    except (ValueError, RuntimeError) as error:  # RuntimeError: `~nobody`
        raise UserError(f"{location}: {error}") from None


def path_word(text: str) -> Path:
    """The value of a word of a verb that is a place; the type of `Parser.word`."""
    try:
        return to_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
