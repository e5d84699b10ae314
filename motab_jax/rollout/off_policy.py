"""Trajectories that the student did not generate: the data's completions, or the teacher's own.

To the losses, the records and the metrics they are trajectories like any other. All their tokens count as the
teacher's, none is discarded, and they have no steps: the monitor doesn't judge them.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int32, Key

from motab_jax.data.sources import Source
from motab_jax.models.transformer import Model
from motab_jax.rollout.config import Prompts, RolloutConfig
from motab_jax.rollout.counters import Counters
from motab_jax.rollout.engine import rollout
from motab_jax.rollout.score_finished import score_trajectories
from motab_jax.rollout.state import empty_log
from motab_jax.rollout.trajectory import FinishReason, Trajectory


class Completions(flax.struct.PyTreeNode):
    """The completions of a batch of prompts; C = max_new_tokens columns."""

    tokens: Int32[Array, "N C"]  # right-padded
    lengths: Int32[Array, "N"]  # a stop token included; 0: the row is left out


def from_completions(
    teacher: Model | None, prompts: Prompts, completions: Completions, config: RolloutConfig, *, score: bool
) -> Trajectory:
    """Trajectories that hold completions which no model generated here, such as the data's.

    Args:
      teacher: the teacher, if any.
      prompts: left-padded.
      completions: of the same rows.
      config: the rollout's configuration.
      score: the teacher scores the completions in one pass, for the targets that config names; else they are empty.

    Returns:
      Trajectories of the same shapes as those of `rollout` with this teacher and config.
    """
    log = empty_log(teacher, prompts, config)
    tokens = jnp.pad(completions.tokens, ((0, 0), (0, log.tokens.shape[1] - completions.tokens.shape[1])))
    last = jnp.take_along_axis(completions.tokens, jnp.maximum(completions.lengths[:, None] - 1, 0), axis=1)
    stopped = jnp.any(last == config.stop_ids[None], axis=1)
    finish = jnp.where(stopped, jnp.int32(FinishReason.STOP), jnp.int32(FinishReason.LENGTH))
    log = log.replace(
        tokens=tokens,
        sources=jnp.full_like(tokens, int(Source.TEACHER)),
        teacher_logprob=jnp.full_like(log.teacher_logprob, jnp.nan),
        length=completions.lengths,
        finish=jnp.where(completions.lengths > 0, finish, jnp.int32(FinishReason.RUNNING)),
    )
    return score_trajectories(teacher, log, config) if score and teacher is not None else log


def generate_with_teacher(
    teacher: Model, prompts: Prompts, key: Key[Array, ""], config: RolloutConfig, *, score: bool
) -> Trajectory:
    """Trajectories that the teacher generates from the prompt to the end, sampled as config has the student sample.

    Args:
      teacher: the teacher.
      prompts: left-padded.
      key: as for `rollout`.
      config: the rollout's configuration; its monitor is not used.
      score: as for `from_completions`: targets come from a pass of their own.

    Returns:
      Trajectories of the same shapes as those of `rollout` with this teacher and config.
    """
    alone = config.replace(
        monitor=dataclasses.replace(config.monitor, enabled=False),
        targets=dataclasses.replace(config.targets, kind="sampled"),
    )
    log = rollout(teacher, None, prompts, key, alone)
    completions = Completions(log.tokens[:, : config.max_new_tokens], log.length)
    result = from_completions(teacher, prompts, completions, config, score=score)
    generated = _as_teachers(log.counters).replace(teacher_scored=jnp.sum(log.length).astype(jnp.float32))
    return result.replace(counters=jax.tree.map(jnp.add, generated, result.counters))


def _as_teachers(counters: Counters) -> Counters:
    """The counts of a rollout that the teacher ran as the student, counted as the teacher's."""
    none = jnp.zeros_like(counters.student_iterations)
    return counters.replace(
        teacher_iterations=counters.student_iterations,
        teacher_columns=counters.student_columns,
        student_iterations=none,
        student_columns=none,
    )
