"""What a set of graded completions amounts to: avg@k, pass@k, standard errors, truncation, length.

Left out: majority voting.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Graded:
    """One graded completion."""

    problem: int  # which of the prompts it answers
    task: str  # the reasoning-gym task; "" elsewhere
    score: float  # 0 to 1, its grader's; only 1 is right
    tokens: int  # its length
    truncated: bool  # cut at the length limit

    @property
    def correct(self) -> bool:
        """Whether it has the full score."""
        return self.score >= 1.0


def summarise(graded: Sequence[Graded]) -> dict[str, Any]:
    """The figures of completions, k of each problem.

    `accuracy` is avg@k: the mean over problems of the share of right completions; `pass_at_k` is over all k, `pass_at`
    holds the unbiased estimates for 1, 2, 4, ... up to k. Of reasoning-gym tasks `score` is avg@k of what their own
    scorers gave, partial scores included, and several of them have their own figures in `tasks`. Raises ValueError
    without a completion.
    """
    marks = _by_problem(graded, lambda each: float(each.correct))
    scores = _by_problem(graded, lambda each: each.score)
    k = max((len(each) for each in marks), default=0)
    mean, stderr = mean_and_stderr([math.fsum(each) / len(each) for each in marks])
    found: dict[str, Any] = {
        "accuracy": mean,
        "stderr": stderr,
        "pass_at_k": _pass_at(marks, k),
        "k": k,
        "pass_at": {str(n): _pass_at(marks, n) for n in _powers(k)},
        "prompts": len(marks),
        "truncated": math.fsum(each.truncated for each in graded) / len(graded),
        "length_mean": math.fsum(each.tokens for each in graded) / len(graded),
    }
    if any(each.task for each in graded):
        found["score"], found["score_stderr"] = mean_and_stderr([math.fsum(each) / len(each) for each in scores])
    tasks = sorted({each.task for each in graded})
    if len(tasks) > 1:
        found["tasks"] = {name: summarise([each for each in graded if each.task == name]) for name in tasks}
    return found


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


def _by_problem(graded: Sequence[Graded], value) -> list[list[float]]:
    found: dict[int, list[float]] = {}
    for each in graded:
        found.setdefault(each.problem, []).append(value(each))
    return list(found.values())


def _pass_at(marks: list[list[float]], k: int) -> float:
    return math.fsum(pass_at_k(len(each), round(math.fsum(each)), k) for each in marks) / len(marks)


def _powers(k: int) -> list[int]:
    """1, 2, 4, ... below k, and k."""
    return [*(2**n for n in range(k.bit_length()) if 2**n < k), k]
