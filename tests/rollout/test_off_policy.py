"""Completions that the student did not generate become trajectories like those of a rollout, down to the shapes."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.data.sources import Source
from motab_jax.rollout import rollout
from motab_jax.rollout.off_policy import Completions, from_completions, generate_with_teacher
from tests.optional import some
from tests.rollout.pair import MAX_NEW, ROWS, outcome, random_prompts, settings, student, teacher

SCORED: dict[str, Any] = {"monitored": False, "score_after": True}


@functools.cache
def scored_and_given():
    """What the student generated and the teacher scored; and the same completions once more, as given ones."""
    generated = outcome(**SCORED)
    text = Completions(jnp.asarray(generated.tokens[:, :MAX_NEW]), jnp.asarray(generated.length))
    program = jax.jit(functools.partial(from_completions, score=True))
    return generated, jax.device_get(program(teacher(), random_prompts(), text, settings(**SCORED)))


def test_given_completions_count_as_the_teachers():
    generated, found = scored_and_given()
    for row, length in enumerate(found.length):
        np.testing.assert_array_equal(found.tokens[row, :length], generated.tokens[row, :length])
        assert (found.sources[row, :length] == Source.TEACHER).all()
    for name in ("length", "finish", "kept", "prompt_tokens", "prompt_positions"):
        np.testing.assert_array_equal(getattr(found, name), getattr(generated, name))
    assert len(set(found.finish)) == 2, "some end at a stop token and some at the limit"
    assert found.steps.count.sum() == found.num_rewinds.sum() == 0
    assert found.counters.teacher_scored == found.length.sum()


def test_hidden_states_equal_those_after_a_rollout_of_the_same_completions():
    generated, found = scored_and_given()
    used = generated.used
    states, expected = some(found.teacher_hidden)[used], some(generated.teacher_hidden)[used]
    assert np.abs(states).max() > 0.1
    np.testing.assert_allclose(states, expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"targets": "sampled"},
        {"targets": "topk", "targets_dtype": "bfloat16"},
        {"intervention": "steps", "max_interventions": 3},
        SCORED,
        SCORED | {"targets": "topk"},
    ],
    ids=str,
)
@pytest.mark.parametrize("judge", [teacher, lambda: None], ids=["teacher", "nobody"])
def test_shapes_are_those_of_a_rollout(changes, judge):
    """So that the update is compiled once for both kinds of step."""
    prompts, key, numbers, judge = random_prompts(), jax.random.key(0), settings(**changes), judge()
    if judge is None and numbers.monitor.enabled:
        return
    text = Completions(jnp.ones((ROWS, MAX_NEW), jnp.int32), jnp.ones((ROWS,), jnp.int32))
    score = judge is not None and numbers.targets.kind != "sampled"
    kinds = [
        jax.eval_shape(lambda: rollout(student(), judge, prompts, key, numbers)),
        jax.eval_shape(lambda: from_completions(judge, prompts, text, numbers, score=score)),
    ]
    if judge is not None:
        kinds.append(jax.eval_shape(lambda: generate_with_teacher(judge, prompts, key, numbers, score=score)))
    for other in kinds[1:]:
        assert jax.tree.structure(other) == jax.tree.structure(kinds[0])
        # str tells of weak types too, for which a program would be compiled anew.
        assert str(jax.tree.leaves(other)) == str(jax.tree.leaves(kinds[0]))


def test_the_teacher_generates_as_it_would_as_the_student():
    numbers, key = settings(targets="sampled"), jax.random.key(0)
    program = jax.jit(functools.partial(generate_with_teacher, score=False))
    found = jax.device_get(program(teacher(), random_prompts(), key, numbers))
    alone = outcome(pair=(teacher(), None), monitored=False)
    np.testing.assert_array_equal(found.length, alone.length)
    np.testing.assert_array_equal(found.tokens[found.used], alone.tokens[alone.used])
    np.testing.assert_array_equal(found.finish, alone.finish)
    assert (found.sources[found.used] == Source.TEACHER).all() and found.num_rewinds.sum() == 0
    counts = found.counters
    assert counts.student_iterations == counts.student_columns == 0 < counts.teacher_iterations
    assert counts.teacher_scored == found.length.sum()
