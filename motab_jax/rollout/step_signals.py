"""Signals that the monitor averages over a step's tokens: the teacher's likelihood (MOTAB, eq. 5), and others.

A step's value is the mean of the signal over the step's tokens; for the two likelihoods, the exponential of that mean.
All signals are at temperature 1, in nats, over the tokenizer's vocabulary. Left out: the averaging (monitor.py).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

NEEDS_STUDENT = ("likelihood_ratio", "reverse_kl", "forward_kl", "student_entropy")
EXPONENTIAL = ("likelihood", "likelihood_ratio")
ALARM_IS_HIGH = ("reverse_kl", "forward_kl", "teacher_entropy", "student_entropy")  # unless the configuration says so


def signal_of(
    name: str,
    teacher: Float[Array, "*N V"],
    student: Float[Array, "*N V"] | None,
    logprob: Float[Array, "*N"],
    entropy: Float[Array, "*N"],
    tokens: Int[Array, "*N"],
    *,
    top_k: int,
) -> Float[Array, "*N"]:
    """The signal of each token.

    With p_T and p_S the teacher's and the student's distribution that the token y was drawn from:

    | name | signal |
    |---|---|
    | likelihood | log p_T(y) |
    | likelihood_ratio | log p_T(y) - log p_S(y) (speculative knowledge distillation by step, arXiv 2410.11325) |
    | top_k | 1 if y is among the teacher's `top_k` likeliest tokens, else 0 (the same method by token) |
    | reverse_kl, forward_kl | KL(p_S || p_T), KL(p_T || p_S) |
    | teacher_entropy, student_entropy | H(p_T), H(p_S) |

    Args:
      name: one of the above.
      teacher: the teacher's logits.
      student: the student's logits; None where the signal needs none, or where there are none.
      logprob: log p_T(y), in nats.
      entropy: H(p_T), in nats.
      tokens: y.
      top_k: for the signal of that name.

    Returns:
      The signal; not a number where it needs the student's logits and there are none.
    """
    if name == "likelihood":
        return logprob
    if name == "teacher_entropy":
        return entropy
    if name == "top_k":
        chosen = jnp.take_along_axis(teacher, tokens[..., None], axis=-1)
        return (jnp.sum(teacher > chosen, axis=-1) < top_k).astype(jnp.float32)
    if student is None:
        return jnp.full(tokens.shape, jnp.nan, jnp.float32)
    student_logprobs = jax.nn.log_softmax(student, axis=-1)
    if name == "likelihood_ratio":
        return logprob - jnp.take_along_axis(student_logprobs, tokens[..., None], axis=-1)[..., 0]
    if name == "student_entropy":
        return -_mean_under(student_logprobs, student_logprobs)
    teacher_logprobs = jax.nn.log_softmax(teacher, axis=-1)
    reverse = name == "reverse_kl"
    left, right = (student_logprobs, teacher_logprobs) if reverse else (teacher_logprobs, student_logprobs)
    return _mean_under(left, left - right)


def _mean_under(logprobs: Float[Array, "*N V"], values: Float[Array, "*N V"]) -> Float[Array, "*N"]:
    """The mean of values over a distribution; those of probability 0 contribute nothing, not 0 * inf."""
    probabilities = jnp.exp(logprobs)
    return jnp.sum(jnp.where(probabilities > 0, probabilities * values, 0.0), axis=-1)
