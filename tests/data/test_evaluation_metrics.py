"""The figures of graded completions, against numbers worked out by hand."""

import itertools

import pytest

from motab_jax.evaluation.metrics import Graded, mean_and_stderr, pass_at_k, summarise


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (4, 0, 2), (4, 4, 1), (6, 1, 6)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n, c, k):
    subsets = list(itertools.combinations(range(n), k))
    share = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
    assert pass_at_k(n, c, k) == pytest.approx(share)


def test_pass_at_k_refuses_more_than_it_has():
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k(4, 2, 5)


def test_mean_and_stderr():
    assert mean_and_stderr([1.0, 0.0, 0.0, 1.0]) == pytest.approx((0.5, (1 / 3 / 4) ** 0.5))
    assert mean_and_stderr([0.25]) == (0.25, 0.0)
    with pytest.raises(ValueError, match="no problem"):
        mean_and_stderr([])


def completions(marks: dict[int, str], task: str = "") -> list[Graded]:
    """A completion of 10 tokens for each letter: r right, h half right, w wrong, t wrong and cut at 30 tokens."""
    score = {"r": 1.0, "h": 0.5, "w": 0.0, "t": 0.0}
    return [
        Graded(problem, task, score[mark], 30 if mark == "t" else 10, mark == "t")
        for problem, letters in marks.items()
        for mark in letters
    ]


def test_figures_by_hand():
    """Three problems of four samples with 4, 1 and 0 right ones.

    avg@4 = (1 + 1/4 + 0) / 3 = 5/12; its deviations are 7/12, -2/12, -5/12, so the variance is (49 + 4 + 25) / 144 / 2
    = 13/48 and the standard error the root of 13/144. pass@2 = (1 + (1 - C(3,2)/C(4,2)) + 0) / 3 = (1 + 1/2) / 3.
    """
    found = summarise(completions({0: "rrrr", 1: "wwrw", 2: "wwwt"}))
    assert found["accuracy"] == pytest.approx(5 / 12)
    assert found["stderr"] == pytest.approx(13**0.5 / 12)
    assert found["pass_at"] == pytest.approx({"1": 5 / 12, "2": 1 / 2, "4": 2 / 3})
    assert found["pass_at_k"] == pytest.approx(2 / 3)
    assert (found["k"], found["prompts"]) == (4, 3)
    assert (found["truncated"], found["length_mean"]) == pytest.approx((1 / 12, 140 / 12))
    assert "score" not in found and "tasks" not in found


def test_partial_scores_count_in_the_score_and_not_in_the_accuracy():
    """Two problems: (1 + 1/2) / 2 and 0 of score, 1/2 and 0 of accuracy."""
    found = summarise(completions({0: "rh", 1: "wt"}, "puzzle"))
    assert (found["accuracy"], found["score"]) == pytest.approx((1 / 4, 3 / 8))
    assert (found["stderr"], found["score_stderr"]) == pytest.approx((1 / 4, 3 / 8))
    assert found["pass_at"] == pytest.approx({"1": 1 / 4, "2": 1 / 2})


def test_several_tasks_have_figures_of_their_own():
    found = summarise(completions({0: "r", 2: "h"}, "one") + completions({1: "w", 3: "t"}, "two"))
    assert found["prompts"] == 4 and found["accuracy"] == 1 / 4
    assert {name: task["accuracy"] for name, task in found["tasks"].items()} == {"one": 1 / 2, "two": 0.0}
    assert found["tasks"]["two"]["truncated"] == 1 / 2 and "tasks" not in found["tasks"]["one"]


@pytest.mark.parametrize(("k", "powers"), [(1, "1"), (3, "1 2 3"), (8, "1 2 4 8")])
def test_pass_at_is_given_for_powers_of_two(k, powers):
    assert list(summarise(completions({0: "r" * k}))["pass_at"]) == powers.split()
