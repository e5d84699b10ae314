"""What the benchmarks share: the machine in one line, alternating runs and their medians, the table, the JSON file.

A ratio is only as good as its conditions: contestants take turns in one process group, so that a busy neighbour slows
all of them, and medians are compared. A rival with threads of its own (torch) lives in a `Worker`, a child process that
sleeps between its turns. Scripts here are run as `python benchmarks/NAME.py`.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_REPLY = "reply:"


def parser(description: str | None, *, runs: int = 5) -> argparse.ArgumentParser:
    """Arguments that every benchmark takes: --json FILE and --runs N."""
    made = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures, flat, to this file")
    made.add_argument("--runs", type=int, default=runs, help=f"timed runs of each contestant (default {runs})")
    return made


def machine() -> str:
    """This machine in one line: processor, cores, memory, versions, accelerators and the load before the benchmark."""
    import jax

    model = platform.processor() or platform.machine()
    memory = 0.0
    if Path("/proc/cpuinfo").exists():
        names = [
            x.split(":", 1)[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x
        ]
        model = names[0] if names else model
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    devices = ", ".join(sorted({device.device_kind for device in jax.devices()}))
    versions = f"Python {platform.python_version()}, jax {jax.__version__}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return f"{model}, {cores} cores, {memory:.0f} GiB; {versions}, {jax.device_count()} x {devices}; {load}"


def seconds(function: Callable[[], Any]) -> float:
    """Wall seconds of one call. Arrays that it returns are waited for."""
    import jax

    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def alternate(
    contestants: Mapping[str, Callable[[], Any]], runs: int = 5, *, warm: int = 1, lead: int = 0
) -> dict[str, list[float]]:
    """Seconds of every run of every contestant; they take turns, `runs` times after `warm` untimed rounds.

    lead: untimed calls right before each timed one, so that nobody begins with another's data in the caches.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for place in range(-warm, runs):
        for name, function in contestants.items():
            for _ in range(lead):
                function()
            took = seconds(function)
            if place >= 0:
                times[name].append(took)
    return times


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def spread(values: Sequence[float]) -> float:
    """Half the range between the slowest and the fastest run, as a share of the median: how far to trust it."""
    return (max(values) - min(values)) / 2 / median(values)


def ratio(times: Mapping[str, Sequence[float]], slow: str, fast: str) -> float:
    """How many times as long `slow` takes as `fast`: the median over rounds, of runs that were neighbours in time."""
    return median([a / b for a, b in zip(times[slow], times[fast], strict=True)])


def child_environment() -> dict[str, str]:
    """What suits a contestant best: OpenMP's own waiting policy, and large pages for large arrays.

    Threads that sleep at once (OMP_WAIT_POLICY=PASSIVE, right for tests beside other work) make torch's small operators
    2.4 times slower on 2 cores; here nobody else works during a turn. Large pages halve TRL's step at 50,304 words.
    """
    kept = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    return {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **kept, "TOKENIZERS_PARALLELISM": "false"}


def in_child_environment() -> None:
    """Start this script anew in `child_environment`, unless it is there: malloc reads settings at the start only."""
    wanted = child_environment()
    if wanted != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], wanted)


class Worker:
    """A contestant in a process of its own: `worker("name", key=value)` calls that function there.

    `command` starts the child, which ends in `answer(functions)`; it may be another environment's Python.
    """

    def __init__(self, command: Sequence[str | Path]):
        self._process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=child_environment(),
        )  # fmt: skip

    def __call__(self, name: str, **values: Any) -> Any:
        """The function's value. RuntimeError if the child ended instead (its error is on the terminal)."""
        self._process.stdin.write(json.dumps({"name": name, "values": values}) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(_REPLY):
                return json.loads(line[len(_REPLY) :])
        raise RuntimeError(f"the benchmark's child process ended with status {self._process.wait()}")

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.stdin.close()
        self._process.wait()


def answer(functions: Mapping[str, Callable[..., Any]]) -> None:
    """The child's side of `Worker`: calls what it is asked for until its input ends. Values are JSON."""
    for line in sys.stdin:
        request = json.loads(line)
        value = functions[request["name"]](**request["values"])
        print(_REPLY + json.dumps(value), flush=True)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print the machine and one table; numbers are rounded to three digits."""
    table = Table()
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    # A pipe or a file gets the whole table, not one folded to 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(machine(), title, table, sep="\n", highlight=False)


def save(path: Path | None, figures: Mapping[str, Any]) -> None:
    """Write the flat figures, with the machine they were measured on, as JSON; nothing where path is None."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **figures}, indent=1) + "\n", encoding="utf-8")
