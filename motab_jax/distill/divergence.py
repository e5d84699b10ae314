"""Per-token losses between next-token distributions, in nats, named by their direction.

All take logits [..., V] (any float dtype; computed in float32) and return f32[...]. Sources: forward and reverse KL as
in MiniLLM (arXiv 2306.08543); generalised Jensen-Shannon divergence as in GKD (arXiv 2306.13649, eq. 1).
"""

import jax
import jax.numpy as jnp


def cross_entropy(student_logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log p_S(label); labels i32[...]."""
    logprobs = jax.nn.log_softmax(student_logits.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(logprobs, labels[..., None], axis=-1)[..., 0]


def forward_kl(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """KL(teacher || student): covers what the teacher does.

    >>> import jax.numpy as jnp
    >>> float(forward_kl(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.5, 0.5]))))
    0.0
    """
    return _kl(_logprobs(teacher_logits), _logprobs(student_logits))


def reverse_kl(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """KL(student || teacher): avoids what the teacher doesn't do."""
    return _kl(_logprobs(student_logits), _logprobs(teacher_logits))


def jsd(student_logits: jax.Array, teacher_logits: jax.Array, *, reverse_weight: float = 0.5) -> jax.Array:
    """Generalised Jensen-Shannon divergence with w = reverse_weight in [0,1].

    m = w p_T + (1 - w) p_S;  JSD = w KL(p_T || m) + (1 - w) KL(p_S || m). At w = 0 it is forward_kl and at w = 1
    reverse_kl, the limits of JSD / w and JSD / (1 - w), as the GKD paper has it.
    """
    if reverse_weight == 0.0:
        return forward_kl(student_logits, teacher_logits)
    if reverse_weight == 1.0:
        return reverse_kl(student_logits, teacher_logits)
    student, teacher = _logprobs(student_logits), _logprobs(teacher_logits)
    # A token that both rule out stays out of logaddexp, whose gradient at (-inf, -inf) is not a number.
    neither = (student == -jnp.inf) & (teacher == -jnp.inf)
    mine, theirs = (jnp.where(neither, 0.0, x) for x in (student, teacher))
    mixture = jnp.logaddexp(mine + jnp.log1p(-reverse_weight), theirs + jnp.log(reverse_weight))
    return reverse_weight * _kl(teacher, mixture) + (1.0 - reverse_weight) * _kl(student, mixture)


def _logprobs(logits: jax.Array) -> jax.Array:
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def _kl(left: jax.Array, right: jax.Array) -> jax.Array:
    """sum_v p (log p - log q); a token of probability zero under p contributes nothing."""
    # The difference is what is masked, not the product: at -inf the product's gradient would be 0 * inf.
    return jnp.sum(jnp.exp(left) * jnp.where(left > -jnp.inf, left - right, 0.0), axis=-1)
