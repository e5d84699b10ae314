"""Progress of a loop: one live line on a terminal, a plain line now and then elsewhere.

Only the main process prints.
"""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from motab_jax.runtime.distributed import is_main

PERIOD = 3600.0  # seconds over which the live line estimates the pace: a step may take minutes


class Progress:
    """Shows the step, figures and the time that is left. A context manager.

    Off a terminal it prints the first update, the last one (step == total), and between them one every `every`
    seconds. The time left is estimated from the pace since the first update, which may have waited for the compiler.

    Args:
      total: steps.
      label: what is counted.
      done: steps that an earlier process did.
      every: seconds between two lines off a terminal.
      console: where to print; None: standard output.
    """

    def __init__(self, total: int, label: str, *, done: int = 0, every: float = 10.0, console: Console | None = None):
        self.total, self.label, self.done, self.every = total, label, done, every
        self.console = Console() if console is None else console
        self._quiet = not is_main()
        self._bar: Bar | None = None
        self._last = -float("inf")
        self._first: tuple[float, int] | None = None  # when the first update came, and its step

    def __enter__(self) -> Self:
        if self.console.is_terminal and not self._quiet:
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn())
            times = (TimeElapsedColumn(), TimeRemainingColumn())
            figures = TextColumn("{task.fields[figures]}", markup=False)
            self._bar = Bar(*columns, *times, figures, console=self.console, speed_estimate_period=PERIOD)
            self._task = self._bar.add_task(self.label, total=self.total, completed=self.done, figures="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def update(self, step: int, figures: Mapping[str, Any] | None = None) -> None:
        """Show that `step` of `total` are done, with figures (name -> number or text)."""
        if self._quiet:
            return
        text = "  ".join(f"{name} {_format(value)}" for name, value in (figures or {}).items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=text)
            return
        now = time.monotonic()
        self._first = self._first or (now, step)
        if step >= self.total or now - self._last >= self.every:
            self._last = now
            self._line(f"{self.label} {step}/{self.total}  {text}{self._left(now, step)}".rstrip())

    def print(self, text: str) -> None:
        """Print a line above the live one."""
        if not self._quiet:
            self._line(text)

    def _left(self, now: float, step: int) -> str:
        """The time left in words; nothing where no pace is known yet or nothing is left."""
        then, first = self._first or (now, step)
        if not first < step < self.total:
            return ""
        return f"  left {timedelta(seconds=round((now - then) / (step - first) * (self.total - step)))}"

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _format(value: Any) -> str:
    if isinstance(value, str | int):
        return str(value)
    return f"{float(value):.4g}"
