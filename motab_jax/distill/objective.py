"""The loss: each source of tokens has its own, and no more than a chunk of logits exists at a time.

The teacher's distributions come from what its scoring left in the trajectory (hidden states, or its k likeliest
tokens), so the update makes no teacher pass. Both heads are applied a chunk of tokens at a time (heads.py).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

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
from motab_jax.distill.sampled import policy_gradient, reinforce, reward_to_go, sampled_reward
from motab_jax.distill.targets import KINDS, TargetBatch, targets_name
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.topk import TopK
from motab_jax.models.transformer import Model, Params, encode, unembed

# A chunk's logits and tokens on each device: what a CPU's cache holds. Accelerators take more, since the head's
# gradient goes to memory and back for each chunk; 4 times as much keeps temporaries under a tenth of those of all
# logits of 8192 tokens.
CHUNK_ELEMENTS, CHUNK_TOKENS = 1 << 23, 256
ACCELERATED = 4
DIVERGENCES = ("forward_kl", "reverse_kl", "jsd", "adaptive_kl", "entropy_gated_kl", "minillm")
OF_SAMPLES = ("policy_gradient", "minillm")


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """One source's loss and its weight: cross_entropy, masked, or one of DIVERGENCES and OF_SAMPLES."""

    name: str = "cross_entropy"
    weight: float = 1.0
    reverse_weight: float = 0.5  # jsd
    gate: float = 0.8  # entropy_gated_kl

    @property
    def trained(self) -> bool:
        """Whether tokens of this source count at all."""
        return self.name != "masked" and self.weight > 0

    @property
    def needs_teacher(self) -> bool:
        """Whether it compares with the teacher's distribution."""
        return self.trained and self.name in DIVERGENCES

    @property
    def needs_logprob(self) -> bool:
        """Whether it takes the teacher's log-probability of the sampled token."""
        return self.trained and self.name in OF_SAMPLES


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss for each kind of token; static, so that only the divergences in use are compiled."""

    student: TokenLoss = TokenLoss()
    teacher: TokenLoss = TokenLoss()
    flawed: TokenLoss = TokenLoss()
    transition: TokenLoss = TokenLoss()
    temperature: float = 1.0
    normalize: str = "token"  # or sequence
    vocab_size: int = 0

    def losses(self) -> dict[int, TokenLoss]:
        """Kind code -> loss, of the kinds that are trained."""
        each = {KINDS.index(name): getattr(self, name) for name in KINDS[1:]}
        return {kind: loss for kind, loss in each.items() if loss.trained}

    @property
    def needs_logprob(self) -> bool:
        """Whether one of the losses takes the teacher's log-probabilities of the sampled tokens."""
        return any(loss.needs_logprob for loss in self.losses().values())

    @property
    def rewarded_kinds(self) -> tuple[int, ...]:
        """Kind codes whose loss rewards a token by those behind it."""
        return tuple(kind for kind, loss in self.losses().items() if loss.name == "minillm")


def check_targets(objective: Objective, kind: str) -> None:
    """UserError if what the rollout keeps of the teacher (hidden, topk or sampled) doesn't carry the losses."""
    divergences = [name for name in KINDS[1:] if getattr(objective, name).needs_teacher]
    if kind == "sampled" and divergences:
        name = divergences[0]
        raise UserError(
            f"rollout.targets=sampled keeps no distribution of the teacher's, which "
            f"objective.{name}_loss={getattr(objective, name).name} needs; use hidden or topk, or another loss"
        )
    if kind != "hidden" and (divergences or objective.needs_logprob) and objective.temperature != 1.0:
        raise UserError(
            f"objective.temperature={objective.temperature} with rollout.targets={kind}: the log-probabilities that "
            "are kept don't tell those at another temperature; use temperature 1, or rollout.targets=hidden"
        )


def token_losses(student_logits, teacher, labels, kinds, objective: Objective, **given) -> jax.Array:
    """Unweighted loss f32[...] of each token by its kind; zero where it isn't trained.

    student_logits [...,V]; teacher: logits [...,V], or TopK, whose tail counts as one more token (None where neither a
    divergence nor its log-probabilities are used); labels, kinds i32[...]. Given by name, f32[...]: teacher_logprob of
    the labels, where a loss needs it and there are no teacher logits; reward_to_go, for `minillm`.
    """
    computed, total = {}, jnp.zeros(labels.shape, jnp.float32)
    for kind, loss in objective.losses().items():
        recipe = (loss.name, loss.reverse_weight, loss.gate)
        if recipe not in computed:
            computed[recipe] = _loss(loss, student_logits, teacher, labels, objective.temperature, **given)
        total = total + jnp.where(kinds == kind, computed[recipe], 0.0)
    return total


def _loss(
    loss: TokenLoss, student_logits, teacher, labels, temperature: float, *, teacher_logprob=None, reward_to_go=None
):
    if loss.name == "cross_entropy":
        return cross_entropy(student_logits, labels)
    if loss.name == "policy_gradient":
        return policy_gradient(
            student_logits / temperature, labels, _logprob(teacher, labels, temperature, teacher_logprob)
        )
    distance = _divergence(loss, student_logits, teacher, temperature)
    if loss.name == "minillm":
        return distance + reinforce(student_logits / temperature, labels, reward_to_go)
    return distance


def _divergence(loss: TokenLoss, student_logits, teacher, temperature: float) -> jax.Array:
    divergence = {
        "forward_kl": forward_kl,
        "reverse_kl": reverse_kl,
        "jsd": functools.partial(jsd, reverse_weight=loss.reverse_weight),
        "adaptive_kl": adaptive_kl,
        "entropy_gated_kl": functools.partial(entropy_gated_kl, gate=loss.gate),
        "minillm": reverse_kl,  # of a single step
    }[loss.name]
    if isinstance(teacher, TopK):
        total = jax.nn.logsumexp(student_logits, axis=-1, keepdims=True)
        mine = jnp.take_along_axis(student_logits, teacher.ids, axis=-1) - total
        return divergence(with_tail(mine), with_tail(teacher.logprobs))
    return divergence(student_logits / temperature, teacher / temperature)


def _logprob(teacher, labels, temperature: float, kept) -> jax.Array:
    """The teacher's log-probability f32[...] of the labels: from its logits, or else what was kept of it."""
    return kept if teacher is None or isinstance(teacher, TopK) else -cross_entropy(teacher / temperature, labels)


def token_weights(kinds: jax.Array, objective: Objective) -> jax.Array:
    """Weight f32[B,N] of each token such that the batch's loss is sum(weight * token loss).

    normalize 'token' divides by the batch's trained tokens, 'sequence' by each row's and then by the rows.
    """
    table = jnp.array([objective.losses()[k].weight if k in objective.losses() else 0.0 for k in range(len(KINDS))])
    weight = table[kinds]
    trained = weight > 0
    if objective.normalize == "token":
        return weight / jnp.maximum(jnp.sum(trained), 1)
    each = jnp.sum(trained, axis=1, keepdims=True)
    return weight / jnp.maximum(each, 1) / jnp.maximum(jnp.sum(each > 0), 1)


def batch_loss(
    params: Params,
    config: ModelConfig,
    teacher: Model | None,
    batch: TargetBatch,
    weight: jax.Array,
    objective: Objective,
    *,
    groups: int = 1,
    platform: str | None = None,
):
    """The weighted loss f32[] and, per kind, sums of unweighted losses f32[5]; the loss is differentiable in params.

    weight f32[B,N] from `token_weights` (of the whole batch, so that micro-batches add up). Column n is predicted by
    the student's state at column n-1. The rows are cut into `groups` whose tokens stay apart: one for each device.
    platform: what it is compiled for; None: the default backend.
    """
    hidden, _ = encode(params, config, batch.tokens, batch.positions)
    hidden, batch, weight = flatten_groups((hidden, batch, weight), groups)
    chunk = tokens_per_chunk(objective.vocab_size, platform or jax.default_backend())
    return _batch_loss(config, objective, chunk, head_params(params), hidden, teacher, batch, weight)


def flatten_groups(tree, groups: int):
    """Arrays [B,N,...] as [groups, B/groups * N, ...]."""
    return jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[2:]), tree)


def objective_loss_sums(
    config: ModelConfig,
    objective: Objective,
    chunk: int,
    head: Params,
    hidden: jax.Array,
    teacher: Model | None,
    batch: TargetBatch,
    weight: jax.Array,
    d_head: jax.Array | None = None,
) -> LossSums:
    """`chunked_loss_sums` by an objective, `chunk` tokens at a time.

    teacher: at least its head; None where no loss compares with the teacher, or with other targets than hidden states.
    """
    kind, size = targets_name(batch), objective.vocab_size
    check_targets(objective, kind)
    if kind != "hidden" and objective.needs_logprob and batch.teacher_logprob is None:
        raise ValueError("the losses need the teacher's log-probabilities: build_targets(..., logprobs=True)")

    def target_of(part: TargetBatch):
        if kind == "hidden" and teacher is not None:
            return unembed(teacher.params, teacher.config, part.teacher_hidden, size)
        return part.teacher_topk

    def losses_of(logits: jax.Array, part: TargetBatch) -> jax.Array:
        target, given = target_of(part), {"teacher_logprob": part.teacher_logprob, "reward_to_go": part.reward_to_go}
        return token_losses(logits[..., :size], target, part.tokens, part.kinds, objective, **given)

    def reward_of(logits: jax.Array, part: TargetBatch) -> jax.Array:
        theirs = _logprob(target_of(part), part.tokens, objective.temperature, part.teacher_logprob)
        return sampled_reward(logits[..., :size] / objective.temperature, part.tokens, theirs)

    chunk = min(weight.shape[1], chunk)
    if objective.rewarded_kinds:
        counted = jnp.isin(batch.kinds, jnp.array(objective.rewarded_kinds)) & (batch.positions > 0)
        reward = chunked_token_values(head, config, hidden, batch, counted, reward_of, size=chunk)
        batch = batch.replace(reward_to_go=reward_to_go(reward, counted, batch.positions))
    return chunked_loss_sums(head, config, hidden, batch, weight, losses_of, size=chunk, d_head=d_head)


def tokens_per_chunk(vocab_size: int, platform: str) -> int:
    """Tokens of a chunk, for vocab_size logits a token on each device; whole tiles of 128 where so many fit."""
    times = 1 if platform == "cpu" else ACCELERATED
    size = max(1, min(times * CHUNK_TOKENS, times * CHUNK_ELEMENTS // vocab_size))
    return size if size < 128 else size - size % 128


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _batch_loss(config, objective, chunk: int, head: Params, hidden, teacher, batch, weight):
    scored = objective_loss_sums(config, objective, chunk, head, hidden, teacher, batch, weight)
    return jnp.sum(scored.loss), jnp.sum(scored.per_kind, axis=0)


def _with_gradient(config, objective, chunk, head: Params, hidden, teacher, batch, weight):
    [(name, weights)] = head.items()
    zeros = jnp.zeros((hidden.shape[0], *weights.shape), jnp.float32)
    scored = objective_loss_sums(config, objective, chunk, head, hidden, teacher, batch, weight, zeros)
    gradients = {name: jnp.sum(scored.d_head, axis=0).astype(weights.dtype)}, scored.d_hidden
    return (jnp.sum(scored.loss), jnp.sum(scored.per_kind, axis=0)), gradients


def _scale(config, objective, chunk, gradients, slope):
    """The backward pass: the gradients are there already. The sums by kind are for the log and have none."""
    head, hidden = jax.tree.map(lambda x: x * slope[0].astype(x.dtype), gradients)
    return head, hidden, None, None, None


_batch_loss.defvjp(_with_gradient, _scale)
