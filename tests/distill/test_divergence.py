"""Divergences against hand numbers, NumPy in float64, and their limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.distill import adaptive_kl, cross_entropy, entropy_gated_kl, forward_kl, jsd, reverse_kl

STUDENT, TEACHER = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
PAIRS = [forward_kl, reverse_kl, jsd, functools.partial(jsd, reverse_weight=0.1), adaptive_kl, entropy_gated_kl]


def reference(student, teacher, weight=None, *, reverse=False):
    """The definitions in float64: KL(teacher || student), the reverse, or JSD with a weight."""
    q, p = (np.exp(np.asarray(x, np.float64)) for x in (student, teacher))
    q, p = q / q.sum(-1, keepdims=True), p / p.sum(-1, keepdims=True)
    if weight is None:
        p, q = (q, p) if reverse else (p, q)
        return (p * np.log(p / q)).sum(-1)
    m = weight * p + (1 - weight) * q
    return weight * (p * np.log(p / m)).sum(-1) + (1 - weight) * (q * np.log(q / m)).sum(-1)


def test_hand_numbers():
    assert float(cross_entropy(TEACHER, jnp.array(1))) == pytest.approx(-np.log(0.1))
    assert float(forward_kl(STUDENT, TEACHER)) == pytest.approx(0.9 * np.log(1.8) + 0.1 * np.log(0.2))
    assert float(reverse_kl(STUDENT, TEACHER)) == pytest.approx(0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(5))
    # The mixture of halves is (0.7, 0.3).
    teacher_part = 0.9 * np.log(9 / 7) + 0.1 * np.log(1 / 3)
    student_part = 0.5 * np.log(5 / 7) + 0.5 * np.log(5 / 3)
    assert float(jsd(STUDENT, TEACHER)) == pytest.approx((teacher_part + student_part) / 2)
    # A quarter of the teacher: (0.6, 0.4).
    teacher_part = 0.9 * np.log(1.5) + 0.1 * np.log(0.25)
    student_part = 0.5 * np.log(5 / 6) + 0.5 * np.log(5 / 4)
    assert float(jsd(STUDENT, TEACHER, reverse_weight=0.25)) == pytest.approx(0.25 * teacher_part + 0.75 * student_part)


def test_against_float64():
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(3 * rng.normal(size=(4, 5, 200)), jnp.float32) for _ in range(2))
    np.testing.assert_allclose(forward_kl(student, teacher), reference(student, teacher), rtol=2e-5)
    np.testing.assert_allclose(reverse_kl(student, teacher), reference(student, teacher, reverse=True), rtol=2e-5)
    for weight in (0.05, 0.5, 0.9):
        found = jsd(student, teacher, reverse_weight=weight)
        np.testing.assert_allclose(found, reference(student, teacher, weight), rtol=2e-5)
    labels = rng.integers(0, 200, (4, 5))
    chosen = np.take_along_axis(np.asarray(student), labels[..., None], -1)[..., 0]
    expected = np.log(np.exp(np.asarray(student, np.float64)).sum(-1)) - chosen
    np.testing.assert_allclose(cross_entropy(student, jnp.asarray(labels)), expected, rtol=2e-5)


def test_jsd_is_symmetric_bounded_and_has_the_kl_limits():
    rng = np.random.default_rng(1)
    student, teacher = (jnp.asarray(2 * rng.normal(size=(6, 30)), jnp.float32) for _ in range(2))
    np.testing.assert_allclose(jsd(student, teacher), jsd(teacher, student), rtol=1e-5)
    mirrored = jsd(teacher, student, reverse_weight=0.8)
    np.testing.assert_allclose(jsd(student, teacher, reverse_weight=0.2), mirrored, rtol=1e-5)
    assert (np.asarray(jsd(20 * student, 20 * teacher)) <= np.log(2) + 1e-6).all()
    np.testing.assert_array_equal(jsd(student, teacher, reverse_weight=0.0), forward_kl(student, teacher))
    np.testing.assert_array_equal(jsd(student, teacher, reverse_weight=1.0), reverse_kl(student, teacher))
    student, teacher, small = 0.4 * student, 0.4 * teacher, 1e-3
    near = jsd(student, teacher, reverse_weight=small) / small
    np.testing.assert_allclose(near, forward_kl(student, teacher), rtol=1e-2)
    near = jsd(student, teacher, reverse_weight=1 - small) / small
    np.testing.assert_allclose(near, reverse_kl(student, teacher), rtol=1e-2)


@pytest.mark.parametrize("divergence", PAIRS)
def test_equal_distributions_are_no_distance_apart(divergence):
    logits = jax.random.normal(jax.random.key(0), (3, 50))
    np.testing.assert_allclose(divergence(logits, logits + 5.0), 0.0, atol=1e-6)
    assert (np.asarray(divergence(logits, -logits)) > 0.1).all()


@pytest.mark.parametrize("divergence", PAIRS)
def test_excluded_tokens_give_finite_values_and_gradients(divergence):
    student, teacher = jnp.array([0.3, -jnp.inf, 1.0, -jnp.inf]), jnp.array([1.0, -jnp.inf, 0.1, -jnp.inf])
    short = divergence(student[::2], teacher[::2])
    value, grads = jax.value_and_grad(divergence, argnums=(0, 1))(student, teacher)
    assert float(value) == pytest.approx(float(short), rel=1e-6)
    assert all(bool(jnp.isfinite(grad).all()) for grad in grads)


def test_tokens_that_only_one_side_excludes():
    narrow, wide = jnp.array([0.3, -jnp.inf, 1.0]), jnp.array([1.0, 0.5, 0.1])
    assert np.isfinite(forward_kl(wide, narrow)) and np.isfinite(reverse_kl(narrow, wide))
    assert np.isfinite(jsd(wide, narrow)) and np.isfinite(jsd(narrow, wide))
    assert float(forward_kl(narrow, wide)) == np.inf, "the student rules out what the teacher does"


@pytest.mark.parametrize("divergence", PAIRS)
def test_computed_in_float32(divergence):
    student, teacher = (jax.random.normal(jax.random.key(k), (64,), jnp.bfloat16) for k in (1, 2))
    value = divergence(student, teacher)
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(float(divergence(student.astype(jnp.float32), teacher.astype(jnp.float32))))


# Four tokens, so that head and tail, both directions and their gradients can be followed by hand.
P, Q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.25, 0.25, 0.4, 0.1])
FORWARD, REVERSE = (P * np.log(P / Q)).sum(), (Q * np.log(Q / P)).sum()
FORWARD_GRADIENT, REVERSE_GRADIENT = Q - P, Q * (np.log(Q / P) - REVERSE)


def check_at_four_tokens(divergence, value, gradient):
    """The value and the gradient in the student's logits."""
    found = jax.value_and_grad(divergence)(*(jnp.log(jnp.asarray(x, jnp.float32)) for x in (Q, P)))
    assert float(found[0]) == pytest.approx(value, abs=1e-5)
    np.testing.assert_allclose(found[1], gradient, atol=1e-5)


@pytest.mark.parametrize(("head_mass", "head"), [(0.1, 1), (0.5, 1), (0.75, 2), (0.95, 3), (1.5, 4)])
def test_adaptive_kl_weighs_the_directions_by_the_heads_share_of_the_gap(head_mass, head):
    gap = np.array([0.15, 0.05, 0.2, 0.0])
    w = gap[:head].sum() / gap.sum()
    divergence = functools.partial(adaptive_kl, head_mass=head_mass)
    check_at_four_tokens(divergence, w * FORWARD + (1 - w) * REVERSE, w * FORWARD_GRADIENT + (1 - w) * REVERSE_GRADIENT)


@pytest.mark.parametrize(("gate", "forward"), [(0.0, 1), (1.27, 1), (1.29, 0), (1.5, 0)])
def test_entropy_gated_kl_adds_forward_kl_above_the_gate(gate, forward):
    assert -(P * np.log(P)).sum() == pytest.approx(1.2799, abs=1e-4)
    divergence = functools.partial(entropy_gated_kl, gate=gate)
    check_at_four_tokens(divergence, REVERSE + forward * FORWARD, REVERSE_GRADIENT + forward * FORWARD_GRADIENT)


def test_the_head_is_found_as_by_sorting():
    rng = np.random.default_rng(2)
    student, teacher = (jnp.asarray(3 * rng.normal(size=(40, 300)), jnp.float32) for _ in range(2))
    p, q = (np.exp(np.asarray(x, np.float64)) for x in (teacher, student))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    order = np.argsort(-p, axis=-1)
    gap = np.take_along_axis(abs(p - q), order, -1)
    inside = np.cumsum(np.take_along_axis(p, order, -1), axis=-1) <= 0.5
    inside[:, 0] = True
    assert inside.sum(-1).max() > 1 and inside.sum(-1).min() < inside.sum(-1).max()
    w = (gap * inside).sum(-1) / gap.sum(-1)
    expected = w * reference(student, teacher) + (1 - w) * reference(student, teacher, reverse=True)
    np.testing.assert_allclose(adaptive_kl(student, teacher), expected, rtol=2e-5)
    shuffled = rng.permutation(300)
    again = adaptive_kl(student[:, shuffled], teacher[:, shuffled])
    np.testing.assert_allclose(again, expected, rtol=2e-5)
    ties = jnp.log(jnp.array([0.3, 0.3, 0.2, 0.2])), jnp.log(jnp.array([0.4, 0.2, 0.2, 0.2]))
    assert float(adaptive_kl(ties[1], ties[0])) == pytest.approx(float(forward_kl(ties[1], ties[0])), abs=1e-6)
