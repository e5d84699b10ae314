"""The loss: each source of tokens has its own, and no more than a chunk of logits exists at a time.

The teacher's distributions come from the hidden states its scoring left in the trajectory, so the update makes no
teacher pass. Both heads are applied inside a rematerialised scan over column chunks: [B,N,V] is never held.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from motab_jax.distill.divergence import cross_entropy, forward_kl, jsd, reverse_kl
from motab_jax.distill.targets import KINDS, NONE, TargetBatch
from motab_jax.models.architecture import ModelConfig
from motab_jax.models.transformer import Model, Params, encode, unembed

CHUNK_ELEMENTS = 1 << 24
NEEDS_TEACHER = ("forward_kl", "reverse_kl", "jsd")


@dataclasses.dataclass(frozen=True)
class TokenLoss:
    """One source's loss: cross_entropy, forward_kl, reverse_kl, jsd or masked; and its weight."""

    name: str = "cross_entropy"
    weight: float = 1.0
    reverse_weight: float = 0.5

    @property
    def trained(self) -> bool:
        """Whether tokens of this source count at all."""
        return self.name != "masked" and self.weight > 0


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


def token_losses(student_logits, teacher_logits, labels, kinds, objective: Objective) -> jax.Array:
    """Unweighted loss f32[...] of each token by its kind; zero where it isn't trained.

    student_logits, teacher_logits [..., V] (teacher's may be None where no divergence is used); labels, kinds i32[...].
    """
    computed, total = {}, jnp.zeros(labels.shape, jnp.float32)
    heat = objective.temperature
    for kind, loss in objective.losses().items():
        recipe = (loss.name, loss.reverse_weight)
        if recipe not in computed:
            if loss.name == "cross_entropy":
                computed[recipe] = cross_entropy(student_logits, labels)
            else:
                divergence = {
                    "forward_kl": forward_kl,
                    "reverse_kl": reverse_kl,
                    "jsd": functools.partial(jsd, reverse_weight=loss.reverse_weight),
                }[loss.name]
                computed[recipe] = divergence(student_logits / heat, teacher_logits / heat)
        total = total + jnp.where(kinds == kind, computed[recipe], 0.0)
    return total


def weights_of(kinds: jax.Array, objective: Objective) -> jax.Array:
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
    params: Params, config: ModelConfig, teacher: Model | None, batch: TargetBatch, weight, objective: Objective
):
    """The weighted loss f32[] and, per kind, sums of unweighted losses f32[5]; differentiable in params.

    weight f32[B,N] from `weights_of` (of the whole batch, so that micro-batches add up). Column n is predicted by the
    student's state at column n-1.
    """
    hidden, _ = encode(params, config, batch.tokens, batch.positions)
    columns = _chunks(
        (hidden[:, :-1], batch.teacher_hidden[:, 1:], batch.tokens[:, 1:], batch.kinds[:, 1:], weight[:, 1:]),
        objective.vocab_size,
    )

    @jax.checkpoint
    def chunk(params, columns):
        state, teacher_state, labels, kinds, weight = columns
        student_logits = unembed(params, config, state, objective.vocab_size)
        teacher_logits = None
        if teacher is not None:
            teacher_logits = unembed(teacher.params, teacher.config, teacher_state, objective.vocab_size)
        losses = token_losses(student_logits, teacher_logits, labels, kinds, objective)
        per_kind = jnp.zeros((len(KINDS),)).at[kinds].add(jax.lax.stop_gradient(losses))
        return jnp.sum(losses * weight), per_kind

    def add(total, columns):
        loss, per_kind = chunk(params, columns)
        return (total[0] + loss, total[1] + per_kind), None

    zero = (jnp.float32(0.0), jnp.zeros((len(KINDS),)))
    (loss, per_kind), _ = jax.lax.scan(add, zero, columns)
    return loss, per_kind


def _chunks(arrays, vocab_size: int):
    """Cut [B,N,...] arrays into [chunks,B,c,...], padded with zeros (kind NONE, weight 0)."""
    rows, columns = arrays[0].shape[:2]
    size = max(1, min(columns, CHUNK_ELEMENTS // (rows * vocab_size)))

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, -columns % size)) + ((0, 0),) * (x.ndim - 2), constant_values=NONE)
        return jnp.moveaxis(x.reshape(rows, -1, size, *x.shape[2:]), 1, 0)

    return jax.tree.map(cut, arrays)
