"""Per-token losses that compare two next-token distributions, in nats; a name says the direction.

All take logits of any float dtype, compute in float32 and return one float32 value for each leading index. Forward and
reverse KL as in MiniLLM (arXiv 2306.08543); the generalised Jensen-Shannon divergence as in GKD (arXiv 2306.13649,
eq. 1). Derivatives are written by hand: one more pass over the logits, where autodiff of the formulas takes several.
Left out: weights and masks of tokens (objective.py), and chunks of them (heads.py).
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from motab_jax.models.topk import mass_threshold

SMALLEST_TAIL = 1e-6  # probability; a tail below it is rounding (see `with_tail`)
HEAD_MASS = 0.5  # the AKL paper's mu


def cross_entropy(student_logits: Float[Array, "*N V"], labels: Int[Array, "*N"]) -> Float32[Array, "*N"]:
    """-log p_S(label) in nats."""
    return _cross_entropy(student_logits.astype(jnp.float32), labels)


def forward_kl(student_logits: Float[Array, "*N V"], teacher_logits: Float[Array, "*N V"]) -> Float32[Array, "*N"]:
    """KL(teacher || student) in nats; large where tokens that are likely for the teacher are unlikely for the student.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{forward_kl(student, teacher):.4f}")  # 0.9 log(0.9 / 0.5) + 0.1 log(0.1 / 0.5)
    0.3681
    """
    return _kl(teacher_logits.astype(jnp.float32), student_logits.astype(jnp.float32))


def reverse_kl(student_logits: Float[Array, "*N V"], teacher_logits: Float[Array, "*N V"]) -> Float32[Array, "*N"]:
    """KL(student || teacher) in nats; large where tokens that are likely for the student are unlikely for the teacher.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{reverse_kl(student, teacher):.4f}")  # 0.5 log(0.5 / 0.9) + 0.5 log(0.5 / 0.1)
    0.5108
    """
    return _kl(student_logits.astype(jnp.float32), teacher_logits.astype(jnp.float32))


def jsd(
    student_logits: Float[Array, "*N V"], teacher_logits: Float[Array, "*N V"], *, reverse_weight: float = 0.5
) -> Float32[Array, "*N"]:
    """Generalised Jensen-Shannon divergence in nats: w KL(p_T || m) + (1 - w) KL(p_S || m), m = w p_T + (1 - w) p_S.

    >>> student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    >>> print(f"{jsd(student, teacher):.4f}")  # m = (0.7, 0.3): half of 0.1163, the teacher's KL, and of 0.0872
    0.1017

    Args:
      student_logits: the student's logits.
      teacher_logits: the teacher's logits.
      reverse_weight: w in [0, 1]. 0 gives forward_kl and 1 reverse_kl, the limits of JSD / w and JSD / (1 - w), as
          the GKD paper has it (arXiv 2306.13649, eq. 1).

    Returns:
      The divergence of each token.
    """
    if reverse_weight == 0.0:
        return forward_kl(student_logits, teacher_logits)
    if reverse_weight == 1.0:
        return reverse_kl(student_logits, teacher_logits)
    return _jsd(student_logits.astype(jnp.float32), teacher_logits.astype(jnp.float32), reverse_weight)


def adaptive_kl(
    student_logits: Float[Array, "*N V"],
    teacher_logits: Float[Array, "*N V"],
    *,
    head_mass: float = HEAD_MASS,
    sharded: bool = False,
) -> Float32[Array, "*N"]:
    """AKL (arXiv 2404.02657) in nats: w KL(p_T || p_S) + (1 - w) KL(p_S || p_T), with a weight w for each token.

    w is the head's share of sum_v |p_T(v) - p_S(v)|, without gradient; the head is the teacher's likeliest tokens.

    Args:
      student_logits: the student's logits.
      teacher_logits: the teacher's logits.
      head_mass: the largest probability of the head's tokens together (the paper's mu). The likeliest token is
          always in the head; tokens of equal probability are all in it, or none is.
      sharded: whether the vocabulary is sharded over devices (see `mass_threshold`).

    Returns:
      The divergence of each token.
    """
    student, teacher = student_logits.astype(jnp.float32), teacher_logits.astype(jnp.float32)
    p, q = (jax.nn.softmax(jax.lax.stop_gradient(x), axis=-1) for x in (teacher, student))
    difference = jnp.abs(p - q)
    in_head = jnp.sum(jnp.where(_in_head(p, head_mass, sharded=sharded), difference, 0.0), axis=-1)
    # Between equal distributions the difference is 0, and so are both divergences: the weight doesn't matter then.
    weight = in_head / jnp.maximum(jnp.sum(difference, axis=-1), jnp.finfo(jnp.float32).tiny)
    return weight * forward_kl(student, teacher) + (1.0 - weight) * reverse_kl(student, teacher)


def entropy_gated_kl(
    student_logits: Float[Array, "*N V"], teacher_logits: Float[Array, "*N V"], *, gate: float = 0.8
) -> Float32[Array, "*N"]:
    """KL(p_S || p_T) in nats, plus KL(p_T || p_S) where the teacher's entropy is above `gate`.

    Source: entropy-aware on-policy distillation, EOPD (arXiv 2603.07079), whose abstract says that forward KL is added
    where the teacher's entropy is high. The exact formula and the released code weren't available. The choice made
    here: a step at the gate, weight 1 for both parts, all three quantities exact and over the whole vocabulary.

    Args:
      student_logits: the student's logits.
      teacher_logits: the teacher's logits.
      gate: the entropy in nats.

    Returns:
      The loss of each token.
    """
    student, teacher = student_logits.astype(jnp.float32), teacher_logits.astype(jnp.float32)
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(teacher), axis=-1)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(p * _log_ratio(p, log_p, 0.0), axis=-1)
    return reverse_kl(student, teacher) + jnp.where(entropy > gate, forward_kl(student, teacher), 0.0)


def with_tail(logprobs: Float[Array, "*N K"]) -> Float32[Array, "*N K+1"]:
    """Append, to the log-probabilities of K tokens, that of all other tokens together.

    A divergence of two results is that of the coarser distributions: at most that of the full ones, and equal to it at
    K = V. The tail's mass is at least SMALLEST_TAIL: below, it is the rounding of the sum, without gradient.

    >>> jnp.exp(with_tail(jnp.log(jnp.array([0.5, 0.25])))).round(4).tolist()
    [0.5, 0.25, 0.25]
    """
    logprobs = logprobs.astype(jnp.float32)
    tail = 1.0 - jnp.sum(jnp.exp(logprobs), axis=-1, keepdims=True)
    # The bound stands inside the logarithm: outside, the gradient of log 0 would be 0 * inf.
    return jnp.concatenate([logprobs, jnp.log(jnp.where(tail > SMALLEST_TAIL, tail, SMALLEST_TAIL))], axis=-1)


def _in_head(p: Float32[Array, "*N V"], mass: float | Float32[Array, ""], *, sharded: bool) -> Bool[Array, "*N V"]:
    """The likeliest tokens, as many as have at most `mass` together, and at least those of the highest probability."""
    # The largest probability at which the tokens have more than `mass`: those above it have at most that.
    threshold = mass_threshold(p, lambda at_least: at_least > mass, sharded=sharded)
    return (p > threshold) | (p == jnp.max(p, axis=-1, keepdims=True))


def _dot(gradient: Float[Array, "*N V"], tangent: Float[Array, "*N V"]) -> Float[Array, "*N"]:
    return jnp.sum(gradient * tangent, axis=-1)


def _log_ratio(p: Float[Array, "*N V"], log_p: Float[Array, "*N V"], log_q: Float[Array, "*N V"] | float):
    """log p - log q; 0 where p is 0, so that the token contributes nothing, not 0 * inf."""
    return jnp.where(p > 0, log_p - log_q, 0.0)


@jax.custom_jvp
def _cross_entropy(logits: Float32[Array, "*N V"], labels: Int[Array, "*N"]) -> Float32[Array, "*N"]:
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


@_cross_entropy.defjvp
def _cross_entropy_jvp(primals, tangents):
    logits, labels = primals
    one_hot = jnp.arange(logits.shape[-1]).reshape((1,) * labels.ndim + (-1,)) == labels[..., None]
    gradient = jnp.exp(jax.nn.log_softmax(logits, axis=-1)) - one_hot
    return _cross_entropy(logits, labels), _dot(gradient, tangents[0])


@jax.custom_jvp
def _kl(left: Float32[Array, "*N V"], right: Float32[Array, "*N V"]) -> Float32[Array, "*N"]:
    """sum_v p (log p - log q) of logits left (p) and right (q)."""
    log_p, log_q = jax.nn.log_softmax(left, axis=-1), jax.nn.log_softmax(right, axis=-1)
    p = jnp.exp(log_p)
    return jnp.sum(p * _log_ratio(p, log_p, log_q), axis=-1)


@_kl.defjvp
def _kl_jvp(primals, tangents):
    """The value again, and its derivative: p (log p - log q - KL) in left, q - p in right."""
    left, right = primals
    log_p, log_q = jax.nn.log_softmax(left, axis=-1), jax.nn.log_softmax(right, axis=-1)
    p = jnp.exp(log_p)
    log_ratio = _log_ratio(p, log_p, log_q)
    value = jnp.sum(p * log_ratio, axis=-1)
    left_gradient, right_gradient = p * (log_ratio - value[..., None]), jnp.exp(log_q) - p
    return value, _dot(left_gradient, tangents[0]) + _dot(right_gradient, tangents[1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _jsd(student: Float32[Array, "*N V"], teacher: Float32[Array, "*N V"], weight: float) -> Float32[Array, "*N"]:
    teacher_kl, student_kl, *_ = _jsd_terms(student, teacher, weight)
    return weight * teacher_kl + (1.0 - weight) * student_kl


def _jsd_terms(student: Float32[Array, "*N V"], teacher: Float32[Array, "*N V"], weight: float):
    """KL(p_T || m), KL(p_S || m), then p and log(p / m) of the teacher and of the student."""
    log_p, log_q = jax.nn.log_softmax(teacher, axis=-1), jax.nn.log_softmax(student, axis=-1)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    # Where both probabilities underflow, the bound keeps the logarithm finite; the term is 0.
    log_m = jnp.log(jnp.maximum(weight * p + (1.0 - weight) * q, jnp.finfo(jnp.float32).tiny))
    teacher_ratio, student_ratio = _log_ratio(p, log_p, log_m), _log_ratio(q, log_q, log_m)
    teacher_kl, student_kl = jnp.sum(p * teacher_ratio, axis=-1), jnp.sum(q * student_ratio, axis=-1)
    return teacher_kl, student_kl, p, teacher_ratio, q, student_ratio


@_jsd.defjvp
def _jsd_jvp(weight, primals, tangents):
    student, teacher = primals
    teacher_kl, student_kl, p, teacher_ratio, q, student_ratio = _jsd_terms(student, teacher, weight)
    student_gradient = (1.0 - weight) * q * (student_ratio - student_kl[..., None])
    teacher_gradient = weight * p * (teacher_ratio - teacher_kl[..., None])
    value = weight * teacher_kl + (1.0 - weight) * student_kl
    return value, _dot(student_gradient, tangents[0]) + _dot(teacher_gradient, tangents[1])
