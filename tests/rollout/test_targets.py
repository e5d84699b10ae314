"""What a trajectory keeps of the teacher's distributions is what a fresh pass of the teacher over the texts says."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.models.transformer import Model, encode, unembed
from motab_jax.rollout.state import empty_log
from tests.optional import some
from tests.rollout.pair import ROWS, VOCAB, WIDTH, outcome, random_prompts, settings, teacher
from tests.rollout.test_table import visible

SETTINGS = {
    "watched": {},
    "watched-slots": {"slots": 3},
    "handed-back": {"intervention": "steps", "steps": 2, "max_interventions": 3},
    "read-after": {"monitored": False, "score_after": True},
    "read-after-slots": {"monitored": False, "score_after": True, "slots": 3},
}


@functools.cache
def read():
    """The teacher's states and logits of one text."""

    def fresh(model, tokens):
        places = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
        hidden, _ = encode(model.params, model.config, tokens, places)
        return hidden, unembed(model.params, model.config, hidden, VOCAB)

    return jax.jit(fresh)


def second_pass(result, row: int) -> tuple[np.ndarray, np.ndarray]:
    """The states and log-probabilities that predict each log entry, from a fresh pass for each stretch of the log."""
    prompts, length = random_prompts(), int(result.length[row])
    prompt = prompts.tokens[row, WIDTH - int(prompts.lengths[row]) :].tolist()
    begins = [0, *result.rewind_at[row, : result.num_rewinds[row]].tolist(), length]
    states, logprobs = [], []
    for begin, end in itertools.pairwise(begins):
        before = visible(result, row, begin)
        text = [*prompt, *result.tokens[row, before].tolist(), *result.tokens[row, begin:end].tolist()]
        padded = np.zeros((1, 64), np.int32)
        padded[0, : len(text)] = text
        at = len(prompt) + len(before) - 1
        hidden, logits = (np.asarray(x)[0, at : at + end - begin] for x in read()(teacher(), jnp.asarray(padded)))
        states.append(hidden)
        logprobs.append(np.asarray(jax.nn.log_softmax(jnp.asarray(logits))))
    return np.concatenate(states), np.concatenate(logprobs)


@pytest.mark.parametrize("name", SETTINGS)
def test_hidden_states_equal_a_second_pass(name):
    result = outcome(**SETTINGS[name])
    for row in range(ROWS):
        states, _ = second_pass(result, row)
        np.testing.assert_allclose(some(result.teacher_hidden)[row, : len(states)], states, atol=1e-5)


@pytest.mark.parametrize("name", ["watched-slots", "handed-back", "read-after"])
def test_every_token_kept_equals_a_second_pass(name):
    result = outcome(targets="topk", targets_k=VOCAB, **SETTINGS[name])
    topk = some(result.teacher_topk)
    assert some(result.teacher_hidden).shape[-1] == 0 and result.target_bytes == 8 * VOCAB
    for row in range(ROWS):
        _, logprobs = second_pass(result, row)
        ids, kept = (x[row, : len(logprobs)] for x in (np.asarray(topk.ids), np.asarray(topk.logprobs)))
        # Relative: of values up to 8.5, float32 passes are themselves 0.8e-5 and 1.2e-5 from one in float64.
        np.testing.assert_allclose(kept, np.take_along_axis(logprobs, ids, -1), rtol=1e-5, atol=1e-5)
        assert (np.sort(ids, axis=-1) == np.arange(VOCAB)).all()


def test_a_few_tokens_are_the_likeliest_in_the_dtype_asked_for():
    result = outcome(targets="topk", targets_k=4, targets_dtype="bfloat16")
    topk = some(result.teacher_topk)
    assert topk.logprobs.dtype == jnp.bfloat16 and result.target_bytes == 4 * (4 + 2)
    states, logprobs = second_pass(result, 0)
    best = -np.sort(-logprobs, axis=-1)[:, :4]
    np.testing.assert_allclose(topk.logprobs[0, : len(states)].astype(np.float32), best, rtol=1e-2)


def test_likeliest_tokens_are_kept_in_float32_whatever_the_teachers_dtype():
    narrow = Model(jax.tree.map(lambda x: x.astype(jnp.bfloat16), teacher().params), teacher().config)
    for kind, dtype in (("topk", jnp.float32), ("hidden", jnp.bfloat16)):
        log = jax.eval_shape(lambda kind=kind: empty_log(narrow, random_prompts(), settings(targets=kind)))
        kept = some(log.teacher_topk).logprobs if kind == "topk" else some(log.teacher_hidden)
        assert kept.dtype == dtype


def test_sampled_targets_keep_the_log_probability_alone():
    result = outcome(targets="sampled", monitored=False, score_after=True)
    assert result.target_bytes == 0
    for row in range(ROWS):
        _, logprobs = second_pass(result, row)
        each = logprobs[np.arange(len(logprobs)), result.tokens[row, : len(logprobs)]]
        np.testing.assert_allclose(result.teacher_logprob[row, : len(each)], each, atol=1e-5)


def test_reading_after_writes_the_same_texts():
    after, during = (outcome(monitored=False, score_after=flag) for flag in (True, False))
    for row in range(ROWS):
        size = int(during.length[row])
        assert after.tokens[row, :size].tolist() == during.tokens[row, :size].tolist()
        assert after.length[row] == size and after.finish[row] == during.finish[row]
    assert np.isnan(after.steps.value).all(), "nobody judged the steps"
