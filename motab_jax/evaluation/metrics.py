"""Metrics of graded completions: avg@k, pass@k, standard errors, truncation, length.

Left out: majority voting.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Graded:
    """One graded completion."""

    problem: int  # index of the prompt
    task: str  # the reasoning-gym task; "" elsewhere
    score: float  # from 0 to 1, by the grader; only 1 is correct
    tokens: int  # the completion's length
    truncated: bool  # ended at the length limit

    @property
    def correct(self) -> bool:
        """Whether the score is full."""
        return self.score >= 1.0


def summarise(graded: Sequence[Graded]) -> dict[str, Any]:
    """The metrics of completions, k of each problem.

    Returns:
      `accuracy`: avg@k, the mean over problems of the share of correct completions; `stderr` its standard error.
      `pass_at_k`: pass@k over all k; `pass_at`: its unbiased estimates for 1, 2, 4, ... up to k.
      `truncated`: the share of completions that ended at the length limit; `length_mean`: their mean length in tokens.
      `score`, `score_stderr`: for reasoning-gym tasks, avg@k of their own scores, partial ones included.
      `tasks`: for several such tasks, the metrics of each.

    Raises:
      ValueError: without a completion.
    """
    correct = _by_problem(graded, lambda completion: float(completion.correct))
    k = max((len(marks) for marks in correct), default=0)
    mean, stderr = mean_and_stderr([math.fsum(marks) / len(marks) for marks in correct])
    metrics: dict[str, Any] = {
        "accuracy": mean,
        "stderr": stderr,
        "pass_at_k": _pass_at(correct, k),
        "k": k,
        "pass_at": {str(n): _pass_at(correct, n) for n in _powers(k)},
        "prompts": len(correct),
        "truncated": math.fsum(completion.truncated for completion in graded) / len(graded),
        "length_mean": math.fsum(completion.tokens for completion in graded) / len(graded),
    }
    tasks = sorted({completion.task for completion in graded})
    if any(tasks):
        scores = _by_problem(graded, lambda completion: completion.score)
        metrics["score"], metrics["score_stderr"] = mean_and_stderr([math.fsum(s) / len(s) for s in scores])
    if len(tasks) > 1:
        metrics["tasks"] = {task: summarise([g for g in graded if g.task == task]) for task in tasks}
    return metrics


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that k of n samples, c of them correct, contain a correct one: 1 - C(n-c, k) / C(n, k).

    The unbiased estimate of arXiv 2107.03374, eq. 1.

    >>> pass_at_k(5, 2, 1), pass_at_k(5, 2, 3)
    (0.4, 0.9)
    """
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


def _by_problem(graded: Sequence[Graded], value: Callable[[Graded], float]) -> list[list[float]]:
    values: dict[int, list[float]] = {}
    for completion in graded:
        values.setdefault(completion.problem, []).append(value(completion))
    return list(values.values())


def _pass_at(correct: list[list[float]], k: int) -> float:
    return math.fsum(pass_at_k(len(marks), round(math.fsum(marks)), k) for marks in correct) / len(correct)


def _powers(k: int) -> list[int]:
    """1, 2, 4, ... below k, and k."""
    return [*(2**n for n in range(k.bit_length()) if 2**n < k), k]
