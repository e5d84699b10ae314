"""What the monitor averages over a step's tokens: the teacher's likelihood (MOTAB, eq. 5), and others for study.

All at temperature 1, in nats, over the tokenizer's vocabulary. A step's value is the mean over its tokens; of the two
likelihoods, its exponential.
"""

import jax
import jax.numpy as jnp

NEEDS_STUDENT = ("likelihood_ratio", "reverse_kl", "forward_kl", "student_entropy")
EXPONENTIAL = ("likelihood", "likelihood_ratio")
ALARM_IS_HIGH = ("reverse_kl", "forward_kl", "teacher_entropy", "student_entropy")  # unless the configuration says so


def signal_of(
    name: str, teacher: jax.Array, student: jax.Array | None, logprob: jax.Array, entropy: jax.Array, tokens: jax.Array,
    *, top_k: int,
) -> jax.Array:  # fmt: skip
    """The signal f32[...] of tokens i32[...].

    teacher, student: the logits f32[...,V] that the tokens were drawn under (student None: not needed, or not at hand;
    then the signals that compare are not a number); logprob, entropy f32[...]: the teacher's, of the token and of its
    whole distribution. likelihood: log p_T. likelihood_ratio: log p_T - log p_S (of SKD by step, arXiv 2410.11325).
    top_k: 1 if the token is among the teacher's top_k likeliest, else 0 (SKD by token).
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
    mine = jax.nn.log_softmax(student, axis=-1)
    if name == "likelihood_ratio":
        return logprob - jnp.take_along_axis(mine, tokens[..., None], axis=-1)[..., 0]
    if name == "student_entropy":
        return -jnp.sum(jnp.exp(mine) * mine, axis=-1)
    theirs = jax.nn.log_softmax(teacher, axis=-1)
    left, right = (mine, theirs) if name == "reverse_kl" else (theirs, mine)
    return jnp.sum(jnp.exp(left) * (left - right), axis=-1)
