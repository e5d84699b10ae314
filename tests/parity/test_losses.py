"""Every loss and its gradient against float64 autograd in torch, and against TRL where it is installed.

The torch side is written in the form of TRL 1.16: `kl_div` of log-probabilities, a mixture by logsumexp, later rewards
by cumulative sums from the end. TRL itself is compared where the extra [rivals] is there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from motab_jax.distill import Objective, TokenLoss
from motab_jax.distill.objective import token_losses
from motab_jax.distill.sampled import mean_reward_to_go, teacher_log_ratio
from tests.optional import some

pytestmark = pytest.mark.parity

ROWS, TIME, VOCAB = 3, 14, 60
RNG = np.random.default_rng(0)
STUDENT, TEACHER = (2.5 * RNG.normal(size=(ROWS, TIME, VOCAB)).astype(np.float32) for _ in range(2))
TEACHER[:, ::2] /= 5  # every other token is nearly open, so that the gate lets some pass and not all
LABELS = RNG.integers(0, VOCAB, (ROWS, TIME))
ALIVE = np.arange(TIME) < np.array([[14], [9], [1]])
GATE, TEMPERATURE = 3.5, 1.7


def divergence(log_q, log_p, beta: float):
    """A KL at beta 0 (forward) and 1 (reverse), else their generalised Jensen-Shannon divergence; per token."""
    if beta in (0.0, 1.0):
        near, far = (log_q, log_p) if beta == 0.0 else (log_p, log_q)
        return kl_div(near, far, reduction="none", log_target=True).sum(-1)
    share = torch.tensor(beta, dtype=torch.float64)
    log_m = torch.logsumexp(torch.stack([log_q + torch.log1p(-share), log_p + torch.log(share)]), dim=0)
    parts = (kl_div(log_m, x, reduction="none", log_target=True).sum(-1) for x in (log_p, log_q))
    return sum(weight * part for weight, part in zip((beta, 1.0 - beta), parts, strict=True))


def adaptive(log_q, log_p):
    """Forward and reverse KL by the head's and the tail's part of the absolute difference."""
    p, q = log_p.exp(), log_q.exp().detach()
    likeliest, order = p.sort(dim=-1, descending=True)
    tail = likeliest.cumsum(-1) > 0.5
    tail[..., 0] = False
    gap = (likeliest - q.gather(-1, order)).abs()
    head, rest = gap.masked_fill(tail, 0.0).sum(-1), gap.masked_fill(~tail, 0.0).sum(-1)
    forward, reverse = divergence(log_q, log_p, 0.0), divergence(log_q, log_p, 1.0)
    return (head * forward + rest * reverse) / (head + rest)


def gated(log_q, log_p):
    """Reverse KL, and forward KL above the gate."""
    above = -(log_p.exp() * log_p).sum(-1) > GATE
    assert above.any() and not above.all()
    return divergence(log_q, log_p, 1.0) + above * divergence(log_q, log_p, 0.0)


def chosen(logprobs):
    """Log-probabilities of the labels."""
    return logprobs.gather(-1, torch.tensor(LABELS)[..., None])[..., 0]


def policy_gradient(log_q, log_p):
    """(value, what is differentiated)."""
    advantage = (chosen(log_p) - chosen(log_q)).detach()
    return -advantage, -advantage * chosen(log_q)


def minillm(log_q, log_p):
    """(value, what is differentiated), with a mean over the later tokens by cumulative sums from the end."""
    alive = torch.tensor(ALIVE)
    reward = torch.where(alive, (chosen(log_p) - chosen(log_q)).detach(), 0.0)
    total, count = (x.flip(1).cumsum(1).flip(1) - x for x in (reward, alive.double()))
    later = total / count.clamp(min=1)
    exact = divergence(log_q, log_p, 1.0)
    return exact - later, exact - later * chosen(log_q)


def oracle(loss: TokenLoss):
    """Values [B,T] and gradients in the student's logits, in float64."""
    student, teacher = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True), torch.tensor(TEACHER).double()
    log_q, log_p = log_softmax(student / TEMPERATURE, -1), log_softmax(teacher / TEMPERATURE, -1)
    found = {
        "cross_entropy": lambda: cross_entropy(student.mT, torch.tensor(LABELS), reduction="none"),
        "forward_kl": lambda: divergence(log_q, log_p, 0.0),
        "reverse_kl": lambda: divergence(log_q, log_p, 1.0),
        "jsd": lambda: divergence(log_q, log_p, loss.reverse_weight),
        "adaptive_kl": lambda: adaptive(log_q, log_p),
        "entropy_gated_kl": lambda: gated(log_q, log_p),
        "policy_gradient": lambda: policy_gradient(log_q, log_p),
        "minillm": lambda: minillm(log_q, log_p),
    }[loss.name]()
    value, surrogate = found if isinstance(found, tuple) else (found, found)
    surrogate[torch.tensor(ALIVE)].sum().backward()
    return value.detach().numpy(), some(student.grad).numpy()


@jax.jit
def rewards(student, teacher):
    """Rewards-to-go f32[B,T]."""
    teacher_logprob = jnp.take_along_axis(jax.nn.log_softmax(teacher), LABELS[..., None], axis=-1)[..., 0]
    positions = jnp.where(ALIVE, jnp.arange(TIME)[None], -1)
    return mean_reward_to_go(
        teacher_log_ratio(student, jnp.asarray(LABELS), teacher_logprob), jnp.asarray(ALIVE), positions
    )


CASES = [
    TokenLoss("cross_entropy"),
    TokenLoss("forward_kl"),
    TokenLoss("reverse_kl"),
    *(TokenLoss("jsd", reverse_weight=weight) for weight in (0.0, 0.1, 0.5, 0.8, 1.0)),
    TokenLoss("adaptive_kl"),
    TokenLoss("entropy_gated_kl", gate=GATE),
    TokenLoss("policy_gradient"),
    TokenLoss("minillm"),
]


@pytest.mark.parametrize("loss", CASES, ids=lambda loss: f"{loss.name}-{loss.reverse_weight}")
def test_values_and_gradients_against_float64(loss):
    objective = Objective(student=loss, temperature=TEMPERATURE)
    later = rewards(STUDENT / TEMPERATURE, TEACHER / TEMPERATURE) if loss.name == "minillm" else None

    def summed(student):
        kinds = jnp.asarray(ALIVE, jnp.int32)
        each = token_losses(student, jnp.asarray(TEACHER), jnp.asarray(LABELS), kinds, objective, reward_to_go=later)
        return each.sum(), each

    (_, each), grads = jax.jit(jax.value_and_grad(summed, has_aux=True))(jnp.asarray(STUDENT))
    value, expected = oracle(loss)
    np.testing.assert_allclose(each[ALIVE], value[ALIVE], atol=1e-5, rtol=2e-6)
    np.testing.assert_allclose(grads, expected, atol=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_divergences_against_trl(beta):
    trainer = pytest.importorskip("trl.experimental.gkd").GKDTrainer
    loss = TokenLoss("jsd", reverse_weight=beta)
    labels = torch.tensor(np.where(ALIVE, LABELS, -100))
    student = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)
    value = trainer.generalized_jsd_loss(
        student, torch.tensor(TEACHER).double(), labels, beta=beta, temperature=TEMPERATURE, reduction="batchmean"
    )
    value.backward()
    mean, grads = mean_loss(loss, TEMPERATURE)
    assert mean == pytest.approx(float(value.detach()), abs=1e-5)
    np.testing.assert_allclose(grads, some(student.grad).numpy(), atol=1e-5)


def test_policy_gradient_against_trl():
    trl_loss = pytest.importorskip("trl.experimental.sdpo.loss_utils").compute_sampled_token_self_distillation_loss
    student = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)
    each = trl_loss(student, torch.tensor(TEACHER).double(), torch.tensor(LABELS), distillation_alpha=1.0)
    each[torch.tensor(ALIVE)].mean().backward()
    np.testing.assert_allclose(mean_loss(TokenLoss("policy_gradient"), 1.0)[1], some(student.grad).numpy(), atol=1e-5)


def mean_loss(loss: TokenLoss, temperature: float):
    """The mean over the living tokens and its gradient in the student's logits."""
    objective = Objective(student=loss, temperature=temperature)
    teacher, labels, kinds = jnp.asarray(TEACHER), jnp.asarray(LABELS), jnp.asarray(ALIVE, jnp.int32)

    def mean(student):
        return token_losses(student, teacher, labels, kinds, objective).sum() / ALIVE.sum()

    value, grads = jax.jit(jax.value_and_grad(mean))(jnp.asarray(STUDENT))
    return float(value), np.asarray(grads)
