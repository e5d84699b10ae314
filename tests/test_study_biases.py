"""What the study says of the biases, on chains written by hand."""

import study_biases

from motab_jax.data.arithmetic import Problem, solution

PROBLEM = Problem(12, (7, -5, 3))  # 12+7=19, 19-5=14, 14+3=17


def errors(*texts):
    return [counts.tolist() for counts in study_biases.step_errors([PROBLEM] * len(texts), texts)]


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
