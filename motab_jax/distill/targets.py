"""From a trajectory to a training batch: the stitched target (MOTAB, eq. 11) and the spliced one.

stitched: prompt, everything written in the order of writing, the flawed steps included, and the transition text in
front of each of the teacher's interventions. spliced: prompt and completion, the flawed steps dropped.
"""

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.data.sources import Source
from motab_jax.models.topk import TopK

NONE, STUDENT_KIND, TEACHER_KIND, FLAWED_KIND, TRANSITION_KIND = range(5)
KINDS = ("none", "student", "teacher", "flawed", "transition")


@flax.struct.dataclass
class TargetBatch:
    """What the update trains on; B rows, N columns, D teacher width."""

    tokens: jax.Array  # i32[B,N]
    positions: jax.Array  # i32[B,N]; -1: padding
    kinds: jax.Array  # i32[B,N]; whose token it is (index into KINDS), which chooses its loss
    teacher_hidden: jax.Array | None = None  # [B,N,D]; the teacher's state that predicted the token; zeros: none did
    teacher_topk: TopK | None = None  # [B,N,k]; its k likeliest tokens there, in place of the state
    teacher_logprob: jax.Array | None = None  # f32[B,N]; its log-probability of the token; 0 where it gave none
    reward_to_go: jax.Array | None = None  # f32[B,N]; what the loss `minillm` puts in: see sampled.py


def targets_name(batch: TargetBatch) -> str:
    """What a batch carries of the teacher's distributions: topk, hidden, or nothing but the sampled tokens."""
    if batch.teacher_topk is not None:
        return "topk"
    return "sampled" if batch.teacher_hidden is None else "hidden"


def build_targets(
    trajectory, *, target: str, transition: jax.Array, max_tokens: int | None = None, logprobs: bool = False
) -> TargetBatch:
    """The training batch of a `Trajectory`; transition i32[J] are the transition text's tokens.

    At most max_tokens columns follow the prompt (None: room for all that can have been written; a spliced target
    never needs more than the rollout's max_new_tokens). logprobs: carry the teacher's log-probabilities of the tokens,
    for losses that need them and have no hidden states to take them from.

    A teacher's token keeps the distribution of the teacher's own clean context: it never saw the flawed steps.
    """
    stitched = target == "stitched"
    rows, entries = trajectory.tokens.shape
    rewinds = trajectory.rewind_at.shape[1] if stitched else 0
    happened = jnp.arange(trajectory.rewind_at.shape[1])[None] < trajectory.num_rewinds[:, None]
    size = transition.shape[0]
    width = min(entries + rewinds * size, max_tokens or entries + rewinds * size)
    keep = trajectory.used if stitched else trajectory.kept
    place = jnp.cumsum(keep, axis=1) - 1
    if stitched:
        earlier = happened[:, None, :] & (trajectory.rewind_at[:, None, :] <= jnp.arange(entries)[None, :, None])
        place = place + size * jnp.sum(earlier, axis=-1)
    place = jnp.where(keep & (place < width), place, width)
    source = _inverse(place, width)
    kinds = jnp.where(trajectory.sources == Source.TEACHER, TEACHER_KIND, STUDENT_KIND)
    kinds = jnp.where(trajectory.discarded_by >= 0, FLAWED_KIND, kinds)
    tokens, kinds = _take(trajectory.tokens, source), _take(kinds, source)
    if stitched and size:
        numbers = jnp.arange(rewinds)[None]
        begin = jnp.where(happened, trajectory.rewind_at + size * numbers, width)
        index = (begin[:, :, None] + jnp.arange(size)[None, None]).reshape(rows, -1)
        each = jnp.arange(rows)[:, None]
        tokens = tokens.at[each, index].set(jnp.tile(transition, (rows, rewinds)), mode="drop")
        kinds = kinds.at[each, index].set(TRANSITION_KIND, mode="drop")
    topk = getattr(trajectory, "teacher_topk", None)
    hidden = None if topk is not None or trajectory.teacher_hidden.shape[-1] == 0 else trajectory.teacher_hidden
    teacher = hidden, topk, trajectory.teacher_logprob if logprobs else None
    return _with_prompt(trajectory, tokens, kinds, jax.tree.map(lambda x: _take(x, source), teacher))


def _inverse(place: jax.Array, width: int) -> jax.Array:
    """For each of `width` places the log entry that stands there, i32[B,width]; -1 where none."""
    rows, entries = place.shape
    source = jnp.full((rows, width), -1, jnp.int32)
    number = jnp.broadcast_to(jnp.arange(entries, dtype=jnp.int32), place.shape)
    return source.at[jnp.arange(rows)[:, None], place].set(number, mode="drop")


def _take(table: jax.Array, source: jax.Array) -> jax.Array:
    """table[b, source[b, n]], zero where source is -1."""
    index = jnp.maximum(source, 0)
    extra = (...,) + (None,) * (table.ndim - 2)
    return jnp.where(source[extra] >= 0, jnp.take_along_axis(table, index[extra], axis=1), 0)


def _with_prompt(trajectory, tokens, kinds, teacher) -> TargetBatch:
    """Put the left-padded prompt in front; teacher: its hidden states, top k and log-probabilities, or None each."""
    prompt, before = trajectory.prompt_tokens, trajectory.prompt_positions
    length = jnp.max(before, axis=1, keepdims=True) + 1
    positions = jnp.where(kinds != NONE, length + jnp.arange(tokens.shape[1])[None], -1)
    pad = ((0, 0), (prompt.shape[1], 0))
    hidden, topk, logprob = jax.tree.map(lambda x: jnp.pad(x, (*pad, *[(0, 0)] * (x.ndim - 2))), teacher)
    return TargetBatch(
        tokens=jnp.concatenate([prompt, tokens], axis=1),
        positions=jnp.concatenate([before, positions], axis=1),
        kinds=jnp.pad(kinds, pad, constant_values=NONE),
        teacher_hidden=hidden,
        teacher_topk=topk,
        teacher_logprob=logprob,
    )
