"""The pointers task: golden chains follow the map, mistakes lead nowhere, the splits are disjoint, texts are short."""

import random
import re

import pytest

from motab_jax.config import UserError
from motab_jax.data.prompts import Prompt
from motab_jax.data.tasks import arithmetic, pointers
from motab_jax.data.tasks.arithmetic import final_answer, split_of
from motab_jax.data.tasks.pointers import Problem, corrupt, problems, sample_problem, solution
from motab_jax.grading.grade import grade

KNOWN = Problem((("Q", "w"), ("f", "c"), ("L", "x"), ("k", "f")), start="k", hops=2)


def test_solution_of_a_known_problem():
    assert KNOWN.prompt == "Qw,fc,Lx,kf.k2="
    assert KNOWN.path == ("k", "f", "c")
    assert solution(KNOWN) == "f1\nc0\n#c"
    assert final_answer(solution(KNOWN)) == KNOWN.answer == "c"


def drawn(count=200):
    rng = random.Random(0)
    return [sample_problem(rng) for _ in range(count)]


def test_every_line_follows_the_map_that_stands_in_the_prompt():
    for problem in drawn():
        written, _, asked = problem.prompt.partition(".")
        target = {arrow[0]: arrow[1] for arrow in written.split(",")}
        key, hops = asked[0], int(asked[1])
        assert asked[2:] == "=" and pointers.MIN_HOPS <= hops <= pointers.MAX_HOPS
        *lines, last = solution(problem).split("\n")
        assert len(lines) == hops
        for line in lines:
            key, hops = target[key], hops - 1
            assert line == f"{key}{hops}"
        assert last == f"#{key}"


def test_a_map_is_one_path_and_arrows_that_end_at_once():
    for problem in drawn():
        target = dict(problem.arrows)
        assert len(target) == len(problem.arrows) == pointers.ENTRIES
        assert len(set(target.values())) == len(target)  # no two arrows meet
        assert problem.answer not in target
        off = set(target) - set(problem.path)
        assert len(off) == pointers.ENTRIES - problem.hops
        assert all(target[key] not in target and target[key] not in problem.path for key in off)


def test_texts_are_short_and_of_the_shared_alphabet():
    for problem in drawn():
        text = problem.prompt + solution(problem)
        assert set(text) <= set(arithmetic.ALPHABET)
        assert len(problem.prompt) + 1 == 40  # with <bos>
        assert len(solution(problem)) + 1 <= 27  # with <eos>
        assert not re.match(r"\d", problem.prompt)  # as every arithmetic prompt begins


@pytest.mark.parametrize("steps", range(4))
def test_wrong_steps_leave_the_path_and_stay_off_it(steps):
    rng = random.Random(steps)
    for problem in drawn(100):
        prefix = corrupt(problem, steps, rng)
        lines = prefix.splitlines(keepends=True)
        right = len(lines) - steps
        assert steps <= len(lines) < problem.hops
        assert solution(problem).startswith("".join(lines[:right]))
        before = problem.path[right]
        for number, line in enumerate(lines[right:], right + 1):
            key = line[0]
            assert line == f"{key}{problem.hops - number}\n"
            assert key not in problem.path and key not in (before, dict(problem.arrows).get(before))
            before = key


def test_a_prefix_of_a_given_length():
    assert corrupt(KNOWN, 0, random.Random(0), lines=1) == "f1\n"
    with pytest.raises(ValueError, match="2 wrong of 2 lines"):
        corrupt(KNOWN, 2, random.Random(0), lines=2)


def test_splits_are_disjoint_and_a_larger_count_only_adds():
    train = problems(60, seed=0, split="train", min_hops=1, max_hops=1, entries=1)
    held_out = problems(60, seed=1, split="held_out", min_hops=1, max_hops=1, entries=1)
    assert not {p.prompt for p in train} & {p.prompt for p in held_out}
    assert {split_of(p.prompt) for p in held_out} == {"held_out"}
    assert problems(20, seed=0, split="train", min_hops=1, max_hops=1, entries=1) == train[:20]


def test_impossible_requests_are_refused():
    for changed in ({"split": "test"}, {"max_hops": 10}, {"entries": 7}, {"entries": 27}, {"min_hops": 0}):
        with pytest.raises(UserError, match="pointers"):
            problems(1, **{"seed": 0, "split": "train", **changed})


def test_grading_reads_the_closing_line():
    prompt = Prompt("1", KNOWN.prompt, KNOWN.answer, "arithmetic")
    assert grade(prompt, solution(KNOWN))
    assert not grade(prompt, "f1\nc0\n#C")
    assert not grade(prompt, "f1\nc0\n")
