"""Notices: what a user should know and no error is. One line on the console, once, from the main process."""

import functools
import sys

from motab_jax.runtime.distributed import is_main


@functools.cache
def notice(text: str) -> None:
    """Print the line to standard error, unless it has been printed before."""
    if is_main():
        print(f"note: {text}", file=sys.stderr)
