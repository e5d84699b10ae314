"""Where a step's seconds go: what the device did, when it waited for the host, and what was compiled.

The host must not wait for the device just to read a clock, so a thread notes when arrays become ready.
Left out: what happens inside a program (a profile shows that).
"""

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import jax

from motab_jax.runtime.compilation import CompileClock

now = time.perf_counter


class Task(NamedTuple):
    """A program that the device ran; times are readings of `now`, in seconds."""

    name: str
    dispatched: float  # when the host dispatched it
    ready: float  # when its results were ready
    compile_seconds: float = 0.0  # of compiling it


def task_seconds(begin: float, tasks: Iterable[Task]) -> dict[str, float]:
    """Split the time from `begin` to the last task's end into seconds of each task, of `idle` and of `compile`.

    The device runs the tasks in order. It is idle while it waits for a task to be dispatched, unless that task is being
    compiled. A program that is compiled while another one runs counts twice; only then is the sum above the wall time.

    Args:
      begin: when the device was free.
      tasks: in the order in which they were dispatched.

    >>> task_seconds(10.0, [Task("rollout", 10.5, 14.0), Task("update", 11.0, 16.0)])
    {'idle': 0.5, 'compile': 0.0, 'rollout': 3.5, 'update': 2.0}
    """
    free, seconds = begin, {"idle": 0.0, "compile": 0.0}
    for name, dispatched, ready, compile_seconds in tasks:
        seconds["idle"] += max(0.0, dispatched - free - compile_seconds)
        seconds["compile"] += compile_seconds
        seconds[name] = max(0.0, ready - max(dispatched, free))
        free = max(ready, free)
    return seconds


class StepClock:
    """Splits a loop's time, step by step, into the device's tasks. A context manager."""

    def __init__(self, compile_clock: CompileClock):
        self._compile_clock, self._thread = compile_clock, ThreadPoolExecutor(1, "clock")
        self._free, self._compile_seconds = now(), compile_clock.read().seconds
        self._pending: list[tuple[str, float, Future[float], float]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def record(self, name: str, arrays: Any = (), *, dispatched: float | None = None) -> None:
        """Note that a task was dispatched; returns at once.

        What was compiled since the last task counts as this one's compiling.

        Args:
          name: of the task.
          arrays: a tree of its results, not to be donated later; the task ends when they are ready.
          dispatched: the reading of `now` at which the task was dispatched; None: just now.
        """
        before, self._compile_seconds = self._compile_seconds, self._compile_clock.read().seconds
        ready = self._thread.submit(_time_ready, arrays)
        at = now() if dispatched is None else dispatched
        self._pending.append((name, at, ready, self._compile_seconds - before))

    def read(self) -> tuple[dict[str, float], float]:
        """Wait for the tasks; their `task_seconds`, and the wall time since the last reading.

        Raises what a task's program raised.
        """
        tasks = [Task(name, at, ready.result(), compiling) for name, at, ready, compiling in self._pending]
        self._pending = []
        begin, self._free = self._free, max(self._free, *(task.ready for task in tasks))
        return task_seconds(begin, tasks), self._free - begin


def _time_ready(arrays: Any) -> float:
    """The time at which the arrays are ready; raises what their program raised."""
    jax.block_until_ready(arrays)
    return now()
