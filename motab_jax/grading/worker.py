"""The helper process that judges mathematical and reasoning-gym answers; `answers.py` starts it and talks to it.

Run by its path, with one argument, the grader. It reads one JSON request a line and writes one JSON line back. An
answer such as 9**9**9**9 can hang or kill this process without harm to the run, which ends it after a time limit.
It imports nothing of motab_jax, so it starts without jax.
"""

import contextlib
import functools
import json
import sys
from collections.abc import Callable

MEMORY_LIMIT = 8 << 30  # bytes of address space
# What a task's scorer may raise over an answer that it can't read, for example int("no").
UNREADABLE = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError),
    *(RuntimeError, SyntaxError, TypeError, ValueError),
)


def math_judge() -> Callable[[dict], float]:
    """Judge {gold, answer, seconds}, both in LaTeX: whether math-verify takes them for the same value."""
    from math_verify import parse, verify

    def judge(request: dict) -> float:
        seconds = request["seconds"]
        gold = parse(request["gold"], parsing_timeout=seconds)
        answer = parse(request["answer"], parsing_timeout=seconds)
        # x <= 2 is as good an answer as (-oo, 2].
        return float(verify(gold, answer, timeout_seconds=seconds, allow_set_relation_comp=True))

    return judge


def reasoning_gym_judge() -> Callable[[dict], float]:
    """Judge {task, seed, size, index, answer}: the entry is made again, then scored by its own task.

    0 where the task's scorer can't read the answer.
    """
    from reasoning_gym import create_dataset

    make = functools.lru_cache(maxsize=8)(create_dataset)

    def judge(request: dict) -> float:
        items = make(request["task"], seed=request["seed"], size=request["size"])
        entry = items[request["index"]]
        try:
            return float(items.score_answer(request["answer"], entry))
        except UNREADABLE:
            return 0.0

    return judge


def main() -> None:
    """Say that it is ready, then answer one line with one line until the input ends."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not every platform can limit memory
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, resource.getrlimit(resource.RLIMIT_AS)[1]))
    replies = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints must not get among the replies
    judge = {"math": math_judge, "reasoning_gym": reasoning_gym_judge}[sys.argv[1]]()
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(judge(json.loads(line))), file=replies, flush=True)


if __name__ == "__main__":
    main()
