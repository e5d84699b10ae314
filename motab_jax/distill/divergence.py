"""Per-token losses between next-token distributions, in nats, named by their direction.

All take logits [..., V] (any float dtype; computed in float32) and return f32[...]. Sources: forward and reverse KL as
in MiniLLM (arXiv 2306.08543); generalised Jensen-Shannon divergence as in GKD (arXiv 2306.13649, eq. 1). Their
derivatives are written out: each is one more pass over the logits, where differentiating the formulas takes several.
"""

import functools

import jax
import jax.numpy as jnp

SMALLEST_TAIL = 1e-6
HEAD_MASS = 0.5


def cross_entropy(student_logits: jax.Array, labels: jax.Array) -> jax.Array:
    """-log p_S(label); labels i32[...]."""
    return _cross_entropy(student_logits.astype(jnp.float32), labels)


def forward_kl(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """KL(teacher || student): covers what the teacher does.

    >>> import jax.numpy as jnp
    >>> float(forward_kl(jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.5, 0.5]))))
    0.0
    """
    return _kl(teacher_logits.astype(jnp.float32), student_logits.astype(jnp.float32))


def reverse_kl(student_logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """KL(student || teacher): avoids what the teacher doesn't do."""
    return _kl(student_logits.astype(jnp.float32), teacher_logits.astype(jnp.float32))


def jsd(student_logits: jax.Array, teacher_logits: jax.Array, *, reverse_weight: float = 0.5) -> jax.Array:
    """Generalised Jensen-Shannon divergence with w = reverse_weight in [0,1].

    m = w p_T + (1 - w) p_S;  JSD = w KL(p_T || m) + (1 - w) KL(p_S || m). At w = 0 it is forward_kl and at w = 1
    reverse_kl, the limits of JSD / w and JSD / (1 - w), as the GKD paper has it.
    """
    if reverse_weight == 0.0:
        return forward_kl(student_logits, teacher_logits)
    if reverse_weight == 1.0:
        return reverse_kl(student_logits, teacher_logits)
    return _jsd(student_logits.astype(jnp.float32), teacher_logits.astype(jnp.float32), reverse_weight)


def adaptive_kl(student_logits: jax.Array, teacher_logits: jax.Array, *, head_mass: float = HEAD_MASS) -> jax.Array:
    """AKL (arXiv 2404.02657): w KL(p_T || p_S) + (1 - w) KL(p_S || p_T), each token with a w of its own.

    w is the head's share of sum_v |p_T(v) - p_S(v)| and has no gradient. The head: the teacher's likeliest tokens, as
    many as together have at most a probability of head_mass (the paper's mu), the likeliest always; ties go together.
    """
    student, teacher = student_logits.astype(jnp.float32), teacher_logits.astype(jnp.float32)
    p, q = (jax.nn.softmax(jax.lax.stop_gradient(x), axis=-1) for x in (teacher, student))
    gap = jnp.abs(p - q)
    in_head = jnp.sum(jnp.where(p >= _head_threshold(p, head_mass), gap, 0.0), axis=-1)
    # Equal distributions have no gap: neither direction counts then, and both are 0.
    weight = in_head / jnp.maximum(jnp.sum(gap, axis=-1), jnp.finfo(jnp.float32).tiny)
    return weight * forward_kl(student, teacher) + (1.0 - weight) * reverse_kl(student, teacher)


def entropy_gated_kl(student_logits: jax.Array, teacher_logits: jax.Array, *, gate: float = 0.8) -> jax.Array:
    """KL(p_S || p_T), and KL(p_T || p_S) on top of it where the teacher's entropy is above `gate` nats.

    Source: entropy-aware on-policy distillation, EOPD (arXiv 2603.07079), whose abstract says that forward KL is added
    where the teacher's entropy is high. The exact formula and the released code weren't available. The choice made
    here: a step at the gate, weight 1 for both parts, all three quantities exact and over the whole vocabulary.
    """
    student, teacher = student_logits.astype(jnp.float32), teacher_logits.astype(jnp.float32)
    log_p = jax.nn.log_softmax(jax.lax.stop_gradient(teacher), axis=-1)
    p = jnp.exp(log_p)
    entropy = -jnp.sum(p * _log_ratio(p, log_p, 0.0), axis=-1)
    return reverse_kl(student, teacher) + jnp.where(entropy > gate, forward_kl(student, teacher), 0.0)


def with_tail(logprobs: jax.Array) -> jax.Array:
    """Log-probabilities f32[...,k] of k tokens and of all others together, f32[...,k+1].

    A divergence of two of them is that between the coarser distributions: never more than that of the full ones, and
    equal at k = V. The tail's mass is at least SMALLEST_TAIL: below, it is the rounding of the sum, without gradient.
    """
    logprobs = logprobs.astype(jnp.float32)
    tail = 1.0 - jnp.sum(jnp.exp(logprobs), axis=-1, keepdims=True)
    # The bound stands inside the logarithm: outside, the gradient of log 0 would be 0 * inf.
    return jnp.concatenate([logprobs, jnp.log(jnp.where(tail > SMALLEST_TAIL, tail, SMALLEST_TAIL))], axis=-1)


def _head_threshold(p: jax.Array, mass: float) -> jax.Array:
    """The least probability f32[...,1] such that the tokens of p f32[...,V] at or above it come to at most `mass`.

    Never more than the largest. It is found by bisection over the bit patterns of float32, which order as the numbers
    do: nothing sorts the vocabulary (docs/decisions.md).
    """
    high = jax.lax.bitcast_convert_type(jnp.max(p, axis=-1, keepdims=True), jnp.int32)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        at_least = p >= jax.lax.bitcast_convert_type(middle, jnp.float32)
        fits = jnp.sum(jnp.where(at_least, p, 0.0), axis=-1, keepdims=True) <= mass
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    _, high = jax.lax.fori_loop(0, 31, halve, (jnp.zeros_like(high), high))
    return jax.lax.bitcast_convert_type(high, jnp.float32)


def _along(slope: jax.Array, tangent: jax.Array) -> jax.Array:
    return jnp.sum(slope * tangent, axis=-1)


def _log_ratio(probability: jax.Array, log: jax.Array, other: jax.Array | float) -> jax.Array:
    """log - other; 0 where the probability is 0, so that the token contributes nothing, not 0 * inf."""
    return jnp.where(probability > 0, log - other, 0.0)


@jax.custom_jvp
def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - chosen


@_cross_entropy.defjvp
def _cross_entropy_jvp(primals, tangents):
    logits, labels = primals
    label = jnp.arange(logits.shape[-1]).reshape((1,) * labels.ndim + (-1,)) == labels[..., None]
    slope = jnp.exp(jax.nn.log_softmax(logits, axis=-1)) - label
    return _cross_entropy(logits, labels), _along(slope, tangents[0])


@jax.custom_jvp
def _kl(left: jax.Array, right: jax.Array) -> jax.Array:
    """sum_v p (log p - log q) of logits left (p) and right (q)."""
    return _kl_parts(left, right)[0]


def _kl_parts(left: jax.Array, right: jax.Array):
    log_p, log_q = jax.nn.log_softmax(left, axis=-1), jax.nn.log_softmax(right, axis=-1)
    p = jnp.exp(log_p)
    ratio = _log_ratio(p, log_p, log_q)
    return jnp.sum(p * ratio, axis=-1), p, ratio, log_q


@_kl.defjvp
def _kl_jvp(primals, tangents):
    value, p, ratio, log_q = _kl_parts(*primals)
    left, right = p * (ratio - value[..., None]), jnp.exp(log_q) - p
    return value, _along(left, tangents[0]) + _along(right, tangents[1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _jsd(student: jax.Array, teacher: jax.Array, weight: float) -> jax.Array:
    from_teacher, from_student, *_ = _jsd_parts(student, teacher, weight)
    return weight * from_teacher + (1.0 - weight) * from_student


def _jsd_parts(student: jax.Array, teacher: jax.Array, weight: float):
    """KL(p_T || m), KL(p_S || m), then p and log(p / m) of the teacher and of the student."""
    log_p, log_q = jax.nn.log_softmax(teacher, axis=-1), jax.nn.log_softmax(student, axis=-1)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    # Where both underflow the bound keeps the logarithm finite; nothing comes of it.
    log_m = jnp.log(jnp.maximum(weight * p + (1.0 - weight) * q, jnp.finfo(jnp.float32).tiny))
    theirs, ours = _log_ratio(p, log_p, log_m), _log_ratio(q, log_q, log_m)
    return jnp.sum(p * theirs, axis=-1), jnp.sum(q * ours, axis=-1), p, theirs, q, ours


@_jsd.defjvp
def _jsd_jvp(weight, primals, tangents):
    from_teacher, from_student, p, theirs, q, ours = _jsd_parts(*primals, weight)
    student = (1.0 - weight) * q * (ours - from_student[..., None])
    teacher = weight * p * (theirs - from_teacher[..., None])
    value = weight * from_teacher + (1.0 - weight) * from_student
    return value, _along(student, tangents[0]) + _along(teacher, tangents[1])
