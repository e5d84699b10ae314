"""The teacher's scores of tokens: log-probability, entropy of its distribution, monitor signal, likeliest tokens.

All at temperature 1, in nats, over the tokenizer's vocabulary.
"""

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from motab_jax.models.topk import TopK, top_k_of
from motab_jax.models.topk import top_k as likeliest
from motab_jax.models.transformer import Model, common_columns, unembed
from motab_jax.rollout.config import MonitorSpec
from motab_jax.rollout.step_signals import signal_of

SCORE_ELEMENTS = 1 << 23  # logits that scoring holds at a time


class TokenScores(flax.struct.PyTreeNode):
    """The scores of tokens [*N]."""

    logprob: Float32[Array, "*N"]  # log p_T(token | its context)
    entropy: Float32[Array, "*N"]  # H of the distribution that predicted the token (eq. 6)
    signal: Float32[Array, "*N"]  # what the monitor averages over a step (step_signals.py)
    topk: TopK | None  # the K likeliest tokens [*N K]; None: none are kept


def empty_scores(shape: tuple[int, ...], targets_k: int) -> TokenScores:
    """Scores of zero for tokens of this shape, with room for the targets_k likeliest."""
    zeros = jnp.zeros(shape, jnp.float32)
    if targets_k == 0:
        return TokenScores(zeros, zeros, zeros, None)
    kept = (*shape, targets_k)
    return TokenScores(zeros, zeros, zeros, TopK(jnp.zeros(kept, jnp.int32), jnp.zeros(kept, jnp.float32)))


def entropy_of(logits: Float[Array, "*N V"], top_k: int = 0) -> Float[Array, "*N"]:
    """The entropy -sum_v p(v) log p(v) of p = softmax(logits) (eq. 6).

    >>> half = jnp.log(jnp.array([0.5, 0.25, 0.25]))
    >>> round(float(entropy_of(half) / jnp.log(2.0)), 4)
    1.5

    Args:
      logits: of V tokens; -inf where there is none.
      top_k: above 0, p is renormalised over the k likeliest tokens.

    Returns:
      The entropy, in nats.
    """
    if 0 < top_k < logits.shape[-1]:
        logits = likeliest(logits, top_k)[0]
    top = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = jnp.sum(weights, axis=-1)
    weighted = jnp.where(weights > 0, weights * (logits - top), 0.0)  # of padding, 0 * -inf
    return jnp.log(total) - jnp.sum(weighted, axis=-1) / total


def score_tokens(
    logits: Float[Array, "*N V"],
    tokens: Int[Array, "*N"],
    spec: MonitorSpec,
    targets_k: int = 0,
    student_logits: Float[Array, "*N V"] | None = None,
) -> TokenScores:
    """The scores of tokens under the teacher's logits.

    Args:
      logits: the teacher's, which predict the tokens.
      tokens: ids below the tokenizer's size.
      spec: the signal, and the tokens in the entropy.
      targets_k: likeliest tokens that are kept.
      student_logits: the student's in the same contexts, where the signal needs them.

    Returns:
      The scores of each token.
    """
    # No token is padding: both models sample from the tokenizer's vocabulary alone.
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    topk = top_k_of(logits, targets_k) if targets_k else None
    logprob, entropy = chosen - jax.nn.logsumexp(logits, axis=-1), entropy_of(logits, spec.entropy_top_k)
    full_entropy = entropy
    if spec.entropy_top_k and spec.signal == "teacher_entropy":
        full_entropy = entropy_of(logits)
    signal = signal_of(spec.signal, logits, student_logits, logprob, full_entropy, tokens, top_k=spec.signal_top_k)
    return TokenScores(logprob, entropy, signal, topk)


def score_hidden(
    teacher: Model,
    hidden: Float[Array, "B C D"],
    tokens: Int[Array, "B C"],
    spec: MonitorSpec,
    *,
    vocab_size: int,
    targets_k: int = 0,
    student: Model | None = None,
    student_hidden: Float[Array, "B C S"] | None = None,
) -> TokenScores:
    """The scores of tokens from the hidden states that predict them.

    Columns are scored a few at a time, so that the logits [B, C, V] never exist at once.

    Args:
      teacher: whose head makes the logits.
      hidden: the teacher's final hidden states.
      tokens: what they predict.
      spec: the signal, and the tokens in the entropy.
      vocab_size: the tokenizer's.
      targets_k: likeliest tokens that are kept.
      student: where the signal needs its distribution.
      student_hidden: the student's final hidden states in the same contexts, likewise; S is its width.

    Returns:
      The scores [B, C].
    """

    def score_columns(args):
        hidden, token, student_hidden = args
        logits = unembed(teacher.params, teacher.config, hidden, vocab_size)
        student_logits = None
        if student is not None:
            student_logits = unembed(student.params, student.config, student_hidden, vocab_size)
            logits, student_logits = common_columns(logits, student_logits)
        return score_tokens(logits, token, spec, targets_k, student_logits)

    (rows, columns), padded_size = tokens.shape, teacher.config.vocab_size
    if rows * columns * padded_size <= SCORE_ELEMENTS:
        return score_columns((hidden, tokens, student_hidden))
    batch = max(1, min(columns, SCORE_ELEMENTS // (rows * padded_size)))
    by_column = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (hidden, tokens, student_hidden))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), jax.lax.map(score_columns, by_column, batch_size=batch))
