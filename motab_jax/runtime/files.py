"""Output files: replaced in one step, so that a reader never sees half of one, and checked before work starts."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from motab_jax.config import UserError
from motab_jax.runtime.storage import AnyPath, BucketErrors, check_bucket


def write_atomically(path: Path, text: str) -> None:
    """Replace a text file in one step: a reader sees the old content or the new, never half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


@contextlib.contextmanager
def open_output(word: str, path: AnyPath) -> Iterator[TextIO]:
    """The file that a verb's word names, emptied; on a bucket it appears at the end. UserError if it can't be made."""
    if not isinstance(path, Path):
        check_writable(word, path)
        with BucketErrors(path), path.open("wb") as file, io.TextIOWrapper(file, encoding="utf-8") as text:
            yield text
        return
    try:
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{word}={path}: can't be written: {error.strerror}") from None
    with file:
        yield file


def check_writable(word: str, path: AnyPath) -> None:
    """Check that the file a verb's word names can be replaced; leaves nothing behind. Raises UserError."""
    if not isinstance(path, Path):
        check_bucket(path.parent)
    if path.exists() and not path.is_file():
        raise UserError(f"{word}={path}: can't be written: it is not a file")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise UserError(f"{word}={path}: can't be written: {error.strerror}") from None
