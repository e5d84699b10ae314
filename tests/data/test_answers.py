"""Grading: right and wrong answers of each grader, answers that would hang, and the figures made of grades."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from motab_jax.data import answers
from motab_jax.data.answers import Helper, extract_answer, grade, mean_and_stderr, pass_at_k
from motab_jax.data.prompts import Prompt, load_prompts


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
        ("", ""),
    ],
)
def test_extraction(completion, answer):
    assert extract_answer(completion) == answer


def test_arithmetic_and_exact_and_none():
    assert grade(asked("44", "arithmetic"), "14+30=44\n#44")
    assert not grade(asked("44", "arithmetic"), "14+30=44")
    assert grade(asked("blue", "exact"), r"\boxed{blue}")
    assert not grade(asked("blue", "exact"), r"\boxed{Blue}")
    assert not grade(asked(None, "none"), "44")
    with pytest.raises(ValueError, match="unknown grader"):
        grade(asked("1", "magic"), "1")


@pytest.mark.parametrize(
    ("gold", "completion", "right"),
    [
        ("42", r"Thus \boxed{42}.", True),
        ("42", r"Thus \boxed{41}.", False),
        (r"\frac{1}{2}", r"so \boxed{0.5}", True),
        (r"$\sqrt{8}$", r"it is $2\sqrt{2}$", True),
        ("1/3", r"\boxed{\dfrac{2}{6}}", True),
        ("(1,2)", r"\boxed{(2,1)}", False),
        ("7", "the answer is 7.", True),
        ("7", "", False),
    ],
)
def test_math(gold, completion, right):
    assert grade(asked(gold, "math"), completion) is right


def test_math_in_a_thread_and_with_an_answer_that_never_ends():
    found, start = [], time.monotonic()

    def work():
        found.append(grade(asked("3", "math"), r"\boxed{9^{9^{9^{9}}}}"))
        found.append(grade(asked("3", "math"), r"\boxed{\frac{6}{2}}"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert found == [False, True]
    assert time.monotonic() - start < 60


def test_a_silent_or_dead_helper_means_wrong_and_the_next_answer_gets_a_new_one():
    helper = Helper("math")
    request = {"gold": "$3$", "answer": "$3$", "seconds": 2}
    try:
        assert helper.ask(request) is True
        process = helper._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        assert helper.ask(request, seconds=0.2) is False
        assert process.poll() is not None
        assert helper.ask(request) is True
        process = helper._process
        assert process is not None
        process.kill()
        process.wait()
        assert helper.ask(request) is False
        assert helper.ask(request) is True
    finally:
        helper.close()


def test_the_helper_does_not_import_jax_or_outlive_its_input():
    script = Path(answers.__file__).with_name("math_worker.py")
    code = f"import sys, runpy; sys.argv = ['w', 'math']; runpy.run_path({str(script)!r}); print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True).stdout == "False\n"
    ended = subprocess.run([sys.executable, "-P", str(script), "math"], input=b"", capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, b"ready\n")


def test_reasoning_gym():

    class Section:
        source, path, fields, split = "reasoning_gym:chain_sum", None, {}, "train"

    for prompt in load_prompts(Section(), split="held_out", count=3, seed=1):
        assert grade(prompt, f"The answer is {prompt.answer}.")
        assert not grade(prompt, f"The answer is {int(prompt.answer or 0) + 1}.")
        assert not grade(prompt, "")


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (4, 0, 2), (4, 4, 1), (6, 1, 6)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n, c, k):
    subsets = list(itertools.combinations(range(n), k))
    share = sum(any(i < c for i in subset) for subset in subsets) / len(subsets)
    assert pass_at_k(n, c, k) == pytest.approx(share)


def test_pass_at_k_refuses_more_than_it_has():
    with pytest.raises(ValueError, match="pass@k"):
        pass_at_k(4, 2, 5)


def test_mean_and_stderr():
    assert mean_and_stderr([1, 0, 0, 1]) == pytest.approx((0.5, (1 / 3 / 4) ** 0.5))
    assert mean_and_stderr([0.25]) == (0.25, 0.0)
    with pytest.raises(ValueError, match="no problem"):
        mean_and_stderr([])
