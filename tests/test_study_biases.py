"""What the study says of the biases, on chains written by hand."""

from typing import Any

import numpy as np
import study_biases

from motab_jax.data.tasks import pointers
from motab_jax.data.tasks.arithmetic import Problem, solution

PROBLEM = Problem(12, (7, -5, 3))  # 12+7=19, 19-5=14, 14+3=17
MAP = pointers.Problem((("a", "b"), ("b", "c"), ("c", "d"), ("x", "y")), "a", 3)


def errors(*texts, task: str = "arithmetic", problem: Any = PROBLEM):
    chain = study_biases.CHAINS[task]
    return [counts.tolist() for counts in study_biases.step_errors(chain, [problem] * len(texts), texts)]


def hop_errors(*texts):
    return errors(*texts, task="pointers", problem=MAP)


def test_a_golden_chain_has_no_errors():
    assert errors(solution(PROBLEM)) == [[1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_errors_are_counted_apart_before_and_after_the_first():
    # A wrong sum, then a right one from the wrong total, then a wrong one from it.
    assert errors("12+7=18\n18-5=13\n13+3=17\n#17") == [[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_a_step_that_starts_elsewhere_or_takes_another_term_is_wrong():
    assert errors("12+7=19\n14+3=17") == [[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]
    assert errors("13+7=20") == [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]]


def test_what_is_missing_or_unreadable_is_wrong_and_ends_the_chain():
    assert errors("12+7=19\nno", "") == [[2, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_hops_are_read_from_the_key_before():
    assert hop_errors(pointers.solution(MAP)) == [[1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    # A jump to x; y follows from x, nothing from y.
    assert hop_errors("b2\nx1\ny0\n#y") == [[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert hop_errors("x2\ny1\nd0\n#d") == [[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 1]]


def test_a_hop_with_a_wrong_count_is_wrong():
    assert hop_errors("b1\nc1\nd0\n#d") == [[1, 0, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]]


def test_a_rate_of_nothing_is_none():
    counts = study_biases.StepErrors(*(np.array(x) for x in ([4, 2], [1, 2], [0, 1], [0, 0])))
    assert study_biases._figures(counts) == {
        "step": [1, 2], "first": [0.25, 1.0], "further": [None, 0.0], "first_all": 0.5, "further_all": 0.0,
    }  # fmt: skip
