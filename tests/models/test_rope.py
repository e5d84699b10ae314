"""Rotary embeddings: numbers by hand, and that scores depend on distance only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.models.architecture import Rope
from motab_jax.models.rope import apply_rope, frequencies, rope_cos_sin

LLAMA3 = (
    ("factor", 8.0),
    ("high_freq_factor", 4.0),
    ("low_freq_factor", 1.0),
    ("original_max_position_embeddings", 64),
)
YARN = (("factor", 4.0), ("original_max_position_embeddings", 64))


def rotate(x: jax.Array, position: int, rope: Rope) -> jax.Array:
    """Queries or keys of one column, rotated by its position."""
    return apply_rope(x, *rope_cos_sin(jnp.asarray([[position]]), rope, x.shape[-1]))


def test_frequencies_by_hand():
    assert frequencies(Rope(100.0), 4)[0].tolist() == pytest.approx([1.0, 0.1])
    assert frequencies(Rope(100.0, "linear", (("factor", 2.0),)), 4)[0].tolist() == pytest.approx([0.5, 0.05])


def test_llama3_keeps_the_fast_and_stretches_the_slow():
    """64 / (2 pi) turns at frequency 1: kept. At 0.01, 0.1 turns: divided by 8."""
    inverse, scale = frequencies(Rope(1e4, "llama3", LLAMA3), 4)
    assert inverse.tolist() == pytest.approx([1.0, 0.01 / 8]) and scale == 1.0


def test_yarn_scales_attention():
    inverse, scale = frequencies(Rope(1e4, "yarn", YARN), 8)
    assert scale == pytest.approx(0.1 * np.log(4.0) + 1.0)
    assert inverse[0] == pytest.approx(1.0) and inverse[-1] == pytest.approx(1e-3 / 4)


def test_a_quarter_turn():
    x = jnp.asarray([[[[1.0, 0.0]]]])
    turned = rotate(x, 1, Rope(1.0))
    np.testing.assert_allclose(turned[0, 0, 0], [np.cos(1.0), np.sin(1.0)], atol=1e-6)


def test_scores_depend_on_distance_only():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(i, j):
        return float(jnp.sum(rotate(q, i, Rope()) * rotate(k, j, Rope())))

    assert score(9, 4) == pytest.approx(score(105, 100), abs=1e-4)
    assert abs(score(9, 4) - score(9, 5)) > 1e-3
