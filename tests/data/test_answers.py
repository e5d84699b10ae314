"""Grading: right and wrong answers of each grader, and answers that would hang."""

import os
import signal
import subprocess
import sys
import threading
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import motab_jax.grading.grade as grade_module
from motab_jax.config import Config, EnvironmentFailure
from motab_jax.data.extract import extract_answer, last_boxed
from motab_jax.data.prompts import load_prompts
from motab_jax.data.records import Prompt
from motab_jax.grading.grade import GradingProcess, Verdict, grade, is_correct, judge
from motab_jax.grading.rationals import rational
from tests.data.answer_table import CHOICES, ENDLESS, LARGE, MATH


def asked(answer: str | None, grader: str) -> Prompt:
    return Prompt("0", "?", answer, grader)


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        (r"so \boxed{1} and \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{3} then \boxed{4", ""),
        (r"\boxed{3} then \boxed{}", ""),
        (r"\boxed{3 \boxed{4}", "4"),
        ("<answer>3<answer>4</answer> <answer>5", "4"),
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
    assert last_boxed(f"\\boxed{{1}} \\boxed{{{content}") is None, "an open box holds no answer yet"


@pytest.mark.parametrize(
    ("grader", "gold", "text"),
    [
        ("math", "6", r"so \boxed{6}. Wait, maybe"),
        ("exact", "6", "so the answer is 6"),
        ("choice", "C", "Answer: C"),
        ("arithmetic", "6", "3+3=6\n#6"),
    ],
)
def test_a_thought_that_never_closed_holds_no_answer_whoever_opened_it(grader, gold, text):
    prompt = asked(gold, grader)
    assert is_correct(prompt, text)
    assert not is_correct(prompt, f"<think>{text}")
    assert not is_correct(prompt, text, opened_thought=True), "the prompt's template opened it"
    for opened_thought in (False, True):
        assert is_correct(prompt, f"hm</think>{text}", opened_thought=opened_thought)
        assert not is_correct(prompt, f"{text}</think>I give up.", opened_thought=opened_thought)


def test_a_reasoning_gym_score_of_an_open_thought_is_0():
    (prompt,) = tasks("chain_sum", 1)
    assert grade(prompt, f"<answer>{prompt.answer}</answer>") == 1.0
    assert judge(prompt, f"<answer>{prompt.answer}</answer>", opened_thought=True) == Verdict("", 0.0)


def test_a_verdict_has_the_answer_that_was_read():
    assert judge(asked("6", "math"), r"\boxed{7}") == Verdict("7", 0.0)
    assert judge(asked("6", "exact"), "The answer is 6.") == Verdict("6", 1.0)
    assert judge(asked("C", "choice"), r"\boxed{\text{(D)}}") == Verdict("D", 0.0)
    assert judge(asked("6", "arithmetic"), "#06") == Verdict("6", 1.0)
    assert judge(asked("6", "arithmetic"), "I give up") == Verdict("", 0.0)
    assert judge(asked(None, "none"), r"\boxed{7}") == Verdict(None, 0.0)


# Texts over which a regular expression that tries each length of each run takes minutes: the grading process would be
# ended at its limit, and what follows them would not be read.
LONG = 300_000


@pytest.mark.parametrize(
    ("grader", "gold", "text"),
    [
        ("math", "7", "answer:" + "\n" * LONG + r"\boxed{7}"),
        ("exact", "7", "The answer is 7.\nanswer:" + "\n" * LONG),
        ("choice", "C", "the answer is" + "\n" * LONG + "! The answer is C."),
        ("choice", "C", "answer" + "\n" * LONG + "! The option is" + "\n" * LONG + "! The answer is C."),
        ("choice", "C", "the answer is option" + "\n" * LONG + "! The answer is C."),
        ("exact", "7", "<answer>" * LONG + "7</answer>"),
        ("exact", "7", "<answer>" * LONG + " The answer is 7."),
        ("exact", "7", r"\boxed" + " " * LONG + r"} \boxed" + " " * LONG + "{7}"),
        ("choice", "C", r"\text" + "x" * LONG + "! The answer is C."),
        ("choice", "C", r"\text" + " " * LONG + "! The answer is C."),
        ("exact", "7", r"\boxed{" * LONG + "7" + "}" * LONG),
        ("exact", "7", "1," * LONG + "\n7"),
        ("arithmetic", "7", "#1" + "\n" * LONG + "#7"),
    ],
    ids=range(13),
)
def test_extraction_takes_time_in_proportion_to_the_text(grader, gold, text):
    assert is_correct(asked(gold, grader), text)


def test_arithmetic_and_exact_and_none():
    assert is_correct(asked("44", "arithmetic"), "14+30=44\n#44")
    assert is_correct(asked("-4", "arithmetic"), "#-04") and is_correct(asked("0", "arithmetic"), "#-0")
    assert not is_correct(asked("44", "arithmetic"), "#" + "4" * 5000)
    assert not is_correct(asked("44", "arithmetic"), "14+30=44")
    assert is_correct(asked("blue", "exact"), r"\boxed{blue}")
    assert not is_correct(asked("blue", "exact"), r"\boxed{Blue}")
    assert not is_correct(asked(None, "none"), "44")
    with pytest.raises(ValueError, match="unknown grader"):
        is_correct(asked("1", "magic"), "1")


@pytest.mark.parametrize(("grader", "table"), [("math", MATH), ("choice", CHOICES), ("math", LARGE)])
def test_the_table_of_answers(grader, table):
    """More than 200 answers in all, pathological ones among them."""
    assert [row for row in table if is_correct(asked(row[0], grader), row[1]) is not row[2]] == []


def test_answers_that_never_end_are_wrong(monkeypatch):
    """Each of them returns, by math-verify's limit or by that of the process, and has been read."""
    monkeypatch.setattr(grade_module, "PARSE_LIMIT", 1)
    verdicts = [judge(asked("3", "math"), completion) for completion in ENDLESS]
    assert [(f"\\boxed{{{verdict.answer}}}", verdict.score) for verdict in verdicts] == [
        (text, 0.0) for text in ENDLESS
    ]


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


@pytest.fixture
def grading():
    """A grading process and a request that it answers with 1."""
    process = GradingProcess("exact")
    yield process, {"text": "3", "gold": "3", "opened_thought": False}
    process.close()


@pytest.mark.parametrize("size", [1, 1_000_000], ids=["short", "more-than-a-pipe-holds"])
def test_a_silent_process_means_wrong_and_the_next_answer_gets_a_new_one(grading, size):
    asked_of, request = grading
    assert asked_of.ask(request) == Verdict("3", 1.0)
    silent = asked_of._process
    assert silent is not None
    os.kill(silent.pid, signal.SIGSTOP)
    assert asked_of.ask({**request, "text": "3" * size}, seconds=0.2) == Verdict(None, 0.0)
    assert silent.poll() is not None
    assert asked_of.ask(request) == Verdict("3", 1.0)


def test_a_process_that_died_is_started_again_and_asked_once_more(grading):
    asked_of, request = grading
    assert asked_of.ask(request).correct
    dead = asked_of._process
    assert dead is not None
    dead.kill()
    dead.wait()
    assert asked_of.ask(request).correct, "nobody had judged this answer"


def test_an_answer_that_ends_every_process_is_wrong(grading):
    asked_of, request = grading
    assert asked_of.ask({**request, "gold": None}) == Verdict("3", 0.0), "it was read, and the comparison fails"
    assert asked_of.ask(request).correct


def test_a_grader_that_cannot_start_is_no_mistake_of_the_users(monkeypatch):
    monkeypatch.setitem(grade_module._PROCESSES, "exact", GradingProcess("magic"))
    with pytest.raises(EnvironmentFailure, match="'magic' could not be started: KeyError"):
        judge(asked("3", "exact"), "3")


def test_the_process_does_not_import_jax_or_outlive_its_input():
    module = "motab_jax.grading.worker"
    code = (
        f"import sys; sys.argv = ['w', 'math']; import {module}; {module}.main(); print(*sys.modules, file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout) == (0, "ready\n")
    assert "math_verify" in ended.stderr.split() and not {"jax", "numpy"} & set(ended.stderr.split())


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
