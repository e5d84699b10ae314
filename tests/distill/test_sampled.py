"""Losses of sampled tokens: by hand, on average, and text by text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from motab_jax.config import UserError
from motab_jax.distill import Objective, build_targets, policy_gradient, reverse_kl
from motab_jax.distill.objective import check_targets, objective_loss_sums, token_losses
from motab_jax.distill.sampled import mean_reward_to_go
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.topk import top_k_of
from motab_jax.models.transformer import Model
from tests.distill.batches import LOSSES, uniform
from tests.distill.test_targets import TRANSITION, random_row, trajectory_of
from tests.optional import some

P, Q = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.25, 0.25, 0.4, 0.1])
OURS, THEIRS = (jnp.log(jnp.asarray(x, jnp.float32)) for x in (Q, P))
REVERSE = (Q * np.log(Q / P)).sum()
REVERSE_GRADIENT = Q * (np.log(Q / P) - REVERSE)
EVERY = jnp.arange(4)
SIZE, WIDTH = 93, 5  # vocabulary, the student's width


def by_token(loss):
    """Values f32[4] and gradients f32[4,4] of loss(logits, label) at each of the four labels."""
    return jax.vmap(jax.value_and_grad(loss), in_axes=(None, 0))(OURS, EVERY)


def test_policy_gradient_by_hand():
    advantage = np.log(P / Q)
    values, gradients = by_token(lambda logits, label: policy_gradient(logits, label, THEIRS[label]))
    np.testing.assert_allclose(values, -advantage, atol=1e-5)
    np.testing.assert_allclose(gradients, -advantage[:, None] * (np.eye(4) - Q), atol=1e-5)


def test_policy_gradient_is_the_reverse_kl_on_average():
    values, gradients = by_token(lambda logits, label: policy_gradient(logits, label, THEIRS[label]))
    exact = jax.value_and_grad(reverse_kl)(OURS, THEIRS)
    assert float(Q @ values) == pytest.approx(float(exact[0]), abs=1e-6) == pytest.approx(REVERSE, abs=1e-6)
    np.testing.assert_allclose(Q @ gradients, exact[1], atol=1e-6)
    np.testing.assert_allclose(exact[1], REVERSE_GRADIENT, atol=1e-6)


@pytest.mark.parametrize("kept", ["logits", "topk"])
def test_minillm_by_hand(kept):
    later, teacher = 0.7, THEIRS if kept == "logits" else top_k_of(THEIRS, 4)

    def loss(logits, label):
        reward = jnp.float32(later)
        return token_losses(logits, teacher, label, jnp.int32(1), uniform("minillm"), reward_to_go=reward).sum()

    values, gradients = by_token(loss)
    np.testing.assert_allclose(values, np.full(4, REVERSE - later), atol=1e-5)
    np.testing.assert_allclose(gradients, REVERSE_GRADIENT - later * (np.eye(4) - Q), atol=1e-5)


def test_the_temperature_divides_both_models_logits():
    hot = uniform("policy_gradient", temperature=2.0)
    found = jax.vmap(lambda label: token_losses(OURS, THEIRS, label, jnp.int32(1), hot))(EVERY)
    p, q = (np.sqrt(x) / np.sqrt(x).sum() for x in (P, Q))
    np.testing.assert_allclose(found, np.log(q / p), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_rewards_to_go_keep_to_their_text(seed):
    rng = np.random.default_rng(seed)
    groups, columns = 2, 37
    positions, expected = np.full((groups, columns), -1), np.zeros((groups, columns))
    reward, counted = rng.normal(size=(groups, columns)), rng.random((groups, columns)) < 0.7
    for group in range(groups):
        column = int(rng.integers(0, 3))
        while column < columns:
            length = min(int(rng.integers(1, 12)), columns - column)
            positions[group, column : column + length] = np.arange(length)
            for position in range(column, column + length):
                behind = np.arange(position + 1, column + length)
                behind = behind[counted[group, behind]]
                expected[group, position] = reward[group, behind].mean() if len(behind) else 0.0
            column += length + int(rng.integers(0, 2)) * int(rng.integers(0, 3))  # side by side, or a gap
    counted &= positions >= 0
    found = jax.jit(mean_reward_to_go)(jnp.asarray(reward, jnp.float32), jnp.asarray(counted), jnp.asarray(positions))
    np.testing.assert_allclose(np.where(positions >= 0, found, 0.0), expected, atol=1e-6)


def small_batch(seed: int = 0):
    """A trajectory's targets with all that can be kept of a teacher, its head, and a student's states and head."""
    rng = np.random.default_rng(seed)
    trajectory = trajectory_of([random_row(rng, rewinds) for rewinds in (0, 1, 2, 0)])
    states = jnp.asarray(rng.normal(size=some(trajectory.teacher_hidden).shape), jnp.float32)
    table, head = (jnp.asarray(rng.normal(size=(SIZE, width)), jnp.float32) for width in (states.shape[-1], WIDTH))
    logits, labels = states @ table.T, trajectory.tokens[..., None]
    trajectory = trajectory.replace(
        teacher_hidden=states,
        teacher_logprob=jnp.take_along_axis(jax.nn.log_softmax(logits), labels, axis=-1)[..., 0],
        teacher_topk=top_k_of(logits, SIZE),
    )
    teacher = Model({"embed": table}, ModelConfig("llama", SIZE, states.shape[-1], 4, 1, 1, 1, 2, 512, tied=True))
    return trajectory, teacher, {"embed": head}


def test_kept_logprobs_and_hidden_states_give_the_same_loss():
    trajectory, teacher, head = small_batch()
    student = ModelConfig("llama", SIZE, WIDTH, 4, 1, 1, 1, 2, 512, tied=True)
    transition = jnp.array(TRANSITION)
    masked = LOSSES["masked"]

    def losses(kind: str, objective: Objective):
        """Sums by kind of token."""
        nothing = jnp.zeros((*trajectory.tokens.shape, 0))
        kept = {
            "hidden": trajectory.replace(teacher_topk=None, teacher_logprob=trajectory.teacher_logprob * jnp.nan),
            "topk": trajectory.replace(teacher_hidden=nothing),
            "sampled": trajectory.replace(teacher_hidden=nothing, teacher_topk=None),
        }[kind]
        batch = build_targets(kept, target="stitched", transition=transition, logprobs=kind != "hidden")
        assert (batch.teacher_logprob is None) == (kind == "hidden")
        batch = jax.tree.map(lambda x: x.reshape(1, -1, *x.shape[2:]), batch)
        hidden = jax.random.normal(jax.random.key(1), (*batch.tokens.shape, WIDTH))
        scored = jax.jit(lambda *x: objective_loss_sums(student, objective, 16, head, x[0], teacher, *x[1:]))
        return scored(hidden, batch, (batch.kinds > 0).astype(jnp.float32)).per_kind[0]

    both = Objective(LOSSES["policy_gradient"], masked, LOSSES["minillm"], masked, vocab_size=SIZE)
    expected = losses("hidden", both)
    assert jnp.isfinite(expected).all() and (jnp.abs(expected[jnp.array([1, 3])]) > 1.0).all()
    np.testing.assert_allclose(losses("topk", both), expected, rtol=1e-5)
    alone = losses("sampled", Objective(both.student, masked, masked, masked, vocab_size=SIZE))
    np.testing.assert_allclose(alone[1], expected[1], rtol=1e-5)


def test_targets_that_carry_the_losses():
    check_targets(uniform("policy_gradient"), "sampled")
    check_targets(uniform("minillm"), "topk")
    for name in ("minillm", "adaptive_kl", "entropy_gated_kl"):
        with pytest.raises(UserError, match=f"rollout.targets=sampled .*objective.student_loss={name}"):
            check_targets(uniform(name), "sampled")
    for kind in ("sampled", "topk"):
        with pytest.raises(UserError, match=rf"objective.temperature=2.0 .*rollout.targets={kind}"):
            check_targets(uniform("policy_gradient", temperature=2.0), kind)


def test_a_batch_without_the_logprobs_is_refused():
    trajectory, teacher, head = small_batch()
    batch = build_targets(trajectory, target="spliced", transition=jnp.zeros((0,), jnp.int32))
    hidden = jnp.zeros((*batch.tokens.shape, WIDTH))
    with pytest.raises(ValueError, match="logprobs=True"):
        objective_loss_sums(
            teacher.config, uniform("policy_gradient"), 16, head, hidden, teacher, batch, jnp.zeros(batch.tokens.shape)
        )
