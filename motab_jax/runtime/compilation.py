"""Compiled programs: their numerics, the private folder that keeps them, how many there are, how long they took.

Left out: compiling ahead of time (planning/aot.py).
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax

KEEP_SECONDS = 0.02  # programs that compile faster are not kept: reading one takes 0.005 to 0.01 s

_DETERMINISTIC = "xla_gpu_deterministic_ops"  # every platform's XLA knows it; it leaves out autotuning, too
# The names of jax's events; a program read from the folder is reported as built, too.
_TRACE, _LOWER = "/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration"
_BUILD = "/jax/core/compile/backend_compile_duration"
_HIT = "/jax/compilation_cache/cache_hits"


def set_numerics(matmul_precision: str, *, deterministic: bool) -> None:
    """Say how programs are to compute. Call it before any device is used: a backend reads its flags when it starts.

    Args:
      matmul_precision: of products of float32 matrices, where devices have faster ones than float32: jax's `default`,
          `high` or `highest`. Products of bfloat16 matrices are exact in all of them but for the sum's rounding.
      deterministic: whether a program on GPUs gives the same bits each time; those on CPUs and TPUs always do.
    """
    jax.config.update("jax_default_matmul_precision", matmul_precision)
    flags = os.environ.get("XLA_FLAGS", "")
    if deterministic and _DETERMINISTIC not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --{_DETERMINISTIC}=true".strip()


def enable_compilation_cache() -> Path | None:
    """Keep compiled programs between runs.

    JAX_COMPILATION_CACHE_DIR names the folder; otherwise it is motab_jax/xla in the user's cache (XDG_CACHE_HOME).

    Returns:
      The folder; None, and nothing is kept, where no private folder can be made.
    """
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    folder = Path(named) if named else _private_folder()
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", KEEP_SECONDS)
    return folder


def _private_folder() -> Path | None:
    """A folder that no other user can write to or replace: what it holds is run as machine code."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "motab_jax"
    folder = base / "xla"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (base, folder):
            if path.is_symlink() or path.lstat().st_uid != os.getuid():
                return None
            path.chmod(0o700)
    except OSError:  # a read-only home: nothing is kept
        return None
    return folder


class CompileTotals(NamedTuple):
    """What compiling took so far: seconds of wall time, programs, and how many of them came from the folder."""

    seconds: float
    programs: int
    cached: int

    def __str__(self) -> str:
        return f"compiled {self.programs} programs in {self.seconds:.1f} s ({self.cached} from the cache)"


class CompileClock:
    """Adds up what jax reports of tracing, lowering and compiling, in all threads. A context manager."""

    def __init__(self):
        self._spans: list[tuple[float, float]] = []
        self._names: Counter[str] = Counter()  # of the compiled programs
        self._cached = 0

    def __enter__(self) -> Self:
        jax.monitoring.register_event_time_span_listener(self._on_span)
        jax.monitoring.register_event_listener(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_time_span_listener(self._on_span)
        jax.monitoring.unregister_event_listener(self._on_event)

    def read(self) -> CompileTotals:
        """The totals since the clock began."""
        return CompileTotals(sum(end - start for start, end in self._spans), self._names.total(), self._cached)

    def compilations(self, program: Callable[..., Any]) -> int:
        """How many programs a jitted function was compiled to since the clock began, the cached ones included.

        Functions are told apart by their names, which jax reports.
        """
        return self._names[f"jit({program.__name__})"]

    def _on_span(self, event: str, start_time: float, end_time: float, **details: object) -> None:
        if event not in (_TRACE, _LOWER, _BUILD):
            return
        # A function that is traced within another reports first: the outer span contains its span.
        while self._spans and self._spans[-1][0] >= start_time:
            self._spans.pop()
        self._spans.append((start_time, end_time))
        if event == _BUILD:
            self._names[str(details.get("fun_name"))] += 1

    def _on_event(self, event: str, **_: object) -> None:
        self._cached += event == _HIT
