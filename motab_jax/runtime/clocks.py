"""Where a step's seconds go: what the device was busy with, and when it waited for the host.

The host must not wait for the device just to read a clock, so a thread of its own notes when arrays become ready.
Left out: what goes on inside a program (a profile shows that).
"""

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import jax

from motab_jax.runtime.compilation import CompileClock

now = time.perf_counter


class Task(NamedTuple):
    """Something the device did: its name, when it was asked for, when it was done, and what compiling it took."""

    name: str
    asked: float
    done: float
    compiled: float = 0.0


def split(free: float, tasks: Iterable[Task]) -> dict[str, float]:
    """Seconds of each task, and `idle` and `compile`; the device was free from `free` on and did the tasks in order.

    A task that was asked for late left the device idle, unless it was being compiled meanwhile. A program that is
    compiled while another one runs counts in both, and then alone the sum is more than the wall time.
    """
    seconds = {"idle": 0.0, "compile": 0.0}
    for name, asked, done, compiled in tasks:
        seconds["idle"] += max(0.0, asked - free - compiled)
        seconds["compile"] += compiled
        seconds[name] = max(0.0, done - max(asked, free))
        free = max(done, free)
    return seconds


class StepClock:
    """Splits a loop's time, step by step, into the device's tasks. A context manager."""

    def __init__(self, compiling: CompileClock):
        self._compiling, self._thread = compiling, ThreadPoolExecutor(1, "clock")
        self._free, self._compiled = now(), compiling.read().seconds
        self._waiting: list[tuple[str, float, Future[float], float]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    def asked(self, name: str, arrays: Any = (), *, at: float | None = None) -> None:
        """The device was just asked (or at time `at`) for a task that is done once the tree's arrays are ready.

        They must not be donated to a later program. What was compiled since the last task was compiled for this one.
        """
        compiled, self._compiled = self._compiled, self._compiling.read().seconds
        ready = self._thread.submit(_ready, arrays)
        self._waiting.append((name, now() if at is None else at, ready, self._compiled - compiled))

    def read(self) -> tuple[dict[str, float], float]:
        """Wait for the tasks; seconds as `split` has them, and the wall time since the last reading."""
        tasks = [Task(name, asked, ready.result(), compiled) for name, asked, ready, compiled in self._waiting]
        self._waiting = []
        began, self._free = self._free, max(self._free, *(task.done for task in tasks))
        return split(began, tasks), self._free - began


def _ready(arrays: Any) -> float:
    """The time at which the arrays are ready; raises what their program raised."""
    jax.block_until_ready(arrays)
    return now()
