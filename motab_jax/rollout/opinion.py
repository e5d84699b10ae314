"""What the teacher thinks of tokens: their log-probability, the entropy they came from, and its likeliest tokens.

All at temperature 1, in nats, over the tokenizer's vocabulary.
"""

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.models.topk import TopK, top_k_of
from motab_jax.models.transformer import Model, unembed

SCORE_ELEMENTS = 1 << 23


@flax.struct.dataclass
class Opinion:
    """Of tokens [...]; K likeliest kept, None where none are."""

    logprob: jax.Array  # f32[...]; log p_T(token | its context)
    entropy: jax.Array  # f32[...]; H of the distribution that the token came from (eq. 6)
    topk: TopK | None  # ids i32[...,K] and logprobs f32[...,K]


def no_opinion(shape: tuple[int, ...], targets_k: int) -> Opinion:
    """Zeros of this shape."""
    zeros = jnp.zeros(shape, jnp.float32)
    if targets_k == 0:
        return Opinion(zeros, zeros, None)
    each = (*shape, targets_k)
    return Opinion(zeros, zeros, TopK(jnp.zeros(each, jnp.int32), jnp.zeros(each, jnp.float32)))


def entropy_of(logits: jax.Array, top_k: int = 0) -> jax.Array:
    """Entropy [...] in nats of logits [...,V]; top_k > 0: of the renormalised k likeliest tokens (eq. 6)."""
    if 0 < top_k < logits.shape[-1]:
        logits = jax.lax.top_k(logits, top_k)[0]
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1)
    return jnp.log(total) - jnp.sum(weights * (logits - top), axis=-1) / total


def opinion_of(logits: jax.Array, tokens: jax.Array, *, entropy_top_k: int, targets_k: int = 0) -> Opinion:
    """The opinion of tokens i32[...] held by the distribution of logits f32[...,V]."""
    # A token that the teacher's tokenizer lacks cannot occur: both models sample below the tokenizer's vocabulary.
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    topk = top_k_of(logits, targets_k) if targets_k else None
    return Opinion(chosen - jax.nn.logsumexp(logits, axis=-1), entropy_of(logits, entropy_top_k), topk)


def score(teacher: Model, hidden, tokens, *, vocab_size: int, entropy_top_k: int, targets_k: int = 0) -> Opinion:
    """The teacher's opinion of tokens i32[B,C], which its final states hidden [B,C,D] predict.

    Columns are taken a few at a time, so that logits [B,C,V] are never held whole.
    """

    def column(args):
        state, token = args
        logits = unembed(teacher.params, teacher.config, state, vocab_size)
        return opinion_of(logits, token, entropy_top_k=entropy_top_k, targets_k=targets_k)

    rows, columns = tokens.shape
    if rows * columns * vocab_size <= SCORE_ELEMENTS:
        return column((hidden, tokens))
    batch = max(1, min(columns, SCORE_ELEMENTS // (rows * vocab_size)))
    opinion = jax.lax.map(column, (jnp.swapaxes(hidden, 0, 1), tokens.T), batch_size=batch)
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), opinion)
