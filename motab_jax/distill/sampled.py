"""Losses of the tokens that the student sampled: policy gradients of the reverse KL.

Their value is an estimate of a reverse KL in nats, their gradient that of -advantage * log p_S(token), in which the
advantage is a constant. Both are unbiased for tokens drawn from p_S itself; top-k, top-p and a sampling temperature
other than the loss's bias them.
Left out: importance weights, since a trajectory is used once, by the weights that generated it; teacher-mixed sampling;
clipping; discounts.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from motab_jax.distill.divergence import cross_entropy
from motab_jax.distill.heads import take_columns


def policy_gradient(
    student_logits: Float[Array, "*N V"], labels: Int[Array, "*N"], teacher_logprob: Float[Array, "*N"]
) -> Float32[Array, "*N"]:
    """log p_S(label) - log p_T(label) in nats, with the gradient of a policy gradient.

    The advantage is the negative of it, as in Thinking Machines' "On-Policy Distillation" (2025): a token's
    reward is its own log-ratio, and no later token's counts.

    Args:
      student_logits: the student's logits, divided by the loss's temperature.
      labels: the sampled tokens.
      teacher_logprob: log p_T(label) in nats, at the same temperature.

    Returns:
      The loss of each token.
    """
    return reinforce(student_logits, labels, teacher_log_ratio(student_logits, labels, teacher_logprob))


def teacher_log_ratio(
    student_logits: Float[Array, "*N V"], labels: Int[Array, "*N"], teacher_logprob: Float[Array, "*N"]
) -> Float32[Array, "*N"]:
    """log p_T(label) - log p_S(label) in nats, without gradient: the reward of a sampled token."""
    return jax.lax.stop_gradient(teacher_logprob + cross_entropy(student_logits, labels))


def reinforce(
    student_logits: Float[Array, "*N V"], labels: Int[Array, "*N"], advantage: Float[Array, "*N"]
) -> Float32[Array, "*N"]:
    """-advantage, with the gradient of -advantage * log p_S(label)."""
    nll, advantage = cross_entropy(student_logits, labels), jax.lax.stop_gradient(advantage)
    return advantage * (nll - jax.lax.stop_gradient(nll)) - advantage


def mean_reward_to_go(
    reward: Float[Array, "G T"], counted: Bool[Array, "G T"], positions: Int[Array, "G T"]
) -> Float32[Array, "G T"]:
    """Mean reward of the counted tokens after each token in its own sequence; 0 where there are none.

    MiniLLM's length-normalised reward of the long-range part (arXiv 2306.08543), with the number of later tokens as the
    length.

    >>> reward, positions = jnp.array([[9.0, 1.0, 3.0, 9.0, 5.0]]), jnp.array([[0, 1, 2, 0, 1]])
    >>> mean_reward_to_go(reward, jnp.ones((1, 5), bool), positions).tolist()
    [[2.0, 3.0, 0.0, 5.0, 0.0]]

    Args:
      reward: each token's reward.
      counted: the tokens whose rewards count.
      positions: each token's position in its sequence; sequences lie side by side, and a position above 0 belongs to
          the sequence of the column before.

    Returns:
      The means.
    """
    column = jnp.arange(reward.shape[1], dtype=jnp.int32)[None]
    start = column - positions  # the first column of the token's sequence

    def double(number, sums):
        """From sums over up to 2^number tokens after each token to sums over twice as many."""
        later = jnp.broadcast_to(column + 2**number, positions.shape)
        same = take_columns(start, later) == start
        return jax.tree.map(lambda near, far: near + jnp.where(same, far, 0.0), sums, take_columns(sums, later))

    own = jnp.where(counted, reward, 0.0), counted.astype(jnp.float32)
    first = jax.tree.map(lambda x: jnp.where(positions[:, 1:] > 0, x[:, 1:], 0.0), own)
    first = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 1))), first)
    total, count = jax.lax.fori_loop(0, (reward.shape[1] - 1).bit_length(), double, first)
    return total / jnp.maximum(count, 1.0)
