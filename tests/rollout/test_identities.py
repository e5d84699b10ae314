"""What must hold whatever the weights are: identities between settings, and independence of the rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.data.sources import Source
from motab_jax.rollout import Prompts
from motab_jax.runtime.compilation import CompileClock
from tests.rollout.pair import (
    MAX_NEW,
    ROWS,
    VOCAB,
    WIDTH,
    assert_same_row,
    completion,
    model,
    outcome,
    random_prompts,
    row_of,
    run,
    settings,
    student,
)

SETTINGS = {
    "root-suffix": {},
    "breach-suffix": {"target": "breach", "entropy_top_k": 20},
    "root-steps": {"intervention": "steps", "steps": 2, "max_interventions": 3},
}
GREEDY: dict[str, Any] = {"temperature": 0.0}


def twins():
    """Two models of one shape, so that each may take the other's place in a compiled program."""
    return model(3), model(4)


def test_boundary_of_zero_is_plain_sampling():
    watched = outcome(eps0=0.0)
    alone = outcome(pair=(student(), None), monitored=False)
    unwatched = outcome(monitored=False)
    assert watched.num_rewinds.sum() == 0 and (watched.length > 1).all()
    for row in range(ROWS):
        texts = [row_of(result, row) for result in (watched, unwatched, alone)]
        for name in ("tokens", "sources", "discarded_by", "start", "end", "finish"):
            assert texts[0]["exact"][name] == texts[1]["exact"][name] == texts[2]["exact"][name], name
        assert set(texts[0]["exact"]["sources"]) == {Source.STUDENT}
        for name in ("value", "entropy", "teacher_logprob"):
            np.testing.assert_array_equal(texts[0]["close"][name], texts[1]["close"][name])


def test_boundary_above_one_is_the_teachers_generation():
    writer, judge = twins()
    strayed = outcome(pair=(writer, judge), eps0=2.0, theta=0.0, **GREEDY)
    own = outcome(pair=(judge, None), monitored=False, **GREEDY)
    assert (strayed.steps.count > 1).any()
    for row in range(ROWS):
        assert strayed.steps.count[row] > 0, "a student that stops at once has no step; choose other weights"
        assert completion(strayed, row) == completion(own, row)
        assert strayed.num_rewinds[row] == 1 and strayed.root_step[row, 0] == 0 and strayed.breach_step[row, 0] == 0
        first = strayed.steps.end[row, 0]
        assert strayed.rewind_at[row, 0] == first
        assert (strayed.discarded_by[row, :first] == 0).all()
        assert (strayed.sources[row][strayed.kept[row]] == Source.TEACHER).all()
        assert strayed.finish[row] == own.finish[row]


def test_teacher_as_student_strays_only_where_its_own_likelihood_is_below_the_boundary():
    _, judge = twins()
    own = outcome(pair=(judge, None), monitored=False, **GREEDY)
    # A greedy token has at least probability 1 / VOCAB.
    safe = outcome(pair=(judge, judge), eps0=0.9 / VOCAB, theta=0.0, **GREEDY)
    assert safe.num_rewinds.sum() == 0
    strict = outcome(pair=(judge, judge), eps0=0.9, theta=0.1, **GREEDY)
    assert strict.num_rewinds.sum() > 0
    for row in range(ROWS):
        count = strict.steps.count[row]
        mine = strict.steps.source[row, :count] == Source.STUDENT
        below = strict.steps.value[row, :count] < strict.steps.boundary[row, :count]
        assert (strict.steps.stray[row, :count] == (below & mine)).all()
        assert strict.num_rewinds[row] == below[mine].any()
        # What it takes back it writes again.
        assert completion(safe, row) == completion(own, row) == completion(strict, row)


@pytest.mark.parametrize("name", SETTINGS)
def test_segments_change_nothing(name):
    results = [outcome(segment_tokens=columns, **SETTINGS[name]) for columns in (1, 4, 32)]
    assert results[0].num_rewinds.sum() >= ROWS // 2
    for row in range(ROWS):
        for other in results[1:]:
            assert_same_row(row_of(results[0], row), row_of(other, row))


def test_hand_back_goes_on_as_the_student_and_may_be_repeated():
    result = outcome(**SETTINGS["root-steps"])
    assert result.num_rewinds.max() == 3
    # More was written than the tape has columns, so it was packed on the way.
    assert result.length.max() > MAX_NEW + MAX_NEW // 4
    changes = [np.diff(result.sources[row][result.kept[row]]) for row in range(ROWS)]
    assert any((change < 0).any() for change in changes), "nowhere does the student follow the teacher"
    for row in range(ROWS):
        assert result.kept[row].sum() <= MAX_NEW


def test_a_prompt_changes_no_other_row():
    prompts = random_prompts()
    other = Prompts(
        prompts.tokens.at[0].set(jnp.arange(5, 5 + WIDTH)), prompts.lengths.at[0].set(WIDTH), prompts.row_ids
    )
    before, after = outcome(**SETTINGS["root-steps"]), outcome(prompts=other, **SETTINGS["root-steps"])
    assert row_of(before, 0)["exact"] != row_of(after, 0)["exact"]
    for row in range(1, ROWS):
        assert_same_row(row_of(before, row), row_of(after, row))


def test_permuted_rows_give_permuted_results():
    order = np.random.default_rng(1).permutation(ROWS)
    permuted = jax.tree.map(lambda x: x[order], random_prompts())
    before, after = outcome(**SETTINGS["root-steps"]), outcome(prompts=permuted, **SETTINGS["root-steps"])
    for place, row in enumerate(order):
        assert_same_row(row_of(before, row), row_of(after, place))


def test_row_ids_and_keys_decide_what_is_sampled():
    prompts = random_prompts()
    base = outcome()
    renamed = outcome(prompts=prompts.replace(row_ids=prompts.row_ids.at[3].set(99)))
    changed = [row_of(base, row)["exact"] != row_of(renamed, row)["exact"] for row in range(ROWS)]
    assert changed == [row == 3 for row in range(ROWS)]
    rekeyed = outcome(key=1)
    assert sum(row_of(base, row)["exact"] != row_of(rekeyed, row)["exact"] for row in range(ROWS)) > ROWS // 2


def test_compiles_once():
    first = outcome()
    with CompileClock() as clock:
        for seed in (1, 2):
            outcome(prompts=random_prompts(seed), key=seed, eps0=0.1 * seed, theta=0.5 * seed)
        run(student(), model(2, 48, 48), random_prompts(), jax.random.key(7), settings(eps0=0.0))
        assert clock.compilations(run) == 0
    assert first.num_rewinds.sum() > 0
