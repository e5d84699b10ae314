"""The figures of a batch against plain NumPy on the host, and which rows are shown."""

import jax
import numpy as np
import pytest

from motab_jax.data.sources import Source
from motab_jax.rollout.monitor import NO_BOUNDARY
from motab_jax.rollout.summary import samples, statistics
from motab_jax.rollout.trajectory import KEPT, FinishReason
from tests.rollout.pair import ROWS, outcome

describe = jax.jit(statistics)


@pytest.fixture(scope="module")
def found():
    return outcome(eps0=0.02)


def reference(host) -> dict:
    """The same, said in NumPy."""
    used = np.arange(host.tokens.shape[1]) < host.length[:, None]
    kept = used & (host.discarded_by == KEPT)
    steps = host.steps
    real = np.arange(steps.start.shape[1]) < steps.count[:, None]
    student, lengths = real & (steps.source == Source.STUDENT), kept.sum(axis=1)
    counts = {name: float(value) for name, value in vars(host.counters).items()}
    decoded = counts["student_columns"] + counts["teacher_columns"]
    return {
        "occupancy": counts["busy_columns"] / decoded,
        "dead_columns": 1.0 - counts["live_columns"] / counts["tape_columns"],
        "teacher_scored_per_token": counts["teacher_scored"] / used.sum(),
        "teacher_reread_per_token": counts["teacher_reread"] / used.sum(),
        "tokens_student": (used & (host.sources == Source.STUDENT)).sum(),
        "tokens_teacher": (used & (host.sources == Source.TEACHER)).sum(),
        "tokens_discarded": (used & ~kept).sum(),
        "strayed": (student & steps.stray).any(axis=1).mean(),
        "rewinds": host.num_rewinds.mean(),
        "value": steps.value[student].mean(),
        "boundary": steps.boundary[student & (np.abs(steps.boundary) < NO_BOUNDARY)].mean(),
        "length_mean": lengths.mean(),
        "length_max": lengths.max(),
        "truncated": (host.finish == FinishReason.LENGTH).mean(),
    }


def test_the_figures_are_those_of_numpy(found):
    got, expected = jax.device_get(describe(found)), reference(found)
    assert expected["tokens_discarded"] > 0 and 0 < expected["strayed"] < 1, "the batch shows something"
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-5), name


def test_the_mean_of_nothing_is_nan(found):
    none = found.replace(steps=found.steps.replace(count=np.zeros_like(found.steps.count)))
    got = jax.device_get(describe(none))
    assert np.isnan(got["value"]) and np.isnan(got["boundary"]) and got["strayed"] == 0


def test_rewound_rows_come_first(found):
    rows, shown = jax.device_get(samples(found, 3))
    rewound = np.flatnonzero(found.num_rewinds)
    others = np.flatnonzero(found.num_rewinds == 0)
    assert rows.tolist() == [*rewound, *others][:3] and ROWS > 3
    np.testing.assert_array_equal(shown.tokens, found.tokens[rows])
    np.testing.assert_array_equal(shown.steps.value, found.steps.value[rows])
    assert shown.teacher_hidden is None
