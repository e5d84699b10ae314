"""Sampling against sorted NumPy distributions: the filters, the frequencies, and what may never come out."""

import functools

import hypothesis
import hypothesis.strategies
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume

from motab_jax.distill.divergence import _in_head
from motab_jax.models.topk import mass_threshold
from motab_jax.models.transformer import unembed
from motab_jax.rollout.sampling import BLOCK, Stream, _nucleus_threshold, sample, stream_key, uniforms
from tests.rollout.pair import VOCAB, teacher

DRAWS = 4096
draw = jax.jit(sample, static_argnames=("temperature", "top_k", "top_p"))
threshold_of = jax.jit(_nucleus_threshold)
head_of = jax.jit(_in_head, static_argnames="sharded")


@functools.partial(jax.jit, static_argnames="sharded")
def enough_above(weights, goal, *, sharded):
    """The threshold of one row that leaves at least this mass."""
    return mass_threshold(weights, lambda mass: mass >= goal, sharded=sharded)[0, 0]


LAST = float(np.nextafter(np.float32(1), np.float32(0)) - 2**-24)  # the largest number that jax.random.uniform gives
FILTERS = [(1.0, 0, 1.0), (0.6, 0, 0.95), (1.3, 17, 1.0), (0.8, 40, 0.7), (1.0, 5, 0.9), (2.0, 0, 0.3)]


def reference(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """The filtered distribution f64[V] of one row, by sorting."""
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    if top_k:
        weights[weights < np.sort(weights)[-top_k]] = 0.0
    order = np.argsort(-weights, kind="stable")
    share = np.cumsum(weights[order]) / weights.sum()
    weights[order[np.searchsorted(share, top_p) + 1 :]] = 0.0
    return weights / weights.sum()


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), FILTERS)
@pytest.mark.parametrize("vocab", [7, 256, 700])
def test_frequencies(temperature, top_k, top_p, vocab):
    logits = 2.0 * np.random.default_rng(vocab).normal(size=vocab).astype(np.float32)
    top_k = min(top_k, vocab - 2)
    grid = (jnp.arange(DRAWS) + 0.5) / DRAWS
    tokens = draw(jnp.tile(logits, (DRAWS, 1)), grid, temperature=temperature, top_k=top_k, top_p=top_p)
    counts = np.bincount(tokens, minlength=vocab)
    expected = reference(logits, temperature, top_k, top_p)
    # Evenly spread uniforms hit an interval of length p about p * DRAWS times: at most one more or less at each end.
    np.testing.assert_allclose(counts, expected * DRAWS, atol=1.1)
    assert (counts[expected == 0] == 0).all()


def test_frequencies_of_random_uniforms_pass_a_chi_square():
    logits = np.random.default_rng(3).normal(size=30).astype(np.float32)
    keys = jax.vmap(jax.random.key)(jnp.arange(DRAWS, dtype=jnp.uint32))
    uniform = uniforms(keys, jnp.zeros(DRAWS, jnp.int32), jnp.full(DRAWS, 5))
    tokens = draw(jnp.tile(logits, (DRAWS, 1)), uniform, temperature=0.9, top_k=12, top_p=0.9)
    counts = np.bincount(tokens, minlength=30)
    expected = reference(logits, 0.9, 12, 0.9) * DRAWS
    kept = expected > 0
    assert counts[~kept].sum() == 0
    freedom = kept.sum() - 1
    assert ((counts - expected)[kept] ** 2 / expected[kept]).sum() < freedom + 4 * np.sqrt(2 * freedom)


def test_uniforms_depend_on_row_rewinds_and_position():
    def number(key, rewinds, position):
        row = jax.random.fold_in(jax.random.key(0), key)
        return float(uniforms(row[None], jnp.array([rewinds]), jnp.array([position]))[0])

    assert len({number(*place) for place in np.ndindex(3, 3, 3)}) == 27
    assert number(2, 1, 0) == number(2, 1, 0)


def test_no_key_of_training_is_one_of_evaluation_or_synthesis():
    """The keys of 300 steps, and of 300 rows of each other purpose, and all that they are folded from."""
    root, numbers = jax.random.key(0), jnp.arange(300)
    others = [stream_key(0, stream) for stream in Stream]
    fold = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    keys = [root[None], jnp.stack(others), *(fold(key, numbers) for key in (root, *others))]
    data = np.concatenate([jax.random.key_data(key) for key in keys])
    assert len(np.unique(data, axis=0)) == len(data) == 1 + 2 + 900


@pytest.mark.parametrize("vocab", [9, 300, 5000])
def test_nucleus_is_exact(vocab):
    rng = np.random.default_rng(vocab)
    for spread, top_p in [(0.1, 0.5), (3.0, 0.95), (8.0, 0.9), (20.0, 0.999), (1.0, 0.01)]:
        logits = spread * rng.normal(size=(4, vocab)).astype(np.float32)
        weights = np.asarray(jax.nn.softmax(logits, axis=-1), np.float32)
        threshold = np.asarray(threshold_of(jnp.asarray(weights), jnp.float32(top_p)))
        for row in range(4):
            ordered = np.sort(weights[row].astype(np.float64))[::-1]
            share = np.cumsum(ordered) / ordered.sum()
            size = np.searchsorted(share, top_p) + 1
            assert np.abs(share[max(size - 2, 0) : size] - top_p).min() > 1e-6, "too close for float32; other seed"
            assert (weights[row] >= threshold[row]).sum() == size
            assert threshold[row, 0] in weights[row]


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(hypothesis.strategies.data())
def test_thresholds_equal_a_sort(data):
    """Weights k / 2^20, whose sums are exact in whatever order; many are equal, zero or far apart."""
    draw_integer = hypothesis.strategies.integers
    scale = data.draw(draw_integer(0, 12))
    numbers = data.draw(hypothesis.strategies.lists(draw_integer(0, 2**scale), min_size=30, max_size=30))
    assume(max(numbers) > 0)
    weights, share = np.array([numbers], np.float32) / 2**20, data.draw(draw_integer(1, 64)) / 64
    ordered = np.sort(weights[0].astype(np.float64))[::-1]
    sums = np.cumsum(ordered)
    nucleus = ordered[np.argmax(sums >= share * sums[-1])]
    fewest, most = ordered[0], share * sums[-1]
    # Equal weights are in the head together or not at all: where more than `most` is reached, nothing is any more.
    beyond = ordered[np.argmax(sums > most)] if (sums > most).any() else 0.0
    head = weights >= fewest if beyond == fewest else weights > beyond
    for sharded in (False, True):
        found = enough_above(jnp.asarray(weights), jnp.float32(share * sums[-1]), sharded=sharded)
        assert float(found) == nucleus
        np.testing.assert_array_equal(head_of(jnp.asarray(weights), jnp.float32(most), sharded=sharded), head)


def test_tokens_tied_at_the_threshold_all_stay():
    weights = jnp.array([[0.25, 0.25, 0.25, 0.25, 0.0]])
    assert float(threshold_of(weights, 0.3)[0, 0]) == 0.25
    logits = jnp.log(jnp.array([0.4, 0.2, 0.2, 0.2]))
    grid = (jnp.arange(100) + 0.5) / 100
    drawn = draw(jnp.tile(logits, (100, 1)), grid, temperature=1.0, top_k=2)
    assert np.bincount(drawn).tolist() == [40, 20, 20, 20]


def test_greedy_is_the_first_highest_token_and_needs_no_uniform():
    logits = jnp.array([[0.0, 3.0, 1.0, 3.0], [5.0, -1.0, -jnp.inf, 2.0]])
    assert draw(logits, jnp.array([jnp.nan, 0.99]), temperature=0.0, top_k=1, top_p=0.1).tolist() == [1, 0]


@pytest.mark.parametrize("uniform", [0.0, 2.0**-23, 0.5, LAST])
@pytest.mark.parametrize("vocab", [5, 256, 257, 1000])
def test_the_ends_of_the_uniform_never_leave_the_nucleus(vocab, uniform):
    logits = np.random.default_rng(vocab).normal(size=(64, vocab)).astype(np.float32) * 4
    drawn = draw(jnp.asarray(logits), jnp.full(64, uniform), temperature=0.7, top_k=min(50, vocab - 1), top_p=0.9)
    for row, token in enumerate(np.asarray(drawn)):
        assert 0 <= token < vocab
        assert reference(logits[row], 0.7, min(50, vocab - 1), 0.9)[token] > 0


def block_edge_uniforms(weights: np.ndarray) -> np.ndarray:
    """Uniform numbers, multiples of 2^-23 as `uniforms` gives, whose goals lie at and beside all edges of blocks."""
    blocks = np.pad(weights, (0, -len(weights) % BLOCK)).reshape(-1, BLOCK).sum(1, dtype=np.float64)
    grid = np.rint(np.cumsum(blocks) / blocks.sum() * 2**23)[:, None] + np.arange(-2, 3)
    return np.clip(grid.ravel(), 0, 2**23 - 1).astype(np.float32) * np.float32(2**-23)


@pytest.mark.parametrize(
    ("nucleus", "count"),
    [(50, 0), (400, 0), *(pytest.param(n, 10**6, marks=pytest.mark.long) for n in (1, 2, 20, 120, 200, 400))],
)
def test_no_token_of_zero_weight_of_a_large_vocabulary(nucleus, count):
    """Uniforms at the edges of blocks and `count` others, for a few tokens in a vocabulary of Qwen3's size."""
    rng, vocab = np.random.default_rng(nucleus), 151_669

    @jax.jit
    def least_weight(logits, numbers):
        tokens = jax.vmap(lambda u: sample(logits[None], u[None], temperature=1.0)[0])(numbers)
        return jnp.min(jnp.exp(logits)[tokens])

    for _ in range(3):
        weights = np.zeros(vocab, np.float32)
        weights[rng.choice(vocab, nucleus, replace=False)] = np.exp(-2 * rng.random(nucleus))
        with np.errstate(divide="ignore"):
            logits = np.log(weights)
        others = rng.integers(0, 2**23, (count // 4096 + (count > 0), 4096)).astype(np.float32) * np.float32(2**-23)
        for numbers in (block_edge_uniforms(weights), *others):
            assert least_weight(logits, numbers) > 0


def test_a_padded_vocabulary_is_never_sampled():
    model = teacher()
    hidden = 5.0 * jax.random.normal(jax.random.key(0), (512, model.config.width))
    full = unembed(model.params, model.config, hidden)
    assert (np.argmax(full, axis=-1) >= VOCAB).any(), "the padding would have been chosen"
    logits = unembed(model.params, model.config, hidden, VOCAB)
    for temperature in (0.0, 1.0, 5.0):
        drawn = draw(logits, jnp.linspace(0, LAST, 512), temperature=temperature)
        assert int(drawn.max()) < VOCAB
