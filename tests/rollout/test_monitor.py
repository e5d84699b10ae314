"""The monitor by hand: values, entropies, boundaries, what a step is, and the root step (eq. 5-9)."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.data.sources import Source
from motab_jax.models.transformer import unembed
from motab_jax.rollout import MonitorSpec
from motab_jax.rollout.monitor import PAPER, Columns, find_root, next_boundary, observe, open_step, safety_boundary
from motab_jax.rollout.teacher_scores import entropy_of, score_hidden
from motab_jax.rollout.trajectory import KEPT, empty_steps
from tests.rollout.pair import VOCAB, teacher

LOG_HALF = math.log(0.5)


def judge(text: str, logprobs, entropies, *, eps0=0.5, theta=1.0, alive=None, may_stray=True, cut=None, **whose):
    """Observe one row of letters: '.' closes a step, '$' is a stop token, 'x' anything else; in pieces where cut."""
    count = len(text)
    columns = Columns(
        signal=jnp.asarray([logprobs], jnp.float32),
        entropy=jnp.asarray([entropies], jnp.float32),
        alive=jnp.asarray([[True] * count if alive is None else alive]),
        stop=jnp.asarray([[c == "$" for c in text]]),
        closes=jnp.asarray([[c == "." for c in text]]),
    )
    breach = jnp.zeros(1, bool)
    open_, steps, length, taken = open_step(1), empty_steps(1, 8), jnp.zeros(1, jnp.int32), []
    for begin, end in itertools.pairwise([0, *(cut or []), count]):
        part = jax.tree.map(lambda x, begin=begin, end=end: x[:, begin:end], columns)
        open_, steps, accepted, breach = observe(
            open_, steps, part, length, jnp.array([may_stray]),
            eps0=jnp.float32(eps0), theta=jnp.float32(theta), **{"source": Source.STUDENT, **whose},
        )  # fmt: skip
        length = length + jnp.sum(accepted, axis=1)
        taken += accepted[0].tolist()
        if breach[0]:
            break
    return open_, steps, taken, bool(breach[0])


def table(steps) -> list[tuple]:
    """The rows of the step table: (start, end, source, stray)."""
    return [
        (int(steps.start[0, k]), int(steps.end[0, k]), int(steps.source[0, k]), bool(steps.stray[0, k]))
        for k in range(int(steps.count[0]))
    ]


@pytest.mark.parametrize("cut", [None, [1], [2, 3, 4]])
def test_values_are_geometric_means_and_entropies_are_those_of_the_first_token(cut):
    logprobs, entropies = np.log([0.5, 0.125, 0.25, 0.9, 0.1]), [1.0, 9.0, 2.0, 9.0, 9.0]
    open_, steps, taken, breach = judge("x.x..", logprobs, entropies, eps0=0.1, cut=cut)
    assert table(steps) == [(0, 2, Source.STUDENT, False), (2, 4, Source.STUDENT, False), (4, 5, Source.STUDENT, False)]
    np.testing.assert_allclose(steps.value[0, :3], [0.25, math.sqrt(0.225), 0.1], rtol=1e-6)
    np.testing.assert_array_equal(steps.entropy[0, :3], [1.0, 2.0, 9.0])
    np.testing.assert_allclose(steps.boundary[0, :3], 0.1 * np.exp([-1.0, -2.0, -9.0]), rtol=1e-6)
    assert all(taken) and not breach and int(open_.tokens[0]) == 0
    assert (np.asarray(steps.discarded_by) == KEPT).all()


def test_an_unfinished_step_stays_open():
    open_, steps, _, _ = judge("x.xx", [LOG_HALF] * 4, [3.0, 1.0, 2.0, 5.0])
    assert table(steps) == [(0, 2, Source.STUDENT, False)]
    assert int(open_.tokens[0]) == 2 and float(open_.entropy[0]) == 2.0
    assert float(open_.total[0]) == pytest.approx(2 * LOG_HALF)


def test_boundary_and_entropy_by_hand():
    assert float(safety_boundary(jnp.float32(math.log(4)), 0.2, 0.5)) == pytest.approx(0.1)
    assert float(safety_boundary(jnp.float32(7.0), 0.2, 0.0)) == pytest.approx(0.2)
    logits = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    assert float(entropy_of(logits)) == pytest.approx(1.5 * math.log(2))
    assert float(entropy_of(jnp.zeros(8))) == pytest.approx(math.log(8))
    # The two likeliest, renormalised: 2/3 and 1/3.
    two = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    assert float(entropy_of(logits, 2)) == pytest.approx(two)
    assert float(entropy_of(logits, 20)) == pytest.approx(1.5 * math.log(2))


def test_a_step_strays_below_the_boundary_and_not_at_it():
    # The exponential of the same number on both sides: exactly at the boundary.
    _, steps, _, breach = judge(".", [LOG_HALF], [0.0], eps0=math.exp(LOG_HALF))
    assert not breach and float(steps.value[0, 0]) == float(steps.boundary[0, 0])
    assert judge(".", [LOG_HALF - 1e-5], [0.0], eps0=0.5)[3]


def test_what_follows_a_breach_is_not_accepted():
    _, steps, taken, breach = judge("x.x.x.", np.log([0.9, 0.9, 0.1, 0.1, 0.9, 0.9]), [0.0] * 6)
    assert breach and taken == [True] * 4 + [False] * 2
    assert table(steps) == [(0, 2, Source.STUDENT, False), (2, 4, Source.STUDENT, True)]


def test_without_a_rewind_left_strays_are_noted_and_nothing_is_lost():
    _, steps, taken, breach = judge(".x.", np.log([0.1, 0.9, 0.9]), [0.0] * 3, may_stray=False)
    assert not breach and all(taken)
    assert table(steps) == [(0, 1, Source.STUDENT, True), (1, 3, Source.STUDENT, False)]


def test_a_stop_token_is_accepted_and_never_counted():
    _, steps, taken, breach = judge("xx$", [LOG_HALF, LOG_HALF, -50.0], [1.0, 0.0, 99.0])
    assert taken == [True] * 3 and not breach
    assert table(steps) == [(0, 2, Source.STUDENT, False)]
    assert float(steps.value[0, 0]) == pytest.approx(0.5)


def test_a_stop_token_behind_a_straying_step_is_lost_with_it():
    _, steps, taken, breach = judge("xx$", [-9.0, -9.0, 0.0], [0.0] * 3)
    assert breach and taken == [True, True, False]
    assert table(steps) == [(0, 2, Source.STUDENT, True)]


def test_a_stop_token_alone_is_no_step():
    _, steps, taken, breach = judge("x.$", [LOG_HALF, LOG_HALF, -50.0], [0.0] * 3, eps0=0.4)
    assert taken == [True] * 3 and not breach and table(steps) == [(0, 2, Source.STUDENT, False)]
    _, steps, taken, breach = judge("$", [-50.0], [0.0])
    assert taken == [True] and not breach and table(steps) == []


def test_dead_columns_do_not_count():
    open_, steps, taken, _ = judge("x..", [LOG_HALF] * 3, [1.0] * 3, alive=[True, False, False])
    assert taken == [True, False, False] and table(steps) == [] and int(open_.tokens[0]) == 1


def test_steps_that_are_not_judged_have_a_boundary_and_never_stray():
    _, steps, taken, breach = judge("x..", [-5.0] * 3, [1.0] * 3, source=Source.TEACHER, judged=False)
    assert table(steps) == [(0, 2, Source.TEACHER, False), (2, 3, Source.TEACHER, False)] and all(taken) and not breach
    np.testing.assert_allclose(steps.boundary[0, :2], 0.5 * math.exp(-1.0), rtol=1e-6)


def root_of(values, boundaries, *, first=0, target="root", spec=PAPER) -> int:
    """The root step of a breach in the last of the steps."""
    size = 7
    pad = (0, size - len(values))
    steps = jax.tree.map(lambda x: x[0], empty_steps(1, size)).replace(
        value=jnp.asarray(np.pad(values, pad), jnp.float32),
        boundary=jnp.asarray(np.pad(boundaries, pad), jnp.float32),
        count=jnp.int32(len(values)),
    )
    return int(find_root(steps, jnp.int32(first), target, spec))


@pytest.mark.parametrize(
    ("values", "boundaries", "first", "root"),
    [
        ([0.1], [0.2], 0, 0),  # the first step: itself
        ([0.9, 0.8, 0.3, 0.1], [0.2] * 4, 0, 2),  # the steepest fall, not the last
        ([0.9, 0.8, 0.7, 0.1], [0.2] * 4, 0, 3),
        ([0.75, 0.5, 0.25, 0.125], [0.2] * 4, 0, 1),  # falls of a quarter twice: the first wins
        ([0.9, 0.5, 0.1], [0.2, 0.6, 0.2], 0, 1),  # step 1 itself is unsafe, so step 2 cannot be the root
        ([0.9, 0.7, 0.1], [0.2, 0.8, 0.2], 0, 1),  # ... even where its fall is the steeper
        ([0.5, 0.1], [0.6, 0.2], 0, 1),  # no safe predecessor at all: the breaching step
        ([0.5, 0.5, 0.1], [0.5, 0.5, 0.2], 0, 2),  # at the boundary is safe
        ([0.9, 0.1, 0.8, 0.7, 0.3], [0.2] * 5, 3, 4),  # steps before the hand-back are out of question
        ([0.9, 0.1, 0.8, 0.3, 0.2], [0.2] * 4 + [0.3], 3, 3),  # the first step after it may be the root
        ([0.9, 0.1, 0.8, 0.3], [0.2, 0.2, 0.9, 0.4], 3, 3),
    ],
)
def test_root_step(values, boundaries, first, root):
    assert root_of(values, boundaries, first=first) == root
    assert root_of(values, boundaries, first=first, target="breach") == len(values) - 1


@pytest.mark.parametrize("top_k", [0, 20])
def test_scores_equal_numpy(top_k):
    model = teacher()
    hidden = jax.random.normal(jax.random.key(5), (3, 4, model.config.width))
    tokens = jax.random.randint(jax.random.key(6), (3, 4), 0, VOCAB)
    scores = score_hidden(model, hidden, tokens, MonitorSpec(entropy_top_k=top_k), vocab_size=VOCAB)
    logits = np.asarray(unembed(model.params, model.config, hidden), np.float64)[..., :VOCAB]
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(
        scores.logprob, np.take_along_axis(logprobs, np.asarray(tokens)[..., None], -1)[..., 0], atol=1e-5
    )
    logits = np.sort(logits, axis=-1)[..., -top_k:]
    some = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(scores.entropy, -(np.exp(some) * some).sum(-1), atol=1e-5)


@pytest.mark.parametrize("values", [[math.nan, math.nan, 0.3], [0.1, math.nan, 0.3]])
def test_the_next_boundary_is_a_number_whatever_the_values_are(values):
    """Two student's steps, then one of the teacher's."""
    steps = empty_steps(rows=1, entries=3).replace(
        value=jnp.array([values]),
        source=jnp.array([[int(Source.STUDENT)] * 2 + [int(Source.TEACHER)]]),
        count=jnp.array([3]),
    )
    eps0 = next_boundary(jnp.float32(0.4), steps, rate=0.25, pace=0.5, alarm_is_high=False)
    assert float(eps0) == pytest.approx(0.25 if values[0] == 0.1 else 0.4)
