"""From a trajectory to a training batch: the stitched target (MOTAB, arXiv 2605.19433, eq. 11) and the spliced one.

stitched: the prompt, all tokens in the order of generation, the flawed steps included, and the transition text in front
of each of the teacher's interventions. spliced: prompt and completion, the flawed steps dropped. Left out: losses and
weights (objective.py); `reward_to_go`, which the loss fills in.
"""

import enum
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from motab_jax.data.sources import Source
from motab_jax.models.topk import TopK


class TokenKind(enum.IntEnum):
    """The kind of a target token; each kind has a loss.

    >>> [kind.word for kind in TokenKind]
    ['none', 'student', 'teacher', 'flawed', 'transition']
    """

    NONE = 0  # prompt and padding: not trained on
    STUDENT = 1
    TEACHER = 2
    FLAWED = 3  # a student's token that a rewind discarded
    TRANSITION = 4

    @property
    def word(self) -> str:
        """Its name in metrics, and its field of an `Objective`."""
        return self.name.lower()


LOSS_KINDS = tuple(kind for kind in TokenKind if kind != TokenKind.NONE)


class TargetBatch(flax.struct.PyTreeNode):
    """A training batch: N rows of T columns; D is the teacher's width, K its likeliest tokens."""

    tokens: Int[Array, "*N T"]
    positions: Int[Array, "*N T"]  # -1: padding
    kinds: Int[Array, "*N T"]  # TokenKind
    teacher_hidden: Float[Array, "*N T D"] | None = None  # the teacher's state that predicts the token; else zeros
    teacher_topk: TopK | None = None  # [*N,T,K]; the teacher's likeliest tokens there, in place of the state
    teacher_logprob: Float[Array, "*N T"] | None = None  # log p_T(token) in nats; 0 where the teacher did not score it
    reward_to_go: Float[Array, "*N T"] | None = None  # for the loss `minillm`: see sampled.py


def targets_name(batch: TargetBatch) -> str:
    """The value of `rollout.targets` that a batch is made for: topk, hidden, or sampled (the tokens alone)."""
    if batch.teacher_topk is not None:
        return "topk"
    return "sampled" if batch.teacher_hidden is None else "hidden"


def build_targets(
    trajectory: Any, *, target: str, transition: Int[Array, "J"], max_tokens: int | None = None, logprobs: bool = False
) -> TargetBatch:
    """The training batch of a `Trajectory`.

    A teacher's token keeps the distribution of the teacher's own context, which the flawed steps are not in.

    Args:
      trajectory: a `rollout.Trajectory` (this room does not import that one) of N rows, P prompt columns and E log
          entries.
      target: `stitched` or `spliced`.
      transition: the tokens of the transition text.
      max_tokens: columns after the prompt; longer targets are truncated. None: as many as a target can need. A
          spliced target never needs more than the rollout's max_new_tokens.
      logprobs: keep the teacher's log-probabilities of the tokens, for losses that need them and can't compute them
          from hidden states.

    Returns:
      Rows of P + max_tokens columns.
    """
    stitched = target == "stitched"
    rows, entries = trajectory.tokens.shape
    rewinds = trajectory.rewind_at.shape[1] if stitched else 0
    happened = jnp.arange(trajectory.rewind_at.shape[1])[None] < trajectory.num_rewinds[:, None]
    size = transition.shape[0]
    width = min(entries + rewinds * size, max_tokens or entries + rewinds * size)
    keep = trajectory.used if stitched else trajectory.kept
    column = jnp.cumsum(keep, axis=1) - 1
    if stitched:
        column = column + size * _rewinds_before(trajectory.rewind_at, happened, entries)
    column = jnp.where(keep & (column < width), column, width)
    entry = _entry_of_column(column, width)
    kinds = jnp.where(trajectory.sources == Source.TEACHER, TokenKind.TEACHER, TokenKind.STUDENT)
    kinds = jnp.where(trajectory.discarded_by >= 0, TokenKind.FLAWED, kinds)
    tokens, kinds = _take_entries(trajectory.tokens, entry), _take_entries(kinds, entry)
    if stitched and size:
        rewind_numbers = jnp.arange(rewinds)[None]
        begin = jnp.where(happened, trajectory.rewind_at + size * rewind_numbers, width)
        columns = (begin[:, :, None] + jnp.arange(size)[None, None]).reshape(rows, -1)
        row = jnp.arange(rows)[:, None]
        tokens = tokens.at[row, columns].set(jnp.tile(transition, (rows, rewinds)), mode="drop")
        kinds = kinds.at[row, columns].set(TokenKind.TRANSITION, mode="drop")
    topk = trajectory.teacher_topk
    hidden = None if topk is not None or trajectory.teacher_hidden.shape[-1] == 0 else trajectory.teacher_hidden
    teacher = hidden, topk, trajectory.teacher_logprob if logprobs else None
    return _with_prompt(trajectory, tokens, kinds, jax.tree.map(lambda x: _take_entries(x, entry), teacher))


def _rewinds_before(
    rewind_at: Int[Array, "N R"], happened: Bool[Array, "N R"], entries: int
) -> Int[Array, "N {entries}"]:
    """How many rewinds happened at or before each log entry."""

    def count(at: Array, happened: Array) -> Array:
        marks = jnp.zeros((entries,), jnp.int32).at[jnp.where(happened, at, entries)].add(1, mode="drop")
        return jnp.cumsum(marks)

    return jax.vmap(count)(rewind_at, happened)


def _entry_of_column(column: Int[Array, "N E"], width: int) -> Int[Array, "N {width}"]:
    """The log entry that each of `width` columns takes; -1 where none. The inverse of `column`."""
    rows, entries = column.shape
    empty = jnp.full((rows, width), -1, jnp.int32)
    number = jnp.broadcast_to(jnp.arange(entries, dtype=jnp.int32), column.shape)
    return empty.at[jnp.arange(rows)[:, None], column].set(number, mode="drop")


def _take_entries(table: Array, entry: Int[Array, "N T"]) -> Array:
    """table[n, entry[n, t]] of a table [N,E,...]; zero where entry is -1."""
    index = jnp.maximum(entry, 0)
    extra = (...,) + (None,) * (table.ndim - 2)
    return jnp.where(entry[extra] >= 0, jnp.take_along_axis(table, index[extra], axis=1), 0)


def _with_prompt(trajectory: Any, tokens: Int[Array, "N T"], kinds: Int[Array, "N T"], teacher: PyTree) -> TargetBatch:
    """Prepend the left-padded prompt; teacher: its hidden states, top k and log-probabilities, each of them or None."""
    prompt, prompt_positions = trajectory.prompt_tokens, trajectory.prompt_positions
    length = jnp.max(prompt_positions, axis=1, keepdims=True) + 1
    positions = jnp.where(kinds != TokenKind.NONE, length + jnp.arange(tokens.shape[1])[None], -1)
    pad = ((0, 0), (prompt.shape[1], 0))
    hidden, topk, logprob = jax.tree.map(lambda x: jnp.pad(x, (*pad, *[(0, 0)] * (x.ndim - 2))), teacher)
    return TargetBatch(
        tokens=jnp.concatenate([prompt, tokens], axis=1),
        positions=jnp.concatenate([prompt_positions, positions], axis=1),
        kinds=jnp.pad(kinds, pad, constant_values=TokenKind.NONE),
        teacher_hidden=hidden,
        teacher_topk=topk,
        teacher_logprob=logprob,
    )
