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


def policy_gradient(student_logits: jax.Array, labels: jax.Array, teacher_logprob: jax.Array) -> jax.Array:
    """log p_S(label) - log p_T(label) of student_logits [...,V], labels i32[...] and log p_T f32[...]: f32[...].

    The advantage is the negative of it, as in Thinking Machines' "On-Policy Distillation" (2025): a token is its own
    reward, and none of those behind it counts.
    """
    return reinforce(student_logits, labels, log_ratio(student_logits, labels, teacher_logprob))


def log_ratio(student_logits: jax.Array, labels: jax.Array, teacher_logprob: jax.Array) -> jax.Array:
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
    goes_on = jnp.pad(positions[:, 1:] > 0, ((0, 0), (0, 1)))

    def join(later, earlier):
        sums = (jnp.where(earlier[2], own + behind, own) for behind, own in zip(later[:2], earlier[:2], strict=True))
        return (*sums, later[2] & earlier[2])

    each = jnp.where(counted, reward, 0.0), counted.astype(jnp.float32), goes_on
    total, count, _ = jax.lax.associative_scan(join, each, reverse=True, axis=1)
    total, count = (jnp.where(goes_on, jnp.pad(x[:, 1:], ((0, 0), (0, 1))), 0.0) for x in (total, count))
    return total / jnp.maximum(count, 1.0)
