"""Other methods' judgements by hand: averages, running means, patience, the side of the alarm, discard limits."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.data.sources import Source
from motab_jax.data.steps import advance, compile_window
from motab_jax.rollout import MonitorSpec
from motab_jax.rollout.monitor import Columns, observe, open_step
from motab_jax.rollout.step_signals import signal_of
from motab_jax.rollout.trajectory import empty_steps
from tests.rollout.test_monitor import root_of

MEAN = MonitorSpec(signal="top_k")  # a step's value is the mean of its signal, not an exponential
HIGH = replace(MEAN, alarm_is_high=True)


def judge(signals, *, spec, eps0, cut=None, discarded=0, before=(), judged=True, limits=None, **changes):
    """Observe one row in which every token is a step; `before`: (value, stray, source) of steps entered earlier."""
    count, steps = len(signals), empty_steps(1, 16)
    for index, (value, stray, source) in enumerate(before):
        entry = {"value": value, "stray": stray, "source": source, "start": index, "end": index + 1}
        steps = steps.replace(**{name: getattr(steps, name).at[0, index].set(x) for name, x in entry.items()})
    steps = steps.replace(count=jnp.array([len(before)]))
    yes = jnp.ones((1, count), bool)
    columns = Columns(jnp.asarray([signals], jnp.float32), jnp.zeros((1, count)), yes, ~yes, yes)
    breach = jnp.zeros(1, bool)
    open_, index, taken = open_step(1).replace(**changes), jnp.array([len(before)]), 0
    for begin, end in itertools.pairwise([0, *(cut or []), count]):
        part = jax.tree.map(lambda x, begin=begin, end=end: x[:, begin:end], columns)
        open_, steps, accepted, breach = observe(
            open_, steps, part, index, jnp.array([True]), eps0=jnp.float32(eps0), theta=jnp.float32(0.0),
            source=Source.STUDENT, judged=judged, spec=spec, discarded=jnp.array([discarded]), **(limits or {}),
        )  # fmt: skip
        index, taken = index + jnp.sum(accepted, axis=1), taken + int(accepted.sum())
        if breach[0]:
            break
    return steps, taken, bool(breach[0])


def test_a_mean_is_not_an_exponential():
    steps, taken, breach = judge([0.4, 0.2], spec=MEAN, eps0=0.3)
    np.testing.assert_allclose(steps.value[0, :2], [0.4, 0.2])
    assert breach and taken == 2
    assert judge([0.4, 0.2, 0.4], spec=HIGH, eps0=0.3)[1:] == (1, True)


def test_a_token_that_is_taken_for_certain_counts_in_the_length_alone():
    yes, no = jnp.ones((1, 2), bool), jnp.zeros((1, 2), bool)
    columns = Columns(jnp.log(jnp.array([[0.1, 0.25]])), jnp.zeros((1, 2)), yes, no, jnp.array([[False, True]]))
    values = {}
    for certain in (False, True):
        spec = MonitorSpec(first_token_certain=certain)
        _, steps, *_ = observe(
            open_step(1), empty_steps(1, 4), columns, jnp.array([0]), jnp.array([True]), eps0=jnp.float32(0.0),
            theta=jnp.float32(0.0), source=Source.STUDENT, spec=spec,
        )  # fmt: skip
        values[certain] = float(steps.value[0, 0])
    assert values[False] == pytest.approx(0.025**0.5) and values[True] == pytest.approx(0.5)


@pytest.mark.parametrize("cut", [None, [1], [1, 2, 3]])
def test_a_running_mean_is_of_the_steps_before(cut):
    # Means before each: none, 1, 1.5, 2: the last value is 3 times as large and not more.
    steps, taken, breach = judge([1.0, 2.0, 3.0, 6.0], spec=replace(HIGH, running_mean=True), eps0=3.0, cut=cut)
    np.testing.assert_allclose(steps.boundary[0, 1:4], [3.0, 4.5, 6.0])
    assert not breach and taken == 4
    assert judge([1.0, 2.0, 3.0, 6.1], spec=replace(HIGH, running_mean=True), eps0=3.0, cut=cut)[2]


def test_a_running_mean_leaves_the_teachers_steps_out():
    before = [(1.0, False, Source.STUDENT), (100.0, False, Source.TEACHER)]
    steps, _, breach = judge([3.5], spec=replace(HIGH, running_mean=True), eps0=3.0, before=before)
    assert breach and float(steps.boundary[0, 2]) == pytest.approx(3.0)


@pytest.mark.parametrize("cut", [None, [1], [2, 3], [1, 2, 3, 4]])
def test_patience_counts_strays_in_a_row(cut):
    low = replace(MEAN, patience=2)
    assert judge([0.1, 0.9, 0.1, 0.1, 0.9], spec=low, eps0=0.5, cut=cut)[1:] == (4, True)
    assert judge([0.1, 0.9, 0.1, 0.9, 0.1], spec=low, eps0=0.5, cut=cut)[1:] == (5, False)


def test_patience_does_not_reach_back_beyond_a_hand_back():
    before = [(0.1, True, Source.STUDENT)]
    assert judge([0.1], spec=replace(MEAN, patience=2), eps0=0.5, before=before)[2]
    assert not judge([0.1], spec=replace(MEAN, patience=2), eps0=0.5, before=before, first=jnp.array([1]))[2]


@pytest.mark.parametrize(("limit", "discarded", "all_", "breach"), [
    (4, 3, False, True), (3, 3, False, False), (4, 1, True, True), (3, 1, True, False), (None, 9, True, True),
])  # fmt: skip
def test_a_row_loses_no_more_than_it_may(limit, discarded, all_, breach):
    """The log has 4 tokens when the last step strays: `discarded` of them are discarded, the step is 1 long."""
    limits = {"discard_limit": limit, "may_discard_all": all_}
    before = [(0.9, False, Source.STUDENT)] * 3
    found = judge([0.1], spec=MEAN, eps0=0.5, discarded=discarded, before=before, limits=limits)
    assert found[2] == breach and bool(found[0].stray[0, 3])


def test_the_root_of_a_high_alarm_is_the_steepest_rise():
    values, boundaries = [0.1, 0.6, 0.7, 0.9], [0.8] * 4
    assert root_of(values, boundaries, spec=HIGH) == 1
    assert root_of(values, boundaries, spec=MEAN) == 3  # none is safe from below


def test_windows_are_counted():
    window, state, ended = compile_window(3), jnp.array([0]), []
    for token in (7, 7, 99, 0, 1, 2, 3):
        state, end = advance(window, state, jnp.array([token]))
        ended.append(bool(end[0]))
    assert ended == [False, False, True, False, False, True, False]


def test_signals_by_hand():
    teacher_probs, student_probs = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    teacher, student = jnp.log(jnp.asarray(teacher_probs)) + 3.0, jnp.log(jnp.asarray(student_probs)) - 1.0
    token, logprob, entropy = jnp.array(2), jnp.log(jnp.float32(0.2)), jnp.float32(1.25)
    want = {
        "likelihood": np.log(0.2),
        "likelihood_ratio": np.log(0.2 / 0.6),
        "teacher_entropy": 1.25,
        "student_entropy": -np.sum(student_probs * np.log(student_probs)),
        "reverse_kl": np.sum(student_probs * np.log(student_probs / teacher_probs)),
        "forward_kl": np.sum(teacher_probs * np.log(teacher_probs / student_probs)),
    }
    for name, value in want.items():
        found = signal_of(name, teacher, student, logprob, entropy, token, top_k=0)
        assert float(found) == pytest.approx(value, abs=1e-6), name
    ranks = [float(signal_of("top_k", teacher, None, logprob, entropy, token, top_k=k)) for k in (1, 2, 3)]
    assert ranks == [0.0, 0.0, 1.0]
    assert np.isnan(signal_of("reverse_kl", teacher, None, logprob, entropy, token, top_k=0))
