"""The command line that the verbs share: the parser of their words, and their exit statuses.

Exit status: 0 done, 2 the user's mistake, 75 stopped by a signal after saving, 130 interrupted, 1 anything else.
"""

import argparse
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Self

from jax.errors import JaxRuntimeError

from motab_jax.config import PeerMissing, RunError, UserError, describe_keys, dump_config, load_config
from motab_jax.runtime.distributed import explain, leave
from motab_jax.runtime.paths import recipe_path
from motab_jax.runtime.staging import local_copy, shown
from motab_jax.runtime.storage import BucketErrors, check_packages

STOPPED = 75


class Parser(argparse.ArgumentParser):
    """The words of one verb; every mistake in them is a UserError.

    A verb has words of its own, `name=VALUE` (`word`), options (`option`) and perhaps folders (`add_argument`). A
    configured verb also takes `[CONFIG.yaml] [section.key=value ...]`; `parse` gives their configuration as `config`.
    """

    def __init__(self, usage: str | None, *, configured: bool = True):
        super().__init__(add_help=False, allow_abbrev=False)
        self._usage, self._configured = (usage or "").strip(), configured
        self._words: dict[str, str] = {}  # name -> VALUE and what it means
        self._required: list[str] = []
        self._options: dict[str, str] = {}
        self.add_argument("-h", "--help", action="help")
        if configured:
            self.add_argument("words", nargs="*")
            self.option("print-config", "", "print the whole configuration as YAML, and nothing else")

    def word(self, name: str, value: str, meaning: str, *, required: bool = False, **settings: Any) -> None:
        """Declare the word `name=VALUE`.

        Args:
          name: the word, and the attribute that `parse` gives its value.
          value: what stands for the value in the help, such as FILE.
          meaning: a line of help.
          required: whether leaving it out is a mistake.
          settings: those of `add_argument`: type, choices, default.
        """
        self.add_argument(f"--{name}", **settings)
        self._words[name] = f"{name}={value}  # {meaning}"
        self._required += [name] if required else []

    def option(self, name: str, value: str, meaning: str) -> None:
        """Declare `--name`, or `--name VALUE` where `value` is not empty; `meaning` is a line of help."""
        self.add_argument(f"--{name}", action="store" if value else "store_true")
        self._options[name] = f"--{name}{value and ' '}{value}  # {meaning}"

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The values of the words. Prints and raises SystemExit(0) for --help and --print-config.

        Raises:
          UserError: for an unknown, missing or bad word, and for a bad configuration.
        """
        if "--" in words:
            self.error("unknown option '--'")
        words = [word for word in words if word]
        args = self.parse_intermixed_args(
            [f"--{word}" if word.partition("=")[0] in self._words else word for word in words]
        )
        if self._configured:
            paths = [word for word in args.words if "=" not in word]
            if len(paths) > 1:
                self.error(f"one configuration file at most, but got {', '.join(paths)}")
            overrides = [word for word in args.words if "=" in word]
            args.config = load_config(local_copy(paths[0]) if paths else recipe_path("quickstart"), overrides)
            if args.print_config:
                print(dump_config(args.config), end="")
                raise SystemExit(0)
            check_packages(args.config)
        for name in self._required:
            if getattr(args, name) is None:
                self.error(f"{self._words[name].replace('  # ', ' is missing: ')}")
        return args

    def error(self, message: str) -> NoReturn:
        """Raise a UserError, in which the verb's own words look as they are written."""
        for name in self._words:
            message = message.replace(f"argument --{name}:", f"{name}=:")
        raise UserError(f"{message}; --help lists the words")

    def format_help(self) -> str:
        """How the verb is used, its words and options, and all keys of the configuration."""
        parts = [self._usage]
        if self._words:
            parts.append("Words:\n" + "\n".join(f"  {line}" for line in self._words.values()))
        if self._options:
            parts.append("Options:\n" + "\n".join(f"  {line}" for line in self._options.values()))
        if self._configured:
            parts.append("Keys and defaults:\n" + "\n".join(f"  {line}" for line in describe_keys()))
        return "\n\n".join(parts) + "\n"


def truth(text: str) -> bool:
    """The value of a word that is true or false."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def natural(text: str) -> int:
    """The value of a word that is a whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def run_verb(work: Callable[[list[str]], int | None]) -> None:
    """Run a verb on the words of the command line and leave with its exit status.

    A RunError becomes one line on standard error.
    """
    # Models run in JAX: no advice to install torch. transformers reads this when it is imported.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.unraisablehook = _report_unraisable
    message, at_once = None, False
    try:
        status = _status_of(work)
        sys.stdout.flush()
    except RunError as error:
        status, message = error.status, f"error: {' '.join(shown(str(error)).split())}"
        at_once = isinstance(error, PeerMissing)
    except KeyboardInterrupt:
        status, message = 130, "interrupted"
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except JaxRuntimeError as error:
        status, message, at_once = 1, f"error: {explain(error)}", True
        traceback.print_exc()  # in case it means something else than it seems to
    leave(status, message, at_once=at_once)


def _status_of(work: Callable[[list[str]], int | None]) -> int:
    try:
        with BucketErrors():
            return work(sys.argv[1:]) or 0
    except SystemExit as printed:  # --help, --print-config
        return int(printed.code or 0)


def _report_unraisable(problem: Any) -> None:
    """Report an unraisable error as Python does, except those of a failed restore's threads.

    These threads still read the damaged checkpoint and use an event loop that is closed: dozens of tracebacks.
    """
    if str(problem.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(problem)


class Signals:
    """Records whether SIGTERM or SIGINT was received, so that a loop can stop between two steps. A context manager.

    A second signal of the same kind ends the process at once.
    """

    def __init__(self):
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: object) -> None:
        self.received = True
        signal.signal(number, signal.SIG_DFL)
