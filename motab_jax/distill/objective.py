"""The loss of a batch: a loss for each kind of token, computed for a chunk of logits at a time.

The teacher's distributions come from what the rollout kept in the trajectory (hidden states, or the K likeliest
tokens), so the update makes no forward pass of the teacher. Both heads are applied to a chunk of tokens at a time
(heads.py). Left out: the gradient in the parameters (update.py).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from motab_jax.config import UserError
from motab_jax.distill.divergence import (
    adaptive_kl,
    cross_entropy,
    entropy_gated_kl,
    forward_kl,
    jsd,
    reverse_kl,
    with_tail,
)
from motab_jax.distill.heads import LossSums, chunked_loss_sums, chunked_token_values, head_params
from motab_jax.distill.sampled import mean_reward_to_go, policy_gradient, reinforce, teacher_log_ratio
from motab_jax.distill.targets import LOSS_KINDS, TargetBatch, TokenKind, targets_name
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.topk import TopK
from motab_jax.models.transformer import Model, Params, common_columns, encode, mask_padding, unembed

# A chunk's logits and tokens on each device: what a CPU's cache holds. Accelerators take more, since the head's
# gradient goes to memory and back for each chunk; 4 times as much keeps temporaries under a tenth of those of all
# logits of 8192 tokens.
CHUNK_ELEMENTS, CHUNK_TOKENS = 1 << 23, 256
ACCELERATOR_FACTOR = 4
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "adaptive_kl", "entropy_gated_kl", "minillm")
SAMPLED_LOSSES = ("policy_gradient", "minillm")


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """The loss of one kind of token and its weight: cross_entropy, masked, or one of DIVERGENCES and SAMPLED_LOSSES."""

    name: str = "cross_entropy"
    weight: float = 1.0
    reverse_weight: float = 0.5  # jsd
    gate: float = 0.8  # entropy_gated_kl; nats

    @property
    def trained(self) -> bool:
        """Whether tokens of this kind count at all."""
        return self.name != "masked" and self.weight > 0

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss needs the teacher's distribution."""
        return self.trained and self.name in DIVERGENCES

    @property
    def needs_logprob(self) -> bool:
        """Whether the loss needs the teacher's log-probability of the sampled token."""
        return self.trained and self.name in SAMPLED_LOSSES

    def divergence(self, *, sharded: bool = False) -> Callable[[Array, Array], Array]:
        """Its divergence: a function of the student's and the teacher's logits, of a vocabulary that may be sharded."""
        return {
            "forward_kl": forward_kl,
            "reverse_kl": reverse_kl,
            "jsd": functools.partial(jsd, reverse_weight=self.reverse_weight),
            "adaptive_kl": functools.partial(adaptive_kl, sharded=sharded),
            "entropy_gated_kl": functools.partial(entropy_gated_kl, gate=self.gate),
            "minillm": reverse_kl,  # of a single step
        }[self.name]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss for each kind of token; static, so that only the divergences in use are compiled."""

    student: TokenLoss = TokenLoss()
    teacher: TokenLoss = TokenLoss()
    flawed: TokenLoss = TokenLoss()
    transition: TokenLoss = TokenLoss()
    temperature: float = 1.0
    normalize: str = "token"  # or sequence
    vocab_size: int | None = None  # the tokenizer's; None: no model is padded
    sharded_vocab: bool = False  # over devices

    def loss_of(self, kind: TokenKind) -> TokenLoss:
        """The loss of a kind of token."""
        return getattr(self, kind.word)

    def losses(self) -> dict[TokenKind, TokenLoss]:
        """The losses of the kinds that are trained."""
        return {kind: self.loss_of(kind) for kind in LOSS_KINDS if self.loss_of(kind).trained}

    @property
    def needs_logprob(self) -> bool:
        """Whether one of the losses needs the teacher's log-probabilities of the sampled tokens."""
        return any(loss.needs_logprob for loss in self.losses().values())

    @property
    def rewarded_kinds(self) -> tuple[TokenKind, ...]:
        """The kinds whose loss uses the rewards of later tokens."""
        return tuple(kind for kind, loss in self.losses().items() if loss.name == "minillm")


def check_targets(objective: Objective, targets: str) -> None:
    """UserError if what the rollout keeps of the teacher (hidden, topk or sampled) isn't enough for the losses."""
    divergences = [kind for kind in LOSS_KINDS if objective.loss_of(kind).needs_teacher]
    if targets == "sampled" and divergences:
        kind = divergences[0]
        raise UserError(
            f"rollout.targets=sampled keeps no distribution of the teacher, which "
            f"objective.{kind.word}_loss={objective.loss_of(kind).name} needs; use hidden or topk, or another loss"
        )
    if targets != "hidden" and (divergences or objective.needs_logprob) and objective.temperature != 1.0:
        raise UserError(
            f"objective.temperature={objective.temperature} with rollout.targets={targets}: log-probabilities that "
            "are kept at temperature 1 don't give those at another; use temperature 1, or rollout.targets=hidden"
        )


def token_losses(
    student_logits: Float[Array, "*N V"],
    teacher: Float[Array, "*N W"] | TopK | None,
    labels: Int[Array, "*N"],
    kinds: Int[Array, "*N"],
    objective: Objective,
    *,
    teacher_logprob: Float[Array, "*N"] | None = None,
    reward_to_go: Float[Array, "*N"] | None = None,
) -> Float32[Array, "*N"]:
    """The unweighted loss of each token by its kind; zero where it isn't trained.

    Args:
      student_logits: the student's logits, -inf for padding.
      teacher: likewise the teacher's, padded to another size where its embedding is; or its likeliest tokens, and all
          others count as one. None where no loss needs them.
      labels: the tokens.
      kinds: their `TokenKind`s.
      objective: the losses.
      teacher_logprob: log p_T(label) in nats, where a loss needs it and there are no teacher's logits.
      reward_to_go: mean reward of the later tokens in nats, for `minillm`.

    Returns:
      The losses in nats.
    """
    temperature = objective.temperature
    computed, total = {}, jnp.zeros(labels.shape, jnp.float32)
    for kind, loss in objective.losses().items():
        loss_key = (loss.name, loss.reverse_weight, loss.gate)
        if loss_key not in computed:
            if loss.name == "cross_entropy":
                losses = cross_entropy(student_logits, labels)
            elif loss.name == "policy_gradient":
                scaled = student_logits / temperature
                losses = policy_gradient(
                    scaled, labels, _teacher_logprob(teacher, labels, temperature, teacher_logprob)
                )
            else:
                losses = loss.divergence(sharded=objective.sharded_vocab)(
                    *_comparable(student_logits, teacher, temperature)
                )
            if loss.name == "minillm":
                assert reward_to_go is not None
                losses = losses + reinforce(student_logits / temperature, labels, reward_to_go)
            computed[loss_key] = losses
        total = total + jnp.where(kinds == kind, computed[loss_key], 0.0)
    return total


def _comparable(student_logits: Array, teacher: Array | TopK | None, temperature: float) -> tuple[Array, Array]:
    """Both models' logits over the same tokens: the vocabulary, or the teacher's likeliest ones and all others."""
    if isinstance(teacher, TopK):
        total = jax.nn.logsumexp(student_logits, axis=-1, keepdims=True)
        student_logprobs = jnp.take_along_axis(student_logits, teacher.ids, axis=-1) - total
        return with_tail(student_logprobs), with_tail(teacher.logprobs)
    assert teacher is not None, "a divergence needs the teacher's distribution"
    student_logits, teacher = common_columns(student_logits, teacher)
    return student_logits / temperature, teacher / temperature


def _teacher_logprob(teacher: Array | TopK | None, labels: Array, temperature: float, kept: Array | None) -> Array:
    """log p_T(label): from the teacher's logits, or else the value that the rollout kept."""
    if teacher is None or isinstance(teacher, TopK):
        assert kept is not None, "the loss needs the teacher's log-probabilities"
        return kept
    return -cross_entropy(teacher / temperature, labels)


def token_weights(kinds: Int[Array, "N T"], objective: Objective) -> Float32[Array, "N T"]:
    """The weight of each token such that the batch's loss is sum(weight * token loss).

    `normalize` 'token' divides by the batch's trained tokens, 'sequence' by each row's and then by the rows.
    """
    losses = objective.losses()
    table = jnp.array([losses[kind].weight if kind in losses else 0.0 for kind in TokenKind])
    weight = table[kinds]
    trained = weight > 0
    if objective.normalize == "token":
        return weight / jnp.maximum(jnp.sum(trained), 1)
    row_tokens = jnp.sum(trained, axis=1, keepdims=True)
    return weight / jnp.maximum(row_tokens, 1) / jnp.maximum(jnp.sum(row_tokens > 0), 1)


def batch_loss(
    params: Params,
    config: ModelConfig,
    teacher: Model | None,
    batch: TargetBatch,
    weight: Float32[Array, "N T"],
    objective: Objective,
    *,
    groups: int = 1,
    chunk_tokens: int | None = None,
) -> tuple[Float32[Array, ""], Float32[Array, "U"]]:
    """The weighted loss of a batch, differentiable in params. The state at column t - 1 predicts the token at t.

    Args:
      params: the student's parameters.
      config: the student's architecture.
      teacher: at least the teacher's head; None where no loss needs it.
      batch: the targets.
      weight: from `token_weights` of the whole batch, so that micro-batches add up.
      objective: the losses.
      groups: the number of groups that the rows are split into, one for each device; no chunk mixes their tokens.
      chunk_tokens: tokens of each group whose logits exist at a time. None: `tokens_per_chunk` of this platform.

    Returns:
      The loss, and the sums of unweighted losses by kind, in nats.
    """
    hidden, _ = encode(params, config, batch.tokens, batch.positions)
    hidden, batch, weight = flatten_groups((hidden, batch, weight), groups)
    chunk_tokens = chunk_tokens or tokens_per_chunk(config.vocab_size, jax.default_backend())
    return _differentiable_loss(config, objective, chunk_tokens, head_params(params), hidden, teacher, batch, weight)


def flatten_groups(tree: Any, groups: int) -> Any:
    """A tree of arrays [N,T,...] as [groups, N / groups * T, ...]."""
    return jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[2:]), tree)


def objective_loss_sums(
    config: ModelConfig,
    objective: Objective,
    chunk_tokens: int,
    head: Params,
    hidden: Float[Array, "G T D"],
    teacher: Model | None,
    batch: TargetBatch,
    weight: Float32[Array, "G T"],
    d_head: Float32[Array, "G _ _"] | None = None,
) -> LossSums:
    """`chunked_loss_sums` of an objective.

    Args:
      config: the student's architecture.
      objective: the losses.
      chunk_tokens: tokens of each group whose logits exist at a time.
      head: the student's head, from `head_params`.
      hidden: the student's final hidden states.
      teacher: at least the teacher's head; None where no loss needs it, or the batch has no hidden states.
      batch: the targets, with arrays [G,T,...].
      weight: the tokens' weights.
      d_head: where the head's gradient is added to. None: no gradient is computed.

    Returns:
      The sums.

    Raises:
      UserError: the batch lacks the teacher's distributions that a loss needs.
      ValueError: it lacks the teacher's log-probabilities of the tokens.
    """
    targets = targets_name(batch)
    check_targets(objective, targets)
    if targets != "hidden" and objective.needs_logprob and batch.teacher_logprob is None:
        raise ValueError("the losses need the teacher's log-probabilities: build_targets(..., logprobs=True)")

    def teacher_of(batch: TargetBatch) -> Array | TopK | None:
        if batch.teacher_topk is not None or batch.teacher_hidden is None or teacher is None:
            return batch.teacher_topk
        return unembed(teacher.params, teacher.config, batch.teacher_hidden, objective.vocab_size)

    def losses_of(logits: Array, batch: TargetBatch) -> Array:
        teacher_target = teacher_of(batch)
        return token_losses(
            mask_padding(logits, objective.vocab_size), teacher_target, batch.tokens, batch.kinds, objective,
            teacher_logprob=batch.teacher_logprob, reward_to_go=batch.reward_to_go,
        )  # fmt: skip

    def reward_of(logits: Array, batch: TargetBatch) -> Array:
        temperature = objective.temperature
        teacher_logprob = _teacher_logprob(teacher_of(batch), batch.tokens, temperature, batch.teacher_logprob)
        return teacher_log_ratio(
            mask_padding(logits, objective.vocab_size) / temperature, batch.tokens, teacher_logprob
        )

    chunk_tokens = min(weight.shape[1], chunk_tokens)
    if objective.rewarded_kinds:
        counted = jnp.isin(batch.kinds, jnp.array(objective.rewarded_kinds)) & (batch.positions > 0)
        reward = chunked_token_values(head, config, hidden, batch, counted, reward_of, chunk_tokens=chunk_tokens)
        batch = batch.replace(reward_to_go=mean_reward_to_go(reward, counted, batch.positions))
    return chunked_loss_sums(head, config, hidden, batch, weight, losses_of, chunk_tokens=chunk_tokens, d_head=d_head)


def tokens_per_chunk(vocab_size: int, platform: str) -> int:
    """Tokens of a chunk by the vocabulary's size on each device; a multiple of 128 where at least 128 fit.

    >>> tokens_per_chunk(151_936, "cpu"), tokens_per_chunk(151_936, "tpu")
    (55, 128)
    """
    factor = 1 if platform == "cpu" else ACCELERATOR_FACTOR
    size = max(1, min(factor * CHUNK_TOKENS, factor * CHUNK_ELEMENTS // vocab_size))
    return size if size < 128 else size - size % 128


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _differentiable_loss(
    config: ModelConfig,
    objective: Objective,
    chunk_tokens: int,
    head: Params,
    hidden: Float[Array, "G T D"],
    teacher: Model | None,
    batch: TargetBatch,
    weight: Float32[Array, "G T"],
) -> tuple[Float32[Array, ""], Float32[Array, "U"]]:
    sums = objective_loss_sums(config, objective, chunk_tokens, head, hidden, teacher, batch, weight)
    return jnp.sum(sums.loss), jnp.sum(sums.per_kind, axis=0)


def _loss_and_gradients(config, objective, chunk_tokens, head, hidden, teacher, batch, weight):
    """The forward pass: the loss, and its gradients in head and hidden states, which the backward pass scales."""
    [(name, head_weight)] = head.items()
    zeros = jnp.zeros((hidden.shape[0], *head_weight.shape), jnp.float32)
    sums = objective_loss_sums(config, objective, chunk_tokens, head, hidden, teacher, batch, weight, zeros)
    assert sums.d_head is not None
    gradients = {name: jnp.sum(sums.d_head, axis=0).astype(head_weight.dtype)}, sums.d_hidden
    return (jnp.sum(sums.loss), jnp.sum(sums.per_kind, axis=0)), gradients


def _scale_gradients(config, objective, chunk_tokens, gradients, cotangents):
    """The backward pass. The sums by kind are for the log and have no gradient."""
    loss_cotangent, _ = cotangents
    head, hidden = jax.tree.map(lambda x: x * loss_cotangent.astype(x.dtype), gradients)
    return head, hidden, None, None, None


_differentiable_loss.defvjp(_loss_and_gradients, _scale_gradients)
