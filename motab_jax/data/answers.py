"""Grading: is a completion's final answer right, and what a set of graded completions amounts to.

Graders: `arithmetic` (the closing `#` line: a number or a key) and `exact` compare here; `math` (math-verify) and
`reasoning_gym` (the task's own score) run in a helper process, because a model can write answers that take for ever to
evaluate, and a time limit by signal works in the main thread only. An answer that breaks the helper or outlasts the
limit counts as wrong.
Left out: partial credit, and graders that need a model.
"""

import atexit
import json
import math
import re
import selectors
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from motab_jax.data.arithmetic import final_answer
from motab_jax.data.prompts import Prompt

TIME_LIMIT = 10.0  # seconds for one answer, after which the helper is ended
PARSE_LIMIT = 2  # seconds for each step of math-verify, which normally ends a long one by itself
START_LIMIT = 180.0  # seconds for the helper's imports, on a busy machine
TAIL = 4000  # characters at a completion's end that are looked through for an answer without a box

_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ANSWER_IS = re.compile(r"answer(?:\s+is|\s*:)\s*:?\s*([^\n]+)", re.IGNORECASE)
# The sign counts only where it isn't a minus between two terms; a comma only before three digits.
_NUMBER = re.compile(r"(?:(?<![\w)])-)?\d+(?:,\d{3})*(?:\.\d+)?(?:/\d+)?")
_SENTENCE_END = re.compile(r"\.\s")


def grade(prompt: Prompt, completion: str) -> bool:
    """Whether a completion's final answer is right. False where the prompt has no answer. Safe in any thread."""
    if prompt.grader == "none" or prompt.answer is None:
        return False
    if prompt.grader == "arithmetic":
        return final_answer(completion) == prompt.answer
    if prompt.grader == "exact":
        return extract_answer(completion) == prompt.answer.strip()
    if prompt.grader == "math":
        return _grade_math(prompt.answer, completion)
    if prompt.grader == "reasoning_gym":
        return _grade_reasoning_gym(prompt, completion)
    raise ValueError(f"unknown grader {prompt.grader!r}")


def extract_answer(completion: str) -> str:
    r"""The final answer in a completion, thinking left out, and "" if there is none.

    The last of \boxed{...}; else the last <answer>...</answer>; else what follows the last "answer is" or "answer:";
    (to the end of its sentence); else the last number; else the last line.
    """
    text = _after_thinking(completion)
    if (boxed := _last_boxed(text)) is not None:
        return boxed.strip()
    if tagged := _ANSWER_TAG.findall(text):
        return tagged[-1].strip()
    if stated := _ANSWER_IS.findall(text):
        return _tidy(_SENTENCE_END.split(stated[-1])[0])
    if numbers := _NUMBER.findall(text):
        return numbers[-1]
    lines = text.strip().splitlines()
    return _tidy(lines[-1]) if lines else ""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, c of them right, hold a right one: 1 - C(n-c, k) / C(n, k), unbiased (2107.03374)."""
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n}, c={c}, k={k}")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def mean_and_stderr(per_problem: Sequence[float]) -> tuple[float, float]:
    """Mean over problems and its standard error, s / sqrt(n) with s over n - 1; 0.0 for one problem (undefined)."""
    n = len(per_problem)
    if n == 0:
        raise ValueError("no problem was graded")
    mean = math.fsum(per_problem) / n
    if n == 1:
        return mean, 0.0
    variance = math.fsum((value - mean) ** 2 for value in per_problem) / (n - 1)
    return mean, math.sqrt(variance / n)


class Helper:
    """One helper process, started when it is first needed and again after an answer has broken it."""

    def __init__(self, grader: str):
        self._grader = grader
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict, seconds: float = TIME_LIMIT) -> bool:
        """Send one request. False if the helper dies or gives no reply within `seconds`."""
        with self._lock:
            process = self._process or self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(request).encode() + b"\n")
                process.stdin.flush()
            except OSError:  # it died since the last answer
                self._stop()
                return False
            reply = _read_line(process, seconds)
            if reply is None:
                self._stop()
                return False
            return json.loads(reply) is True

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._stop()

    def _start(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("math_worker.py")
        # -P keeps this folder off the helper's import path; a session of its own keeps Ctrl-C from it. It reads until
        # its input ends, so it never outlives the run, however the run ends.
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


_HELPERS = {name: Helper(name) for name in ("math", "reasoning_gym")}
for _helper in _HELPERS.values():
    atexit.register(_helper.close)


def _read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """The helper's next line, or None if the process ends or stays silent for so long."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(seconds):
            return None
    line = process.stdout.readline()  # replies are short: once it has begun, the line is there
    return line.strip() if line.endswith(b"\n") else None


def _grade_math(gold: str, completion: str) -> bool:
    text = _after_thinking(completion)
    boxed = _last_boxed(text)
    answer = extract_answer(text)
    if not answer:
        return False
    if _plain(answer) == _plain(gold):
        return True
    readable = text[-TAIL:] if boxed is None else f"\\boxed{{{boxed}}}"
    gold = gold if "$" in gold or "\\boxed" in gold else f"\\boxed{{{gold}}}"
    return _HELPERS["math"].ask({"gold": gold, "answer": readable, "seconds": PARSE_LIMIT})


def _grade_reasoning_gym(prompt: Prompt, completion: str) -> bool:
    answer = extract_answer(completion)
    if not answer or prompt.extra is None:
        return False
    which = {key: prompt.extra[key] for key in ("task", "seed", "size", "index")}
    return _HELPERS["reasoning_gym"].ask({**which, "answer": answer})


def _after_thinking(text: str) -> str:
    """What follows the thinking, or "" if a thought was opened and never closed: no answer was given."""
    before, closed, after = text.rpartition("</think>")
    if closed:
        return after
    return "" if before == "" and "<think>" in text else text


def _last_boxed(text: str) -> str | None:
    r"""The content of the last \boxed{...} whose braces are balanced."""
    start = text.rfind("\\boxed{")
    while start >= 0:
        depth = 0
        for end in range(start + len("\\boxed"), len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                return text[start + len("\\boxed{") : end]
        start = text.rfind("\\boxed{", 0, start)
    return None


def _tidy(text: str) -> str:
    return text.strip().strip("*$`\"' ").rstrip(".").strip("*$`\"' ")


def _plain(text: str) -> str:
    return "".join(text.replace("$", "").split())
