"""What the verbs share on the command line: words in, exit status out.

Exit status: 0 done, 2 the user's mistake, 75 stopped by a signal after saving, 130 interrupted, 1 anything else.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from jax.errors import JaxRuntimeError

from motab_jax.config import Config, UserError, describe_keys, dump_config, load_config
from motab_jax.runtime.distributed import explain, leave
from motab_jax.runtime.paths import recipe_path

STOPPED = 75


def split_words(words: Sequence[str], own: Sequence[str] = ()) -> tuple[str | None, list[str], dict[str, str]]:
    """(configuration file or None, overrides, the verb's own key=value words named in `own`)."""
    paths = [word for word in words if "=" not in word]
    named = dict(word.split("=", 1) for word in words if "=" in word and word.split("=", 1)[0] in own)
    overrides = [word for word in words if "=" in word and word.split("=", 1)[0] not in own]
    for word in paths:
        if word.startswith("-"):
            raise UserError(f"unknown option '{word}'; --help lists the options, all else is key=value")
    if len(paths) > 1:
        raise UserError(f"one configuration file at most, but got {', '.join(paths)}")
    return (paths[0] if paths else None), overrides, named


def read_config(path: str | None, overrides: Sequence[str]) -> Config:
    """The configuration; without a file, the quickstart recipe."""
    return load_config(path or recipe_path("quickstart"), list(overrides))


def open_output(path: str) -> TextIO:
    """The file of output=FILE, emptied. UserError if it can't be written."""
    try:
        return Path(path).open("w", encoding="utf-8")
    except OSError as error:
        raise UserError(f"output={path}: can't be written: {error.strerror}") from None


def check_writable(word: str, path: Path) -> None:
    """UserError unless word=PATH can be written whole (a partial file, then renamed); leaves nothing behind."""
    if path.exists() and not path.is_file():
        raise UserError(f"{word}={path}: can't be written: it is not a file")
    partial = path.with_name(path.name + ".partial")
    try:
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise UserError(f"{word}={path}: can't be written: {error.strerror}") from None


def read_flag(own: dict[str, str], name: str) -> bool:
    """The verb's own word name=true or name=false; false where it isn't given."""
    value = own.get(name, "false")
    if value not in ("true", "false"):
        raise UserError(f"{name}={value}: it is true or false")
    return value == "true"


def run_verb(
    usage: str | None,
    work: Callable[[list[str]], int | None],
    *,
    own: Sequence[str] = (),
    flags: Sequence[str] = (),
    configured: bool = True,
) -> None:
    """Run a verb and leave with its exit status; a UserError becomes one line on standard error.

    own, flags: the verb's key=value words and its --words that are not configuration. configured: whether it takes a
    configuration at all.
    """
    # Models run in JAX: that torch is missing is no news to the user. Read when transformers is imported.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    words = sys.argv[1:]
    sys.unraisablehook = _report_unraisable
    try:
        status = 0
        if "--help" in words or "-h" in words:
            _help(usage, flags if configured else None)
        elif "--print-config" in words and configured:
            path, overrides, _ = split_words([word for word in words if word not in ("--print-config", *flags)], own)
            print(dump_config(read_config(path, overrides)), end="")
        else:
            status = work(words) or 0
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        status = error.status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except JaxRuntimeError as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        status = 1
    leave(status)


def _help(usage: str | None, flags: Sequence[str] | None) -> None:
    """Print how a verb is used; its options and all keys, unless it takes no configuration (flags None)."""
    print((usage or "").strip())
    if flags is not None:
        print(f"\nOptions: {' '.join(('--help', '--print-config', *flags))}\n\nKeys and defaults:")
        print("\n".join(f"  {line}" for line in describe_keys()))


def _report_unraisable(problem: Any) -> None:
    """Python's report of an error that nobody can catch, less those of a failed restore's threads.

    They go on reading a damaged checkpoint and speak to an event loop that is closed: dozens of tracebacks.
    """
    if str(problem.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(problem)


class Signals:
    """Notes that SIGTERM or SIGINT came, so that a loop can stop between two steps. A context manager.

    A second signal of the same kind ends the process at once.
    """

    def __init__(self):
        self.came = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.came = True
        signal.signal(number, signal.SIG_DFL)
