"""The statistics of a batch by hand and by identities, and which rows are shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.data.sources import Source
from motab_jax.rollout.counters import count, zero_counts
from motab_jax.rollout.monitor import NO_BOUNDARY
from motab_jax.rollout.summary import samples, statistics
from motab_jax.rollout.trajectory import FinishReason, empty_trajectory
from tests.rollout.pair import ROWS, outcome

jitted = jax.jit(statistics)


def describe(trajectory) -> dict[str, float]:
    """The statistics as Python numbers."""
    return {name: float(value) for name, value in jitted(trajectory).items()}


@pytest.fixture(scope="module")
def found():
    return outcome(eps0=0.02)


def by_hand():
    """Four rows: one of one step, one with a rewind and the teacher's step, one left out, one at the length limit."""
    log = empty_trajectory(jnp.zeros((4, 2), jnp.int32), jnp.zeros((4, 2), jnp.int32), 8, 1, 0, jnp.float32)
    student, teacher = Source.STUDENT, Source.TEACHER
    rewound = log.steps.discarded_by.at[1, 1].set(0)
    steps = log.steps.replace(
        source=jnp.array([[student] * 8, [student, student, teacher] + 5 * [student], [student] * 8, [student] * 8]),
        value=jnp.zeros((4, 8)).at[:, 0].set(jnp.array([0.5, 0.9, 7.0, 0.3])).at[1, 1:3].set(jnp.array([0.1, 0.7])),
        boundary=jnp.full((4, 8), 0.2).at[1, 0].set(0.3).at[3, 0].set(-NO_BOUNDARY),
        stray=jnp.zeros((4, 8), bool).at[1, 1].set(True).at[2, 0].set(True),
        discarded_by=rewound,
        count=jnp.array([1, 3, 0, 1]),
    )
    counts = {"student_columns": 20, "teacher_columns": 5, "busy_columns": 20, "tape_columns": 100, "live_columns": 40}
    return log.replace(
        steps=steps,
        sources=jnp.full((4, 8), student).at[1, 4:6].set(int(teacher)),
        discarded_by=log.discarded_by.at[1, 2:4].set(0),
        length=jnp.array([5, 6, 0, 8]),
        num_rewinds=jnp.array([0, 1, 0, 0]),
        finish=jnp.array([FinishReason.STOP, FinishReason.STOP, FinishReason.RUNNING, FinishReason.LENGTH]),
        counters=count(zero_counts(), teacher_scored=38, teacher_reread=19, **counts),
    )


def test_the_statistics_of_a_batch_by_hand():
    expected = {
        "occupancy": 20 / 25,
        "dead_columns": 60 / 100,
        "teacher_scored_per_token": 38 / 19,
        "teacher_reread_per_token": 19 / 19,
        "tokens_student": 5 + 4 + 8,
        "tokens_teacher": 2,
        "tokens_discarded": 2,
        "strayed": 1 / 3,
        "rewinds": 1 / 3,
        "value": (0.5 + 0.9 + 0.1 + 0.3) / 4,
        "boundary": (0.2 + 0.3 + 0.2) / 3,
        "length_mean": (5 + 4 + 8) / 3,
        "length_max": 8,
        "truncated": 1 / 3,
    }
    assert describe(by_hand()) == pytest.approx(expected, rel=1e-6)


def test_statistics_do_not_depend_on_the_order_of_rows(found):
    order = np.random.default_rng(0).permutation(ROWS)
    shuffled = jax.tree.map(lambda x: x[order] if x.ndim else x, found)
    one, other = describe(found), describe(shuffled)
    assert one == pytest.approx(other, rel=1e-6) and one["tokens_discarded"] > 0 and 0 < one["strayed"] < 1


def test_every_token_has_one_source_and_is_kept_or_discarded(found):
    got = describe(found)
    assert got["tokens_student"] + got["tokens_teacher"] == found.length.sum()
    assert got["tokens_discarded"] + ROWS * got["length_mean"] == pytest.approx(found.length.sum())


def test_without_decoding_there_is_no_occupancy():
    got = describe(by_hand().replace(counters=zero_counts()))
    assert np.isnan(got["occupancy"]) and np.isnan(got["dead_columns"])


def test_the_mean_of_nothing_is_nan(found):
    none = found.replace(steps=found.steps.replace(count=np.zeros_like(found.steps.count)))
    got = describe(none)
    assert np.isnan(got["value"]) and np.isnan(got["boundary"]) and got["strayed"] == 0


def test_rewound_rows_come_first(found):
    rows, shown = jax.device_get(samples(found, 3))
    rewound = np.flatnonzero(found.num_rewinds)
    others = np.flatnonzero(found.num_rewinds == 0)
    assert rows.tolist() == [*rewound, *others][:3] and ROWS > 3
    np.testing.assert_array_equal(shown.tokens, found.tokens[rows])
    np.testing.assert_array_equal(shown.steps.value, found.steps.value[rows])
    assert shown.teacher_hidden is None
