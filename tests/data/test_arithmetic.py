"""The arithmetic task: golden solutions are right, the splits are disjoint, text survives its tokenizer."""

import random
import re

import pytest

from motab_jax.config import UserError
from motab_jax.data.tasks import arithmetic
from motab_jax.data.tasks.arithmetic import Problem, corrupt, final_answer, problems, sample_problem, solution, split_of
from motab_jax.data.tokenizer import load_tokenizer, token_bytes


def test_solution_of_a_known_problem():
    problem = Problem(12, (7, -5, 30))
    assert problem.prompt == "12+7-5+30="
    assert problem.answer == "44"
    assert solution(problem) == "12+7=19\n19-5=14\n14+30=44\n#44"


def test_every_line_is_a_true_sum_in_range():
    rng = random.Random(0)
    for _ in range(300):
        problem = sample_problem(rng, min_terms=2, max_terms=11)
        *lines, last = solution(problem).split("\n")
        assert len(lines) == len(problem.terms)
        for line in lines:
            match = re.fullmatch(r"(\d+)([+-]\d+)=(\d+)", line)
            assert match and int(match[1]) + int(match[2]) == int(match[3]) <= arithmetic.MAX_VALUE
        assert last == f"#{problem.answer}"
        assert final_answer(solution(problem)) == problem.answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1+1=2\n#2", "2"),
        ("#07\n", "7"),
        ("#5\nHowever,1+1=2\n#2", "2"),
        ("#2\n1+1", None),  # went on after its answer
        ("1+1=2\n#", None),
        ("1+1=2#2", None),
        ("f1\nc0\n#c", "c"),
        ("c0\n#c4", None),
        ("", None),
    ],
)
def test_final_answer(text, answer):
    assert final_answer(text) == answer


@pytest.mark.parametrize("steps", range(4))
def test_wrong_steps_have_wrong_totals_and_nothing_else_wrong(steps):
    rng = random.Random(steps)
    for _ in range(100):
        problem = sample_problem(rng)
        lines = corrupt(problem, steps, rng).splitlines()
        assert steps <= len(lines) < len(problem.terms)
        total = true = problem.first
        for number, line in enumerate(lines):
            match = re.fullmatch(r"(\d+)([+-]\d+)=(\d+)", line)
            assert match is not None
            before, term, after = map(int, match.groups())
            assert (before, term) == (total, problem.terms[number])
            true, total = true + term, after
            wrong = number >= len(lines) - steps
            assert wrong == (after != before + term) == (after != true)


def test_wrong_steps_need_room():
    with pytest.raises(ValueError, match="2 wrong of 2 lines"):
        corrupt(Problem(1, (1, 1)), 2, random.Random(0), lines=2)


def test_splits_are_disjoint_for_any_seeds_and_distinct_within():
    # Lengths so short that both splits would collide at once if the seeds alone kept them apart.
    train = {p.prompt for p in problems(400, seed=0, split="train", min_terms=2, max_terms=2)}
    held_out = {p.prompt for p in problems(60, seed=1, split="held_out", min_terms=2, max_terms=2)}
    assert (len(train), len(held_out)) == (400, 60)
    assert not train & held_out


def test_problems_are_reproducible_and_a_larger_count_only_adds():
    assert problems(50, seed=3, split="train")[:20] == problems(20, seed=3, split="train")
    assert problems(20, seed=3, split="train") != problems(20, seed=4, split="train")


def test_split_rule_is_pinned():
    """A change of this rule would let training prompts into the held-out set of an older run."""
    texts = [f"{n}+1=" for n in range(1, 100)]
    assert [t for t in texts if split_of(t) == "held_out"][:3] == ["7+1=", "67+1=", "69+1="]


def test_impossible_requests_are_refused():
    for split, min_terms in (("test", 5), ("train", 1), ("train", 12)):
        with pytest.raises(UserError):
            problems(1, seed=0, split=split, min_terms=min_terms)
    with pytest.raises(UserError, match="too few"):
        problems(300, seed=0, split="held_out", min_terms=2, max_terms=2)


def test_written_tokenizer_is_exact(tmp_path):
    arithmetic.write_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    text = arithmetic.ALPHABET + "However, 1+1=2\n#2"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.encode("1")[0] == tokenizer.bos_token_id
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<pad>", "<eos>")
    assert len(tokenizer) == len(arithmetic.SPECIAL_TOKENS) + len(arithmetic.ALPHABET)
    pieces = token_bytes(tokenizer)
    assert b"".join(pieces[i] for i in ids) == text.encode()
    assert pieces[tokenizer.eos_token_id] == b""
