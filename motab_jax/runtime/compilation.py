"""Compiled programs: the private folder where they outlive a run, and the seconds that went into making them.

Left out: how often a program was compiled (jit counts that itself, for each function).
"""

import os
from pathlib import Path
from typing import NamedTuple, Self

import jax

# A program that takes less to compile is made anew: what is kept costs a file, and reading it five to ten milliseconds.
KEEP_SECONDS = 0.02

# The names of jax's events; a program read from the folder is reported as built, too.
_TRACE, _LOWER = "/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration"
_BUILD = "/jax/core/compile/backend_compile_duration"
_HIT = "/jax/compilation_cache/cache_hits"


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs between runs; returns the folder, None where there is no safe one.

    JAX_COMPILATION_CACHE_DIR names the folder, else it is motab_jax/xla in the user's cache (XDG_CACHE_HOME).
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(named) if named else _private_folder()
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", KEEP_SECONDS)
    return folder


def _private_folder() -> Path | None:
    """A folder that no other user can write to or put in place of ours: what lies in it is run as machine code."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "motab_jax"
    folder = base / "xla"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for part in (base, folder):
            found = part.lstat()
            if part.is_symlink() or found.st_uid != os.getuid():
                return None
            part.chmod(0o700)
    except OSError:  # a read-only home: compile anew each time
        return None
    return folder


class Compiled(NamedTuple):
    """What compiling took so far: seconds of wall time in all, programs, and how many of them came from the folder."""

    seconds: float
    programs: int
    cached: int

    def __str__(self) -> str:
        return f"compiled {self.programs} programs in {self.seconds:.1f} s ({self.cached} from the cache)"


class CompileClock:
    """Adds up what jax reports of tracing, lowering and compiling, in whatever thread. A context manager."""

    def __init__(self):
        self._spans: list[tuple[float, float]] = []
        self._programs = self._cached = 0

    def __enter__(self) -> Self:
        jax.monitoring.register_event_time_span_listener(self._span)
        jax.monitoring.register_event_listener(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_time_span_listener(self._span)
        jax.monitoring.unregister_event_listener(self._event)

    def read(self) -> Compiled:
        """The sums so far."""
        return Compiled(sum(end - start for start, end in self._spans), self._programs, self._cached)

    def _span(self, event: str, start_time: float, end_time: float, **_: object) -> None:
        if event not in (_TRACE, _LOWER, _BUILD):
            return
        # A function that is traced within another reports first: the outer span swallows it.
        while self._spans and self._spans[-1][0] >= start_time:
            self._spans.pop()
        self._spans.append((start_time, end_time))
        self._programs += event == _BUILD

    def _event(self, event: str, **_: object) -> None:
        self._cached += event == _HIT
