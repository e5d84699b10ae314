"""Output files: replaced in one step, so that a reader never sees half of one, and checked before work starts."""

import os
from pathlib import Path
from typing import TextIO

from motab_jax.config import UserError


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one step: a reader sees the old content or the new, never half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def open_output(word: str, path: Path) -> TextIO:
    """The file that a verb's word names, emptied. Raises UserError if it can't be written."""
    try:
        return path.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{word}={path}: can't be written: {error.strerror}") from None


def check_writable(word: str, path: Path) -> None:
    """Check that the file a verb's word names can be replaced; leaves nothing behind. Raises UserError."""
    if path.exists() and not path.is_file():
        raise UserError(f"{word}={path}: can't be written: it is not a file")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise UserError(f"{word}={path}: can't be written: {error.strerror}") from None
