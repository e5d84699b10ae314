"""The script of a grading process, for mathematical and reasoning-gym answers; `grade.py` starts it.

It is run by its path, with the grader's name. It reads a JSON request per line and answers each with a line, the grade.
An answer such as 9**9**9**9 may hang or end this process, not the run, which sets a time limit.
It imports nothing of motab_jax, so it starts without jax.
"""

import contextlib
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

MEMORY_LIMIT = 8 << 30  # bytes of address space
# What a task's scorer may raise for an answer that it can't read, for example int("no").
UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)

Grader = Callable[[dict[str, Any]], float]


def math_grader() -> Grader:
    """Grades {gold, answer, seconds}: 1 where math-verify takes both, in LaTeX, for the same value."""
    from math_verify import parse, verify

    def grade(request: dict[str, Any]) -> float:
        seconds = request["seconds"]
        gold = parse(request["gold"], parsing_timeout=seconds)
        answer = parse(request["answer"], parsing_timeout=seconds)
        # x <= 2 is as good an answer as (-oo, 2].
        return float(verify(gold, answer, timeout_seconds=seconds, allow_set_relation_comp=True))

    return grade


def reasoning_gym_grader() -> Grader:
    """Grades {task, seed, size, index, answer}: the entry is generated again and scored by its own task.

    0 where the task can't read the answer.
    """
    from reasoning_gym import create_dataset

    make = functools.lru_cache(maxsize=8)(create_dataset)

    def grade(request: dict[str, Any]) -> float:
        items = make(request["task"], seed=request["seed"], size=request["size"])
        entry = items[request["index"]]
        try:
            return float(items.score_answer(request["answer"], entry))
        except UNREADABLE:
            return 0.0

    return grade


def main() -> None:
    """Write `ready`, then a line for each line read, until the input ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every platform can limit memory
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))
    replies = sys.stdout
    sys.stdout = sys.stderr  # what a library prints must not mix with the replies
    grade = {"math": math_grader, "reasoning_gym": reasoning_gym_grader}[sys.argv[1]]()
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(grade(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
