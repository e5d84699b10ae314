"""What the verbs share on the command line: words in, exit status out.

Exit status: 0 done, 2 the user's mistake, 75 stopped by a signal after saving, 1 anything else.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from motab_jax.config import Config, UserError, dump_config, load_config, valid_keys
from motab_jax.runtime.paths import recipe_path

STOPPED = 75


def split_words(words: Sequence[str], own: Sequence[str] = ()) -> tuple[str | None, list[str], dict[str, str]]:
    """(configuration file or None, overrides, the verb's own key=value words named in `own`)."""
    paths = [word for word in words if "=" not in word]
    named = dict(word.split("=", 1) for word in words if "=" in word and word.split("=", 1)[0] in own)
    overrides = [word for word in words if "=" in word and word.split("=", 1)[0] not in own]
    for word in paths:
        if word.startswith("-"):
            raise UserError(f"unknown option '{word}'; options are --help and --print-config, all else is key=value")
    if len(paths) > 1:
        raise UserError(f"one configuration file at most, but got {', '.join(paths)}")
    return (paths[0] if paths else None), overrides, named


def read_config(path: str | None, overrides: Sequence[str]) -> Config:
    """The configuration; without a file, the quickstart recipe."""
    return load_config(path or recipe_path("quickstart"), list(overrides))


def run_verb(usage: str, work: Callable[[list[str]], int | None]) -> None:
    """Run a verb and leave with its exit status; a UserError becomes one line on standard error."""
    words = sys.argv[1:]
    if "--help" in words or "-h" in words:
        print(f"{usage.strip()}\n\nKeys:\n" + "\n".join(f"  {key}" for key in valid_keys() if "." in key))
        return
    try:
        if "--print-config" in words:
            path, overrides, _ = split_words([word for word in words if word != "--print-config"])
            print(dump_config(read_config(path, overrides)), end="")
            return
        status = work(words) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    sys.exit(status)


def enable_compilation_cache() -> None:
    """Keep compiled programs in a private folder (mode 0700), so that a second start compiles less."""
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = str(Path(base) / "motab_jax" / "xla")
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
    except OSError:
        return  # a read-only home: compile anew each time
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
