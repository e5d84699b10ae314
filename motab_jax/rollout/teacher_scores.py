"""What the teacher thinks of tokens: their log-probability, the entropy they came from, and its likeliest tokens.

All at temperature 1, in nats, over the tokenizer's vocabulary.
"""

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.models.topk import TopK, top_k_of
from motab_jax.models.transformer import Model, unembed
from motab_jax.rollout.config import MonitorSpec
from motab_jax.rollout.step_signals import signal_of

SCORE_ELEMENTS = 1 << 23


@flax.struct.dataclass
class TokenScores:
    """Of tokens [...]; K likeliest kept, None where none are."""

    logprob: jax.Array  # f32[...]; log p_T(token | its context)
    entropy: jax.Array  # f32[...]; H of the distribution that the token came from (eq. 6)
    signal: jax.Array  # f32[...]; what the monitor averages over a step (signal.py)
    topk: TopK | None  # ids i32[...,K] and logprobs f32[...,K]


def empty_scores(shape: tuple[int, ...], targets_k: int) -> TokenScores:
    """Zeros of this shape."""
    zeros = jnp.zeros(shape, jnp.float32)
    if targets_k == 0:
        return TokenScores(zeros, zeros, zeros, None)
    each = (*shape, targets_k)
    return TokenScores(zeros, zeros, zeros, TopK(jnp.zeros(each, jnp.int32), jnp.zeros(each, jnp.float32)))


def entropy_of(logits: jax.Array, top_k: int = 0) -> jax.Array:
    """Entropy [...] in nats of logits [...,V]; top_k > 0: of the renormalised k likeliest tokens (eq. 6)."""
    if 0 < top_k < logits.shape[-1]:
        logits = jax.lax.top_k(logits, top_k)[0]
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1)
    return jnp.log(total) - jnp.sum(weights * (logits - top), axis=-1) / total


def score_tokens(
    logits: jax.Array, tokens: jax.Array, spec: MonitorSpec, targets_k: int = 0, student: jax.Array | None = None
) -> TokenScores:
    """The scores of tokens i32[...] held by the distribution of logits f32[...,V].

    targets_k: likeliest tokens that are kept; student: the student's logits, if at hand.
    """
    # A token that the teacher's tokenizer lacks cannot occur: both models sample below the tokenizer's vocabulary.
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    topk = top_k_of(logits, targets_k) if targets_k else None
    logprob, entropy = chosen - jax.nn.logsumexp(logits, axis=-1), entropy_of(logits, spec.entropy_top_k)
    whole = entropy
    if spec.entropy_top_k and spec.signal == "teacher_entropy":
        whole = entropy_of(logits)
    signal = signal_of(spec.signal, logits, student, logprob, whole, tokens, top_k=spec.signal_top_k)
    return TokenScores(logprob, entropy, signal, topk)


def score_hidden(
    teacher: Model,
    hidden,
    tokens,
    spec: MonitorSpec,
    *,
    vocab_size: int,
    targets_k: int = 0,
    student: Model | None = None,
    states=None,
) -> TokenScores:
    """The teacher's scores of tokens i32[B,C], which its final states hidden [B,C,D] predict.

    student, states [B,C,S]: the student and its own states there, where the signal needs them. Columns are taken a few
    at a time, so that logits [B,C,V] are never held whole.
    """

    def column(args):
        state, token, mine = args
        logits = unembed(teacher.params, teacher.config, state, vocab_size)
        theirs = None if student is None else unembed(student.params, student.config, mine, vocab_size)
        return score_tokens(logits, token, spec, targets_k, theirs)

    rows, columns = tokens.shape
    if rows * columns * vocab_size <= SCORE_ELEMENTS:
        return column((hidden, tokens, states))
    batch = max(1, min(columns, SCORE_ELEMENTS // (rows * vocab_size)))
    turned = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (hidden, tokens, states))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), jax.lax.map(column, turned, batch_size=batch))
