"""Trajectories whose text the student did not write: the data's completions, or the teacher's own text.

To the losses, the records and the metrics they are trajectories like any other. All their text counts as the teacher's,
nothing in it is discarded, and they have no steps: nobody judges them.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from motab_jax.data.sources import Source
from motab_jax.models.transformer import Model
from motab_jax.rollout.config import Prompts, RolloutConfig
from motab_jax.rollout.counters import Counters
from motab_jax.rollout.engine import rollout
from motab_jax.rollout.score_finished import score_trajectories
from motab_jax.rollout.state import empty_log
from motab_jax.rollout.trajectory import FinishReason, Trajectory


@flax.struct.dataclass
class Completions:
    """What follows the prompts of a batch; N rows, C = max_new_tokens columns."""

    tokens: jax.Array  # i32[N,C]; right-padded
    lengths: jax.Array  # i32[N]; at least 1, a stop token included


def from_completions(
    teacher: Model | None, prompts: Prompts, text: Completions, config: RolloutConfig, *, score: bool
) -> Trajectory:
    """Trajectories that hold this text, shaped as `rollout` with the same teacher and numbers would shape them.

    score: the teacher scores the text, in one pass, for the targets that config names. Otherwise they stay empty.
    """
    log = empty_log(teacher, prompts, config)
    tokens = jnp.pad(text.tokens, ((0, 0), (0, log.tokens.shape[1] - text.tokens.shape[1])))
    last = jnp.take_along_axis(text.tokens, text.lengths[:, None] - 1, axis=1)
    stopped = jnp.any(last == config.stop_ids[None], axis=1)
    log = log.replace(
        tokens=tokens,
        sources=jnp.full_like(tokens, int(Source.TEACHER)),
        teacher_logprob=jnp.full_like(log.teacher_logprob, jnp.nan),
        length=text.lengths,
        finish=jnp.where(stopped, jnp.int32(FinishReason.STOP), jnp.int32(FinishReason.LENGTH)),
    )
    return score_trajectories(teacher, log, config) if score and teacher is not None else log


def generate_with_teacher(
    teacher: Model, prompts: Prompts, key: jax.Array, config: RolloutConfig, *, score: bool
) -> Trajectory:
    """Trajectories that the teacher writes, from the prompt to the end, as config has the student sample.

    score: as for `from_completions`; a distribution that the loss compares with is taken from a pass of its own.
    """
    alone = config.replace(
        monitor=dataclasses.replace(config.monitor, enabled=False),
        targets=dataclasses.replace(config.targets, kind="sampled"),
    )
    log = rollout(teacher, None, prompts, key, alone)
    found = from_completions(
        teacher, prompts, Completions(log.tokens[:, : config.max_new_tokens], log.length), config, score=score
    )
    wrote = _as_teachers(log.counters).replace(teacher_scored=jnp.sum(log.length).astype(jnp.float32))
    return found.replace(counters=jax.tree.map(jnp.add, wrote, found.counters))


def _as_teachers(counters: Counters) -> Counters:
    """The counts of a rollout in which the teacher sat in the student's place."""
    none = jnp.zeros_like(counters.student_iterations)
    return counters.replace(
        teacher_iterations=counters.student_iterations,
        teacher_columns=counters.student_columns,
        student_iterations=none,
        student_columns=none,
    )
