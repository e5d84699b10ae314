"""The step table of finished trajectories, recomputed in plain Python from fresh forward passes of the teacher.

What was visible when a token was written follows from the rewind table alone; steps are found by searching their bytes.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.data.sources import Source
from motab_jax.models.transformer import forward
from motab_jax.rollout.trajectory import KEPT, FinishReason
from tests.rollout.pair import DELIMITER, MAX_NEW, PIECES, ROWS, STOP, VOCAB, WIDTH, outcome, random_prompts, teacher

SETTINGS = {
    "root-suffix": {},
    "breach-suffix": {"target": "breach", "entropy_top_k": 20},
    "root-steps": {"intervention": "steps", "steps": 2, "max_interventions": 3},
}
EPS0, THETA = 0.35, 0.6


@functools.cache
def result_of(name: str):
    """The trajectories of one setting."""
    # With this key a delimiter would be found across a rewind and across a hand-back, if the scan did not start afresh.
    return outcome(key=4, eps0=EPS0, theta=THETA, **SETTINGS[name])


@jax.jit
def logits_of(model, tokens):
    """The teacher's logits over unpadded texts."""
    return forward(model.params, model.config, tokens)[..., :VOCAB]


def visible(result, row: int, entry: int) -> list[int]:
    """The log entries before `entry` that had not been discarded when it was written."""
    dropped, times = result.discarded_by[row], result.rewind_at[row]
    return [e for e in range(entry) if dropped[e] == KEPT or times[dropped[e]] > entry]


def logprobs_of(result, row: int) -> np.ndarray:
    """The teacher's log-probabilities f64[E,V] where each log entry was written, one fresh pass for each stretch."""
    prompts, length = random_prompts(), int(result.length[row])
    prompt = prompts.tokens[row, WIDTH - int(prompts.lengths[row]) :].tolist()
    begins = [0, *result.rewind_at[row, : result.num_rewinds[row]].tolist(), length]
    rows = np.zeros((length, VOCAB))
    for begin, end in itertools.pairwise(begins):
        before = visible(result, row, begin)
        text = [*prompt, *result.tokens[row, before].tolist(), *result.tokens[row, begin:end].tolist()]
        padded = np.zeros((1, WIDTH + MAX_NEW), np.int32)
        padded[0, : len(text)] = text
        logits = np.asarray(logits_of(teacher(), jnp.asarray(padded)), np.float64)[0]
        at = len(prompt) + len(before) - 1
        rows[begin:end] = logits[at : at + end - begin]
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def steps_of(result, row: int) -> list[tuple[int, int, int]]:
    """(start, end, source) of every step, by searching the delimiter's bytes in each writer's text."""
    tokens, sources, length = result.tokens[row], result.sources[row], int(result.length[row])
    rewinds = set(result.rewind_at[row, : result.num_rewinds[row]].tolist())
    steps, start, pending = [], 0, b""
    for entry in range(length):
        token, source = int(tokens[entry]), int(sources[entry])
        if entry in rewinds or (entry and source != sources[entry - 1]):
            assert start == entry, "a change of writers in the middle of a step"
            pending = b""
        pending += PIECES[token] if token != STOP else b""
        _, found, tail = pending.rpartition(DELIMITER.encode())
        if found:
            pending = tail
        last = entry + 1 == length or entry + 1 in rewinds
        end = entry if token == STOP else entry + 1
        if found or last or token == STOP:
            if end > start:
                steps.append((start, end, source))
            start = entry + 1
        assert not last or found or token == STOP or cut_short(result, row, entry), "an unjudged end"
    return steps


def cut_short(result, row: int, entry: int) -> bool:
    """Whether a step ends without delimiter: at the length limit, or in front of a stop token that went with it."""
    full = len(visible(result, row, entry + 1)) == MAX_NEW
    return full or entry + 1 in result.rewind_at[row, : result.num_rewinds[row]]


def entropy(logprobs: np.ndarray, top_k: int) -> float:
    """Entropy in nats, of the renormalised top_k likeliest where top_k > 0."""
    kept = np.sort(logprobs)[-top_k:]
    kept = kept - np.log(np.exp(kept).sum())
    return float(-(np.exp(kept) * kept).sum())


def root(values, boundaries, sources, breach: int, target: str) -> int:
    """Equations 8 and 9 in a loop."""
    best, fall = breach, np.inf
    handed_back = [k for k in range(breach) if sources[k] == Source.TEACHER]
    first = handed_back[-1] + 1 if handed_back else 1
    for k in range(first, breach + 1):
        if values[k - 1] >= boundaries[k - 1] and values[k] - values[k - 1] < fall:
            best, fall = k, values[k] - values[k - 1]
    return best if target == "root" else breach


@pytest.mark.parametrize("name", SETTINGS)
def test_the_step_table_is_what_fresh_passes_say(name):
    result, top_k = result_of(name), SETTINGS[name].get("entropy_top_k", 0)
    for row in range(ROWS):
        logprobs, steps = logprobs_of(result, row), steps_of(result, row)
        count, length = int(result.steps.count[row]), int(result.length[row])
        found = [getattr(result.steps, field)[row, :count].tolist() for field in ("start", "end", "source")]
        assert list(zip(*found, strict=True)) == steps
        each = logprobs[np.arange(length), result.tokens[row, :length]]
        np.testing.assert_allclose(result.teacher_logprob[row, :length], each, atol=1e-4)
        values = [np.exp(each[start:end].mean()) for start, end, _ in steps]
        entropies = np.array([entropy(logprobs[start], top_k) for start, _, _ in steps])
        student = np.array([source == Source.STUDENT for _, _, source in steps])
        boundaries = EPS0 * np.exp(-THETA * entropies)
        for field, expected in (("value", values), ("entropy", entropies), ("boundary", boundaries)):
            np.testing.assert_allclose(getattr(result.steps, field)[row, :count], expected, atol=1e-4, err_msg=field)
        assert result.steps.stray[row, :count].tolist() == (student & (values < boundaries)).tolist()


@pytest.mark.parametrize("name", SETTINGS)
def test_rewinds_follow_from_the_step_table(name):
    result, most = result_of(name), SETTINGS[name].get("max_interventions", 1)
    for row in range(ROWS):
        table, count = result.steps, int(result.steps.count[row])
        stray = np.flatnonzero(table.stray[row, :count])
        rewinds = int(result.num_rewinds[row])
        assert result.breach_step[row, :rewinds].tolist() == stray[:most].tolist()
        discarded, dropped = np.full(result.length[row], KEPT), np.full(count, KEPT)
        for number, breach in enumerate(result.breach_step[row, :rewinds]):
            value, boundary, source = table.value[row], table.boundary[row], table.source[row]
            found = root(value, boundary, source, breach, SETTINGS[name].get("target", "root"))
            assert result.root_step[row, number] == found
            assert result.rewind_at[row, number] == table.end[row, breach]
            discarded[table.start[row, found] : table.end[row, breach]] = number
            dropped[found : breach + 1] = number
            if breach + 1 < count:
                assert table.source[row, breach + 1] == Source.TEACHER
        assert result.discarded_by[row, : result.length[row]].tolist() == discarded.tolist()
        assert table.discarded_by[row, :count].tolist() == dropped.tolist()


@pytest.mark.parametrize("name", SETTINGS)
def test_ends_of_trajectories(name):
    result = result_of(name)
    for row in range(ROWS):
        kept = np.flatnonzero(result.kept[row])
        stops = [e for e in range(result.length[row]) if result.tokens[row, e] == STOP]
        ends = result.steps.end[row, : result.steps.count[row]]
        for stop in stops:
            spans = zip(result.steps.start[row], ends, strict=False)
            assert not any(start <= stop < end for start, end in spans), "a stop token inside a step"
        if result.finish[row] == FinishReason.STOP:
            assert stops == [kept[-1]]
        else:
            assert result.finish[row] == FinishReason.LENGTH and not stops and len(kept) == MAX_NEW
            assert ends[-1] == result.length[row], "the last step ends at the length limit and is judged"
    assert {FinishReason.STOP, FinishReason.LENGTH} <= set(result.finish.tolist())
