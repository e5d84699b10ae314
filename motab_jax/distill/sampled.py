"""Losses that learn from the tokens the student sampled: policy gradients of the reverse KL.

Their value is an estimate of a reverse KL in nats, their gradient that of -advantage * log p_S(token), in which the
advantage is a number. Both are right on average for tokens drawn from p_S itself: top-k, top-p and a sampling
temperature other than the loss's bias them.
Left out: importance weights, since a trajectory is used once, by the weights that wrote it; teacher-mixed sampling;
clipping; discounts.
"""

import jax
import jax.numpy as jnp

from motab_jax.distill.divergence import cross_entropy
from motab_jax.distill.heads import take


def policy_gradient(student_logits: jax.Array, labels: jax.Array, teacher_logprob: jax.Array) -> jax.Array:
    """log p_S(label) - log p_T(label) of student_logits [...,V], labels i32[...] and log p_T f32[...]: f32[...].

    The advantage is the negative of it, as in Thinking Machines' "On-Policy Distillation" (2025): a token is its own
    reward, and none of those behind it counts.
    """
    return reinforce(student_logits, labels, sampled_reward(student_logits, labels, teacher_logprob))


def sampled_reward(student_logits: jax.Array, labels: jax.Array, teacher_logprob: jax.Array) -> jax.Array:
    """log p_T(label) - log p_S(label), f32[...], without gradient: what a sampled token is rewarded with."""
    return jax.lax.stop_gradient(teacher_logprob + cross_entropy(student_logits, labels))


def reinforce(student_logits: jax.Array, labels: jax.Array, advantage: jax.Array) -> jax.Array:
    """-advantage f32[...], with the gradient of -advantage * log p_S(label)."""
    surprise, advantage = cross_entropy(student_logits, labels), jax.lax.stop_gradient(advantage)
    return advantage * (surprise - jax.lax.stop_gradient(surprise)) - advantage


def reward_to_go(reward: jax.Array, counted: jax.Array, positions: jax.Array) -> jax.Array:
    """Mean of the rewards f32[G,n] of the counted tokens (bool[G,n]) behind each token in its own text; 0 if none.

    MiniLLM's (arXiv 2306.08543) length-normalised reward of the long-range part, with the number of later tokens as
    the length. Texts lie side by side: a position i32[G,n] above 0 goes on with the text of the column before.
    """
    column = jnp.arange(reward.shape[1], dtype=jnp.int32)[None]
    text = column - positions  # the column where it begins

    def double(number, sums):
        """From sums over up to 2^number tokens behind each to those over twice as many."""
        there = jnp.broadcast_to(column + 2**number, positions.shape)
        same = take(text, there) == text
        return jax.tree.map(lambda near, far: near + jnp.where(same, far, 0.0), sums, take(sums, there))

    own = jnp.where(counted, reward, 0.0), counted.astype(jnp.float32)
    first = jax.tree.map(lambda x: jnp.where(positions[:, 1:] > 0, x[:, 1:], 0.0), own)
    first = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 1))), first)
    total, count = jax.lax.fori_loop(0, (reward.shape[1] - 1).bit_length(), double, first)
    return total / jnp.maximum(count, 1.0)
