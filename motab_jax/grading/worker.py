"""The program of a grading process: reads a request for each line and answers with two lines; `grade.py` starts it.

It is run as a module, with the grader's name. The first line of a reply is the answer that was read from the
completion, the second the grade, both in JSON: an answer such as 9**9**9**9 may hang or end this process, not the run,
which sets a time limit and has the first line then. It imports nothing that imports jax.
"""

import contextlib
import functools
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from motab_jax.data.extract import after_thinking, extract_answer, extract_choice, last_boxed, last_tagged

MEMORY_LIMIT = 8 << 30  # bytes of address space
TAIL = 4000  # characters at a completion's end that are searched for an answer without a box
# What a task's scorer may raise for an answer that it can't read, for example int("no").
UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)

Request = dict[str, Any]  # text and opened_thought, and what the grader needs besides


class Grader(NamedTuple):
    """The two halves of a grader: what a completion answers, and what that answer is worth."""

    read: Callable[[Request], str]
    grade: Callable[[Request, str], float]


def _read_answer(request: Request) -> str:
    return extract_answer(request["text"], opened_thought=request["opened_thought"])


def exact_grader() -> Grader:
    """Grades {gold}: 1 for the same text."""
    return Grader(_read_answer, lambda request, answer: float(answer == request["gold"].strip()))


def choice_grader() -> Grader:
    """Grades {gold}: 1 for the same letter."""

    def read(request: Request) -> str:
        return extract_choice(request["text"], opened_thought=request["opened_thought"])

    return Grader(read, lambda request, answer: float(answer == extract_choice(f"Answer: {request['gold']}")))


def math_grader() -> Grader:
    """Grades {gold, seconds}: 1 for the same value; `seconds` limit each step of math-verify."""
    from motab_jax.grading.equal_values import same_value

    def grade(request: Request, answer: str) -> float:
        if not answer:
            return 0.0
        text = after_thinking(request["text"], opened_thought=request["opened_thought"])
        is_marked = last_boxed(text) is not None or last_tagged(text) is not None
        readable = f"\\boxed{{{answer}}}" if is_marked else text[-TAIL:]
        return float(same_value(request["gold"], answer, readable, seconds=request["seconds"]))

    return Grader(_read_answer, grade)


def reasoning_gym_grader() -> Grader:
    """Grades {task, seed, size, index}: the entry is generated again and scored by its own task.

    0 where the task can't read the answer.
    """
    from reasoning_gym import create_dataset

    make = functools.lru_cache(maxsize=8)(create_dataset)

    def read(request: Request) -> str:
        tagged = last_tagged(after_thinking(request["text"], opened_thought=request["opened_thought"]))
        return _read_answer(request) if tagged is None else tagged.strip()  # the tasks' own convention

    def grade(request: Request, answer: str) -> float:
        if not answer:
            return 0.0
        items = make(request["task"], seed=request["seed"], size=request["size"])
        try:
            return min(1.0, max(0.0, float(items.score_answer(answer, items[request["index"]]))))
        except UNREADABLE:
            return 0.0

    return Grader(read, grade)


GRADERS = {
    "exact": exact_grader,
    "choice": choice_grader,
    "math": math_grader,
    "reasoning_gym": reasoning_gym_grader,
}


def main() -> None:
    """Write `ready`, then two lines for each line read, until the input ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every platform can limit memory
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))
    replies = sys.stdout
    sys.stdout = sys.stderr  # what a library prints must not mix with the replies
    grader = GRADERS[sys.argv[1]]()
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = grader.read(request)
        print(json.dumps(answer), file=replies, flush=True)
        print(json.dumps(grader.grade(request, answer)), file=replies, flush=True)


if __name__ == "__main__":
    main()
