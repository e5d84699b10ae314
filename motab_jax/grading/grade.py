"""Grading: is a completion's final answer correct.

The graders `arithmetic` (the closing `#` line: a number or a key), `exact` and `choice` run here. `math` (math-verify)
and `reasoning_gym` (the task's own score) run in another process: evaluating some answers takes hours, and a time limit
by signal works in the main thread only. An answer that ends this process or outlasts the limit counts as wrong.
Left out: graders that need a model.
"""

import atexit
import json
import selectors
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from motab_jax.data.extract import after_thinking, extract_answer, extract_choice, last_boxed, last_tagged
from motab_jax.data.records import Prompt
from motab_jax.data.tasks.arithmetic import final_answer
from motab_jax.grading.rationals import rational

TIME_LIMIT = 10.0  # seconds for one answer, after which the grading process is ended
PARSE_LIMIT = 2  # seconds for each step of math-verify, which normally stops by itself
START_LIMIT = 180.0  # seconds for the grading process's imports, on a busy machine
TAIL = 4000  # characters at a completion's end that are searched for an answer without a box


def is_correct(prompt: Prompt, completion: str) -> bool:
    """Whether a completion's final answer is correct; False where the prompt has no answer. Thread-safe."""
    return grade(prompt, completion) >= 1.0


def grade(prompt: Prompt, completion: str) -> float:
    r"""A completion's grade, from 0 to 1. Thread-safe.

    A reasoning-gym task's own score may lie between; all other graders give 0 or 1.

    >>> grade(Prompt("1", "14+30=", "44", "arithmetic"), "14+30=44\n#44")
    1.0
    """
    if prompt.grader == "reasoning_gym":
        return _grade_reasoning_gym(prompt, completion)
    if prompt.grader == "none" or prompt.answer is None:
        return 0.0
    return float(_matches(prompt.grader, prompt.answer, completion))


def _matches(grader: str, gold: str, completion: str) -> bool:
    if grader == "arithmetic":
        return final_answer(completion) == gold
    if grader == "exact":
        return extract_answer(completion) == gold.strip()
    if grader == "choice":
        return extract_choice(completion) == extract_choice(f"Answer: {gold}")
    if grader == "math":
        return _is_equal(gold, completion)
    raise ValueError(f"unknown grader {grader!r}")


class GradingProcess:
    """A process that runs one grader (worker.py): started for the first answer, and again after one that ended it."""

    def __init__(self, grader: str):
        self._grader = grader
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any], seconds: float | None = None) -> float:
        """Grade one answer.

        Args:
          request: what worker.py's grader reads.
          seconds: the time limit; None for TIME_LIMIT.

        Returns:
          The grade; 0 if the process ends or exceeds the limit.

        Raises:
          RuntimeError: if the process can't be started.
        """
        with self._lock:
            process = self._process or self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            except OSError:  # it ended after the last answer
                self._stop()
                return 0.0
            reply = _read_line(process, TIME_LIMIT if seconds is None else seconds)
            if reply is None:
                self._stop()
                return 0.0
            return float(json.loads(reply))

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("worker.py")
        # -P keeps this folder off the process's import path; in a session of its own the process receives no Ctrl-C.
        # It ends with its input, so it never outlives the run.
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [sys.executable, "-P", str(script), self._grader],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            self._process = process
            if _read_line(process, START_LIMIT) != b"ready":
                self._stop()
                errors.seek(0)
                raise RuntimeError(f"the {self._grader} grader did not start: {errors.read().decode()[-500:]}")
        return process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


_PROCESSES = {name: GradingProcess(name) for name in ("math", "reasoning_gym")}
for _process in _PROCESSES.values():
    atexit.register(_process.close)


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """The process's next line, or None if it ends or writes nothing within the limit."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(seconds):
            return None
    line = process.stdout.readline()  # replies are short: a line that has begun is complete
    return line.strip() if line.endswith(b"\n") else None


def _is_equal(gold: str, completion: str) -> bool:
    """Whether a completion's answer equals the correct one: as text, as a number, or according to math-verify.

    Numbers are compared here first, because math-verify rounds and does not read every form of them.
    """
    answer, text = extract_answer(completion), after_thinking(completion)
    if not answer:
        return False
    if _plain(answer) == _plain(gold):
        return True
    value = rational(answer)
    if value is not None and value == rational(gold):
        return True
    marked = last_boxed(text) is not None or last_tagged(text) is not None
    readable = f"\\boxed{{{answer}}}" if marked else text[-TAIL:]
    is_marked_up = "\\boxed" in gold or gold.replace("\\$", "").count("$") >= 2
    gold = gold if is_marked_up else f"\\boxed{{{gold}}}"
    return _PROCESSES["math"].ask({"gold": gold, "answer": readable, "seconds": PARSE_LIMIT}) == 1.0


def _grade_reasoning_gym(prompt: Prompt, completion: str) -> float:
    tagged = last_tagged(after_thinking(completion))  # the tasks' own convention
    answer = extract_answer(completion) if tagged is None else tagged.strip()
    if not answer or prompt.extra is None:
        return 0.0
    entry = {key: prompt.extra[key] for key in ("task", "seed", "size", "index")}
    return min(1.0, max(0.0, _PROCESSES["reasoning_gym"].ask({**entry, "answer": answer})))


def _plain(text: str) -> str:
    return "".join(text.replace("$", "").split())
