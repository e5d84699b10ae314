"""Grading: right and wrong answers of each grader, and answers that would hang."""

import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import motab_jax.grading.grade as grade_module
from motab_jax.config import Config
from motab_jax.data.extract import extract_answer, last_boxed
from motab_jax.data.prompts import load_prompts
from motab_jax.data.records import Prompt
from motab_jax.grading.grade import GradingProcess, grade, is_correct
from motab_jax.grading.rationals import rational
from tests.data.answer_table import CHOICES, ENDLESS, LARGE, MATH


def asked(answer: str | None, grader: str) -> Prompt:
    return Prompt("0", "?", answer, grader)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"so \boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{3} then \boxed{4", "3"),
        ("x <answer> Bob </answer> 3", "Bob"),
        ("The answer is 7. I used 3 apples.", "7"),
        ("The final answer is: **-4**.", "-4"),
        ("Answer: yes", "yes"),
        ("4 - 1 - 7 = -4", "-4"),
        ("10-3", "3"),
        ("costs 1,234.50 in all", "1,234.50"),
        ("of 3, 4", "4"),
        ("<think>the answer is 9</think> it is 8", "8"),
        ("<think>the answer is 9", ""),
        ("first\nblue.", "blue"),
        (r"so $\boxed 12$ of 13", "12"),
        (r"<answer>3</answer> and \boxed{4}", "4"),
        (r"The answer is 7. So \boxed{3", ""),
        ("", ""),
    ],
)
def test_extraction(completion, answer):
    assert extract_answer(completion) == answer


# Texts whose braces are balanced.
plain = st.text(st.characters(exclude_characters="{}\\", exclude_categories=["Cs"]), max_size=8)
balanced = st.recursive(
    plain | st.sampled_from([r"\{", r"\}", r"\frac", r"\\"]),
    lambda inner: st.builds("{{{}}}".format, inner) | st.lists(inner, max_size=3).map("".join),
    max_leaves=8,
)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(balanced.filter(str.strip), plain.filter(lambda text: "<think>" not in text), plain)
def test_what_is_boxed_is_the_answer_whatever_it_holds(content, before, after):
    completion = f"{before}\\boxed{{1}} {before}\\boxed{{{content}}}{after}"
    assert last_boxed(completion) == content
    assert extract_answer(f"<think>\\boxed{{2}}</think>{completion}") == content.strip()
    assert last_boxed(f"\\boxed{{1}} \\boxed{{{content}") == "1", "an open box holds no answer yet"


def test_arithmetic_and_exact_and_none():
    assert is_correct(asked("44", "arithmetic"), "14+30=44\n#44")
    assert not is_correct(asked("44", "arithmetic"), "14+30=44")
    assert is_correct(asked("blue", "exact"), r"\boxed{blue}")
    assert not is_correct(asked("blue", "exact"), r"\boxed{Blue}")
    assert not is_correct(asked(None, "none"), "44")
    with pytest.raises(ValueError, match="unknown grader"):
        is_correct(asked("1", "magic"), "1")


@pytest.mark.parametrize(("grader", "table"), [("math", MATH), ("choice", CHOICES), ("math", LARGE)])
def test_the_table_of_answers(grader, table):
    """More than 150 answers in all; seconds each way, pathological ones among them."""
    start = time.monotonic()
    wrong = [row for row in table if is_correct(asked(row[0], grader), row[1]) is not row[2]]
    assert not wrong and time.monotonic() - start < 60


def test_answers_that_never_end_are_wrong_in_bounded_time(monkeypatch):
    monkeypatch.setattr(grade_module, "PARSE_LIMIT", 1)
    start = time.monotonic()
    assert not any(is_correct(asked("3", "math"), completion) for completion in ENDLESS)
    assert time.monotonic() - start < 60


def test_in_a_thread_a_process_that_hangs_is_ended_and_the_next_answer_gets_a_new_one(monkeypatch):
    """math-verify's own limit switched off, only ours is left: the process is killed."""
    monkeypatch.setattr(grade_module, "PARSE_LIMIT", 0)
    monkeypatch.setattr(grade_module, "TIME_LIMIT", 1.0)
    assert is_correct(asked("3", "math"), r"\boxed{\frac{6}{2} x^0}")
    hanging, found = grade_module._PROCESSES["math"]._process, []

    def work():
        found.append(is_correct(asked("3", "math"), ENDLESS[0]))
        monkeypatch.setattr(grade_module, "TIME_LIMIT", 60.0)
        found.append(is_correct(asked("3", "math"), r"\boxed{\frac{6}{2} x^0}"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(120)
    assert found == [False, True]
    assert hanging is not None and hanging.poll() is not None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("-1,234.50", "-1234.5"),
        (r"-2\frac{1}{2}", "-5/2"),
        ("2 1/2", "5/2"),
        (r"\$3.", "3"),
        ("+.5e-2", "1/200"),
        (r"1{,}000\times 10^{-3}", "1"),
        ("1,23", None),
        ("1,2345", None),
        ("1/0", None),
        ("1e401", None),
        ("9" * 401, None),
        ("(1,234)", None),
        ("x", None),
        ("", None),
    ],
)
def test_plain_numbers_are_exact(text, value):
    assert rational(text) == (None if value is None else Fraction(value))


def test_a_silent_or_dead_process_means_wrong_and_the_next_answer_gets_a_new_one():
    grading = GradingProcess("math")
    request = {"gold": "$3$", "answer": "$3$", "seconds": 2}
    try:
        assert grading.ask(request) == 1.0
        process = grading._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        assert grading.ask(request, seconds=0.2) == 0.0
        assert process.poll() is not None
        assert grading.ask(request) == 1.0
        process = grading._process
        assert process is not None
        process.kill()
        process.wait()
        assert grading.ask(request) == 0.0
        assert grading.ask(request) == 1.0
    finally:
        grading.close()


def test_the_process_does_not_import_jax_or_outlive_its_input():
    script = Path(grade_module.__file__).with_name("worker.py")
    code = f"import sys, runpy; sys.argv = ['w', 'math']; runpy.run_path({str(script)!r}); print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "False\n"
    ended = subprocess.run([sys.executable, "-P", str(script), "math"], input=b"", capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, b"ready\n")


def tasks(name: str, count: int) -> list[Prompt]:
    """Held-out prompts of a reasoning-gym task."""
    data = Config().data.model_copy(update={"source": f"reasoning_gym:{name}"})
    return load_prompts(data, split="held_out", count=count, seed=1)


def test_reasoning_gym():
    for prompt in tasks("chain_sum", 3):
        assert is_correct(prompt, f"The answer is {prompt.answer}.")
        assert not is_correct(prompt, f"The answer is {int(prompt.answer or 0) + 1}.")
        assert not is_correct(prompt, "")


def test_reasoning_gym_scores_are_the_tasks_own():
    """One right name of two is worth 0.65 to knights_knaves, which asks for all of them."""

    def words(prompt: Prompt) -> list[str]:  # "Emma is a sage, and Zoey is a fool."
        return [said.rstrip(".").split()[-1] for said in str(prompt.answer).split(", and ")]

    prompt = next(prompt for prompt in tasks("knights_knaves", 10) if len(set(words(prompt))) == 2)
    one, other = words(prompt)
    half = str(prompt.answer).replace(f"a {other}", f"a {one}")
    assert grade(prompt, f"<answer>{prompt.answer}</answer>") == 1.0
    assert grade(prompt, f"<answer>{half}</answer>") == pytest.approx(0.65)
    assert not is_correct(prompt, f"<answer>{half}</answer>")


def test_reasoning_gym_tasks_without_one_answer_and_scorers_that_trip():
    (puzzle,) = tasks("rush_hour", 1)
    assert puzzle.answer is None and puzzle.extra is not None
    assert 0 < grade(puzzle, "<answer>A+1</answer>") < 1, "the task's own score, though no answer is known"
    (factors,) = tasks("prime_factorization", 1)
    assert grade(factors, "<answer>no idea</answer>") == 0.0
    process = grade_module._PROCESSES["reasoning_gym"]._process
    assert process is not None and process.poll() is None, "the scorer failed, and its process goes on"
