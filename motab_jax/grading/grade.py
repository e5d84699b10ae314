"""Grading: what a completion answers, and whether it is correct.

The grader `arithmetic` (the closing `#` line: a number or a key) runs here. The others run in another process: `exact`
and `choice`, `math` (math-verify) and `reasoning_gym` (the task's own score). Evaluating some answers takes hours, and
a time limit by signal works in the main thread only. An answer that ends that process or outlasts the limit is wrong.
Left out: graders that need a model.
"""

import atexit
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from motab_jax.config import EnvironmentFailure
from motab_jax.data.extract import after_thinking
from motab_jax.data.records import Prompt
from motab_jax.data.tasks.arithmetic import final_answer

TIME_LIMIT = 10.0  # seconds for one answer, after which the grading process is ended
PARSE_LIMIT = 2  # seconds for each step of math-verify, which normally stops by itself
START_LIMIT = 180.0  # seconds for the grading process's imports, on a busy machine
_PACKAGES = Path(__file__).parents[2]  # where the grading process imports motab_jax from


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a completion answers, and what that is worth."""

    answer: str | None  # as it was read from the completion, "" where there is none; None: it was not looked for
    score: float  # from 0 to 1; only 1 is correct

    @property
    def correct(self) -> bool:
        """Whether the score is full."""
        return self.score >= 1.0


def is_correct(prompt: Prompt, completion: str, *, opened_thought: bool = False) -> bool:
    """Whether a completion's final answer is correct; see `judge`."""
    return judge(prompt, completion, opened_thought=opened_thought).correct


def grade(prompt: Prompt, completion: str, *, opened_thought: bool = False) -> float:
    r"""A completion's grade, from 0 to 1; see `judge`.

    >>> grade(Prompt("1", "14+30=", "44", "arithmetic"), "14+30=44\n#44")
    1.0
    """
    return judge(prompt, completion, opened_thought=opened_thought).score


def judge(prompt: Prompt, completion: str, *, opened_thought: bool = False) -> Verdict:
    """Read a completion's final answer and grade it. Thread-safe.

    Args:
      prompt: the problem.
      completion: the text that follows it.
      opened_thought: the prompt's chat template ends in a <think> that the completion has to close: until it does,
        nothing is an answer.

    Returns:
      The answer and its grade. A reasoning-gym task's own score may lie between 0 and 1; all other graders give one of
      the two. Without a known answer the grade is 0 and nothing is read.

    Raises:
      EnvironmentFailure: the grading process can't be started.
    """
    request = {"text": completion, "opened_thought": opened_thought}
    if prompt.grader == "reasoning_gym":
        if prompt.extra is None:
            return Verdict(None, 0.0)
        return _ask("reasoning_gym", request | {key: prompt.extra[key] for key in ("task", "seed", "size", "index")})
    if prompt.grader == "none" or prompt.answer is None:
        return Verdict(None, 0.0)
    if prompt.grader == "arithmetic":
        answer = final_answer(after_thinking(completion, opened_thought=opened_thought))
        return Verdict(answer or "", float(answer == prompt.answer))
    return _ask(prompt.grader, request | {"gold": prompt.answer, "seconds": PARSE_LIMIT})


class GradingProcess:
    """A process that runs one grader (worker.py): started for the first answer, and again after one that ended it."""

    def __init__(self, grader: str):
        self._grader = grader
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any], seconds: float | None = None) -> Verdict:
        """Have one completion graded; once more, by a new process, where the process ended before it replied.

        Args:
          request: what worker.py's grader reads.
          seconds: the time limit; None for TIME_LIMIT.

        Returns:
          The verdict: 0 if the process exceeds the limit or ends both times, with the answer as far as it was read.

        Raises:
          EnvironmentFailure: if the process can't be started.
        """
        line, limit = json.dumps(request).encode() + b"\n", TIME_LIMIT if seconds is None else seconds
        with self._lock:
            replies: list[Any] = []
            for _ in range(2):
                replies, is_late = self._exchange(self._process or self._start(), line, limit)
                if len(replies) == 2:
                    return Verdict(*replies)
                self._stop()
                if is_late:
                    break
            return Verdict(replies[0] if replies else None, 0.0)

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._stop()

    def _exchange(self, process: subprocess.Popen[bytes], line: bytes, limit: float) -> tuple[list[Any], bool]:
        """Write a request and read its two replies: (those that came, whether the time ran out)."""
        assert process.stdin is not None
        replies = []
        with _ended_after(process, limit) as late, contextlib.suppress(OSError):  # OSError: it has ended
            process.stdin.write(line)
            process.stdin.flush()
            while len(replies) < 2 and (reply := _read_line(process)) is not None:
                replies.append(json.loads(reply))
        return replies, late.is_set()

    def _start(self) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
        # -P keeps the working folder off the process's import path; in a session of its own the process receives no
        # Ctrl-C. It ends with its input, so it never outlives the run.
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "motab_jax.grading.worker", self._grader],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
            self._process = process
            with _ended_after(process, START_LIMIT) as late:
                is_ready = _read_line(process) == b"ready"
            if not is_ready:
                self._stop()
                errors.seek(0)
                last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
                reason = f"it took more than {START_LIMIT:.0f} s" if late.is_set() else " ".join(last) or "it ended"
                raise EnvironmentFailure(f"the grader '{self._grader}' could not be started: {reason[-300:]}")
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


_PROCESSES = {name: GradingProcess(name) for name in ("exact", "choice", "math", "reasoning_gym")}
for _process in _PROCESSES.values():
    atexit.register(_process.close)


def _ask(grader: str, request: dict[str, Any]) -> Verdict:
    if grader not in _PROCESSES:
        raise ValueError(f"unknown grader {grader!r}")
    return _PROCESSES[grader].ask(request)


@contextlib.contextmanager
def _ended_after(process: subprocess.Popen[bytes], seconds: float) -> Iterator[threading.Event]:
    """Ends the process if the block takes longer, so that neither writing nor reading can wait for ever.

    Yields an event that is set where that happened.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def _read_line(process: subprocess.Popen[bytes]) -> bytes | None:
    """The process's next line; None if it ended."""
    assert process.stdout is not None
    line = process.stdout.readline()
    return line.strip() if line.endswith(b"\n") else None
